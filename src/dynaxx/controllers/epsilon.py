"""Raises Adam's ε where its second moments lag behind the gradients: 1e-8 → 1e-6 on instability."""

from collections.abc import Sequence
from typing import Any, ClassVar

from dynaxx.controllers._past import waiting
from dynaxx.controllers._promise import unharmed
from dynaxx.controllers._suspects import accused
from dynaxx.core.navigation import ADVICE, Controller, Proposal, Situation
from dynaxx.core.records import Action

Plain = dict[str, Any]
RAISED = 1e-6
"""The usual switch on instability (specification N12; Wortsman et al. 2023 study the range)."""


class Epsilon(Controller[Plain]):
    """ε ← 1e-6 where clipping alone has not ended preconditioner lag; it promises an unharmed loss.

    An ε that is too large already can only be lowered by a person: that is advised.
    """

    about: ClassVar[str] = "raises Adam's ε on instability"

    def init(self) -> Plain:
        """Nothing to remember: decisions and outcomes say it."""
        return {}

    def decide(self, state: Plain, situation: Situation) -> tuple[Plain, Sequence[Proposal]]:
        """Once."""
        suspect = accused(situation, {"preconditioner_lag", "epsilon_too_large"})
        if suspect is None:
            return state, ()
        because = f"{suspect.finding.title} ({suspect.cause}, {suspect.confidence:.0%})"
        if suspect.cause == "epsilon_too_large":
            action, promise = (
                Action(name=ADVICE, reason=f"{because}: lower ε in the optimizer by a factor of 100"),
                None,
            )
        else:
            action, promise = Action(name="epsilon", arguments={"value": RAISED}, reason=because), unharmed(situation)
            if promise is None or "epsilon" in situation.in_force or waiting(situation, "epsilon"):
                return state, ()
        proposal = Proposal(
            controller="epsilon",
            action=action,
            finding=suspect.finding,
            cause=suspect.cause,
            promise=promise,
            level=3,
        )
        return state, (proposal,)
