"""The suite's report: observes all runs, scores everybody, and says it as tables, Markdown and JSON."""

import json
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from dynaxx.errors import DynaxxWarning, UnknownName
from dynaxx.rescue.observer import Observation
from dynaxx.rescue.observers import OBSERVERS
from dynaxx.rescue.repairs import PolicyScore, policy_score
from dynaxx.rescue.scores import Changed, ObserverScore, changed, hurt, observer_score, untouched
from dynaxx.rescue.statistics import Rate, Ratio, Share
from dynaxx.rescue.training import Ended
from dynaxx.runlog import open_run

OBSERVER_HEAD = (
    "observer",
    "faults detected",
    "incidents detected",
    "by an apt detector",
    "right cause first",
    "in the first three",
    "alarms per 10 000 healthy steps",
    "healthy runs with an alarm",
    "median delay",
)
POLICY_HEAD = (
    "who acts",
    "repaired",
    "on one order",
    "sure of it",
    "clean orders that would count",
    "loss over the clean twins'",
    "kinds better than untouched",
    "passes",
    "healthy kinds harmed",
    "healthy runs harmed",
    "p of harm",
    "healthy loss",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the suite found.

    Args:
        runs: What became of each case.
        changes: Which alterations change the outcome.
        observers: Score by observer.
        policies: Score by who acted.
    """

    runs: tuple[Ended, ...]
    changes: tuple[Changed, ...]
    observers: Mapping[str, ObserverScore]
    policies: Mapping[str, PolicyScore]

    @property
    def head(self) -> str:
        """What was run, in a line."""
        kinds = {kind: sum(run.case.kind == kind for run in untouched(self.runs)) for kind in KINDS}
        counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        status = Counter(run.status for run in self.runs)
        ends = ", ".join(f"{status[name]} {name}" for name in ("not applicable", "refused", "failed"))
        return f"{counted} runs; {len(hurt(self.runs))} were hurt by what was planted; {ends}"

    def observer_rows(self) -> list[tuple[str, ...]]:
        """The table of the observers."""
        return [
            (name, *map(str, (s.faults, s.incidents, s.apt, s.first, s.three, s.alarms, s.healthy)), _number(s.delay))
            for name, s in self.observers.items()
        ]

    @property
    def acted(self) -> Mapping[str, PolicyScore]:
        """The scores of those who did anything at all."""
        return {name: score for name, score in self.policies.items() if name != "nothing"}

    def policy_rows(self) -> list[tuple[str, ...]]:
        """The table of those who act."""
        return [
            (
                *(name, *map(str, (s.mended, s.single, s.sure))),
                *("–" if math.isnan(s.alike) else f"{s.alike:.0%}", str(s.ratio), str(s.kinds), f"{s.passes:.2f}×"),
                *(str(s.worse), str(s.harmed), f"{s.harm:.3f}", str(s.healthy)),
            )
            for name, s in self.policies.items()
        ]

    def to_markdown(self) -> str:
        """The report as Markdown: the tables, and every case that was missed, misnamed, left or harmed."""
        return "\n".join(_markdown(self)) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "head": self.head,
            "changes": [asdict(each) for each in self.changes],
            "observers": {name: _plain(score) for name, score in self.observers.items()},
            "policies": {name: _plain(score) for name, score in self.policies.items()},
            "runs": [{k: v for k, v in run.as_dict().items() if k != "folder"} for run in self.runs],
        }

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write `rescue.md` and `rescue.json`.

        Args:
            folder: Where.

        Returns:
            Both paths.
        """
        text, data = folder / "rescue.md", folder / "rescue.json"
        text.write_text(self.to_markdown())
        data.write_text(json.dumps(_finite(self.to_dict()), indent=1))
        return text, data


KINDS = ("healthy", "fault", "incident")


def report(
    runs: Sequence[Ended],
    observers: Sequence[str] = tuple(OBSERVERS),
    *,
    workers: int = 1,
    others: Mapping[str, Mapping[str, Observation]] | None = None,
) -> Report:
    """Have everybody look at the runs, and score them.

    Args:
        runs: What became of the cases.
        observers: Who looks.
        workers: Processes.
        others: Further observers, which looked while the cases were trained: name → observation by the case's key.

    Returns:
        The report.

    Raises:
        UnknownName: There is no such observer.
    """
    for name in observers:
        if name not in OBSERVERS:
            raise UnknownName("observer", name, OBSERVERS)
    seen = observe(runs, observers, workers=workers)
    policies = dict.fromkeys(run.case.policy for run in runs if run.case.policy != "nothing")
    acting = ["nothing", *policies] if policies else []
    said = {name: {key: each[name] for key, each in seen.items()} for name in observers} | dict(others or {})
    return Report(
        runs=tuple(runs),
        changes=tuple(changed(runs)),
        observers={name: observer_score(runs, heard) for name, heard in said.items()},
        policies={name: policy_score(runs, name) for name in acting},
    )


def observe(
    runs: Sequence[Ended], observers: Sequence[str], *, workers: int = 1
) -> dict[str, Mapping[str, Observation]]:
    """What observers say of the logs that they are scored on: healthy runs, and those that were hurt, left alone.

    Args:
        runs: What became of the cases.
        observers: Who looks.
        workers: Processes.

    Returns:
        Observer → observation, by the case's key.
    """
    scored = {run.case for run in hurt(runs)}
    logs = [
        run
        for run in untouched(runs)
        if run.status == "finished" and (run.case.kind == "healthy" or run.case in scored)
    ]
    folders = [run.folder for run in logs]
    if workers == 1:
        said: Iterator[Mapping[str, Observation]] = map(_look, folders, [observers] * len(folders))
        return {run.case.key: each for run, each in zip(logs, said, strict=True)}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        said = pool.map(_look, folders, [observers] * len(folders), chunksize=8)
        return {run.case.key: each for run, each in zip(logs, said, strict=True)}


def _look(folder: str, observers: Sequence[str]) -> Mapping[str, Observation]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DynaxxWarning)
        warnings.simplefilter("ignore", RuntimeWarning)  # peers' rules divide by what a dead run leaves at zero
        log = open_run(folder)
        return {name: OBSERVERS[name]().observe(log) for name in observers}


