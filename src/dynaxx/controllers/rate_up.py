"""Raises a learning rate that is too low, in guarded steps of three, as far as margin and updates allow."""

from collections.abc import Sequence
from typing import Any, ClassVar

from dynaxx.controllers._limits import limits
from dynaxx.controllers._past import acts, judged, same, waiting
from dynaxx.controllers._promise import faster, unharmed
from dynaxx.controllers._rates import LARGE, annealed, planned, rising, room, spent_early
from dynaxx.controllers._reading import latest, own_factor, rate_factor, round_figure
from dynaxx.controllers._search import can_begin, start
from dynaxx.controllers._suspects import accused, standing
from dynaxx.core.navigation import Controller, Proposal, Situation
from dynaxx.core.records import Action

Plain = dict[str, Any]
CAUSES = frozenset({"learning_rate_too_low"})
"""What a higher rate answers."""
STEP = 3.0
"""Factor of one raise: half a decade, the grid on which learning rates are searched."""
USUAL, LONG = 1e-3, 10.0
"""The customary update ratio (Karpathy), a third of which counts as tiny; and the longest raise."""
AIM = LARGE / STEP
"""Update ratio that a raise aims at where that is more than `STEP`: one guarded step below the largest allowed."""
CHECK = "directional_curvature"
"""What is asked for where updates are shorter than customary."""
BEARS = 0.01
"""Curvature along an update over what its length allows, below which a raise by three is borne: a byte-level
transformer has 0.02 to 0.1 at its own rate."""
LEAST = 1.5
"""Smallest raise worth an act; smaller ones are within what a schedule does."""
FASTER = 1.5
"""Promised speed over the present one: the smallest raise, as far below the best rate the speed goes with the rate."""
BLIND = 30.0
"""Highest factor that raises come to where no size of updates is logged: nothing but ruin would tell that one was too
many, and a rate 30 × too low is what must be mended (issue "Diagnosis and the navigator")."""
LATEST = 0.8
"""Share of the planned steps after which nothing is raised."""


class RateUp(Controller[Plain]):
    """η × 3 while the loss falls far slower than it could, bounded by margin and update ratio.

    A raise promises that the loss falls half as fast again, where that could be seen above the noise within one
    horizon; else that it is unharmed. A broken promise is undone. While promises are kept, and after a search by
    trials, which sets the rate a raise below its winner, this goes on, whether the rate is still accused or not, as
    long as updates are tiny, the loss hardly bends along them, or the gain can be seen: where it ends, the rate is
    within a factor of three of the fastest. Where updates are shorter than customary, it asks once for the curvature
    along them, which the detectors read too.
    """

    about: ClassVar[str] = "raises a learning rate that is too low"

    def init(self) -> Plain:
        """Nothing to remember: decisions and outcomes say it."""
        return {}

    def decide(self, state: Plain, situation: Situation) -> tuple[Plain, Sequence[Proposal]]:
        """One raise at a time."""
        suspect, climbing = accused(situation, CAUSES), _climbing(situation)
        late = situation.steps is not None and situation.step > LATEST * situation.steps
        if late or waiting(situation, "rate_up") or rising(situation):
            return state, ()
        if suspect is None and not climbing:
            return state, _question(situation)
        if suspect is not None and (can_begin(situation) or spent_early(situation)):
            # `begin_anew` loses no step to the rate that was too low, `level_schedule` knows the rate of before.
            return state, ()
        if suspect is not None and (search := _search(situation)) is not None:
            proposal = Proposal(
                controller="rate_up",
                action=search,
                finding=suspect.finding,
                cause="learning_rate_too_low",
                level=3,
            )
            return state, (proposal,)
        step, why = _step(situation)
        promise = faster(situation, FASTER)
        open_ = suspect is not None or _searched(situation) or _tiny(situation) or _bears(situation)
        if promise is None and open_:
            promise = unharmed(situation)
        if step < LEAST or promise is None:
            return state, ()
        factor = round_figure(own_factor(situation) * step)
        because = "the search set it below its winner" if _searched(situation) else "the last raise kept its promise"
        if suspect is not None:
            because = f"{suspect.finding.title} ({suspect.cause}, {suspect.confidence:.0%})"
        proposal = Proposal(
            controller="rate_up",
            action=Action(
                name="learning_rate",
                arguments={"factor": factor},
                reason=f"{because}: the learning rate × {factor:g}{why}",
            ),
            finding=None if suspect is None else suspect.finding,
            cause="learning_rate_too_low",
            promise=promise,
            level=3,
        )
        return state, (proposal,)


