"""Raises a learning rate that is too low, in guarded steps of three, up to the stability margin and 30 × at most."""

from collections.abc import Sequence
from typing import Any, ClassVar

from dynaxx.controllers._limits import MOST_RATE, limits
from dynaxx.controllers._past import waiting
from dynaxx.controllers._promise import faster, unharmed
from dynaxx.controllers._rates import change, planned
from dynaxx.controllers._reading import latest, own_factor, rate_factor, round_figure
from dynaxx.controllers._suspects import accused
from dynaxx.core.navigation import Controller, Promise, Proposal, Situation
from dynaxx.core.records import Action

Plain = dict[str, Any]
CAUSES = frozenset({"learning_rate_too_low"})
"""What a higher rate answers."""
STEP = 3.0
"""Factor of one raise: half a decade, the grid on which learning rates are searched."""
TINY, FAR = 1e-4, 3
"""Update ratio below which a rate is far too low (TheDeepChecker's rule: none of ten healthy runs lay there, and most
faulty ones), and by how much longer the step is then."""
LARGE = 1e-2
"""Update ratio that a raise does not exceed: ten times the customary 1e-3 (Karpathy), a tenth of where that rule calls
it too high."""
SAFE = 0.5
"""Share of the logged stability margin that a raise may use: the margin after it is at least 2."""
LEAST = 1.5
"""Smallest raise worth an act; smaller ones are within what a schedule does."""
WARMING = 1.05
"""Growth of the loop's own rate over a horizon that counts as its warm-up: then nothing is raised."""
FASTER = 1.5
"""Promised speed over the present one: the smallest raise, as far below the best rate the speed goes with the rate."""
LATEST = 0.8
"""Share of the planned steps after which nothing is raised."""


class RateUp(Controller[Plain]):
    """η × 3 while the loss falls far slower than it could, bounded by margin and update ratio, 30 × altogether.

    A raise promises that the loss falls half as fast again, where that could be seen above the noise within one
    horizon; else that it is unharmed. A broken promise is undone.
    """

    about: ClassVar[str] = "raises a learning rate that is too low"

    def init(self) -> Plain:
        """Nothing to remember: decisions and outcomes say it."""
        return {}

    def decide(self, state: Plain, situation: Situation) -> tuple[Plain, Sequence[Proposal]]:
        """One raise at a time."""
        suspect = accused(situation, CAUSES)
        late = situation.steps is not None and situation.step > LATEST * situation.steps
        if suspect is None or late or waiting(situation, "rate_up") or _warming(situation):
            return state, ()
        step, why = _step(situation)
        promise = _promise(situation)
        if step < LEAST or promise is None:
            return state, ()
        factor = round_figure(own_factor(situation) * step)
        reason = (
            f"{suspect.finding.title} ({suspect.cause}, {suspect.confidence:.0%}): the learning rate × {factor:g}{why}"
        )
        proposal = Proposal(
            controller="rate_up",
            action=Action(name="learning_rate", arguments={"factor": factor}, reason=reason),
            finding=suspect.finding,
            cause=suspect.cause,
            promise=promise,
            level=3,
        )
        return state, (proposal,)


def _step(situation: Situation) -> tuple[float, str]:
    """The factor of this raise, and what bounds it."""
    ratio = latest(situation.run, "update_ratio.total", situation.step)
    margin = latest(situation.run, "stability_margin", situation.step, 3)
    step, why = STEP, ""
    if ratio is not None and 0 < ratio < TINY:
        step = STEP * FAR
    bounds = [(MOST_RATE / rate_factor(situation), f", bounded by {MOST_RATE:g} × altogether")]
    if ratio is not None and ratio > 0:
        bounds.append((LARGE / ratio, f", bounded by an update ratio of {LARGE:g}"))
    if margin is not None:
        bounds.append((SAFE * margin, f", bounded by the stability margin {margin:.3g}"))
    for bound, words in bounds:
        if bound < step:
            step, why = bound, words
    return step, why


def _promise(situation: Situation) -> Promise | None:
    return faster(situation, FASTER) or unharmed(situation)


def _warming(situation: Situation) -> bool:
    plan = planned(situation)
    return plan is not None and change(plan, limits(situation).horizon) > WARMING
