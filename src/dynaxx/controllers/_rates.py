"""What controllers read of the learning rate: the loop's own, without the factors of acts, and how it changes."""

from typing import NamedTuple

import numpy as np

from dynaxx.controllers._limits import MOST_RATE, limits
from dynaxx.controllers._past import acts
from dynaxx.controllers._reading import LOSS, Vector, column_of, latest, rate_factor, rows
from dynaxx.controllers._suspects import Suspect
from dynaxx.core.navigation import Situation

CHANGE = 0.01
"""Relative change over a stretch below which a rate counts as constant: cosine at its flattest, over a tenth of the
run, changes by 2 %."""
CUT, DEEP_CUT = 0.5, 0.1
"""Factor of a cut: one halving, as Soup's spike recovery does; where the loss diverges there is no time for five."""
AIM = 0.03
"""Update ratio that a cut aims at, half a decade below `HUGE`: it is the largest one that is compared."""
DEEPEST = 1e-3
"""The deepest single cut that a measurement can ask for: the lowest total factor."""
CUTS = 2
"""Cuts during one stretch of an accusation, after which lowering the rate alone is in vain: the weights are ruined, or
the accusation is wrong."""
SAFE = 0.5
"""Share of a logged stability margin that is used: half of what the linearised training would bear."""
HUGE = 0.1
"""Update ratio above which a rate is far too high (TheDeepChecker's rule: of ten healthy runs none lay there)."""
LARGE = 1e-2
"""Update ratio that counts as the most a rate should make: ten times the customary 1e-3 (Karpathy), a tenth of where
that rule calls it too high."""
REPLACED = 1.0
"""Updates since the onset in sum, relative to the weights, from which on the weights are no longer those the run began
with. A byte-level transformer at 30 × its rate comes to 2.6 in its first 20 updates, at its own rate to 0.2."""
RISING = 1.05
"""Growth over a horizon that counts as a rise: a warm-up over a tenth of the run grows by more until it is over."""
LOWERED = 2.0
"""Peak over present rate from which on a schedule has annealed."""
JUMP = 3.0
"""Factor by which a rate changes within 2 % of the steps when it jumps: no smooth schedule does, warm-ups at their
beginning excepted, and milestones of staircases do by 2 to 10."""
EARLY = 0.2
"""Share of the planned steps in which a fall of the rate ends a first stage: warm-ups end within a tenth."""
WARMING = 0.1
"""Share of the planned steps in which a rise is a warm-up's."""
THROWN = frozenset(
    {
        "schedule_too_aggressive",
        "learning_rate_too_high",
        "warmup_missing",
        "exploding_gradients",
        "preconditioner_lag",
        "momentum_too_high",
    }
)
"""What a rate that was thrown up is accused of."""
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


def lower(situation: Situation, since: int, *, deep: bool, aim: float = AIM) -> tuple[float, str]:
    """The factor of a cut of the rate, from what is logged of how much too high it is.

    To half of the stability margin where that is logged and below 1; to updates of 3 % of the weights where they were
    larger than a tenth; by a tenth where `deep` asks for it; else by half.

    Args:
        situation: Where the run is.
        since: Since when updates count.
        deep: Whether there is no time for halvings.
        aim: Update ratio to cut to, where a run begins anew rather than goes on with the weights that it has.

    Returns:
        The factor, in [0.01, 0.5], and what it follows from.
    """
    margin = latest(situation.run, "stability_margin", situation.step, 3)
    ratio = largest_update(situation, since)
    if margin is not None and 0 < margin < 1:
        return min(CUT, max(DEEPEST, SAFE * margin)), f", by the stability margin {margin:.3g}"
    if ratio > HUGE:
        return max(DEEPEST, aim / ratio), f", as an update is {ratio:.2g} of the weights"
    return (DEEP_CUT, ", as the loss diverges") if deep else (CUT, "")


def largest_update(situation: Situation, since: int) -> float:
    """The largest update since a step, relative to the weights: one that was huge has done its harm.

    Args:
        situation: Where the run is.
        since: The step.

    Returns:
        The largest finite ratio; 0 where none is logged.
    """
    if "update_ratio.total" not in situation.run.columns:
        return 0.0
    _, values = rows(situation.run, "update_ratio.total", since, situation.step)
    return float(np.max(values, initial=0.0, where=np.isfinite(values)))


def room(situation: Situation, step: float, most: float = LARGE) -> tuple[float, str]:
    """How far the rate may be raised at once, by the size of updates, half of the stability margin and in all.

    Args:
        situation: Where the run is.
        step: The factor that is wanted.
        most: Update ratio that a raise may lead to.

    Returns:
        The factor that is left of it, which may be below 1, and what bounds it.
    """
    ratio = latest(situation.run, "update_ratio.total", situation.step)
    margin = latest(situation.run, "stability_margin", situation.step, 3)
    bounds = [(MOST_RATE / rate_factor(situation), f", bounded by {MOST_RATE:g} × altogether")]
    if ratio is not None and ratio > 0:
        bounds.append((most / ratio, f", bounded by an update ratio of {most:g}"))
    if margin is not None:
        bounds.append((SAFE * margin, f", bounded by the stability margin {margin:.3g}"))
    return min(bounds) if min(bounds)[0] < step else (step, "")


