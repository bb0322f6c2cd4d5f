"""The probe `critical_points`: the points near by where the gradient vanishes, and what kind each is."""

import math
from typing import Literal

import numpy as np
import torch

from dynaxx.core.chart import Chart, Estimate
from dynaxx.core.contracts import Probe
from dynaxx.core.displaced import Displaced
from dynaxx.core.objective import Objective
from dynaxx.core.panels import Line, Lines, Panel, Table
from dynaxx.core.records import Cost
from dynaxx.core.task import derive_seed
from dynaxx.errors import BadInput
from dynaxx.landscape._common import CHECK_PASSES, Meter, title
from dynaxx.numerics.critical_point import DENSE, CriticalPoint, critical_point
from dynaxx.numerics.hessian import Hessian
from dynaxx.numerics.newton_mr import TRIALS, Method, Search, search
from dynaxx.numerics.space import Space

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
"""Of ‖∇L‖/(‖H‖ ‖θ‖), by the type the search runs in: what rounding leaves within reach."""
SPECTRUM_PRODUCTS = 4 * 80 + 8
"""Products of the estimated spectrum, where n is too large for the whole Hessian."""


class CriticalPoints(Probe):
    """The points near by where the gradient vanishes, and what kind each is.

    A search starts at the weights themselves and at random displacements of them. Nothing of the model is written.

    Args:
        starts: How many searches; the first starts at the weights.
        spread: Length of the displacements, a share of ‖θ‖.
        method: "newton_mr" finds saddles as well as minima, "saddle_free" minima.
        iterations: Most steps of a search.
        subspace: Most products of a step, and vectors kept in memory.
        tolerance: A point is critical where ‖∇L‖ ≤ τ‖H‖‖θ‖; None: 10⁻⁸ in float64, 10⁻⁴ in float32.
        precision: "float64": search in a float64 copy where the loss allows; "as is": in the parameters' type.
        seed: Of the displacements.

    Raises:
        BadInput: An option is out of its range.
    """

    def __init__(
        self,
        *,
        starts: int = 4,
        spread: float = 0.1,
        method: Method = "newton_mr",
        iterations: int = 50,
        subspace: int = 60,
        tolerance: float | None = None,
        precision: Literal["float64", "as is"] = "float64",
        seed: int = 0,
    ) -> None:
        if not (starts >= 1 and iterations >= 1 and subspace >= 1 and spread >= 0 and (tolerance or 1) > 0):
            raise BadInput(
                "critical_points(starts, iterations, subspace, spread, tolerance) must be positive. Got "
                f"{starts}, {iterations}, {subspace}, {spread} and {tolerance}."
            )
        if method not in ("newton_mr", "saddle_free") or precision not in ("float64", "as is"):
            raise BadInput(
                "critical_points(method, precision) must be 'newton_mr' or 'saddle_free', and 'float64' or 'as is'. "
                f"Got {method!r} and {precision!r}."
            )
        self._starts, self._spread = starts, spread
        self._method: Method = method
        self._iterations, self._subspace, self._tolerance = iterations, subspace, tolerance
        self._precision, self._seed = precision, seed

    def price(self, objective: Objective) -> Cost:
        """At most: searches end early where they converge."""
        n = objective.numel
        verdict = (n if n <= DENSE else SPECTRUM_PRODUCTS) + 1
        steps = self._starts * self._iterations
        return Cost(
            forwards=steps * TRIALS + 2 * self._starts + 2 + CHECK_PASSES,
            backwards=steps * TRIALS + 2 * self._starts + 1 + CHECK_PASSES,
            products=steps * min(self._subspace, n) + (self._starts + 1) * verdict,
        )

    def run(self, objective: Objective) -> Chart:
        """Measure."""
        meter = Meter(objective)
        point, notes = self._point(objective)
        hessian = Hessian(point)
        space = Space(point.parameters, point.names)
        centre = space.flatten(point.parameters)
        tolerance = TOLERANCE[space.dtype] if self._tolerance is None else self._tolerance
        here = critical_point(point, hessian, tolerance=tolerance, seed=self._seed)
        walks: list[Search] = []
        ends: list[CriticalPoint] = []
        for j in range(self._starts):
            place = centre
            if j:
                way = space.random(1, seed=derive_seed(self._seed, "start", j))[0]
                place = centre + way * (self._spread * float(centre.norm()) / float(way.norm()))
            point.move(space.split(place))
            walks.append(
                search(
                    point, hessian, method=self._method, iterations=self._iterations, subspace=self._subspace,
                    tolerance=tolerance,
                )
            )  # fmt: skip
            length = float(place.norm())
            ends.append(critical_point(point, hessian, tolerance=tolerance, length=length, seed=self._seed))
        return Chart(
            probe="critical_points",
            title=title(objective),
            values=_values(here, ends),
            arrays=_arrays(ends),
            panels=_panels(here, walks, ends),
            cost=meter.cost(
                products=hessian.products,
                forwards=1 + sum(w.forwards + 1 for w in walks) + 1,
                backwards=1 + sum(w.gradients + 1 for w in walks),
            ),
            notes=(*notes, *_notes(here, ends, tolerance, hessian)),
        )

    def _point(self, objective: Objective) -> tuple[Displaced, list[str]]:
        if self._precision == "float64":
            try:
                wide = Displaced(objective.in_float64())
                wide.value()
                return wide, []
            except (RuntimeError, TypeError):  # the loss makes tensors of a fixed type
                note = "The loss cannot be taken in float64: searched in the parameters' own type."
                return Displaced(objective), [note]
        return Displaced(objective), []


