"""Raises Adam's ε where its second moments lag behind the gradients: 1e-8 → 1e-6 on instability."""

from collections.abc import Sequence
from typing import Any, ClassVar

from dynaxx.controllers._past import waiting
from dynaxx.controllers._promise import unharmed
from dynaxx.controllers._suspects import accused
from dynaxx.core.navigation import Controller, Proposal, Situation
from dynaxx.core.records import Action

Plain = dict[str, Any]
RAISED = 1e-6
"""The usual switch on instability (specification N12; Wortsman et al. 2023 study the range)."""


class Epsilon(Controller[Plain]):
    """ε ← 1e-6 where clipping alone has not ended preconditioner lag; it promises an unharmed loss."""

    about: ClassVar[str] = "raises Adam's ε on instability"

    def init(self) -> Plain:
        """Nothing to remember: decisions and outcomes say it."""
        return {}

    def decide(self, state: Plain, situation: Situation) -> tuple[Plain, Sequence[Proposal]]:
        """Once."""
        suspect, promise = accused(situation, {"preconditioner_lag"}), unharmed(situation)
        if suspect is None or promise is None or "epsilon" in situation.in_force or waiting(situation, "epsilon"):
            return state, ()
        because = f"{suspect.finding.title} ({suspect.cause}, {suspect.confidence:.0%})"
        action = Action(name="epsilon", arguments={"value": RAISED}, reason=because)
        proposal = Proposal(
            controller="epsilon",
            action=action,
            finding=suspect.finding,
            cause=suspect.cause,
            promise=promise,
            level=3,
        )
        return state, (proposal,)
