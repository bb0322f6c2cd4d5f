"""One slice: its samples, how sure they are, and what they say in numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dynaxx.core.chart import Estimate
from dynaxx.core.objective import Objective
from dynaxx.core.panels import Scale
from dynaxx.errors import NotApplicable
from dynaxx.figures._read import scale_for
from dynaxx.landscape._directions import Axes
from dynaxx.landscape._sampling import Sampler, Spread
from dynaxx.numerics.quadtree import Quadtree
from dynaxx.numerics.relief import barrier, line_relief, plane_relief
from dynaxx.numerics.space import Space

DIFFERENCES = 4
"""Losses per direction from which its curvature at the centre is found a second way."""
BARRIER_POINTS = 25
"""Losses between two models: the top of a barrier that is one smooth hump is then missed by 0.2 % of its height."""


class Slice:
    """The losses of one slice, each taken once.

    Args:
        objective: The loss and the point.
        axes: The directions.
        gradient: ∇L; None: not wanted.
        products: H times the directions; None: not wanted.
        radius: How far it reaches; None: as the axes say, or as far as the quadratic model holds.
    """

    def __init__(
        self, objective: Objective, axes: Axes, gradient: Tensor | None, products: Tensor | None, radius: float | None
    ) -> None:
        self.axes = axes
        self.tree: Quadtree | None = None
        self.scale: Scale | None = None
        self.forwards = 0.0
        self._sampler = Sampler(objective, axes.rows, axes.buffers)
        self._taken: dict[tuple[float, ...], float] = {}
        space = Space(objective.parameters, objective.names)
        self.weights = float(torch.linalg.vector_norm(space.flatten(objective.parameters).double()))
        self.gram = space.gram(axes.rows, axes.rows).double().cpu().numpy()
        self.slopes = None if gradient is None else space.gram(axes.rows, gradient[None]).double().cpu().numpy()[:, 0]
        self.forms = None if products is None else space.gram(axes.rows, products).double().cpu().numpy()
        self._tiny = 0.0
        self.centre = float(self.losses(np.zeros((1, len(axes.rows))))[0])
        if not math.isfinite(self.centre):
            objective.explain_not_finite()
        self.reach = tuple(self._reach(k, radius) for k in range(len(axes.rows)))
        self.notes = [axes.note]
        self.spread = self._spread()

    def losses(self, points: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
        """Losses at points; those that are known are not taken again.

        Args:
            points: Coordinates in rows.

        Returns:
            One loss each; NaN where it is not finite.
        """
        keys = list(map(tuple, np.asarray(points, dtype=float).tolist()))
        wanted = [key for key in dict.fromkeys(keys) if key not in self._taken]
        if wanted:
            with self._sampler.open() as loss:
                for key in wanted:
                    value = loss(key)
                    self._taken[key] = value if math.isfinite(value) else math.nan
            self.forwards += len(wanted)
        return np.array([self._taken[key] for key in keys])

    def warped(self, values: np.ndarray) -> np.ndarray:
        """Losses as they are drawn: by their logarithm where the first ones span decades.

        Args:
            values: Losses.

        Returns:
            What is interpolated.
        """
        if self.scale is None:
            self.scale = scale_for(values)
            self._tiny = 1e-6 * float(np.nanmin(values)) if self.scale == "log" else 0.0
        return np.log(np.maximum(values, self._tiny)) if self.scale == "log" else values

    def surface(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The losses on a grid: interpolated where the plane was refined, else as taken.

        Args:
            x: Columns.
            y: Rows.

        Returns:
            Shape (rows, columns); NaN where it is not finite or not known.
        """
        if self.tree is not None:
            drawn = self.tree.surface(x, y)
            return np.exp(drawn) if self.scale == "log" else drawn
        return np.array([[self._taken.get((a, b), math.nan) for a in x.tolist()] for b in y.tolist()])

    def table(self, index: int) -> np.ndarray:
        """Every loss that was taken.

        Args:
            index: Of the slice.

        Returns:
            Rows of index, coordinates (0 where there is no second one), loss.
        """
        return np.array([(index, *key, *(0.0,) * (2 - len(key)), value) for key, value in self._taken.items()])

    def recall(self, table: np.ndarray, index: int) -> None:
        """Take over losses of an earlier chart.

        Args:
            table: Its points.
            index: Of this slice in it.
        """
        for _, a, b, value in table[table[:, 0] == index]:
            self._taken[(float(a), float(b))[: len(self.reach)]] = float(value)

    @property
    def fingerprint(self) -> np.ndarray:
        """Numbers that another slice would not have."""
        ends = [end for reach in self.reach for end in reach]
        return np.array([self.centre, self.weights, *self.gram.ravel(), *(self._edge_losses or ()), *ends])

    def _reach(self, k: int, radius: float | None) -> tuple[float, float]:
        if radius is not None:
            return (-radius, radius)
        reach = self.axes.reach[k]
        if reach is not None:
            return reach
        # Raw directions have unit length: half of d'Hd r² = L, within a thousandth and the whole of the weights' norm.
        size = self.weights or 1.0
        curved = 0.0 if self.forms is None else abs(float(self.forms[k, k]))
        far = math.sqrt(2 * abs(self.centre) / curved) if curved > 0 and self.centre else 0.1 * size
        far = min(max(far, 1e-3 * size), size)
        return (-far, far)

    def _spread(self) -> Spread | None:
        """Parts of the loss at the centre and at both ends of each axis."""
        origin = np.zeros(len(self.reach))
        points = [origin]
        for k, reach in enumerate(self.reach):
            points += [origin + np.eye(len(origin))[k] * end for end in reach]
        self._edge_losses: tuple[float, ...] | None = None
        try:
            found = self._sampler.spread([tuple(map(float, p)) for p in points])
        except NotApplicable as reason:
            self.notes.append(f"Standard errors: not applicable. {reason}")
            return None
        self.forwards += len(points)
        self._edge_losses = tuple(found.means[1:])
        return found

    def curvature_by_differences(self, k: int) -> Estimate:
        """Second difference of the loss along a direction at the centre, extrapolated from two distances.

        Args:
            k: Which direction.

        Returns:
            The curvature at the scale of the distances, with a bound: what the extrapolation changed, and rounding. It
            is d'Hd where the loss is smooth; kinks (ReLU) add to it, and a Hessian product does not see them.
        """
        low, high = self.reach[k]
        eps = float(np.finfo(np.float32).eps) * max(abs(self.centre), 1e-12)
        curved = abs(float(self.forms[k, k])) if self.forms is not None else 0.0
        # The distance at which rounding is 1 % of the second difference, within the slice.
        step = min(max(math.sqrt(400 * eps / curved) if curved else 0.0, 1e-2 * (high - low)), 0.25 * (high - low))
        unit = np.eye(len(self.reach))[k]
        near_low, near_high, far_low, far_high = self.losses([s * step * unit for s in (-0.5, 0.5, -1.0, 1.0)])
        near = (near_low + near_high - 2 * self.centre) / (step / 2) ** 2
        far = (far_low + far_high - 2 * self.centre) / step**2
        bound = abs(near - far) / 3 + 16 * eps / step**2
        return Estimate(value=float((4 * near - far) / 3), error=float(bound), bound=True)


