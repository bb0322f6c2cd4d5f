"""The map of a task: every probe within one budget, then the terrain and the plan that follow."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynaxx import catalog
from dynaxx.core.chart import Chart
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.landscape._unlike import explained
from dynaxx.runlog.disk import replace_file
from dynaxx.survey import _stages as stages
from dynaxx.survey._ground import Found, Ground, TooDear
from dynaxx.survey.advice import Circumstances, advise
from dynaxx.survey.budget import Budget
from dynaxx.survey.engines import Engine
from dynaxx.survey.fleet import FleetProgress
from dynaxx.survey.member import Addresses, Member
from dynaxx.survey.plan import Plan
from dynaxx.survey.readings import readings
from dynaxx.survey.terrain import Terrain, terrain


@dataclass(frozen=True, slots=True, kw_only=True)
class Map:
    """What a map found.

    Args:
        folder: Where it lies: charts, fleet, plan.toml.
        charts: By probe.
        terrain: The terrain, with evidence.
        plan: The plan.
        budget: The account in words.
        spent: Passes that it took.
        granted: Passes that it could take.
        left_out: Probe → why it has no chart.
        reused: Probes whose chart is from before.
    """

    folder: Path
    charts: Mapping[str, Chart]
    terrain: Terrain
    plan: Plan
    budget: str
    spent: float
    granted: float
    left_out: Mapping[str, str] = field(default_factory=dict[str, str])
    reused: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the charts' arrays."""
        return {
            "folder": str(self.folder),
            "plan": str(self.folder / "plan.toml"),
            "terrain": self.terrain.name,
            "confidence": self.terrain.confidence,
            "scores": dict(self.terrain.scores),
            "evidence": dict(self.plan.evidence),
            "sure": dict(self.plan.confidence),
            "not_established": list(self.plan.not_established),
            "left_out": dict(self.left_out),
            "budget": self.budget,
        }


def map_task(
    task: str,
    dir: str | Path,
    *,
    size: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    budget: float | None = None,
    engine: Engine | None = None,
    circumstances: Circumstances | None = None,
    proxy: bool = False,
    said: Callable[[str], None] = lambda _: None,
    progress: Callable[[FleetProgress], None] = lambda _: None,
) -> Map:
    """Survey a task before its budget is spent, and turn the survey into a plan.

    Every chart is kept under the address of what it depends on, so a map that was cut off goes on where it was, and
    one that is finished costs nothing.

    Args:
        task: A built-in task, or file.py:Class.
        dir: The map's folder.
        size: The task's size.
        steps: Optimizer steps of the training that is planned; None: the task's own.
        seed: Of models and data orders.
        budget: Share of the planned training that the map may take; None: a tenth, and no less than the floor. One that
            is given is kept to, floor or not.
        engine: Where short trainings are made; None: processes of this machine.
        circumstances: What else the plan depends on: production, fine-tuning, memory.
        proxy: Search on a narrower model first (needs Optuna): a prior for where the scan of rates looks, no answer.
        said: Called with a line after every probe.
        progress: Called as fleets proceed.

    Returns:
        Charts, terrain and plan; the plan is in `dir/plan.toml` as well.

    Raises:
        BadInput: There is no such task or size, or the budget is not above 0.
    """
    work = catalog.task(task, size)
    if steps is not None:
        work.steps = steps
    if budget is not None and not 0 < budget < float("inf"):
        raise BadInput(f"map(budget=...) must be a share above 0 of the planned training. Got {budget}.")
    purse = Budget.of_training(work.steps) if budget is None else Budget.of_training(work.steps, share=budget, floor=0)
    ground = Ground(
        folder=Path(dir), spec=task, task=work, seed=seed, engine=engine, progress=progress,
    )  # fmt: skip
    here = _Survey(ground, purse, Addresses()(Member(task=task, steps=1, size=size)), said)
    with explained(work):
        here.survey([name for name in stages.ORDER if proxy or name not in stages.OPTIONAL])
    found = readings(ground)
    judged = terrain(found)
    plan = advise(ground, found, judged, circumstances or Circumstances(), here.left_out)
    plan.write(ground.folder / "plan.toml")
    made = Map(
        folder=ground.folder,
        charts=ground.charts,
        terrain=judged,
        plan=plan,
        budget=purse.summary(),
        spent=purse.spent,
        granted=purse.passes,
        left_out=here.left_out,
        reused=tuple(here.reused),
    )
    replace_file(ground.folder / "map.json", json.dumps(made.to_dict(), indent=1).encode())
    return made


class _Survey:
    """The stages of one map, one after the other."""

    def __init__(self, ground: Ground, budget: Budget, address: str, said: Callable[[str], None]) -> None:
        self.ground, self.budget = ground, budget
        self.left_out: dict[str, str] = {}
        self.reused: list[str] = []
        self._too_dear: set[str] = set()
        self._address, self._said = address, said
        (ground.folder / "charts").mkdir(parents=True, exist_ok=True)

    def survey(self, names: Sequence[str]) -> None:
        """Every stage with its share; then, with what they have left, those that had too little."""
        for name in names:
            self._stage(name, stages.granted(name, self.budget.passes))
        for name in [name for name in names if name in self._too_dear]:
            if self.budget.free > 0:
                self._stage(name, self.budget.free / self.budget.passes)
        for name, reason in self.left_out.items():
            self._said(f"{name}: left out: {reason}")

    def _stage(self, name: str, share: float) -> None:
        """One stage; what does not apply is noted, and the map goes on."""
        try:
            self._measure(name, share)
            self.left_out.pop(name, None)
        except NotApplicable as reason:
            self.left_out[name] = str(reason)
            if isinstance(reason, TooDear):
                self._too_dear.add(name)
        finally:
            self.budget.close(name)

    def _measure(self, name: str, share: float) -> None:
        """Grant, measure or read again, count, keep."""
        stage, total = stages.ORDER[name], self.budget.grant(name, share)
        path = self.ground.folder / "charts" / f"{name}.json"
        # The grant follows from what the stages before have cost, so with an equal one they were those of this map.
        ground = self.ground
        key = _key(name, self._address, ground.seed, ground.task.steps, ground.task.batch_size, round(total, 3))
        found = _kept(path, key)
        if found is None:
            found = stage(ground, total)
            kept = {"key": key, "members": found.members, "chart": found.chart.to_dict()}
            replace_file(path, json.dumps(kept).encode())
        else:
            self.reused.append(name)
        ground.found[name] = found
        taken = self.budget.spend(name, found.chart.cost)
        before = "from before" if name in self.reused else f"in {found.chart.cost.seconds:.0f} s"
        self._said(f"{name}: {taken:.0f} of {total:.0f} passes {before}; {self.budget.left:.0f} left")


def _key(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def _kept(path: Path, key: str) -> Found | None:
    try:
        held = json.loads(path.read_text())
        if held["key"] != key:
            return None
        return Found(chart=Chart.from_dict(held["chart"]), members=tuple(held["members"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
