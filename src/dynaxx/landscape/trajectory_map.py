"""The probe `trajectory_map`: checkpoints of one or several runs in their common plane, the loss beneath, channels."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from dynaxx.core.chart import Chart, Estimate
from dynaxx.core.contracts import Probe
from dynaxx.core.objective import Objective
from dynaxx.core.panels import Field, Panel
from dynaxx.core.records import Cost
from dynaxx.core.snapshot import Snapshot
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.landscape._common import Meter, title
from dynaxx.landscape._embedding import embedded
from dynaxx.landscape._path import value_at
from dynaxx.landscape._snapshots import Snapshots
from dynaxx.landscape._trajectory_panels import SHOWN, Band, Plane, panels, paths
from dynaxx.numerics.batch_statistics import normalisations, renewed
from dynaxx.numerics.trajectory import Principal, channel, principal, random_walk, straightness

MARGIN = 0.15
"""The plane shows the paths and this share of their extent on every side."""
Embedding = Literal["none", "tsne", "umap"]


class TrajectoryMap(Probe):
    """Checkpoints of one or several runs seen together: their principal plane, the loss beneath it, their channel.

    The principal components are those of all checkpoints' parameters jointly, from inner products, so that two
    checkpoints are held at a time however many there are. Every figure stands beside that of random walks of the same
    starts and segment lengths, of which two components show most as well (Antognini and Sohl-Dickstein 2018).

    Args:
        trajectory: The checkpoints, of one run or of several.
        reference: Parameters by name of which differences are taken; None: where the probe stands.
        grid: Points of the loss contour along each axis; 0: no contour.
        sketch: Size of CountSketches from which inner products are taken, each checkpoint read once; 0: exact.
        memory: Gigabytes for exact inner products; more saves reading checkpoints again, two are held in any case.
        embedding: Also "tsne" (scikit-learn) or "umap" (umap-learn) of the distances, where installed.
        seed: Of the embedding.

    Raises:
        BadInput: A number is out of its range.
    """

    def __init__(
        self,
        *,
        trajectory: Sequence[Snapshot] | None = None,
        reference: Mapping[str, Tensor] | None = None,
        grid: int = 13,
        sketch: int = 0,
        memory: float = 2.0,
        embedding: Embedding = "none",
        seed: int = 0,
    ) -> None:
        if grid and grid < 3:
            raise BadInput(f"trajectory_map(grid=...) must be 0 or at least 3. Got {grid}.")
        if sketch and not (2 <= sketch <= 1 << 20 and sketch & (sketch - 1) == 0):
            raise BadInput(f"trajectory_map(sketch=...) must be 0 or a power of two up to 2²⁰. Got {sketch}.")
        if not memory > 0:
            raise BadInput(f"trajectory_map(memory=...) must be more than 0 gigabytes. Got {memory}.")
        if embedding not in ("none", "tsne", "umap"):
            raise BadInput(f"trajectory_map(embedding=...) must be one of none, tsne, umap. Got {embedding!r}.")
        self._trajectory, self._reference = trajectory, reference
        self._grid, self._sketch, self._memory = grid, sketch, memory
        self._embedding: Embedding = embedding
        self._seed = seed

    def price(self, objective: Objective) -> Cost:
        """Losses at the checkpoints, at their images in the plane, at the runs' mean, and at the grid."""
        renews = bool(normalisations(objective.model))
        count = len(self._trajectory or ())
        means = count // max(1, len({each.run for each in self._trajectory or ()}))
        return Cost(forwards=count + (1 + renews) * (count + means + self._grid**2))

    def run(self, objective: Objective) -> Chart:
        """Measure."""
        meter = Meter(objective)
        found = Snapshots(objective, self._trajectory, self._reference)
        products = found.products(sketch=self._sketch, gigabytes=self._memory)
        parts = principal(products)
        if not len(parts.variances):
            raise NotApplicable("trajectory_map: all checkpoints are one point. Give some of a run that moved.")
        null = random_walk(products, list(found.runs.values()))
        work = _Losses(objective, found)
        losses = np.array([work.at(found.tensors(i)) for i in range(len(found))])
        plane = _plane(work, parts, losses, self._grid)
        band = _channel(products, null, found, work)
        values = _values(found, products, parts, principal(null), plane, band)
        notes = [*self._notes(found, objective, parts), *_readings(found, parts, principal(null), band)]
        shown = panels(found, parts, principal(null), losses, plane, band)
        arrays = {
            "step": np.array([float(each.step) for each in found.all]),
            "run": np.array([float(list(found.runs).index(each.run)) for each in found.all]),
            "coordinates": parts.coordinates[:, :SHOWN],
            "explained": parts.explained,
            "explained_by_random_walk": principal(null).explained,
            "distance": np.sqrt(np.maximum(np.diag(products), 0.0)),
            "loss": losses,
            "projected_loss": plane.projected,
        } | ({"plane_x": plane.x, "plane_y": plane.y, "plane_loss": plane.loss} if self._grid else {})
        shown += self._embedded(products, found, arrays, notes)
        return Chart(
            probe="trajectory_map",
            title=f"{len(found)} checkpoints, runs: {len(found.runs)} · {title(objective)}",
            values=values,
            arrays=arrays,
            panels=tuple(shown),
            cost=meter.cost(forwards=work.forwards),
            notes=tuple(notes),
        )

    def _notes(self, found: Snapshots, objective: Objective, parts: Principal) -> list[str]:
        notes: list[str] = []
        if self._sketch:
            notes.append(
                f"Distances are from sketches of {self._sketch} numbers: relative standard deviation "
                f"{(2 * self._sketch) ** -0.5:.2g}."
            )
        if objective.numel < 10 * len(found):
            notes.append(
                f"{objective.numel} parameters for {len(found)} checkpoints: the random-walk figures are those of many "
                "dimensions, and a walk in so few would vary about them."
            )
        if normalisations(objective.model):
            notes.append("Off the checkpoints, running statistics of batch normalisation were renewed at each point.")
        if len(parts.variances) < 2:
            notes.append("The checkpoints lie on one line: there is no second component.")
        return notes

    def _embedded(
        self, products: np.ndarray, found: Snapshots, arrays: dict[str, np.ndarray], notes: list[str]
    ) -> list[Panel]:
        if self._embedding == "none":
            return []
        try:
            arrays[self._embedding] = points = embedded(products, self._embedding, self._seed)
        except NotApplicable as reason:
            notes.append(f"{self._embedding}: not applicable. {reason}")
            return []
        name = {"tsne": "t-SNE", "umap": "UMAP"}[self._embedding]
        (left, right), (low, high) = (_range(points[:, k]) for k in (0, 1))
        return [
            Field(
                title=f"{name} of the checkpoints' distances",
                x=np.array([left, right]),
                y=np.array([low, high]),
                values=np.full((2, 2), np.nan),
                paths=paths(found, points),
                note="Neighbours are kept; distances between groups mean nothing.",
            )
        ]