Found = Mapping[str, Estimate]
"""What a slice says, by name."""


def measured(each: Slice, grid: tuple[np.ndarray, ...], *, model: bool) -> Found:
    """The numbers of a slice.

    Args:
        each: Its losses.
        grid: Positions along each axis.
        model: Whether the first direction leads to another model.

    Returns:
        Name → number.
    """
    found = _loss(each)
    if len(grid) == 1:
        values = each.losses(grid[0][:, None])
        line = line_relief(grid[0], values)
        shape, slope = {"convexity": (line.convexity, "share of neighbouring triples that are convex")}, line.slope
        slope /= math.sqrt(each.gram[0, 0])
        relief = line
    else:
        values = each.surface(*grid)
        plane = plane_relief(grid[0], grid[1], values, each.gram)
        shape = {
            "convexity": (plane.convexity, "share of inner points where the plane's Hessian is not negative anywhere"),
            "canyons": (plane.canyons, "share of inner points curved 10 times more across than along"),
        }
        relief, slope = plane, plane.slope
    shape |= {
        "roughness": (relief.roughness, "share of the variation beyond that of a single valley"),
        "residual": (relief.residual, "RMS distance from a quartic, over the range"),
        "cliff": (slope * each.weights, "largest slope per relative step ‖Δθ‖/‖θ‖"),
        "walls": (relief.walls, "share of points that are not finite"),
        "lowest": (_lowest(values) - each.centre, "lowest loss found, less that at the weights"),
    }
    if all(low == -high for low, high in each.reach):
        shape["asymmetry"] = relief.asymmetry, "mean |L(θ+δ) − L(θ−δ)| over the range"
    found |= {name: Estimate(value=value, about=about) for name, (value, about) in shape.items()}
    if model:
        found["barrier"] = _barrier(each)
    return found | _curvatures(each)


