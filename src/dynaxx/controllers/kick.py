"""Kicks the learning rate ×2–5 for a while, where the validation has come to rest on a wide plateau or a saddle."""

from collections.abc import Sequence
from typing import Any, ClassVar

from dynaxx.controllers._limits import limits
from dynaxx.controllers._past import acts, waiting
from dynaxx.controllers._plateau import better, resting
from dynaxx.controllers._rates import annealed
from dynaxx.controllers._reading import latest, round_figure
from dynaxx.controllers._suspects import accused
from dynaxx.core.navigation import Controller, Proposal, Situation
from dynaxx.core.records import Action

Plain = dict[str, Any]
CAUSES = frozenset({"flat_valley", "saddle"})
"""Rests that lead on: what a longer step crosses. A noise floor or the end of a run is none."""
LEAST, USUAL, MOST = 2.0, 3.0, 5.0
"""Factors (specification N8); the usual one is that of `run.kick(3)`."""
SAFE = 0.5
"""Share of the logged stability margin that a kick may use; where that is below `LEAST` nothing is kicked."""
KICKS = 3
"""Kicks in one run: a plateau that three did not leave is not left by a fourth."""
WATCHED = 3
"""Horizons after which a kick is judged: one that it lasts, and two in which the loss settles."""
LATEST = 0.8
"""Share of the planned steps after which nothing is kicked."""


class Kick(Controller[Plain]):
    """η × k for one horizon, k from the stability margin; it promises a lower validation loss than before, afterwards.

    Only from the loop's own rate: where another act holds the rate, or the schedule has annealed, nothing is kicked.
    """

    about: ClassVar[str] = "kicks the learning rate off a wide validation plateau"

    def init(self) -> Plain:
        """Nothing to remember: decisions and outcomes say it."""
        return {}

    def decide(self, state: Plain, situation: Situation) -> tuple[Plain, Sequence[Proposal]]:
        """At most three in a run, one at a time."""
        suspect = accused(situation, CAUSES)
        late = situation.steps is not None and situation.step > LATEST * situation.steps
        if suspect is None or late or "learning_rate" in situation.in_force or waiting(situation, "kick"):
            return state, ()
        if len(acts(situation, "kick")) >= KICKS or annealed(situation) is not None or not resting(situation):
            return state, ()
        margin = latest(situation.run, "stability_margin", situation.step, 3)
        factor = USUAL if margin is None else round_figure(min(MOST, SAFE * margin))
        length = limits(situation).horizon
        promise = better(situation, WATCHED * length)
        if factor < LEAST or promise is None:
            return state, ()
        reason = f"{suspect.finding.title} ({suspect.cause}, {suspect.confidence:.0%}): a kick × {factor:g}"
        proposal = Proposal(
            controller="kick",
            action=Action(name="learning_rate", arguments={"factor": factor}, steps=length, reason=reason),
            finding=suspect.finding,
            cause=suspect.cause,
            promise=promise,
            level=3,
        )
        return state, (proposal,)
