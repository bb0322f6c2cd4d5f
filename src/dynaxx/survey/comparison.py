"""Optimizers compared on whole short trainings: final losses over seeds, with their uncertainty."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from dynaxx.core.chart import Chart, Estimate
from dynaxx.core.panels import Line, Lines, Table
from dynaxx.errors import NotApplicable
from dynaxx.survey.fleet import Fleet
from dynaxx.survey.results import Result

CHANCE = 0.1
"""Of calling an optimizer ahead where none is: Student's t over the seeds' differences, for all that are compared."""
RATES: Mapping[str, float] = {"muon": 2.0, "soap": 1.0}
"""Optimizers that are tried beside an Adam, and at which multiple of its rate. Muon's updates are as large as Adam's at
equal rates (Liu et al. 2025), but on stdlib-lm trainings of 20 and 40 steps end lower at twice the rate, and of 200 at
twice AdamW's best; other tasks were not looked at. SOAP is Adam in another basis (Vyas et al. 2024)."""


def compare(fleet: Fleet, *, title: str) -> Chart:
    """What a fleet over optimizers × seeds says.

    Args:
        fleet: Its members differ in `optimizer`, `rate` and `seed` alone.
        title: What was trained.

    Returns:
        `final.<optimizer>` with its standard error over seeds, `seed_spread` of the task's own, `ahead`: how far the
        best ends below the task's own on the same seeds, and `chance`: of such a lead where there is none.

    Raises:
        NotApplicable: No member of the task's own optimizer finished.
    """
    groups: dict[str, list[Result]] = {}
    for result in fleet.finished:
        groups.setdefault(name(result), []).append(result)
    own = groups.get("task")
    if not own:
        raise NotApplicable("compare(fleet): no training with the task's own optimizer finished.")
    finals = {each: final(results) for each, results in groups.items()}
    mine = np.array([result.final for result in own])
    best = min(finals, key=lambda each: finals[each].value)
    values = {f"final.{each}": value for each, value in finals.items()}
    spread = float(mine.std(ddof=1) / abs(mine.mean())) if len(mine) > 1 else math.nan
    values["seed_spread"] = Estimate(value=spread, about="standard deviation over mean of the final losses over seeds")
    if best != "task":
        values["ahead"], chance = lead(own, groups[best])
        tried = len(groups) - 1
        about = f"of {best} being so far ahead by luck" + (
            f", the best of {tried} that were tried" if tried > 1 else ""
        )
        values["chance"] = Estimate(value=min(1.0, chance * tried), about=about)
    failed = tuple(f"{result.member}: {result.why}" for result in fleet.failed)
    return Chart(
        probe="fleet",
        title=f"{title} · {len(groups)} optimizers",
        values=values,
        panels=(_curves(groups), _table(groups, finals)),
        cost=fleet.cost,
        notes=(*(f"Failed: {each}" for each in failed), f"Lowest final loss: {best}."),
    )


def name(result: Result) -> str:
    """What an optimizer is called: "task" for the task's own.

    Args:
        result: Of one of its trainings.

    Returns:
        Its name without options.
    """
    return "task" if result.member.optimizer is None else result.member.optimizer.partition(":")[0]


def final(results: Sequence[Result]) -> Estimate:
    """The mean final validation loss over seeds; infinite where one diverged.

    Args:
        results: Of one optimizer.

    Returns:
        The mean with its standard error; None where there is one seed.
    """
    losses = np.array([math.inf if result.diverged else result.final for result in results])
    known = len(losses) > 1 and bool(np.isfinite(losses).all())
    error = float(losses.std(ddof=1) / math.sqrt(len(losses))) if known else None
    return Estimate(
        value=float(losses.mean()), error=error, about=f"final validation loss, mean of {len(losses)} seeds"
    )


def lead(own: Sequence[Result], other: Sequence[Result]) -> tuple[Estimate, float]:
    """How far another optimizer ends below the task's own, seed by seed: one seed gives both the same start and data.

    Args:
        own: Trainings with the task's own optimizer.
        other: Trainings with the other.

    Returns:
        The mean difference with its standard error, and the chance of one as large in Student's t where there is none;
        1 where fewer than two seeds have both, or one diverged.

    Example:
        Differences of 0.20 and 0.16: 0.18 ± 0.02, which chance reaches in 3.5 of 100 pairs.
    """
    mine = {result.member.seed: math.inf if result.diverged else result.final for result in own}
    gaps = np.array([mine[r.member.seed] - r.final for r in other if r.member.seed in mine and not r.diverged])
    mean = float(gaps.mean()) if len(gaps) else math.nan
    about = f"final validation loss below the task's own on the same seed, mean of {len(gaps)}"
    if len(gaps) < 2 or not np.isfinite(gaps).all():
        return Estimate(value=mean, about=about), 1.0
    error = float(gaps.std(ddof=1) / math.sqrt(len(gaps)))
    chance = float(stats.t.sf(mean / error, len(gaps) - 1)) if error > 0 else float(mean <= 0)
    return Estimate(value=mean, error=error, about=about), chance


def _curves(groups: dict[str, list[Result]]) -> Lines:
    lines: list[Line] = []
    for each, results in groups.items():
        for result in results:
            smooth = result.run()["loss.smoothed"]
            label = f"{each}, seed {result.member.seed}"
            lines.append(Line(label=label, x=np.asarray(smooth.steps, dtype=float), y=np.asarray(smooth, dtype=float)))
    return Lines(title="Training loss, smoothed", lines=tuple(lines), y_label="loss")


def _table(groups: dict[str, list[Result]], finals: dict[str, Estimate]) -> Table:
    rows = tuple(
        (each, str(finals[each]), f"{np.mean([r.seconds / r.steps for r in results]) * 1e3:.1f}")
        for each, results in groups.items()
    )
    return Table(title="Optimizers", header=("optimizer", "final validation loss", "ms per step"), rows=rows)
