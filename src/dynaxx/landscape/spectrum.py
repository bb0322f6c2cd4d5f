"""The probe `spectrum`: both ends, density and trace of the curvature at the weights, whole model and layers."""

import math
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from dynaxx.core.chart import Chart, Estimate
from dynaxx.core.contracts import Probe
from dynaxx.core.objective import Objective
from dynaxx.core.panels import Line, Lines, Panel, Table
from dynaxx.core.records import Cost
from dynaxx.core.task import derive_seed
from dynaxx.errors import BadInput
from dynaxx.landscape._common import CHECK_PASSES, Meter, title
from dynaxx.numerics.density import Density, density
from dynaxx.numerics.diagonal import block_traces
from dynaxx.numerics.gauss_newton import Fisher, GaussNewton, Likelihood
from dynaxx.numerics.hessian import Hessian
from dynaxx.numerics.lanczos import Eigenpairs, eigenpairs
from dynaxx.numerics.operator import Operator
from dynaxx.numerics.trace import Traces, traces

Curvature = Literal["hessian", "gauss_newton", "fisher", "empirical_fisher"]
NAMES = {
    "hessian": "Hessian",
    "gauss_newton": "Gauss–Newton matrix",
    "fisher": "Fisher information",
    "empirical_fisher": "empirical Fisher",
}
REFINE = 10
"""Most further products for each wanted eigenpair; the density's Ritz vectors, which they start from, often suffice."""
POINTS = 600
"""Points of the density's grid."""
RESOLUTION = 150
"""The density is smoothed by this share of the spectrum's width: two points of a plot."""
LAYER_LINES = 8
"""Layers with a curve of their own: as many as there are colours."""


