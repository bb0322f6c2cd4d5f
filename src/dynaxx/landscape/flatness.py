"""The probe `flatness`: how sharp the loss is around the weights, by measures that do and do not survive rescaling."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dynaxx.core.chart import Chart, Estimate
from dynaxx.core.contracts import Probe
from dynaxx.core.displaced import Displaced
from dynaxx.core.objective import Objective
from dynaxx.core.panels import Line, Lines, Panel, Table
from dynaxx.core.records import Cost
from dynaxx.core.task import derive_seed
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.landscape._common import CHECK_PASSES, Meter, title
from dynaxx.numerics.ascent import worst_case
from dynaxx.numerics.gauss_newton import GaussNewton
from dynaxx.numerics.hessian import Hessian
from dynaxx.numerics.lanczos import eigenpairs
from dynaxx.numerics.noise import average_rise, largest_noise, noisy_values
from dynaxx.numerics.operator import Congruent, Operator
from dynaxx.numerics.pac_bayes import gaussian_divergence, inverse_kl, maurer, mcallester
from dynaxx.numerics.space import Space

EIGEN_PRODUCTS = 80
"""Most products for each of the two largest eigenvalues."""
SEARCH = 24
"""Most noise levels tried for σ."""
GRID = 10.0 ** (-np.arange(-20, 81) / 10)
"""The σ among which the bounds choose, 100 to 10⁻⁸: fixed beforehand, so that a union over its 101 values is paid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A measure: its value, whether it survives layer rescaling, and its formula."""

    value: Estimate
    invariant: bool
    formula: str


_Rows = dict[str, _Row]


class Flatness(Probe):
    """How sharp the loss is around the weights.

    A layer is rescaled when its weights grow by a factor and those of the next shrink by it: a ReLU network computes
    the same, but most measures change (Dinh et al. 2017). Each value says whether it survives. The Fisher–Rao norm is
    taken with the Hessian, θᵀHθ, and with the Gauss–Newton matrix in place of the Fisher matrix of Liang et al. (2019).
    The bounds are about the error of the network with noise on its weights, on new examples.

    Args:
        radius: ρ of the worst case, in units of the weights.
        adaptive_radius: ρ of the adaptive worst case, a share of each weight.
        steps: Gradient steps of each ascent.
        sigma: Noise of the average case, in units of the weights.
        adaptive_sigma: Noise of the adaptive average case, a share of each weight.
        pairs: Antithetic pairs of noise vectors.
        samples: Products for the trace of each weight matrix; exact for those of no more entries.
        level: Rise of the expected loss (of the error, where given) that defines the PAC-Bayes σ.
        error: `error(model, batch)` → mean 0–1 error, or another loss in [0, 1]: what the bounds are about.
        initial: Weights by name that the prior is centred at; None: zero. They must not depend on the examples.
        draws: Pairs of noise vectors with which the bounds measure the error.
        measures: "all", or "ascent": the worst cases alone, whose price is a tenth or less.
        delta: Probability with which a bound may fail.
        seed: Of all noise.

    Raises:
        BadInput: A number is out of its range.
    """

    def __init__(
        self,
        *,
        radius: float = 0.05,
        adaptive_radius: float = 0.5,
        steps: int = 10,
        sigma: float = 0.01,
        adaptive_sigma: float = 0.1,
        pairs: int = 8,
        samples: int = 16,
        level: float = 0.1,
        error: Callable[[nn.Module, Any], Tensor] | None = None,
        initial: Mapping[str, Tensor] | None = None,
        draws: int = 32,
        measures: Literal["all", "ascent"] = "all",
        delta: float = 0.05,
        seed: int = 0,
    ) -> None:
        for name, value, least in (
            ("radius", radius, 0), ("adaptive_radius", adaptive_radius, 0), ("sigma", sigma, 0), ("level", level, 0),
            ("adaptive_sigma", adaptive_sigma, 0), ("delta", delta, 0), ("steps", steps, 0), ("pairs", pairs, 1),
            ("samples", samples, 1), ("draws", draws, 0),
        ):  # fmt: skip
            if not (math.isfinite(value) and value > least):
                raise BadInput(f"flatness({name}=...) must be more than {least}. Got {value}.")
        if delta >= 1:
            raise BadInput(f"flatness(delta=...) is a probability below 1. Got {delta}.")
        if measures not in ("all", "ascent"):
            raise BadInput(f"flatness(measures=...) must be 'all' or 'ascent'. Got {measures!r}.")
        self._measures = measures
        self._radius, self._adaptive_radius, self._steps = radius, adaptive_radius, steps
        self._sigma, self._adaptive_sigma, self._pairs = sigma, adaptive_sigma, pairs
        self._samples, self._level, self._error = samples, level, error
        self._initial, self._draws, self._delta, self._seed = initial, draws, delta, seed

    def price(self, objective: Objective) -> Cost:
        """At most; the search for σ often ends after half of its forwards."""
        if self._measures == "ascent":
            return Cost(forwards=2 * (self._steps + 1) + 1, backwards=2 * self._steps)
        traces = sum(min(p.numel(), self._samples) for _, p in _matrices(objective))
        noise = 2 * self._pairs * (2 + SEARCH) + 2 * self._draws + 4
        return Cost(
            forwards=2 * (self._steps + 1) + noise + 1 + CHECK_PASSES,
            backwards=2 * self._steps + CHECK_PASSES,
            products=2 * EIGEN_PRODUCTS + 2 + traces,
        )

    def run(self, objective: Objective) -> Chart:
        """Measure."""
        meter, space = Meter(objective), Space(objective.parameters, objective.names)
        point, notes, layers, curve = Displaced(objective), list[str](), dict[str, Estimate](), dict[float, float]()
        weights, products = space.flatten(objective.parameters), 0.0
        rows: _Rows = {"loss": _Row(value=Estimate(value=point.value()), invariant=True, formula="L(θ)")}
        forwards, backwards = self._worst(point, weights.abs(), rows)
        forwards += 1
        if self._measures == "all":
            hessian = Hessian(objective)
            if hessian.check is not None and hessian.check.note:
                notes.append(hessian.check.note)
            self._average(point, weights.abs(), rows)
            self._curvature(hessian, weights, rows, notes)
            layers = self._relative(objective, hessian, rows)
            curve = self._bounds(objective, point, weights, rows, notes)
            forwards += 3 + 2 * self._pairs * (2 + len(curve)) + (2 * self._draws if "maurer_bound" in rows else 0)
            products = hessian.products + ("fisher_rao_gauss_newton" in rows)
        return Chart(
            probe="flatness",
            title=title(objective),
            values={name: _stated(row) for name, row in rows.items()},
            arrays={"noise": np.array(sorted(curve)), "noise_rise": np.array([curve[s] for s in sorted(curve)])},
            panels=self._panels(rows, layers, curve),
            cost=meter.cost(products=products, forwards=forwards, backwards=backwards),
            notes=tuple(notes),
        )

    def _worst(self, point: Displaced, sizes: Tensor, rows: _Rows) -> tuple[float, float]:
        """Ascent within the ball, plain and adaptive; what it took."""
        plain = worst_case(point, self._radius, steps=self._steps, seed=self._seed)
        adaptive = worst_case(point, self._adaptive_radius, scale=sizes, steps=self._steps, seed=self._seed)
        for prefix, found, ball, invariant in (
            ("", plain, f"‖ε‖ ≤ {self._radius:g}", False),
            ("adaptive_", adaptive, f"‖ε/|θ|‖ ≤ {self._adaptive_radius:g}", True),
        ):
            rows[f"{prefix}one_step"] = _Row(
                value=Estimate(value=found.one_step), invariant=invariant, formula=f"SAM's step, {ball}"
            )
            rows[f"{prefix}worst_case"] = _Row(
                value=Estimate(value=found.rise), invariant=invariant, formula=f"max L(θ+ε) − L(θ), {ball}, from below"
            )
        return plain.forwards + adaptive.forwards, plain.backwards + adaptive.backwards

    def _average(self, point: Displaced, sizes: Tensor, rows: _Rows) -> None:
        plain = average_rise(point, self._sigma, pairs=self._pairs, seed=self._seed)
        rows["average_case"] = _Row(
            value=plain, invariant=False, formula=f"E L(θ+ε) − L(θ), ε ~ N(0, σ²), σ = {self._sigma:g}"
        )
        adaptive = average_rise(point, self._adaptive_sigma, pairs=self._pairs, scale=sizes, seed=self._seed)
        rows["adaptive_average_case"] = _Row(
            value=adaptive, invariant=True, formula=f"E L(θ+ε) − L(θ), ε ~ N(0, σ²θ²), σ = {self._adaptive_sigma:g}"
        )

    def _curvature(self, hessian: Hessian, weights: Tensor, rows: _Rows, notes: list[str]) -> None:
        operators: dict[str, tuple[Operator, bool, str]] = {
            "sharpness": (hessian, False, "λ₁(H)"),
            "adaptive_sharpness": (Congruent(hessian, weights.abs().mul), True, "λ₁(|θ| H |θ|)"),
        }
        for name, (operator, invariant, formula) in operators.items():
            found = eigenpairs(operator, 1, max_products=EIGEN_PRODUCTS, seed=self._seed)
            if not bool(found.converged[0]):
                notes.append(f"{name} had not converged after {found.products} products; its error says how far.")
            value = float(found.values[0])
            value = Estimate(value=value, error=float(found.bounds[0]), bound=True)
            rows[name] = _Row(value=value, invariant=invariant, formula=formula)

        def form(matrix: Operator) -> Estimate:
            return Estimate(value=float(hessian.space.gram(matrix(weights[None]), weights[None])))

        rows["fisher_rao"] = _Row(value=form(hessian), invariant=True, formula="θᵀHθ, the Hessian form")
        formula = "θᵀGθ, the Gauss–Newton form"
        try:
            value = form(GaussNewton(hessian.objective))
            rows["fisher_rao_gauss_newton"] = _Row(value=value, invariant=True, formula=formula)
        except NotApplicable as reason:
            notes.append(f"fisher_rao_gauss_newton: not applicable. {reason}")

    def _relative(self, objective: Objective, hessian: Hessian, rows: _Rows) -> dict[str, Estimate]:
        """‖W‖² tr H_W of each weight matrix, and their sum; for H ⪰ 0 no less than that of Petzka et al. 2021."""
        slices, found = hessian.space.slices(), dict[str, Estimate]()
        for name, parameter in _matrices(objective):
            trace = _block_trace(hessian, slices[name], self._samples, self._seed)
            size = float(parameter.detach().double().square().sum())
            found[name] = Estimate(value=size * trace.value, error=None if trace.error is None else size * trace.error)
        errors = [e.error for e in found.values() if e.error is not None]
        total = Estimate(value=sum(e.value for e in found.values()), error=math.hypot(*errors) if errors else None)
        formula = "Σ ‖W‖² tr H_W over weight matrices"
        rows["relative_flatness"] = _Row(value=total, invariant=True, formula=formula)
        return found

    def _bounds(
        self, objective: Objective, point: Displaced, weights: Tensor, rows: _Rows, notes: list[str]
    ) -> dict[float, float]:
        """The PAC-Bayes σ and the bounds; σ → rise, where it was measured."""
        measured = point if self._error is None else Displaced(objective, loss_fn=self._error)
        base, curve = measured.value(), dict[float, float]()

        def rise(sigma: float) -> float:
            curve[sigma] = float(noisy_values(measured, sigma, pairs=self._pairs, seed=self._seed).mean()) - base
            return curve[sigma]

        start = 0.1 * float(weights.norm()) / math.sqrt(weights.numel()) or 1e-3
        try:
            sigma = largest_noise(rise, self._level, start, evaluations=SEARCH)
        except NotApplicable as reason:
            notes.append(f"pac_bayes_sigma: not applicable. {reason}")
            return curve
        what = "loss" if self._error is None else "error"
        formula = f"largest σ, E {what} rises by ≤ {self._level:g}"
        rows["pac_bayes_sigma"] = _Row(
            value=Estimate(value=sigma, error=0.01 * sigma), invariant=False, formula=formula
        )
        if self._error is None:
            notes.append("The PAC-Bayes bounds are about a loss in [0, 1]: not applicable without error=.")
        else:
            self._hold(objective, measured, weights, sigma, rows, notes)
        return curve

    def _hold(
        self, objective: Objective, measured: Displaced, weights: Tensor, sigma: float, rows: _Rows, notes: list[str]
    ) -> None:
        chosen = float(GRID[max(sigma, GRID[-1]) >= GRID][0])
        # Noise of its own: σ was chosen by looking at the noise of the search.
        seed = derive_seed(self._seed, "bounds")
        seen = float(noisy_values(measured, chosen, pairs=self._draws, seed=seed).mean())
        if not 0 <= seen <= 1:
            raise BadInput(f"flatness(error=...) must return a loss in [0, 1], such as the 0–1 error. Got {seen:g}.")
        error = inverse_kl(seen, math.log(2 / self._delta) / self._draws)
        divergence = gaussian_divergence(float((weights - self._centre(objective, weights)).norm()), chosen)
        delta = self._delta / 2 / len(GRID)
        for name, bound, which in (("mcallester", mcallester, "McAllester 2003"), ("maurer", maurer, "Maurer 2004")):
            value = Estimate(value=bound(error, divergence, objective.weight, delta))
            formula = f"{which}, σ = {chosen:.3g}, sure to {1 - self._delta:g}"
            rows[f"{name}_bound"] = _Row(value=value, invariant=False, formula=formula)
        notes.append(
            f"The bounds hold for {objective.weight:,.6g} independent examples and a prior at "
            f"{'zero' if self._initial is None else 'the initial weights'}, KL = {divergence:.4g} nats, with a union "
            f"over {len(GRID)} values of σ. Half of δ is spent on measuring the noisy error, {seen:.4g}, by "
            f"{self._draws} draws."
        )

    def _centre(self, objective: Objective, weights: Tensor) -> Tensor:
        if self._initial is None:
            return torch.zeros_like(weights)
        missing = [name for name in objective.names if name not in self._initial]
        if missing:
            raise BadInput(f"flatness(initial=...) lacks {missing[0]!r}. Give every parameter by name.")
        parts = [self._initial[name].detach().reshape(-1).to(weights) for name in objective.names]
        return torch.cat(parts)

    def _panels(self, rows: _Rows, layers: dict[str, Estimate], curve: dict[float, float]) -> tuple[Panel, ...]:
        cells = tuple(
            (name, str(row.value), "yes" if row.invariant else "no", row.formula) for name, row in rows.items()
        )
        header = ("measure", "value", "survives rescaling", "what it is")
        panels: list[Panel] = [Table(title="Flatness around the weights", header=header, rows=cells)]
        if curve:
            x = np.array(sorted(curve))
            what = "loss" if self._error is None else "error"
            level = Line(label="level", x=x[[0, -1]], y=np.full(2, self._level), style="dashed")
            rise = Line(
                label=f"rise of the expected {what}", x=np.log10(x), y=np.array([curve[s] for s in x]), style="points"
            )
            level = replace(level, x=np.log10(level.x))
            panels.append(
                Lines(title=f"Rise of the expected {what} under Gaussian noise", lines=(rise, level), x_label="log10 σ")
            )
        shown = tuple((name, str(value)) for name, value in layers.items())
        if shown:
            panels.append(
                Table(title="Relative flatness by weight matrix", header=("layer", "‖W‖² tr H_W"), rows=shown)
            )
        return tuple(panels)


def _matrices(objective: Objective) -> list[tuple[str, Tensor]]:
    """Weight matrices and kernels: what a layer multiplies its inputs with."""
    return [(n, p) for n, p in zip(objective.names, objective.parameters, strict=True) if p.dim() >= 2]


def _block_trace(hessian: Hessian, where: slice, samples: int, seed: int) -> Estimate:
    """Trace of a diagonal block: exact where small, else by Rademacher vectors that are zero outside of it."""
    size = where.stop - where.start
    if size <= samples:
        rows = torch.zeros(size, hessian.space.n, dtype=hessian.space.dtype, device=hessian.space.device)
        rows[:, where] = torch.eye(size, dtype=rows.dtype, device=rows.device)
    else:
        rows = hessian.space.random(samples, seed=derive_seed(seed, "trace"), kind="rademacher")
        rows[:, : where.start] = 0
        rows[:, where.stop :] = 0
    found = torch.cat([(hessian(part) * part).sum(1) for part in rows.split(4)]).double()
    if size <= samples:
        return Estimate(value=float(found.sum()))
    return Estimate(value=float(found.mean()), error=float(found.std()) / math.sqrt(samples))


def _stated(row: _Row) -> Estimate:
    """The value with its formula and its invariance in words."""
    return replace(row.value, about=f"{row.formula}; survives layer rescaling: {'yes' if row.invariant else 'no'}")
