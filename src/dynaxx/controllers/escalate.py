"""Asks for the live check that parts the top two causes of an alarm, when they are close."""

from collections.abc import Sequence
from typing import Any, ClassVar

from dynaxx.controllers._suspects import known, standing, unsure
from dynaxx.core.navigation import Controller, Proposal, Situation
from dynaxx.core.records import Action

Plain = dict[str, Any]


class Escalate(Controller[Plain]):
    """A check for each alarm whose first cause is unsure, or whose first two are closer than 0.2.

    Once for each stretch of a finding; the detectors read the result from the log and rank the causes anew.
    """

    about: ClassVar[str] = "asks for the live check that tells close causes apart"

    def init(self) -> Plain:
        """Nothing to remember: the log holds the results."""
        return {}

    def decide(self, state: Plain, situation: Situation) -> tuple[Plain, Sequence[Proposal]]:
        """One check for each unsure alarm; the arbiter lets one through at a time."""
        proposals: list[Proposal] = []
        for finding in standing(situation):
            test = finding.test
            if test is None or test.check is None or not unsure(finding) or known(situation, finding):
                continue
            action = Action(name="check", arguments={"check": test.check, **test.arguments}, reason=test.text)
            cause = finding.causes[0].name if finding.causes else ""
            proposals.append(Proposal(controller="escalate", action=action, finding=finding, cause=cause))
        return state, proposals