def _lowest(values: np.ndarray) -> float:
    return float(np.nanmin(values)) if np.isfinite(values).any() else math.nan


def _loss(each: Slice) -> dict[str, Estimate]:
    about = "at the weights; standard error over examples"
    if each.spread is None:
        return {"loss": Estimate(value=each.centre, about="at the weights")}
    ends = range(1, 1 + 2 * len(each.reach))
    rises = [each.spread.means[i] - each.spread.means[0] for i in ends]
    error = max(each.spread.error(i, 0) for i in ends)
    rise = Estimate(
        value=float(np.mean(rises)),
        error=error if math.isfinite(error) else None,
        about="mean rise to the ends of the axes; largest standard error of one on these examples",
    )
    return {"loss": Estimate(value=each.centre, error=each.spread.error(0), about=about), "rise": rise}


def _barrier(each: Slice) -> Estimate:
    t = np.linspace(0, 1, BARRIER_POINTS)
    height = barrier(t, each.losses([(a, *(0.0,) * (len(each.reach) - 1)) for a in t]))
    return Estimate(value=height, about="max over t of L on the way less the straight line between both ends")


def _curvatures(each: Slice) -> dict[str, Estimate]:
    """Curvature at the centre by product and by differences, per squared distance; the canyon through the centre."""
    if each.forms is None:
        return {}
    found: dict[str, Estimate] = {}
    for k, name in enumerate(("first", "second")[: len(each.reach)]):
        size = each.gram[k, k]
        product = Estimate(value=float(each.forms[k, k] / size), about="dᵀHd/‖d‖² by a product")
        seen = each.curvature_by_differences(k)
        error = math.nan if seen.error is None else seen.error
        found[f"curvature_{name}"] = product
        about = "second difference of the slice's losses about the centre; kinks (ReLU) count, in a product they do not"
        if abs(seen.value / size - product.value) > error / size:
            about += "; here they differ by more than the difference's own bound"
        found[f"curvature_{name}_seen"] = replace(seen, value=seen.value / size, error=error / size, about=about)
    if len(each.reach) == 2:
        inverse = np.linalg.inv(np.linalg.cholesky(each.gram))
        low, high = sorted(abs(np.linalg.eigvalsh(inverse @ each.forms @ inverse.T)))
        found["condition"] = Estimate(
            value=float(high / low) if low > 0 else math.inf,
            about="curvature across the canyon at the centre over that along it",
        )
    return found


def coarse_first(points: np.ndarray) -> np.ndarray:
    """The same points in an order in which any beginning covers them all.

    Args:
        points: In rows.

    Returns:
        By the radical inverse of their place (van der Corput 1935).
    """
    bits = max(1, (len(points) - 1).bit_length())
    order = sorted(range(len(points)), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))
    return points[order]
