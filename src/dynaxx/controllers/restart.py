"""Restarts an annealed learning rate where the validation rests too early, triggered by the plateau, not by a count."""

from collections.abc import Sequence
from typing import Any, ClassVar

from dynaxx.controllers._limits import limits
from dynaxx.controllers._past import acts, waiting
from dynaxx.controllers._plateau import better, resting
from dynaxx.controllers._rates import annealed, leapt
from dynaxx.controllers._reading import latest, round_figure
from dynaxx.controllers._suspects import accused
from dynaxx.core.navigation import Controller, Proposal, Situation
from dynaxx.core.records import Action

Plain = dict[str, Any]
CAUSES = frozenset({"schedule_too_aggressive", "flat_valley", "saddle"})
"""Rests that an earlier, higher rate would have crossed."""
MOST = 5.0
"""Highest factor, that of the largest kick (specification N8)."""
LEAST = 2.0
"""Lowest one."""
SAFE = 0.5
"""Share of the logged stability margin that a restart may use."""
REMAINING = 0.3
"""Share of the planned steps that must remain: half of them at the raised rate, then an eighth of the run and more to
settle (warmup–stable–decay schedules decay over a fifth)."""
RESTARTS = 2
"""Restarts in one run: with `REMAINING` there is time for no more."""


class Restart(Controller[Plain]):
    """η × min(5, peak / present) for half of the steps that remain, while the schedule goes on lowering it.

    The loop's own schedule anneals the raised rate, as a warm restart would (Loshchilov and Hutter 2017). It promises a
    lower validation loss than before, one horizon after its end.
    """

    about: ClassVar[str] = "restarts an annealed learning rate on a validation plateau"

    def init(self) -> Plain:
        """Nothing to remember: decisions and outcomes say it."""
        return {}

    def decide(self, state: Plain, situation: Situation) -> tuple[Plain, Sequence[Proposal]]:
        """Where enough of the run remains."""
        suspect = accused(situation, CAUSES)
        lowered = annealed(situation)
        if suspect is None or lowered is None or situation.steps is None or waiting(situation, "restart"):
            return state, ()
        if leapt(situation, suspect.finding.onset):  # the peak that a restart would return to is what did the harm
            return state, ()
        left = situation.steps - situation.step
        if left < REMAINING * situation.steps or "learning_rate" in situation.in_force or not resting(situation):
            return state, ()
        margin = latest(situation.run, "stability_margin", situation.step, 3)
        factor = round_figure(min(MOST, lowered, MOST if margin is None else SAFE * margin))
        promise = better(situation, left // 2 + limits(situation).horizon)
        if factor < LEAST or promise is None or len(acts(situation, "restart")) >= RESTARTS:
            return state, ()
        reason = f"{suspect.finding.title} ({suspect.cause}, {suspect.confidence:.0%}): restart at × {factor:g}"
        proposal = Proposal(
            controller="restart",
            action=Action(name="learning_rate", arguments={"factor": factor}, steps=left // 2, reason=reason),
            finding=suspect.finding,
            cause=suspect.cause,
            promise=promise,
            level=3,
        )
        return state, (proposal,)
