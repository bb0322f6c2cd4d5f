"""Optimizers compared on whole short trainings: final losses over seeds, with their uncertainty."""

import math
from collections.abc import Sequence

import numpy as np

from dynaxx.core.chart import Chart, Estimate
from dynaxx.core.panels import Line, Lines, Table
from dynaxx.errors import NotApplicable
from dynaxx.survey.fleet import Fleet
from dynaxx.survey.results import Result

CLEAR = 2.0
"""Standard errors by which one must be lower than another to be called better; with two seeds each, chance reaches
that in a quarter of all cases, so the result is a lead, and is called one."""


def compare(fleet: Fleet, *, title: str) -> Chart:
    """What a fleet over optimizers × seeds says.

    Args:
        fleet: Its members differ in `optimizer`, `rate` and `seed` alone.
        title: What was trained.

    Returns:
        `final.<optimizer>` with its standard error over seeds, `seed_spread` of the task's own, and `lead`: by how many
        standard errors the best is ahead of the task's own optimizer.

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
    values["lead"] = Estimate(value=lead(finals["task"], finals[best]), about=f"standard errors that {best} is ahead")
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


def lead(mine: Estimate, best: Estimate) -> float:
    """By how many standard errors of the difference one is below another; 0 where that is not known.

    Args:
        mine: The one to beat.
        best: The other.

    Returns:
        At least 0.

    Example:
        >>> lead(Estimate(value=2.0, error=0.3), Estimate(value=1.0, error=0.4))
        2.0
    """
    if mine.error is None or best.error is None:
        return 0.0
    error = math.hypot(mine.error, best.error)
    return max(0.0, (mine.value - best.value) / error) if error > 0 else 0.0


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
