"""Ends a run that has been overfitting for a tenth of its steps, at its best healthy checkpoint where there is one."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np

from dynaxx.controllers._limits import limits
from dynaxx.controllers._plateau import promising
from dynaxx.controllers._reading import VALIDATION, column_of, latest, rows
from dynaxx.controllers._suspects import standing
from dynaxx.core.findings import Finding
from dynaxx.core.navigation import Controller, Proposal, Situation
from dynaxx.core.records import Action

Plain = dict[str, Any]
FINDINGS = frozenset({"overtraining", "overfitting"})
"""What says that the training set is being memorised."""
PATIENCE = 0.1
"""Share of the planned steps that it must have lasted: twice the post-plateau budget, as validation may turn again."""
LOSS_OF = 0.01
"""Relative rise of the validation loss over its best that is worth an end: what a stop may cost at most."""


class Overtraining(Controller[Plain]):
    """Stops when the validation loss has risen for a tenth of the steps while the training loss fell (V4).

    Where a healthy checkpoint lies at or before the best validation loss and is better than now, the run goes back to
    it and ends there; else it ends where it is, and the reason names the best step. Never while grokking is under way.
    """

    about: ClassVar[str] = "ends a run that only memorises, at its best checkpoint"

    def init(self) -> Plain:
        """Nothing to remember: the findings' stretches say how long it has lasted."""
        return {}

    def decide(self, state: Plain, situation: Situation) -> tuple[Plain, Sequence[Proposal]]:
        """Wait, then end."""
        finding = next((f for f in standing(situation) if f.name in FINDINGS), None)
        column = column_of(situation.run, VALIDATION)
        if finding is None or column is None or promising(situation):
            return state, ()
        if situation.step - finding.onset < PATIENCE * limits(situation).steps:
            return state, ()
        steps, values = rows(situation.run, column, 0, situation.step)
        finite = np.isfinite(values)
        now = latest(situation.run, column, situation.step, 3)
        if now is None or not finite.any():
            return state, ()
        best = int(np.argmin(np.where(finite, values, np.inf)))
        if situation.step - steps[best] < PATIENCE * limits(situation).steps:
            return state, ()  # the accusation may be older than the rise
        if now - values[best] <= LOSS_OF * abs(values[best]):
            return state, ()
        reason = (
            f"{finding.title}: the validation loss was {values[best]:.4g} at step {steps[best]:.0f} and is {now:.4g}"
        )
        return state, (_end(finding, situation, int(steps[best]), reason),)


def _end(finding: Finding, situation: Situation, best: int, reason: str) -> Proposal:
    stop = Action(name="stop", reason=reason)
    earlier = [step for step in situation.healthy if step <= best]
    action = stop
    if earlier and "rollback" in situation.able and _as_good(situation, earlier[-1], best):
        words = f"{reason}; back to the checkpoint of step {earlier[-1]}, where the run ends"
        arguments = {"before": earlier[-1] + 1, "pass_data": True, "then": [asdict(stop)]}
        action = Action(name="rollback", arguments=arguments, reason=words)
    cause = finding.causes[0].name if finding.causes else ""
    return Proposal(controller="overtraining", action=action, finding=finding, cause=cause, level=6)


def _as_good(situation: Situation, step: int, best: int) -> bool:
    """Whether the checkpoint lies close enough to the best step: nearer than the present is."""
    return best - step < situation.step - best