def _search(situation: Situation) -> Action | None:
    """A search for the rate from here, once: quicker than raises one after another, each with its own proof."""
    bounds = limits(situation)
    raised = any(d.proposal.action.name != "check" for d in acts(situation, "rate_up"))
    trials = any(d.proposal.action.name == "trial" for d in situation.decisions)
    if raised or trials or acts(situation, "begin_anew"):
        return None
    found = start(situation, bounds, bounds.trial, anew=False)
    return None if found is None else found.trial


def _step(situation: Situation) -> tuple[float, str]:
    """The factor of this raise, and what bounds it."""
    ratio = latest(situation.run, "update_ratio.total", situation.step)
    step, why = STEP, ""
    if ratio is None:
        step = min(STEP, BLIND / own_factor(situation))
    elif 0 < ratio < AIM / STEP:
        step, why = min(LONG, AIM / ratio), f", as an update is {ratio:.2g} of the weights"
    bound, bounded = room(situation, step)
    return bound, bounded or why


def _question(situation: Situation) -> Sequence[Proposal]:
    """The check that tells short steps from steps that are all the loss bears; for 10 passes, and without a trace."""
    ratio = latest(situation.run, "update_ratio.total", situation.step)
    short = ratio is not None and 0 < ratio < USUAL
    if not short or CHECK in situation.last or standing(situation) or annealed(situation) is not None:
        return ()
    reason = f"an update is {ratio:.2g} of the weights: would the curvature along it bear a longer one?"
    return (Proposal(controller="rate_up", action=Action(name="check", arguments={"check": CHECK}, reason=reason)),)


def _tiny(situation: Situation) -> bool:
    """Whether updates are still far smaller than is customary, whatever can be seen of the loss."""
    ratio = latest(situation.run, "update_ratio.total", situation.step)
    return ratio is not None and 0 < ratio < USUAL / STEP


def _bears(situation: Situation) -> bool:
    """Whether the last look at the curvature along an update, taken to the present rate, leaves room for a raise."""
    look, plan = situation.last.get(CHECK, {}).get("values", {}), planned(situation)
    if not look.get("rate") or look.get("ratio") is None or plan is None:
        return False
    now = float(plan.rate[-1]) * rate_factor(situation)
    return abs(float(look["ratio"])) * now / float(look["rate"]) < BEARS


def _climbing(situation: Situation) -> bool:
    """Whether the last raise has kept its promise, or a search has set the rate, and nothing is wrong since."""
    done = judged(situation, "rate_up")
    present = situation.in_force.get("learning_rate")
    if present is None or standing(situation):
        return False
    return _searched(situation) or (bool(done) and done[-1].kept and same(done[-1].proposal.action, present))


def _searched(situation: Situation) -> bool:
    """Whether the last that was done is a search from here, a horizon ago: its winner lies a raise above what it set.

    In a search from the start that is the margin to a rate that has not yet come to harm; later in a run the raise is
    tried, under a promise as any other.
    """
    done = [d for d in acts(situation, "rate_up") if d.proposal.action.name != "check"]
    last = done[-1] if done else None
    if last is None or last.proposal.action.name != "trial":
        return False
    return situation.step >= last.step + limits(situation).horizon