class _Losses:
    """The loss at points that are not the model's, counted."""

    def __init__(self, objective: Objective, found: Snapshots) -> None:
        self.objective, self.found = objective, found
        self.forwards = 0.0
        self._renews = bool(normalisations(objective.model))

    def at(self, tensors: Mapping[str, Tensor]) -> float:
        """L at parameters and buffers by name."""
        self.forwards += 1
        return value_at(self.objective, tensors)

    def between(self, difference: Mapping[str, Tensor]) -> float:
        """L at the reference plus a difference, with statistics of batch normalisation renewed there."""
        base = self.found.reference
        tensors = dict(base) | {name: base[name] + part for name, part in difference.items()}
        if self._renews:
            self.forwards += 1
            tensors = renewed(self.objective, tensors)
        return self.at(tensors)


def _plane(work: _Losses, parts: Principal, losses: np.ndarray, grid: int) -> Plane:
    n, rank = len(losses), min(2, parts.coordinates.shape[1])
    mean = np.full((n, 1), 1 / n)
    weights = np.hstack([mean, parts.weights[:, :rank] - parts.weights[:, :rank].mean(0)])
    centre, *directions = work.found.combinations(weights)

    def loss(*position: float) -> float:
        here = {name: part.clone() for name, part in centre.items()}
        for size, direction in zip(position, directions, strict=False):
            for name, part in direction.items():
                here[name].add_(part, alpha=size)
        return work.between(here)

    projected = np.array([loss(*point) for point in parts.coordinates[:, :rank].tolist()])
    gap = float(np.abs(projected - losses).mean())
    if not grid or rank < 2:
        return Plane(x=np.empty(0), y=np.empty(0), loss=np.empty((0, 0)), projected=projected, gap=gap)
    x, y = (np.linspace(*_range(parts.coordinates[:, k]), grid) for k in (0, 1))
    values = np.array([[loss(a, b) for a in x.tolist()] for b in y.tolist()])
    return Plane(x=x, y=y, loss=np.where(np.isfinite(values), values, np.nan), projected=projected, gap=gap)


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    pad = MARGIN * (high - low) or 1.0
    return low - pad, high + pad


