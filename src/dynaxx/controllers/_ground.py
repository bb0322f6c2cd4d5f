"""Ground that was lost since a moment, and whether going back is cheaper than waiting for it to be regained."""

import math
from typing import NamedTuple

import numpy as np

from dynaxx.controllers._limits import limits
from dynaxx.controllers._past import acts, repeated
from dynaxx.controllers._promise import ERRORS, MEDIAN, Descent, descent
from dynaxx.controllers._reading import LOSS, NORMAL, column_of, level, rows
from dynaxx.controllers._suspects import standing
from dynaxx.core.findings import Finding
from dynaxx.core.navigation import Outcome, Situation

FINDINGS = frozenset({"divergence", "loss_spike", "corrupted_batch", "weights_overwritten"})
"""What says since when the loss has stood higher, or that the weights are not what training made of them."""
CERTAIN = frozenset({"weights_overwritten"})
"""Causes for which no loss has to be seen first."""
LOST = 0.3
"""Share of what was gained that has to be lost: healthy restarts and catapults lose more, and come back by themselves
sooner than going back would; this is the threshold of `schedule_too_aggressive`, silent on 65 healthy runs."""
HARM = 6.0
"""Robust standard deviations above its level before at which the loss counts as harmed (OLMo's training code, 2024)."""
BEFORE, AFTER = 50, 5
"""Rows of the levels before and now: the longest stretch within one cadence block, and the shortest median that two
outliers do not move."""


class Ground(NamedTuple):
    """Ground that was lost.

    Args:
        finding: The alarm that says since when.
        to: The step of the newest healthy checkpoint before its onset.
        column: The loss.
        level: Where it stood before, with six deviations of its noise.
    """

    finding: Finding
    to: int
    column: str
    level: float


def lost_ground(situation: Situation) -> Ground | None:
    """The ground that was lost, where going back is cheaper than waiting, and was not tried for the cause yet.

    With L now, B before the onset and d what the last horizon has gained, both logarithmic, the loss needs
    ln(L / B) / d horizons to come back; going back costs the steps since the checkpoint.

    Args:
        situation: Where the run is.

    Returns:
        The ground; None where none is lost, the run cannot go back, or waiting costs less.
    """
    found = next((f for f in standing(situation) if f.name in FINDINGS), None)
    now = descent(situation)
    if found is None or now is None or "rollback" not in situation.able:
        return None
    to = max((step for step in situation.healthy if step < found.onset), default=None)
    tried = {d.proposal.cause for d in acts(situation, "go_back")}
    if to is None or situation.step - to + repeated(situation) > limits(situation).rollback or cause_of(found) in tried:
        return None
    level = _level(found, now, situation, situation.step - to)
    return None if level is None else Ground(found, to, now.column, level)


def harmed_by(situation: Situation) -> tuple[Outcome, int] | None:
    """An act that is being undone because it broke its promise, where the loss stands higher than before it.

    Undoing an act does not undo what it has done to the weights.

    Args:
        situation: Where the run is.

    Returns:
        The outcome, and the step of the newest healthy checkpoint before the act; None where there is none, or to go
        back to it is beyond the budget.
    """
    undone = [o for o in situation.outcomes if o.undone and o.judged == situation.step]
    column = column_of(situation.run, LOSS)
    if not undone or column is None or "rollback" not in situation.able:
        return None
    outcome = undone[-1]
    to = max((step for step in situation.healthy if step <= outcome.step), default=None)
    if to is None or situation.step - to + repeated(situation) > limits(situation).rollback:
        return None
    _, before = rows(situation.run, column, 0, outcome.step)
    before = before[np.isfinite(before)][-limits(situation).horizon :]
    if len(before) < AFTER:
        return None
    noise = NORMAL * float(np.median(np.abs(np.diff(before)))) / math.sqrt(2)
    bound = float(np.median(before[-AFTER:])) + ERRORS * MEDIAN * noise * math.sqrt(2 / AFTER)
    return (outcome, to) if not outcome.measured <= bound else None  # also where it is not finite


def regaining(situation: Situation) -> bool:
    """Whether the loss has come down over the last horizon, beyond the noise.

    Args:
        situation: Where the run is.

    Returns:
        True where the line through it falls by more than two standard errors of the difference of its ends.
    """
    column, steps = column_of(situation.run, LOSS), limits(situation).horizon
    now = None if column is None else level(situation.run, column, situation.step - steps, situation.step)
    if now is None:
        return False
    return -now.slope * steps > ERRORS * MEDIAN * now.noise * math.sqrt(2 / now.values)


def beyond(finding: Finding, situation: Situation) -> int:
    """How many batches to pass over beyond those since a checkpoint: what has lasted so long may go on as long.

    Twenty batches of permuted labels were found after 13; after going back past those 13 the next seven ruined the
    run, which had no rollback left.

    Args:
        finding: What the batches are blamed for.
        situation: Where the run is.

    Returns:
        As many as have come since the onset, a horizon at most.
    """
    return min(situation.step - finding.onset + 1, limits(situation).horizon)


def cause_of(finding: Finding) -> str:
    """The first cause of a finding.

    Args:
        finding: The finding.

    Returns:
        Its name; empty where there is none.
    """
    return finding.causes[0].name if finding.causes else ""


def _level(found: Finding, now: Descent, situation: Situation, cost: int) -> float | None:
    """The level to come back to; None where nothing is lost, or waiting is cheaper."""
    _, values = rows(situation.run, now.column, 0, found.onset - 1)
    values = values[np.isfinite(values)]
    if len(values) < AFTER:
        return None
    before = float(np.median(values[-BEFORE:]))
    noise = NORMAL * float(np.median(np.abs(values[-BEFORE:] - before)))
    bound = before + HARM * noise
    if cause_of(found) in CERTAIN:
        return bound
    _, recent = rows(situation.run, now.column, found.onset, situation.step)
    if len(recent) < AFTER:
        return None
    present = float(np.median(np.where(np.isfinite(recent), recent, math.inf)[-AFTER:]))
    gained = float(np.median(values[:AFTER])) - before
    if present <= bound or present - before < LOST * max(gained, 0.0):
        return None
    if not now.log or before <= 0 or math.isinf(present):
        return bound
    waits = math.log(present / before) / now.last * now.steps if now.last > now.error else math.inf
    return bound if waits > cost else None
