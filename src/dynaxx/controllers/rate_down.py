"""Halves a learning rate that is too high, and raises it again once the run is calm: backing off near the edge."""

from collections.abc import Sequence
from typing import Any, ClassVar

from dynaxx.controllers._clock import started, tick
from dynaxx.controllers._ground import lost_ground, regaining
from dynaxx.controllers._limits import Limits, limits
from dynaxx.controllers._past import acts, waiting
from dynaxx.controllers._promise import faster, unharmed
from dynaxx.controllers._rates import AIM, CUTS, LARGE, lower, rising, room, ruinous, thrown_up
from dynaxx.controllers._reading import own_factor, round_figure
from dynaxx.controllers._suspects import Suspect, accused, standing
from dynaxx.controllers._usual import usual
from dynaxx.core.navigation import Controller, Proposal, Situation
from dynaxx.core.records import Action

Plain = dict[str, Any]
CAUSES = frozenset({"learning_rate_too_high", "momentum_too_high", "schedule_too_aggressive", "warmup_missing"})
"""What a lower rate answers."""
RISES = frozenset({"divergence", "loss_spike"})
"""Findings that are over once the loss has come back: a rate that is too high for good shows in others, too."""
BACK = 3.0
"""Factor of one step of the way back: half a decade, as `rate_up` goes."""
RECENT = 5
"""Last steps whose updates a cut is measured by, and within which its accusation must reach: what is over needs no
cut, and what it has done is answered by going back."""
CALM = 2
"""Horizons without an accusation before the rate is raised again: the cut is judged in the first, and the descent that
a raise must beat is measured in the second. While raises keep their promise they follow one another."""
LEAST = 1.25
"""Smallest step of the way back that is worth an act."""
FASTER = 1.25
"""Promised speed after a raise by 3, over the present one: little, as the way back leads to the rate that was meant."""
MILD = 0.25
"""Factor from which on a cut was a precaution, two halvings at most: it is taken back when calm, also where the gain
would be lost in the noise. A deeper one had a reason, and waits until a gain can be seen."""
LATEST = 0.9
"""Share of the planned steps after which nothing is raised: the tenth that is left hardly shows whether it helped."""


class RateDown(Controller[Plain]):
    """η × ½ while the steps are longer than the curvature allows; back by threes, as long as that makes it faster.

    A cut promises that the loss is unharmed. A raise promises that it falls faster: otherwise it is taken back, and
    tried ever more rarely. Where a faster descent could not be seen, only a mild cut is taken back, and promises no
    harm. What other controllers have cut is raised likewise.
    """

    about: ClassVar[str] = "halves a learning rate that is too high, and recovers it later"

    def init(self) -> Plain:
        """Calm since the start."""
        return {"clock": started(), "accused": 0, "factor": 1.0}

    def decide(self, state: Plain, situation: Situation) -> tuple[Plain, Sequence[Proposal]]:
        """Cut while accused, raise when calm."""
        clock = tick(state["clock"], situation.step)
        suspect = accused(situation, CAUSES)
        if suspect is not None and suspect.cause == "schedule_too_aggressive" and not rising(situation):
            suspect = None  # a rate that has decayed too early is no rate that is too high: `level_schedule` answers it
        if suspect is not None and usual(situation, suspect) is not None:
            suspect = None  # the momentum multiplies the rate, and `usual_setting` lowers that
        if suspect is not None and (thrown_up(situation) or lost_ground(situation) is not None):
            # Half of a rate that has jumped tenfold is no cure: `level_schedule` holds it where it was. And what is
            # lost is regained by going back, which `go_back` does.
            suspect = None
        factor = own_factor(situation)
        lowered = suspect is not None or factor < state["factor"]
        state = {"clock": clock, "accused": clock["updates"] if lowered else state["accused"], "factor": factor}
        if waiting(situation, "rate_down"):
            return state, ()
        if suspect is not None:
            ladder = suspect.finding.severity == "critical" or ruinous(situation, suspect) is not None
            over = suspect.finding.last < situation.step - RECENT or _comes_back(suspect, situation)
            if ladder or over or _in_vain(suspect, situation):
                return state, ()  # the ladder's business, or nobody's any more
            return state, _cut(suspect, situation)
        return state, _raise(state, situation, limits(situation))


def _comes_back(suspect: Suspect, situation: Situation) -> bool:
    """Whether all that accuses the rate is a rise of the loss that is being regained: what caused it has passed."""
    return suspect.finding.name in RISES and regaining(situation)


def _in_vain(suspect: Suspect, situation: Situation) -> bool:
    """Whether this stretch of the accusation was answered by as many cuts as can help."""
    cuts = [d for d in acts(situation, "rate_down") if d.step >= suspect.finding.onset and d.proposal.finding]
    return len(cuts) >= CUTS


def _cut(suspect: Suspect, situation: Situation) -> Sequence[Proposal]:
    promise = unharmed(situation)
    if promise is None:
        return ()
    step, why = lower(situation, situation.step - RECENT, deep=False)
    factor = round_figure(own_factor(situation) * step)
    reason = f"{suspect.finding.title} ({suspect.cause}, {suspect.confidence:.0%}): the learning rate × {factor:g}{why}"
    return (
        Proposal(
            controller="rate_down",
            action=Action(name="learning_rate", arguments={"factor": factor}, reason=reason),
            finding=suspect.finding,
            cause=suspect.cause,
            promise=promise,
            level=3,
        ),
    )


def _raise(state: Plain, situation: Situation, bounds: Limits) -> Sequence[Proposal]:
    calm = state["clock"]["updates"] - state["accused"]
    late = situation.steps is not None and situation.step > LATEST * situation.steps
    sought = bool(acts(situation, "begin_anew"))  # then the rate is the best of those around it
    if state["factor"] >= 1.0 or calm < CALM * bounds.horizon or late or sought or standing(situation):
        return ()
    promise = faster(situation, FASTER)
    if promise is None and state["factor"] >= MILD:
        promise = unharmed(situation)
    if promise is None:
        return ()
    step, why = room(situation, min(BACK, 1.0 / state["factor"]), AIM if state["factor"] >= MILD else LARGE)
    if step < LEAST:
        return ()
    factor = round_figure(step * state["factor"])
    reason = f"calm for {calm} updates: the learning rate goes back up to × {factor:g}{why}"
    action = Action(name="learning_rate", arguments={"factor": factor}, reason=reason)
    return (Proposal(controller="rate_down", action=action, promise=promise, level=3),)