def _channel(products: np.ndarray, null: np.ndarray, found: Snapshots, work: _Losses) -> Band:
    steps = found.common_steps()
    if len(found.runs) < 2:
        return Band(why_not="Channel across runs: not applicable to a single run. Give a second by trajectory=.")
    if len(steps) < 3:
        return Band(why_not=f"Channel across runs: not applicable, they share {len(steps)} steps and need 3. "
                     "Save checkpoints at the same steps.")  # fmt: skip
    mean_loss = np.empty(len(steps))
    for k, step in enumerate(steps):
        weights = np.zeros((len(found), 1))
        weights[step] = 1 / len(step)
        mean_loss[k] = work.between(work.found.combinations(weights)[0])
    return Band(
        found=channel(products, steps),
        null=channel(null, steps),
        steps=np.array([float(found.all[step[0]].step) for step in steps]),
        mean_loss=mean_loss,
    )


def _values(
    found: Snapshots, products: np.ndarray, parts: Principal, null: Principal, plane: Plane, band: Band
) -> dict[str, Estimate]:
    def share(each: Principal) -> float:
        return float(each.explained[:2].sum())

    turns = [straightness(products, run) for run in found.runs.values() if len(run) > 2]
    values = {
        "plane_variance": Estimate(value=share(parts), about="share of the variance that two components capture"),
        "plane_variance_of_random_walk": Estimate(value=share(null), about="the same of random walks"),
        "effective_dimension": Estimate(value=parts.participation, about="(Σλ)² / Σλ² of the components' variances"),
        "effective_dimension_of_random_walk": Estimate(value=null.participation, about="the same of random walks"),
        "plane_gap": Estimate(value=plane.gap, about="mean |L(checkpoint) − L(its image in the plane)|"),
    }
    if turns:
        cosine = float(np.nanmean(turns)) if np.isfinite(turns).any() else math.nan
        values["straightness"] = Estimate(value=cosine, about="mean cosine of consecutive segments; random walk: 0")
    if band.found is not None and band.null is not None:
        for prefix, each, whose in (("", band.found, "the runs"), ("random_", band.null, "random walks")):
            values |= {
                f"{prefix}drift": Estimate(value=each.drift, about=f"way of the mean, second half, of {whose}"),
                f"{prefix}spread_along": Estimate(value=each.along, about=f"rms spread along the drift, {whose}"),
                f"{prefix}spread_across": Estimate(value=each.across, about=f"rms spread across the drift, {whose}"),
                f"{prefix}contraction": Estimate(value=each.contraction, about=f"spread across, end/middle, {whose}"),
            }
    return values


def _readings(found: Snapshots, parts: Principal, null: Principal, band: Band) -> list[str]:
    """What the numbers say, in words; each against the random walk."""
    share, walk = float(parts.explained[:2].sum()), float(null.explained[:2].sum())
    if len(found) <= 3:
        return [f"{len(found)} checkpoints always lie in a plane: what it captures says nothing. Keep more of the run."]
    notes = [
        f"Two components capture {share:.1%} of the variance; random walks of these segment lengths, {walk:.1%}."
        + ("" if share > walk else " The plane is no evidence of a low-dimensional path.")
    ]
    if band.found is None or band.null is None:
        return [*notes, band.why_not]
    one, two = band.found, band.null
    narrow = one.contraction < 1 and one.contraction < two.contraction
    forward = one.ratio > two.ratio
    word = "a channel" if narrow and forward else "no channel"
    notes.append(
        f"Reading: {word}. The runs {'come together' if narrow else 'do not come together'} (spread across the drift, "
        f"end over middle, {one.contraction:.3g}; random walks {two.contraction:.3g}) and "
        f"{'drift together' if forward else 'do not drift together'} (drift over spread {one.ratio:.3g}; random walks "
        f"{two.ratio:.3g}). {len(found.runs)} runs."
    )
    return notes
