"""Asks for a branch trial when the causes of an alarm stay close and their remedies differ."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar

from dynaxx.controllers._limits import LEAST_RATE, MOST_RATE, limits
from dynaxx.controllers._reading import own_factor, rate_factor, round_figure
from dynaxx.controllers._suspects import known, standing, unsure
from dynaxx.core.findings import Cause, Finding
from dynaxx.core.navigation import Controller, Proposal, Situation
from dynaxx.core.records import Action

Plain = dict[str, Any]
LEAST, MOST = 10, 100
"""Steps of an arm: below ten a remedy has not begun to work, and beyond a hundred the arms drift apart by chance."""
SHARE = 0.5
"""Share of what trials may spend that one of them takes: two in a run."""


class Trial(Controller[Plain]):
    """The remedies of the first two causes against each other and against doing nothing, on the same data.

    After the check that could have parted them was made, or where there is none; as long as trials can be paid for.
    """

    about: ClassVar[str] = "asks for a branch trial when causes stay close and remedies differ"

    def init(self) -> Plain:
        """Nothing to remember: the arbiter keeps the account."""
        return {}

    def decide(self, state: Plain, situation: Situation) -> tuple[Plain, Sequence[Proposal]]:
        """One trial for the worst of the unsure alarms."""
        for finding in standing(situation):
            arms = _arms(finding, situation)
            steps = min(MOST, int(SHARE * limits(situation).trial / (len(arms) + 1)))
            if len(arms) < 2 or steps < LEAST or not unsure(finding) or _can_check(finding, situation):
                continue
            reason = f"{finding.title}: {' or '.join(arms)}? Each remedy is tried for {steps} steps"
            arguments = {"arms": {name: [asdict(action)] for name, action in arms.items()}, "steps": steps}
            action = Action(name="trial", arguments=arguments, reason=reason)
            cause = finding.causes[0].name
            return state, (Proposal(controller="trial", action=action, finding=finding, cause=cause),)
        return state, ()


def _can_check(finding: Finding, situation: Situation) -> bool:
    """Whether a cheaper way to part the causes is still open."""
    possible = finding.test is not None and finding.test.check is not None and "check" in situation.able
    return possible and not known(situation, finding)


def _arms(finding: Finding, situation: Situation) -> dict[str, Action]:
    """Cause → what would help, of the first two causes; fewer where a remedy is missing or they are the same."""
    arms: dict[str, Action] = {}
    for cause in finding.causes[:2]:
        action = _remedy(cause, situation)
        if action is not None and all((action.name, action.arguments) != (a.name, a.arguments) for a in arms.values()):
            arms[cause.name] = action
    return arms


def _remedy(cause: Cause, situation: Situation) -> Action | None:
    """The cause's best remedy that an arm can try, with a learning rate's factor as a total within the bounds."""
    offered = (remedy.action for remedy in cause.remedies if remedy.action is not None)
    able = situation.able - {"rollback", "trial", "check", "stop"}
    action = next((action for action in offered if action.name in able), None)
    if action is None or action.name != "learning_rate":
        return action
    factor = float(action.arguments["factor"])
    own, total = own_factor(situation) * factor, rate_factor(situation) * factor  # the other factors may end
    if not LEAST_RATE <= min(own, total) <= max(own, total) <= MOST_RATE:
        return None
    return replace(action, arguments={"factor": round_figure(own)})