def _markdown(found: Report) -> Iterator[str]:
    yield from ("# The rescue suite", "", found.head, "")
    yield "Shares with exact 95 % intervals (Clopper and Pearson), rates with those of a Poisson count."
    yield from ("", "## Who finds it", "", *_table(OBSERVER_HEAD, found.observer_rows()), "")
    if found.policies:
        yield from ("## Who mends it", "", *_table(POLICY_HEAD, found.policy_rows()), "")
    for name, score in found.observers.items():
        if name != "dynaxx":
            continue
        yield from (f"## Where {name} fell short", "")
        yield f"Missed: {', '.join(score.missed) or 'none'}."
        wrong = [f"{d.key} → {', '.join(d.named) or 'no cause'}" for d in score.misnamed]
        yield f"\nFirst cause wrong: {'; '.join(wrong) or 'none'}."
        noisy = [f"{rule} in {count}" for rule, count in score.noisiest.items()]
        yield f"\nAlarms on healthy runs: {'; '.join(noisy) or 'none'}.\n"
    for name, acted in found.acted.items():
        left = [f"{each.key} ({each.ratio} the clean loss)" for each in acted.left]
        yield from (f"## What {name} left", "", f"Not repaired: {'; '.join(left) or 'none'}.", "")
        worst = [f"{each.name} on {each.net} ({each.ratio} untouched)" for each in acted.harms]
        yield f"Healthy kinds harmed: {'; '.join(worst) or 'none'}. Runs: {', '.join(acted.hurt) or 'none'}.\n"
    yield from ("## What changes the outcome", "")
    rows = [(c.name, c.net, str(c.seeds), f"{c.p:.3f}", _number(c.effect)) for c in found.changes]
    yield from _table(("planted", "net", "seeds", "p of the sign-flip test", "effect"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _plain(score: ObserverScore | PolicyScore) -> dict[str, Any]:
    fields = {name: getattr(score, name) for name in type(score).__dataclass_fields__}
    return {
        name: value.as_dict() if isinstance(value, Share | Rate | Ratio) else _listed(value)
        for name, value in fields.items()
    }


def _listed(value: Any) -> Any:
    if isinstance(value, tuple):
        return [each if isinstance(each, str) else asdict(each) for each in value]
    return value


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"


def _finite(value: Any) -> Any:
    """JSON has no NaN: what is not finite becomes its name."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