def _values(here: CriticalPoint, ends: list[CriticalPoint]) -> dict[str, Estimate]:
    values = {
        "loss": Estimate(value=here.loss, about=f"at the weights: {here.kind}"),
        "gradient_norm": Estimate(value=here.gradient_norm, about="‖∇L‖ at the weights"),
        "distance": Estimate(value=here.distance, about="‖∇L‖/(‖H‖‖θ‖) at the weights"),
        "negative": _about(here.spectrum.negative, "share of negative eigenvalues at the weights"),
        "flat": _about(here.spectrum.flat, "share of eigenvalues near zero at the weights"),
    }
    for name, kinds in (
        ("critical", ("local minimum", "saddle", "local maximum", "degenerate")), ("minima", ("local minimum",)),
        ("saddles", ("saddle",)), ("maxima", ("local maximum",)), ("gradient_flat", ("gradient-flat",)),
    ):  # fmt: skip
        count = sum(end.kind in kinds for end in ends)
        values[f"found_{name}"] = Estimate(value=float(count), about=f"of {len(ends)} searches")
    return values


def _about(value: Estimate, words: str) -> Estimate:
    return Estimate(value=value.value, error=value.error, about=words)


def _arrays(ends: list[CriticalPoint]) -> dict[str, np.ndarray]:
    return {
        "loss": np.array([end.loss for end in ends]),
        "gradient_norm": np.array([end.gradient_norm for end in ends]),
        "negative": np.array([end.spectrum.negative.value for end in ends]),
        "index": np.array([math.nan if end.spectrum.index is None else end.spectrum.index for end in ends]),
        "flatness": np.array([end.flatness for end in ends]),
    }


def _notes(here: CriticalPoint, ends: list[CriticalPoint], tolerance: float, hessian: Hessian) -> list[str]:
    notes = [f"Critical: ‖∇L‖ ≤ {tolerance:g} ‖H‖‖θ‖. Gradient-flat: ‖H∇L‖ ≤ 0.001 ‖H‖‖∇L‖ elsewhere."]
    if any(end.kind == "local minimum" and end.spectrum.flat.value > 0 for end in (here, *ends)):
        notes.append("A minimum with flat directions is one to second order: along them higher orders decide.")
    if here.spectrum.index is None:
        notes.append("Shares of negative and flat eigenvalues are estimates by stochastic Lanczos quadrature.")
    if hessian.check is not None and hessian.check.note:
        notes.append(hessian.check.note)
    return notes


def _panels(here: CriticalPoint, walks: list[Search], ends: list[CriticalPoint]) -> tuple[Panel, ...]:
    names = ["the weights", *(f"search {j}" for j in range(len(ends)))]
    steps = ["", *(f"{len(walk.losses) - 1}, {walk.ended}" for walk in walks)]
    cells = tuple(_cells(*row) for row in zip(names, [here, *ends], steps, strict=True))
    header = ("point", "kind", "loss", "‖∇L‖", "negative", "flat", "r", "steps")
    note = "negative: eigenvalues below zero, of all; flat: near zero; r = ‖H∇L‖/(‖H‖‖∇L‖)"
    panels: list[Panel] = [Table(title="Points", header=header, rows=cells, note=note)]
    curves = tuple(
        Line(label=f"search {j}", x=np.arange(len(w.gradient_norms), dtype=float), y=np.array(w.gradient_norms))
        for j, w in enumerate(walks)
    )
    panels.append(Lines(title="‖∇L‖ during the searches", lines=curves, y_scale="log", y_label="‖∇L‖"))
    found = sorted((end.spectrum.negative.value, end.loss) for end in ends if end.kind in ("local minimum", "saddle"))
    if len(found) > 1:
        shares, losses = np.array(found).T
        line = Line(label="critical points", x=shares, y=losses, style="points")
        panels.append(
            Lines(
                title="Loss against index", lines=(line,), x_label="share of negative eigenvalues", y_label="loss",
                note="In random fields the loss of critical points grows with their index (Dauphin et al. 2014).",
            )
        )  # fmt: skip
    return tuple(panels)


def _cells(name: str, point: CriticalPoint, steps: str) -> tuple[str, ...]:
    count = "" if point.spectrum.index is None else f"{point.spectrum.index} "
    return (
        name, point.kind, f"{point.loss:.8g}", f"{point.gradient_norm:.2e}", f"{count}({point.spectrum.negative})",
        str(point.spectrum.flat), f"{point.flatness:.2g}", steps,
    )  # fmt: skip
