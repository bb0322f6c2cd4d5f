"""The diverse buffer: of all checkpoints the few that lie farthest apart, within a budget of disk and of quality."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dynaxx.checkpoints.coordinates import Coordinates
from dynaxx.checkpoints.health import illness
from dynaxx.checkpoints.manifest import CheckpointInfo
from dynaxx.checkpoints.retention import Policy, number
from dynaxx.core.chart import Chart, Estimate
from dynaxx.core.panels import HeatMap, Line, Lines
from dynaxx.errors import BadInput
from dynaxx.numerics.dispersion import Choice, most_spread, nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Diverse(Policy):
    """Keep checkpoints by max–min distance: where there are too many, the later of the two that are closest goes.

    The smallest distance that remains is at least half of what any choice of as many reaches, and stays about that
    where the others are deleted after each save (`numerics.dispersion.most_spread`). Equal distances are decided by
    step and id, so that the choice is the same everywhere. Diversity alone buys no accuracy (Rojas and Alvarez-Melis
    2024): hence the floor.

    Args:
        coordinates: Where checkpoints lie.
        count: Most checkpoints that are kept for diversity.
        budget: Most bytes that they take; None: no limit.
        metric: The fact that is their quality; one where it is not finite is not kept, nor one of weights that are not.
        mode: Whether less or more of it is better.
        floor: How much worse than the best one a checkpoint may be, in the unit of the metric; None: any.
        excluded: Which of the checkpoints others keep anyway, such as pins and the last healthy one: they take no place
            and no bytes here, and what lies near them adds nothing.

    Raises:
        BadInput: A number is out of its range.
    """

    coordinates: Coordinates
    count: int = 8
    budget: float | None = None
    metric: str = "val_loss"
    mode: Literal["min", "max"] = "min"
    floor: float | None = None
    excluded: Callable[[Sequence[CheckpointInfo]], Collection[str]] = lambda infos: ()

    def __post_init__(self) -> None:
        if self.count < 1:
            raise BadInput(f"Diverse(count=...) must be at least 1. Got {self.count}.")
        if self.budget is not None and not self.budget > 0:
            raise BadInput(f"Diverse(budget=...) must be more than 0 bytes. Got {self.budget}.")
        if self.floor is not None and not self.floor >= 0:
            raise BadInput(f"Diverse(floor=...) must be 0 or more. Got {self.floor}.")
        if self.mode not in ("min", "max"):
            raise BadInput(f"Diverse(mode=...) must be 'min' or 'max'. Got {self.mode!r}.")

    def keep(self, infos: Sequence[CheckpointInfo]) -> frozenset[str]:
        """The keep-set; points that are not known yet are computed and kept as notes.

        Args:
            infos: All checkpoints there are.

        Returns:
            Ids among them; the excluded ones are not among those.
        """
        chosen = self._chosen(infos, self.excluded(infos), self.coordinates.distances(infos))
        return frozenset(infos[i].id for i in chosen)

    def __str__(self) -> str:
        return f"diverse:{self.count}"

    def chart(self, infos: Sequence[CheckpointInfo]) -> Chart:
        """The distances, and what is kept.

        Args:
            infos: As in `keep`.

        Returns:
            The chart.
        """
        excluded = self.excluded(infos)
        infos = sorted(infos, key=lambda info: (info.step, info.id))
        distances = self.coordinates.distances(infos)
        chosen = self._chosen(infos, excluded, distances)
        kept = sorted({*chosen, *(i for i, info in enumerate(infos) if info.id in excluded)})
        words = {i: " · kept" if i in chosen else " · excluded" for i in kept}
        near = nearest(distances, kept)
        unit = self.coordinates.unit
        matrix = HeatMap(
            title=f"Distances between checkpoints: {unit}",
            x=np.arange(len(infos), dtype=np.float64),
            rows=tuple(f"{info.step}{words.get(i, '')}" for i, info in enumerate(infos)),
            values=distances,
            x_label="checkpoint, in the order of the rows",
            value_label=unit,
        )
        steps = np.array([float(infos[i].step) for i in kept])
        gaps = Line(label="kept", x=steps, y=near, style="points")
        size = float(sum(infos[i].size for i in chosen))
        return Chart(
            probe="diverse",
            title=f"{len(chosen)} of {len(infos)} checkpoints of {self.coordinates.place.name}",
            values={
                "smallest_distance": Estimate(value=float(near.min(initial=math.inf)), about="among those kept"),
                "bytes": Estimate(value=size, unit="byte", about="of those kept for diversity"),
            },
            arrays={"step": np.array([float(info.step) for info in infos]), "distances": distances},
            panels=(matrix, Lines(title="Distance to the nearest other that is kept", lines=(gaps,), y_label=unit)),
        )

    def _chosen(self, infos: Sequence[CheckpointInfo], excluded: Collection[str], distances: np.ndarray) -> list[int]:
        sign = 1 if self.mode == "min" else -1
        scores = {i: sign * value for i, info in enumerate(infos) if (value := number(info, self.metric)) is not None}
        worst = min(scores.values(), default=math.inf) + (math.inf if self.floor is None else self.floor)
        lost = {i for i, info in enumerate(infos) if (self.metric in info.facts and i not in scores) or illness(info)}
        allowed = [i for i in range(len(infos)) if i not in lost and scores.get(i, worst) <= worst]
        allowed.sort(key=lambda i: (infos[i].step, infos[i].id))
        choice = Choice(
            distances=distances,
            candidates=allowed,
            fixed=[i for i, info in enumerate(infos) if info.id in excluded],
            count=self.count,
            sizes=[float(info.size) for info in infos],
            budget=math.inf if self.budget is None else self.budget,
        )
        return most_spread(choice)