def ruinous(situation: Situation, suspect: Suspect) -> int | None:
    """Whether too high a rate has thrown the run out within its first steps, and how cheaply it could begin again.

    Updates were huge, they have replaced the weights or the loss is no lower than it began, and to go back costs no
    more than to see whether a cut helps. Weights that were thrown out stay so: the loss falls after a cut all the same,
    and the run ends far above its twin.

    Args:
        situation: Where the run is.
        suspect: The accused rate.

    Returns:
        The step of the newest healthy checkpoint before; None where a cut is to be tried first.
    """
    onset, column = suspect.finding.onset, column_of(situation.run, LOSS)
    to = max((step for step in situation.healthy if step < onset), default=None)
    if to is None or column is None or "rollback" not in situation.able:
        return None
    # Since the checkpoint, not the onset: what an alarm is dated by, as units that are dead, comes after its cause.
    if situation.step - to > 2 * limits(situation).horizon or largest_update(situation, to + 1) <= HUGE:
        return None
    _, values = rows(situation.run, column, 0, situation.step)
    # The lowest of the first: the second step of a rate 70 times too high took a loss from 2.3 to 87.
    begun, now = np.min(values[:3]), np.median(values[-5:])
    return None if now < begun and not _replaced(situation, to + 1) else to  # also where they are not finite


def _replaced(situation: Situation, since: int) -> bool:
    """Whether the updates since a step add up to more than the weights."""
    # By their median: one alone makes no new start, and not every one is logged.
    _, ratios = rows(situation.run, "update_ratio.total", since, situation.step)
    return float(np.median(ratios)) * (situation.step - since + 1) > REPLACED


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


class Jump(NamedTuple):
    """A jump of the loop's own rate.

    Args:
        step: The first step at the new rate.
        before: The rate of the step before.
        after: The rate that it went to.
    """

    step: int
    before: float
    after: float


def jump(situation: Situation, until: int | None = None) -> Jump | None:
    """The last jump of the loop's own rate, by more than a factor of three within 2 % of the steps.

    Args:
        situation: Where the run is.
        until: The last step that is looked at; None: the present one.

    Returns:
        The jump; None where there was none but a warm-up's rise.
    """
    plan = planned(situation)
    if plan is None:
        return None
    steps = limits(situation).steps
    good = (plan.rate > 0) & (plan.steps <= (situation.step if until is None else until))
    at, rate = plan.steps[good], plan.rate[good]
    back = np.searchsorted(at, at - max(2, steps // 50))
    grown = np.log(rate / rate[back]) if len(rate) else rate
    jumps = (np.abs(grown) >= np.log(JUMP)) & ((grown < 0) | (at > WARMING * steps))
    if not jumps.any():
        return None
    last = int(np.flatnonzero(jumps)[-1])
    first = last + 1 - int(np.argmin(jumps[last::-1]))  # the first row is none: it has nothing before it
    return Jump(int(at[first]), float(rate[first - 1]), float(rate[last]))


def thrown_up(situation: Situation) -> bool:
    """Whether the last jump of the loop's own rate was upwards, and nothing holds it.

    Args:
        situation: Where the run is.

    Returns:
        True where it was.
    """
    found = jump(situation)
    return found is not None and found.after > found.before and "rate_band" not in situation.in_force


def leapt(situation: Situation, since: int) -> bool:
    """Whether the loop's own rate leapt up at a step or after it, also where it has come back.

    Args:
        situation: Where the run is.
        since: The step.

    Returns:
        True where it rose to three times the rate before.
    """
    plan = planned(situation)
    if plan is None:
        return False
    before, after = plan.rate[plan.steps < since], plan.rate[plan.steps >= since]
    return bool(len(before) and len(after) and after.max() >= JUMP * before[-1])


def spent_early(situation: Situation) -> bool:
    """Whether the last jump of the loop's own rate was downwards and early, and nothing has answered it.

    Args:
        situation: Where the run is.

    Returns:
        True where it was: then the rate of before the jump is known, and need not be sought.
    """
    found = jump(situation)
    if found is None or found.after > found.before or found.step > EARLY * limits(situation).steps:
        return False
    return "rate_band" not in situation.in_force and not acts(situation, "level_schedule")


def beyond_all(situation: Situation, found: Jump) -> bool:
    """Whether a jump led far above all rates before it: a run has borne what a warm restart returns to, not this.

    Args:
        situation: Where the run is.
        found: The jump.

    Returns:
        True from three times the highest rate before on.
    """
    plan = planned(situation)
    return plan is not None and found.after >= JUMP * float(plan.rate[plan.steps < found.step].max())


def rising(situation: Situation) -> bool:
    """Whether the loop's own rate has risen by more than a twentieth within a horizon: a warm-up or a restart.

    Args:
        situation: Where the run is.

    Returns:
        True where it has.
    """
    plan = planned(situation)
    return plan is not None and change(plan, limits(situation).horizon) > RISING


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
        The reason; None where the rate has been constant since its warm-up and nothing is known that would lower it,
        or where it has decayed below a hundredth of its peak.
    """
    plan = planned(situation)
    if plan is None:
        return "the learning rate is not logged"
    if plan.rate[-1] < 0.01 * plan.rate.max():
        return None
    back = max(10, (situation.steps or situation.step) // 10)
    if change(plan, back) < 1 - CHANGE:
        return "the schedule is lowering the learning rate"
    if (plan.rate / np.maximum.accumulate(plan.rate)).min() < 1 - CHANGE:
        return "the schedule has lowered the learning rate before, and may again"
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
