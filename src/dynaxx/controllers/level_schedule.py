"""Undoes a jump of the schedule: the rate is held at the level from which it jumped, or for which it was right."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar

from dynaxx.controllers._limits import Limits, limits
from dynaxx.controllers._past import acts, repeated
from dynaxx.controllers._promise import steady
from dynaxx.controllers._rates import EARLY, THROWN, Jump, beyond_all, jump
from dynaxx.controllers._reading import own_factor, round_figure
from dynaxx.controllers._suspects import Suspect, accused, standing
from dynaxx.core.navigation import Controller, Proposal, Situation
from dynaxx.core.records import Action

Plain = dict[str, Any]
STARVED = frozenset({"schedule_too_aggressive", "learning_rate_too_low"})
"""What a rate that was spent too early is accused of."""
UNTIL = 0.8
"""Share of the planned steps up to which a rate that was spent too early is held; then it falls evenly to what the
schedule has left (warmup–stable–decay schedules decay over a tenth to a fifth; Hu et al. 2024)."""
WATCHED = 3
"""Horizons after which a rate that was raised again is judged: at first the loss stands higher at a higher rate."""
ACTS = 2
"""Jumps that are undone in one run: a schedule that jumps more often is meant to."""
LEVEL = 5


class LevelSchedule(Controller[Plain]):
    """η ← within a band, back from before the jump, where an alarm follows a jump of the loop's own rate.

    Up: the rate is held at its level before, also where the raise is over and the loss has not come back; where it
    went far above all that the run has borne, whatever alarm began since will do. Down, in the first fifth: where the
    first stage did the harm, it is held at what came after; where what came after is too little, at what was before,
    annealed over the last fifth. A cut that was in force when the loop lowered its rate by itself is lifted by as
    much: it was meant for the stage that is over.
    """

    about: ClassVar[str] = "holds the rate where its schedule has jumped"

    def init(self) -> Plain:
        """Nothing to remember: decisions say it."""
        return {}

    def decide(self, state: Plain, situation: Situation) -> tuple[Plain, Sequence[Proposal]]:
        """One jump at a time."""
        found = _last(situation)
        if found is None or "rate_band" in situation.in_force or len(acts(situation, "level_schedule")) >= ACTS:
            return state, ()
        bounds = limits(situation)
        early = found.step <= EARLY * bounds.steps
        if found.after < found.before and own_factor(situation) < 1:
            return state, _lifted(found, situation) if early else ()
        causes = THROWN if found.after > found.before or not _spent(situation, found) else STARVED
        suspect = accused(situation, causes) or _after(situation, found)
        if suspect is None or (found.after < found.before and not early):
            return state, ()
        proposal = _held(found, suspect, situation, bounds)
        return state, () if proposal is None else (proposal,)


def _last(situation: Situation) -> Jump | None:
    """The last jump; where it only took back a raise beyond all before, which an alarm is about, that raise."""
    found, suspect = jump(situation), accused(situation, THROWN)
    if found is None or found.after > found.before or suspect is None:
        return found
    raised = jump(situation, found.step - 1)
    harmful = raised is not None and raised.after > raised.before and suspect.finding.onset >= raised.step - 1
    return raised if raised is not None and harmful and beyond_all(situation, raised) else found


def _after(situation: Situation, found: Jump) -> Suspect | None:
    """The first alarm that began after a jump to a rate far above all before it, whatever it accuses."""
    if not beyond_all(situation, found):
        return None
    begun = (f for f in standing(situation) if f.onset >= found.step and f.causes)
    return next((Suspect(f.causes[0].name, f.causes[0].confidence, f) for f in begun), None)


def _spent(situation: Situation, found: Jump) -> bool:
    """Whether what came after the fall is what is wrong: the alarm has not begun before it, or nothing was too high.

    A loss that has not fallen since the first step is dated from there; a rate that was too low then is lower now.
    """
    suspect = accused(situation, STARVED)
    return suspect is not None and (suspect.finding.onset >= found.step - 1 or accused(situation, THROWN) is None)


def _lifted(found: Jump, situation: Situation) -> Sequence[Proposal]:
    """The cut, less what the loop has taken back by itself."""
    promise = steady(situation)
    factor = round_figure(min(1.0, own_factor(situation) * found.before / found.after))
    if promise is None or factor <= own_factor(situation):
        return ()
    reason = f"the schedule has lowered the rate {found.before / found.after:.3g}-fold at step {found.step}: the cut "
    reason += f"was meant for what came before, and is taken back to × {factor:g}"
    action = Action(name="learning_rate", arguments={"factor": factor}, reason=reason)
    return (Proposal(controller="level_schedule", action=action, promise=promise, level=3),)


def _held(found: Jump, suspect: Suspect, situation: Situation, bounds: Limits) -> Proposal | None:
    """Back to before the jump, or to the beginning where the first stage did it, with the rate in a band."""
    reason = f"{suspect.finding.title} ({suspect.cause}, {suspect.confidence:.0%}): the schedule took the rate from "
    reason += f"{found.before:.3g} to {found.after:.3g} at step {found.step}; it is held "
    if found.after > found.before:
        band, to = {"most": found.before, "shape": True}, found.step - 1
        reason += f"at {found.before:.3g} at most, and keeps its shape"
    elif _spent(situation, found):
        band, to = {"least": found.before, "falls": [round(UNTIL * bounds.steps), bounds.steps]}, found.step - 1
        reason += f"at {found.before:.3g} at least, and falls from {UNTIL:.0%} of the steps on"
    else:
        band, to = {"most": found.after}, 0
        reason += f"at {found.after:.3g} at most"
    kept = max((step for step in situation.healthy if step <= to), default=None)
    left = bounds.rollback - repeated(situation)
    back = kept is not None and situation.step - kept <= left and "rollback" in situation.able
    begins = kept if back and kept is not None else situation.step
    if "least" in band and round(UNTIL * bounds.steps) - begins < bounds.horizon:
        return None
    action = Action(name="rate_band", arguments=band, reason=reason)
    if back:
        arguments = {"before": begins + 1, "pass_data": False, "then": [asdict(action)]}
        reason += f", from step {begins} on"
        action = Action(name="rollback", arguments=arguments, reason=reason)
    return Proposal(
        controller="level_schedule",
        action=action,
        finding=suspect.finding,
        cause=suspect.cause,
        promise=steady(situation, WATCHED if "least" in band else 1),
        level=LEVEL,
    )
