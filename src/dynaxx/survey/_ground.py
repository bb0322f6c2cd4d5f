"""What the stages of a map stand on: the task, what was found so far, and points to probe."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dynaxx import catalog
from dynaxx.core.batches import examples, split
from dynaxx.core.chart import Chart
from dynaxx.core.isolation import isolated_random
from dynaxx.core.objective import Objective
from dynaxx.core.task import Task
from dynaxx.errors import NotApplicable
from dynaxx.landscape._point import Point, point
from dynaxx.survey.engines import Engine
from dynaxx.survey.fleet import FleetProgress
from dynaxx.survey.proxies import Proxy
from dynaxx.survey.results import Result, read_result


class TooDear(NotApplicable):
    """A stage has too few passes; with more it could speak."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a stage found.

    Args:
        chart: Its chart; the passes of its cost are in training batches.
        members: Folders of the trainings that it made, within the fleet's.
    """

    chart: Chart
    members: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class Ground:
    """The task of a map, and what has been found of it.

    Args:
        folder: The map's.
        spec: How the task is found.
        task: The task itself.
        seed: Of models and data orders.
        engine: Where short trainings are made.
        progress: Called as fleets proceed.
        found: Stages by name.
    """

    folder: Path
    spec: str
    task: Task
    seed: int
    engine: Engine | None
    progress: Callable[[FleetProgress], None]
    found: dict[str, Found] = field(default_factory=dict[str, Found])

    @property
    def fleet(self) -> Path:
        """Folder of all short trainings."""
        return self.folder / "fleet"

    @property
    def charts(self) -> dict[str, Chart]:
        """The charts by stage."""
        return {name: found.chart for name, found in self.found.items()}

    @property
    def parameters(self) -> int:
        """Of a model of the task."""
        with isolated_random():
            return sum(p.numel() for p in self.task.model().parameters())

    def parameters_of(self, proxy: Proxy) -> int:
        """Of a model of what is trained in the task's place.

        Args:
            proxy: What that is.

        Returns:
            Their number.
        """
        task = catalog.task(self.spec, proxy.size)
        with isolated_random():
            return sum(
                p.numel() for p in (task if proxy.width is None else task.scaled(proxy.width)).model().parameters()
            )

    def seeds(self, count: int) -> range:
        """The seeds of short trainings, from the map's own on.

        Args:
            count: How many.

        Returns:
            Consecutive ones.
        """
        return range(self.seed, self.seed + count)

    def results(self, *stages: str) -> list[Result]:
        """The finished trainings of some stages.

        Args:
            stages: Their names.

        Returns:
            Results, diverged ones included.
        """
        folders = [name for stage in stages if stage in self.found for name in self.found[stage].members]
        read = [read_result(self.fleet / name) for name in dict.fromkeys(folders)]
        return [result for result in read if result is not None and result.finished]

    def best(self) -> Result:
        """The short training that ended lowest: where a good rate leads.

        Returns:
            Its result.

        Raises:
            NotApplicable: None was made that lowered the loss.
        """
        good = [r for r in self.results("sensitivity", "fleet") if not r.diverged and r.final < r.initial]
        if not good:
            raise NotApplicable("no short training lowered the loss, so there is no trained point to look at.")
        return min(good, key=lambda result: result.final)

    def trained(self, *, batches: float, other: str | None = None, along: Sequence[str] = ()) -> Point:
        """The objective at the end of the best short training.

        Args:
            batches: So many training batches of examples; below 1 a part of one.
            other: The folder of another run, whose end is the second point.
            along: Folders of further runs whose checkpoints are looked at.

        Returns:
            The point.
        """
        there = point(
            self.best().folder,
            task=self.spec,
            size=self.task.size,
            examples=max(1, round(batches * self.weight)),
            other=other,
            along=along,
        )
        if batches >= 1:
            return there
        whole, model = there.objective.batches[0], there.objective.model
        part = split(whole, max(1, round(batches * examples(whole))))[0]
        return replace(there, objective=Objective.of_task(there.task, model, [part]))

    def fresh(self, *, batches: float) -> Point:
        """The objective at a fresh model.

        Args:
            batches: So many training batches of examples.

        Returns:
            The point.
        """
        return point(self.spec, size=self.task.size, seed=self.seed, examples=round(batches * self.weight))

    @property
    def weight(self) -> float:
        """Of one training batch: its examples, or tokens."""
        return self.task.weight(next(iter(self.task.batches("train", 0))))
