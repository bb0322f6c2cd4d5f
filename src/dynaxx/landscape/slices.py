"""The probe `slices`: the loss along lines and planes through the weights, as pictures and as numbers."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from dynaxx.core.chart import Chart
from dynaxx.core.contracts import Probe
from dynaxx.core.objective import Objective
from dynaxx.core.records import Cost
from dynaxx.core.snapshot import Snapshot
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.landscape._common import CHECK_PASSES, Meter, title
from dynaxx.landscape._directions import EIGEN_PRODUCTS, Cut, Direction, Normalisation
from dynaxx.landscape._slice import BARRIER_POINTS, DIFFERENCES, Slice, coarse_first, measured
from dynaxx.landscape._slice_panels import panels, summary
from dynaxx.numerics.hessian import Hessian
from dynaxx.numerics.quadtree import Quadtree
from dynaxx.numerics.space import Space

LINE_POINTS = 41
"""Points of a line: as Li et al. 2018 and most since have drawn."""
FIRST = 81
"""Points of the two lattices that an adaptive plane begins with."""
BATCH = 40
"""Most points between two looks at where the next ones should go."""


class Slices(Probe):
    """The loss on lines and planes through the weights, L(θ + α d₁ + β d₂), in pictures and numbers.

    Planes are refined where the surface is foretold worst, so that a third of the points of a full grid shows more.
    Each point is the loss of the same examples with the same random numbers. What a slice shows depends on its
    directions: two random ones miss a sharp direction among millions; ask for eigenvectors to see it. Filter
    normalisation (Li et al. 2018) makes nets comparable whose weights differ in scale.

    Args:
        direction: Along what: "random", "gradient", "eigenvectors" (the largest), "trajectory" (principal components
            of checkpoints) or "model" (towards another one). A plane's second direction is random where there is none.
        dimensions: 1 for lines, 2 for planes.
        normalisation: How directions are scaled: "filter", "layer" or "raw"; by default "filter" for random ones and
            "raw" for all others, which it would turn away.
        count: How many slices: with random directions, the spread over them.
        radius: How far each reaches, in units of the directions; by default 1 where they are normalised, and where
            they are raw, to where the quadratic model has risen by the loss, at most by the norm of the weights.
        points: Losses taken for each slice: 41 on a line, 560 on a plane by default.
        resolution: Columns and rows of a plane's grid.
        adaptive: Refine planes where they need it; without it, every point of the grid is taken.
        biases: Let biases and parameters of normalisation layers take part, scaled as a layer; by default they stay.
        curvature: Compare the slice with its directions' Hessian products.
        other: Parameters and buffers of another model, by name.
        trajectory: Checkpoints, oldest first.
        partial: An earlier chart of the same slices: its points are not taken again.
        seed: Of random directions.

    Raises:
        BadInput: An option is out of its range, or what a direction needs is not given.
    """

    def __init__(
        self,
        *,
        direction: Direction = "random",
        dimensions: int = 2,
        normalisation: Normalisation | None = None,
        count: int = 1,
        radius: float | None = None,
        points: int | None = None,
        resolution: int = 41,
        adaptive: bool = True,
        biases: bool = False,
        curvature: bool = True,
        other: Mapping[str, Tensor] | None = None,
        trajectory: Sequence[Snapshot] | None = None,
        partial: Chart | None = None,
        seed: int = 0,
    ) -> None:
        if dimensions not in (1, 2):
            raise BadInput(f"slices(dimensions=...) must be 1 or 2. Got {dimensions}.")
        grid = resolution**2 if dimensions == 2 else LINE_POINTS
        adaptive = adaptive and dimensions == 2
        self._points = points if points is not None else max(FIRST, grid // 3) if adaptive else grid
        self._radius, self._resolution, self._adaptive = radius, resolution, adaptive
        self._curvature, self._partial = curvature, partial
        least = FIRST if adaptive else 5
        for name, value, low in (("count", count, 1), ("resolution", resolution, 5), ("points", self._points, least)):
            if value < low:
                raise BadInput(f"slices({name}=...) must be at least {low}. Got {value}.")
        if radius is not None and not 0 < radius < float("inf"):
            raise BadInput(f"slices(radius=...) must be positive. Got {radius}.")
        if dimensions == 2 and not adaptive and points not in (None, grid):
            raise BadInput(
                f"slices(adaptive=False) takes all {grid} points of the grid. Got points={points}; change resolution."
            )
        _check_direction(direction, normalisation, dimensions, count, other, trajectory)
        self._cut = Cut(
            direction=direction,
            normalisation=normalisation or ("filter" if direction == "random" else "raw"),
            dimensions=dimensions,
            count=count,
            biases=biases,
            seed=seed,
            other=other,
            trajectory=trajectory or (),
        )

    def price(self, objective: Objective) -> Cost:
        """All points, those of the checks, and for eigenvectors at most 40 products each."""
        del objective
        each = self._cut.dimensions * self._cut.count
        forwards = self._cut.count * (self._points + 1 + 1) + 2 * each
        forwards += BARRIER_POINTS * self._cut.count if self._cut.direction == "model" else 0
        products = EIGEN_PRODUCTS * each if self._cut.direction == "eigenvectors" else 0
        if self._curvature:
            forwards += DIFFERENCES * each
            products += each
        checked = CHECK_PASSES if self._needs_hessian else 0.0
        slope = 1.0 if self._needs_gradient else 0.0
        return Cost(forwards=forwards + checked + slope, backwards=checked + slope, products=products)

    @property
    def _needs_hessian(self) -> bool:
        return self._curvature or self._cut.direction == "eigenvectors"

    @property
    def _needs_gradient(self) -> bool:
        return self._curvature or self._cut.direction == "gradient"

    def run(self, objective: Objective) -> Chart:
        """Measure."""
        if objective.sharded:
            raise NotApplicable("slices: parameters are sharded. Gather the model on one rank.")
        meter, space = Meter(objective), Space(objective.parameters, objective.names)
        gradient = space.flatten(objective.gradient()) if self._needs_gradient else None
        hessian = Hessian(objective) if self._needs_hessian else None
        slices: list[Slice] = []
        for axes in self._cut.axes(objective, gradient, hessian):
            products = hessian(axes.rows) if hessian is not None and self._curvature else None
            slices.append(Slice(objective, axes, gradient, products, self._radius))
        taken = self._recalled(slices)
        if self._adaptive:
            self._refine(slices)
        else:
            self._sweep(slices)
        grids = [self._grid(each) for each in slices]
        model = self._cut.direction == "model"
        found = [measured(each, grid, model=model) for each, grid in zip(slices, grids, strict=True)]
        fresh = sum(each.forwards for each in slices)
        return Chart(
            probe="slices",
            title=title(objective),
            values=summary(found),
            arrays={
                "points": np.concatenate([each.table(i) for i, each in enumerate(slices)]),
                "fingerprint": _fingerprint(slices),
            },
            panels=panels(slices, found, grids),
            cost=meter.cost(
                products=0 if hessian is None else hessian.products,
                forwards=fresh + (gradient is not None),
                backwards=float(gradient is not None),
            ),
            notes=tuple(_notes(slices, hessian, taken)),
        )

    def _refine(self, slices: Sequence[Slice]) -> None:
        """In turns, so that all planes are equally fine whenever it ends."""
        trees = [Quadtree(*each.reach) for each in slices]
        open_ = list(zip(slices, trees, strict=True))
        while open_:
            for each, tree in list(open_):
                asked = tree.ask(min(BATCH, self._points - tree.count)) if self._points - tree.count >= 5 else ()
                if not len(asked):
                    open_.remove((each, tree))
                    continue
                tree.tell(each.warped(each.losses(asked)))
                each.tree = tree

    def _sweep(self, slices: Sequence[Slice]) -> None:
        for each in slices:
            each.losses(self._lattice(each))

    def _lattice(self, each: Slice) -> np.ndarray:
        """Column by column, the columns in coarse order: along one, a point is one addition from its neighbour."""
        first, *rest = self._grid(each)
        return np.stack([side.ravel() for side in np.meshgrid(coarse_first(first), *rest, indexing="ij")], -1)

    def _grid(self, each: Slice) -> tuple[np.ndarray, ...]:
        """Positions along each axis at which the slice is measured and drawn."""
        count = self._points if len(each.reach) == 1 else self._resolution
        return tuple(np.linspace(*reach, count) for reach in each.reach)

    def _recalled(self, slices: Sequence[Slice]) -> int:
        """Take over the points of an earlier chart of the same slices; how many there are."""
        if self._partial is None:
            return 0
        known = self._partial.arrays.get("fingerprint", np.zeros(0))
        here = _fingerprint(slices)
        if (
            self._partial.probe != "slices"
            or known.shape != here.shape
            or not np.allclose(known, here, rtol=1e-4, equal_nan=True)
        ):
            raise BadInput(
                "slices(partial=...) must be a chart of the same slices: same weights, directions, seed and examples. "
                "Got another one."
            )
        for i, each in enumerate(slices):
            each.recall(self._partial.arrays["points"], i)
        return len(self._partial.arrays["points"])


def _check_direction(
    direction: Direction,
    normalisation: Normalisation | None,
    dimensions: int,
    count: int,
    other: Mapping[str, Tensor] | None,
    trajectory: Sequence[Snapshot] | None,
) -> None:
    known = ("random", "gradient", "eigenvectors", "trajectory", "model")
    if direction not in known:
        raise BadInput(f"slices(direction=...) must be one of {', '.join(known)}. Got {direction!r}.")
    if normalisation not in (None, "filter", "layer", "raw"):
        raise BadInput(f"slices(normalisation=...) must be filter, layer or raw. Got {normalisation!r}.")
    if direction in ("trajectory", "model") and normalisation not in (None, "raw"):
        raise BadInput(f"slices(direction={direction!r}) has the scale of the weights. Leave out normalisation.")
    if direction == "model" and other is None:
        raise BadInput(
            "slices(direction='model') needs another model's weights. Give other= (on the command line, --other)."
        )
    if direction == "trajectory" and not trajectory:
        raise BadInput(
            "slices(direction='trajectory') needs checkpoints. Give trajectory= (on the command line, a run's folder)."
        )
    if dimensions == 1 and count > 1 and direction in ("gradient", "model"):
        raise BadInput(f"slices(direction={direction!r}, dimensions=1) is one line. Got count={count}.")


def _fingerprint(slices: Sequence[Slice]) -> np.ndarray:
    """Numbers that other weights, directions or examples would change."""
    return np.concatenate([each.fingerprint for each in slices])


def _notes(slices: Sequence[Slice], hessian: Hessian | None, taken: int) -> list[str]:
    notes = list(dict.fromkeys(note for each in slices for note in each.notes if note))
    if hessian is not None and hessian.check is not None and hessian.check.note:
        notes.append(hessian.check.note)
    if taken:
        notes.append(f"{taken} points are those of an earlier chart.")
    return notes