class Spectrum(Probe):
    """Eigenvalues of the curvature at the weights: both ends, density, trace; whole model and layers.

    The density is stochastic Lanczos quadrature with error bands over its probes. Its outermost Ritz vectors start the
    eigenvalue solver; all of them are taken out of the traces, whose error is then that of what the Krylov space lacks.
    It holds probes × steps vectors.

    Args:
        of: "hessian", "gauss_newton", "fisher" (exact) or "empirical_fisher".
        eigenvalues: How many at the top, and as many at the bottom.
        probes: Random vectors of the density; their spread is its uncertainty.
        steps: Products with each probe.
        samples: Products for the trace, and as many for those of the layers.
        by_layer: Also the spectrum of every layer's diagonal block, each at the price of the density.
        likelihood: How outputs are read by the Fisher information: "categorical" logits or "gaussian" means.
        batched: Multiply several vectors in one backward: quicker for transformers, slower for small convolutions.
        seed: Of all random vectors.

    Raises:
        BadInput: A number is out of its range.
    """

    def __init__(
        self,
        *,
        of: Curvature = "hessian",
        eigenvalues: int = 5,
        probes: int = 4,
        steps: int = 60,
        samples: int = 24,
        by_layer: bool = False,
        likelihood: Likelihood = "categorical",
        batched: bool = False,
        seed: int = 0,
    ) -> None:
        if of not in NAMES:
            raise BadInput(f"spectrum(of=...) must be one of {', '.join(NAMES)}. Got {of!r}.")
        for name, value, least in (
            ("eigenvalues", eigenvalues, 1), ("probes", probes, 2), ("steps", steps, 1), ("samples", samples, 2),
        ):  # fmt: skip
            if value < least:
                raise BadInput(f"spectrum({name}=...) must be at least {least}. Got {value}.")
        self._of: Curvature = of
        self._eigenvalues, self._probes, self._steps, self._samples = eigenvalues, probes, steps, samples
        self._likelihood: Likelihood = likelihood
        self._by_layer, self._batched, self._seed = by_layer, batched, seed

    def price(self, objective: Objective) -> Cost:
        """At most; where the Ritz vectors of the density have converged, the solver takes two products a pair."""
        whole = self._probes * self._steps + 2 * REFINE * self._pairs(objective.numel) + 2 * self._samples
        layers = len(objective.layers()) if self._by_layer else 0
        return Cost(
            forwards=1 + CHECK_PASSES,
            backwards=1 + CHECK_PASSES,
            products=whole + layers * self._probes * self._steps,
        )

    def run(self, objective: Objective) -> Chart:
        """Measure."""
        if self._eigenvalues > objective.numel:
            raise BadInput(
                f"spectrum(eigenvalues=...) must not exceed the number of parameters, {objective.numel}. "
                f"Got {self._eigenvalues}."
            )
        meter = Meter(objective)
        slope = math.sqrt(sum(float(g.double().square().sum()) for g in objective.gradient()))  # refuses NaN by name
        operator = self._operator(objective)
        every = self._probes * self._steps
        found = density(operator, probes=self._probes, steps=self._steps, keep=every, seed=self._seed)
        pairs, known = self._ends(operator, found), _ritz(found)
        seeds = [derive_seed(self._seed, name) for name in ("trace", "blocks")]
        total = traces(operator, self._samples, known=known, seed=seeds[0])
        blocks = block_traces(operator, self._samples, objective.layers(), known=known, seed=seeds[1])
        layers, products = self._layers(objective)
        grid, width = _grid(found)
        middle, error = found.smooth(grid, width)
        return Chart(
            probe="spectrum",
            title=f"{NAMES[self._of]} · {title(objective)}",
            values=_values(found, pairs, total, slope),
            arrays={
                "eigenvalues": pairs.values.numpy(),
                "eigenvalue_bounds": pairs.bounds.numpy(),
                "nodes": found.nodes,
                "weights": found.weights,
                "density_grid": grid,
                "density": middle,
                "density_error": error,
                "layer_traces": np.array([blocks[layer].value for layer in objective.layers()]),
            },
            panels=self._panels(objective, found, pairs, blocks, layers),
            cost=meter.cost(products=operator.products + products, forwards=1, backwards=1),
            notes=tuple(_notes(found, pairs, total, operator)),
        )

    def _operator(self, objective: Objective, *, check: bool = True) -> Operator:
        match self._of:
            case "hessian":
                return Hessian(objective, check=check, batched=self._batched)
            case "gauss_newton":
                return GaussNewton(objective)
            case "fisher":
                return Fisher(objective, self._likelihood)
            case "empirical_fisher":
                return Fisher(objective, self._likelihood, "empirical")

    def _pairs(self, numel: int) -> int:
        """Pairs of each end: in a small space no eigenvalue is at both."""
        return min(self._eigenvalues, max(1, numel // 2))

    def _ends(self, operator: Operator, found: Density) -> Eigenpairs:
        numel = operator.space.numel
        pairs = self._pairs(numel)
        start = torch.cat([found.vectors[:pairs], found.vectors[-pairs:]])
        return eigenpairs(
            operator,
            pairs,
            which="both" if numel > 1 else "largest",
            start=start,
            max_products=2 * (REFINE - 1) * pairs,
            basis=min(numel, 8 * pairs + 20),
            seed=self._seed,
        )

    def _layers(self, objective: Objective) -> tuple[dict[str, Density], int]:
        """The density of each layer's diagonal block, and the products it took."""
        if not self._by_layer:
            return {}, 0
        found: dict[str, Density] = {}
        for layer, names in objective.layers().items():
            block = self._operator(objective.restricted(names), check=False)
            found[layer] = density(block, probes=self._probes, steps=self._steps, seed=self._seed)
        return found, sum(each.products for each in found.values())

    def _panels(
        self,
        objective: Objective,
        found: Density,
        pairs: Eigenpairs,
        blocks: dict[str, Estimate],
        layers: dict[str, Density],
    ) -> tuple[Panel, ...]:
        panels = [_density_panel(found, pairs, NAMES[self._of]), _ends_panel(pairs)]
        if layers:
            panels.append(_layer_lines(layers))
        return (*panels, _layer_table(objective, blocks, layers))


def _ritz(found: Density) -> Eigenpairs:
    """All Ritz pairs of the density: what of A lies in its Krylov space, known without a further product."""
    residuals = torch.tensor(found.residuals)
    return Eigenpairs(
        values=torch.tensor(found.nodes),
        vectors=found.vectors,
        residuals=residuals,
        bounds=residuals,
        converged=torch.zeros(len(residuals), dtype=torch.bool),
        spare=found.vectors[:0],
        products=found.products,
        basis=len(found.vectors),
        lowest=float(found.nodes.min()),
    )


def _values(found: Density, pairs: Eigenpairs, total: Traces, slope: float) -> dict[str, Estimate]:
    def end(i: int, about: str) -> Estimate:
        return Estimate(value=float(pairs.values[i]), error=float(pairs.bounds[i]), bound=True, about=about)

    n = found.n
    error = total.trace.error
    per_parameter = Estimate(value=total.trace.value / n, error=None if error is None else error / n)
    rank, condition = found.effective_rank, found.condition
    return {
        "largest_eigenvalue": end(0, "λ₁, the sharpness"),
        "smallest_eigenvalue": end(-1, "λ_min"),
        "trace": replace(total.trace, about=f"Σλ, by {total.method}"),
        "trace_per_parameter": replace(per_parameter, about="mean eigenvalue"),
        "squared_norm": replace(total.squared_norm, about="Σλ²"),
        "effective_rank": replace(rank, about="(Σ|λ|)² / Σλ²"),
        "condition": replace(condition, about="max|λ| / min|λ|, at least, where all have one sign"),
        "negative_mass": replace(found.negative_mass, about="share of eigenvalues below zero"),
        "gradient_norm": Estimate(value=slope, about="‖∇L‖ at this point"),
    }


def _notes(found: Density, pairs: Eigenpairs, total: Traces, operator: Operator) -> list[str]:
    notes: list[str] = []
    if isinstance(operator, Hessian) and operator.check is not None and operator.check.note:
        notes.append(operator.check.note)
    open_pairs = int((~pairs.converged).sum())
    if open_pairs:
        notes.append(
            f"{open_pairs} of {len(pairs.values)} eigenvalues had not converged to 0.1 %; their bounds say how far."
        )
    if found.check > 1e-3:
        notes.append(f"The density's moments are off by {found.check:.1g} of those of the products: rounding.")
    mean = found.moment(1)
    apart = abs(mean.value * found.n - total.trace.value)
    allowed = math.hypot((mean.error or 0.0) * found.n, total.trace.error or 0.0)
    if apart > 5 * allowed + found.rounding * found.n:
        notes.append(f"The traces by density and by probing differ by {apart:.3g}, {apart / allowed:.1f} errors.")
    return notes


def _grid(found: Density) -> tuple[np.ndarray, float]:
    low, high = float(found.nodes[0]), float(found.nodes[-1])
    width = (high - low) / RESOLUTION or max(abs(high), 1.0) / RESOLUTION
    return np.linspace(low - 5 * width, high + 5 * width, POINTS), width


def _curve(found: Density, grid: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The density and its band; what is less than a tenth of one eigenvalue is left out."""
    middle, error = found.smooth(grid, width)
    floor = 0.1 * _peak(found, width)
    shown = [np.where(each > floor, each, 0.0) for each in (middle, middle - 2 * error, middle + 2 * error)]
    return shown[0], shown[1], shown[2]


def _peak(found: Density, width: float) -> float:
    """Height of the curve above one eigenvalue."""
    return 1 / (found.n * width * math.sqrt(2 * math.pi))


def _density_panel(found: Density, pairs: Eigenpairs, name: str) -> Lines:
    grid, width = _grid(found)
    middle, low, high = _curve(found, grid, width)
    half = (len(pairs.values) + 1) // 2
    values = np.sort(pairs.values.numpy())
    ends = {"bottom eigenvalues": values[: len(values) - half], "top eigenvalues": values[len(values) - half :]}
    height = _peak(found, width)
    marks = [Line(label=label, x=x, y=np.full(len(x), height), style="points") for label, x in ends.items() if len(x)]
    return Lines(
        title=f"Spectral density of the {name}",
        lines=(
            Line(label="density", x=grid, y=middle),
            Line(label="− 2 standard errors", x=grid, y=low, style="faint"),
            Line(label="+ 2 standard errors", x=grid, y=high, style="faint"),
            *marks,
        ),
        x_label="eigenvalue λ",
        y_label="share of eigenvalues per unit of λ",
        y_scale="log",
        note=f"Smoothed by a normal distribution of width {width:.3g}; dots stand at the height of one eigenvalue.",
    )


def _ends_panel(pairs: Eigenpairs) -> Table:
    half = (len(pairs.values) + 1) // 2
    cells = [
        (str(Estimate(value=float(value), error=float(bound), bound=True)), "" if bool(done) else "not converged")
        for value, bound, done in zip(pairs.values, pairs.bounds, pairs.converged, strict=True)
    ]
    top, bottom = cells[:half], cells[half:][::-1]
    bottom += [("", "")] * (half - len(bottom))
    rows = tuple((str(i + 1), *a, *b) for i, (a, b) in enumerate(zip(top, bottom, strict=True)))
    return Table(title="Eigenvalues", header=("", "from the top", "", "from the bottom", ""), rows=rows)


def _layer_lines(layers: dict[str, Density]) -> Lines:
    largest = sorted(layers, key=lambda layer: -layers[layer].n)[:LAYER_LINES]
    ends = [_grid(layers[layer])[0][[0, -1]] for layer in largest]
    grid = np.linspace(min(e[0] for e in ends), max(e[1] for e in ends), POINTS)
    width = float(grid[-1] - grid[0]) / RESOLUTION
    return Lines(
        title="Spectral density by layer",
        lines=tuple(Line(label=layer, x=grid, y=_curve(layers[layer], grid, width)[0]) for layer in largest),
        x_label="eigenvalue λ of the layer's diagonal block",
        y_label="share per unit of λ",
        y_scale="log",
        note=f"Smoothed by a normal distribution of width {width:.3g}; the {len(largest)} largest layers.",
    )


def _layer_table(objective: Objective, blocks: dict[str, Estimate], layers: dict[str, Density]) -> Table:
    counts = dict(zip(objective.names, (p.numel() for p in objective.parameters), strict=True))
    header = ["layer", "parameters", "trace", "per parameter"]
    if layers:
        header += ["largest eigenvalue", "smallest eigenvalue", "effective rank", "negative mass"]
    rows: list[tuple[str, ...]] = []
    for layer, names in objective.layers().items():
        size = sum(counts[name] for name in names)
        cells = [layer, f"{size:,}", str(blocks[layer]), f"{blocks[layer].value / size:.3g}"]
        if layers:
            found = layers[layer]
            ends = [f"{end:.4g}" for end in found.nodes[[-1, 0]]]
            cells += [*ends, str(found.effective_rank), str(found.negative_mass)]
        rows.append(tuple(cells))
    return Table(title="Diagonal blocks by layer", header=tuple(header), rows=tuple(rows))
