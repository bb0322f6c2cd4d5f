"""What controllers read of the learning rate: the loop's own, without the factors of acts, and how it changes."""

from typing import NamedTuple

import numpy as np

from dynaxx.controllers._reading import Vector, latest, rows
from dynaxx.core.navigation import Situation

CHANGE = 0.01
"""Relative change over a stretch below which a rate counts as constant: cosine at its flattest, over a tenth of the
run, changes by 2 %."""
CUT, DEEP_CUT = 0.5, 0.1
"""Factor of a cut: one halving, as Soup's spike recovery does; where the loss diverges there is no time for five."""
DEEPEST = 0.01
"""The deepest single cut that a measurement can ask for: two decades, as a measurement at a ruined point may mislead."""
SAFE = 0.5
"""Share of a logged stability margin that is used: half of what the linearised training would bear."""
HUGE = 0.1
"""Update ratio above which a rate is far too high (TheDeepChecker's rule: of ten healthy runs none lay there)."""
LARGE = 1e-2
"""Update ratio that counts as the most a rate should make: ten times the customary 1e-3 (Karpathy), a tenth of where
that rule calls it too high."""
LOWERED = 2.0
"""Peak over present rate from which on a schedule has annealed."""
DECAYING = ("cosine", "linear_decay", "one_cycle", "power_decay", "warm_restarts", "wsd")
"""Built-in schedules that lower the rate before their end, however constant it looks meanwhile."""


class Plan(NamedTuple):
    """The loop's own rate.

    Args:
        steps: Steps of its rows.
        rate: The largest group's, shape (rows,).
    """

    steps: Vector
    rate: Vector


def lower(situation: Situation, step: int, *, deep: bool) -> tuple[float, str]:
    """The factor of a cut of the rate, from what is logged of how much too high it is.

    To half of the stability margin where that is logged and below 1; to updates of a hundredth of the weights where
    they are larger than a tenth; by a tenth where `deep` asks for it; else by half.

    Args:
        situation: Where the run is.
        step: The step that the margin is read at.
        deep: Whether there is no time for halvings.

    Returns:
        The factor, in [0.01, 0.5], and what it follows from.
    """
    margin = latest(situation.run, "stability_margin", step, 3)
    ratio = latest(situation.run, "update_ratio.total", step)
    if margin is not None and 0 < margin < 1:
        return min(CUT, max(DEEPEST, SAFE * margin)), f", by the stability margin {margin:.3g}"
    if ratio is not None and ratio > HUGE:
        return max(DEEPEST, LARGE / ratio), f", as an update is {ratio:.2g} of the weights"
    return (DEEP_CUT, ", as the loss diverges") if deep else (CUT, "")


def planned(situation: Situation) -> Plan | None:
    """The loop's own learning rate up to now.

    Args:
        situation: Where the run is.

    Returns:
        The rates; None where they are not logged.
    """
    run = situation.run
    if "lr" not in run.columns:
        return None
    series = run["lr"]
    values = np.asarray(series.values, dtype=np.float64)
    values = values.max(axis=1) if values.ndim == 2 else values
    steps = np.asarray(series.steps, dtype=np.float64)
    if "lr.factor" in run.columns:
        at, factor = rows(run, "lr.factor", 0, situation.step)
        values = values.copy()
        _, mine, theirs = np.intersect1d(steps, at, return_indices=True)
        values[mine] /= factor[theirs]
    before = steps <= situation.step
    return Plan(steps[before], values[before]) if before.any() else None


def change(plan: Plan, back: int) -> float:
    """By what factor the rate has changed over the last steps.

    Args:
        plan: The rates.
        back: How many steps.

    Returns:
        The factor; 1 where it did not.
    """
    then = plan.rate[np.searchsorted(plan.steps, plan.steps[-1] - back)]
    return float(plan.rate[-1] / then) if then > 0 else 1.0


def annealed(situation: Situation) -> float | None:
    """By how much the schedule has lowered the rate below its peak.

    Args:
        situation: Where the run is.

    Returns:
        Peak over present rate; None where that is below 2, or unknown.
    """
    plan = planned(situation)
    if plan is None or not plan.rate[-1] > 0:
        return None
    ratio = float(plan.rate.max() / plan.rate[-1])
    return ratio if ratio >= LOWERED else None


def yet_to_decay(situation: Situation) -> str | None:
    """Why the schedule may still lower the rate: then a plateau is no end.

    Args:
        situation: Where the run is.

    Returns:
        The reason; None where the rate is constant and nothing is known that would lower it, or where it has decayed
        below a hundredth of its peak.
    """
    plan = planned(situation)
    if plan is None:
        return "the learning rate is not logged"
    if plan.rate[-1] < 0.01 * plan.rate.max():
        return None
    back = max(10, (situation.steps or situation.step) // 10)
    if change(plan, back) < 1 - CHANGE:
        return "the schedule is lowering the learning rate"
    name = schedule(situation)
    if name is not None and situation.steps is not None and situation.step < situation.steps:
        return f"the schedule ({name}) has not lowered the learning rate yet"
    return None


def schedule(situation: Situation) -> str | None:
    """The schedule that may lower the rate, as far as the manifest says.

    Args:
        situation: Where the run is.

    Returns:
        Its name; None where there is none, or a constant one.
    """
    manifest = situation.run.manifest
    recipe = (manifest.get("facts") or {}).get("schedule")
    if recipe is not None:
        name = str(recipe).partition(":")[0]
        return name if name in DECAYING else None
    scheduler = manifest.get("scheduler")
    return None if scheduler in (None, "ConstantLR") else str(scheduler)
