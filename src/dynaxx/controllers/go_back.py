"""Goes back where ground was lost since a moment, whatever the cause, and waiting would cost more than going back."""

from collections.abc import Sequence
from typing import Any, ClassVar

from dynaxx.controllers._ground import CERTAIN, beyond, cause_of, harmed_by, lost_ground
from dynaxx.controllers._limits import limits
from dynaxx.controllers._rates import THROWN, thrown_up
from dynaxx.controllers._suspects import accused
from dynaxx.core.navigation import Controller, Promise, Proposal, Situation
from dynaxx.core.records import Action

Plain = dict[str, Any]
LEVEL = 4
"""Its rung: a rollback."""


class GoBack(Controller[Plain]):
    """To the newest healthy checkpoint before the onset, once for each cause.

    The batches since are passed over, as they may have done it, and as many again as have come since the onset, a
    horizon at most: what has lasted so long may go on as long. Weights that somebody has overwritten are no batch's
    doing, so there the same batches come again, and the run goes on as if nothing had been. It promises the level
    before, within the noise. An act that is undone and has left the loss higher is taken back with what it has done to
    the weights. Where the rate has been thrown up, going back alone would only repeat it: `level_schedule` answers.
    """

    about: ClassVar[str] = "goes back where ground was lost, if that is cheaper than waiting"

    def init(self) -> Plain:
        """Nothing to remember: decisions say it."""
        return {}

    def decide(self, state: Plain, situation: Situation) -> tuple[Plain, Sequence[Proposal]]:
        """What an act has done first, then the worst of the alarms that say since when."""
        harm = harmed_by(situation)
        if harm is not None:
            outcome, to = harm
            reason = (
                f"{outcome.proposal.action.name} of step {outcome.step} has left the loss at {outcome.measured:.4g}: "
            )
            reason += f"back to step {to}"
            arguments = {"before": to + 1, "pass_data": True, "then": []}
            action = Action(name="rollback", arguments=arguments, reason=reason)
            return state, (Proposal(controller="go_back", action=action, cause="", level=LEVEL),)
        ground = lost_ground(situation)
        if ground is None or (thrown_up(situation) and accused(situation, THROWN) is not None):
            return state, ()
        certain = cause_of(ground.finding) in CERTAIN
        why = "the weights are not what training made of them" if certain else "waiting would cost more"
        reason = f"{ground.finding.title}: {situation.step - ground.to} steps back, to step {ground.to}; {why}"
        further = 0 if certain else beyond(ground.finding, situation)
        arguments = {"before": ground.to + 1, "pass_data": not certain, "further": further, "then": []}
        proposal = Proposal(
            controller="go_back",
            action=Action(name="rollback", arguments=arguments, reason=reason),
            finding=ground.finding,
            cause=cause_of(ground.finding),
            promise=Promise(column=ground.column, below=ground.level, steps=limits(situation).horizon),
            level=LEVEL,
        )
        return state, (proposal,)
