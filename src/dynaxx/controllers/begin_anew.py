"""Begins anew where a setting was wrong from the start: with the usual one, or with a rate found by a short search."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np

from dynaxx.controllers._limits import limits
from dynaxx.controllers._rates import jump, planned, ruinous
from dynaxx.controllers._reading import LOSS, column_of, rows
from dynaxx.controllers._search import can_begin, start
from dynaxx.controllers._suspects import Suspect, accused
from dynaxx.controllers._usual import SETTINGS, usual
from dynaxx.core.navigation import Controller, Promise, Proposal, Situation
from dynaxx.core.records import Action

Plain = dict[str, Any]
LOW = "learning_rate_too_low"
HIGH = frozenset({"learning_rate_too_high", "warmup_missing"})
CAUSES = SETTINGS | HIGH | {LOW}
"""What was wrong before the first step, and is changed by another setting."""
LEVEL = 5
"""Its rung: a rollback with another rate."""


class BeginAnew(Controller[Plain]):
    """Back to step 0 with another setting, while that costs less than a quarter of the run.

    What a wrong setting has done to the first steps is not mended later as cheaply: weights that were thrown out stay
    so, and steps that did nothing are lost to the schedule. Momentum and ε go back to what is usual. A rate is guessed
    from the size of the first updates, and then sought: four or five rates are trained for some steps from the same
    start on the same batches, and the best on further batches is taken where the sign-flip test prefers it to the
    guess. It promises a loss below the first.
    """

    about: ClassVar[str] = "begins anew with another setting, where the first one was wrong"

    def init(self) -> Plain:
        """Nothing to remember: decisions say it."""
        return {}

    def decide(self, state: Plain, situation: Situation) -> tuple[Plain, Sequence[Proposal]]:
        """Once, and once more."""
        suspect = accused(situation, CAUSES)
        if suspect is None or not can_begin(situation):
            return state, ()
        if suspect.cause in HIGH and ruinous(situation, suspect) is None:
            return state, ()  # a cut may do
        if jump(situation) is not None:
            return state, ()  # it was the schedule: `level_schedule` answers it
        then = _setting(suspect, situation)
        column = column_of(situation.run, LOSS)
        if not then or column is None:
            return state, ()
        reason = f"{suspect.finding.title} ({suspect.cause}, {suspect.confidence:.0%}): the run begins anew with "
        reason += "; ".join(action.reason for action in then)
        arguments = {"before": 1, "pass_data": False, "then": [asdict(action) for action in then]}
        _, losses = rows(situation.run, column, 0, situation.step)
        begun = float(np.nanmedian(losses[:3]))
        proposal = Proposal(
            controller="begin_anew",
            action=Action(name="rollback", arguments=arguments, reason=reason),
            finding=suspect.finding,
            cause=suspect.cause,
            promise=Promise(column=column, below=begun, steps=limits(situation).horizon),
            level=LEVEL,
        )
        return state, (proposal,)


def _setting(suspect: Suspect, situation: Situation) -> list[Action]:
    """What to begin with; empty where nothing is known to be better."""
    action = usual(situation, suspect)
    if action is not None:
        return [action]
    if suspect.cause in SETTINGS or planned(situation) is None:
        return []
    bounds = limits(situation)
    found = start(situation, bounds, min(bounds.trial, bounds.repair - situation.step))
    if found is None or (found.trial is None and (found.factor > 1) != (suspect.cause == LOW)):
        return []
    factor = max(1.0, found.factor) if suspect.cause == LOW else min(1.0, found.factor)
    rate = Action(name="learning_rate", arguments={"factor": factor}, reason=found.why)
    return [rate] if found.trial is None else [rate, found.trial]
