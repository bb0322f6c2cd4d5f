"""Sets momentum or ε back to what is usual, in place, where they are the cause and it is too late to begin anew."""

from collections.abc import Sequence
from typing import Any, ClassVar

from dynaxx.controllers._past import waiting
from dynaxx.controllers._promise import unharmed
from dynaxx.controllers._search import can_begin
from dynaxx.controllers._suspects import accused
from dynaxx.controllers._usual import SETTINGS, usual
from dynaxx.core.navigation import Controller, Proposal, Situation

Plain = dict[str, Any]


class UsualSetting(Controller[Plain]):
    """μ ← min(μ, 0.9), or ε ← min(ε, 1e-8); it promises an unharmed loss."""

    about: ClassVar[str] = "sets momentum or ε back to what is usual"

    def init(self) -> Plain:
        """Nothing to remember: decisions and outcomes say it."""
        return {}

    def decide(self, state: Plain, situation: Situation) -> tuple[Plain, Sequence[Proposal]]:
        """Once for each."""
        suspect = accused(situation, SETTINGS)
        action = None if suspect is None else usual(situation, suspect)
        promise = unharmed(situation)
        if suspect is None or action is None or promise is None or waiting(situation, "usual_setting"):
            return state, ()
        if can_begin(situation):
            return state, ()  # `begin_anew` sets it from the first step on
        proposal = Proposal(
            controller="usual_setting",
            action=action,
            finding=suspect.finding,
            cause=suspect.cause,
            promise=promise,
            level=3,
        )
        return state, (proposal,)
