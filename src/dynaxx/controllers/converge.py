"""Ends a run that has converged: advises at once, spends a last 5 % of the steps, then stops and says what it saved."""

from collections.abc import Sequence
from typing import Any, ClassVar

from dynaxx.controllers._clock import started, tick
from dynaxx.controllers._limits import limits
from dynaxx.controllers._plateau import hopeless
from dynaxx.controllers._promise import unharmed
from dynaxx.controllers._rates import planned, yet_to_decay
from dynaxx.controllers._reading import LOSS, VALIDATION, column_of, latest, level, round_figure
from dynaxx.controllers._suspects import HEALTHY_FINDINGS, standing
from dynaxx.core.findings import Finding
from dynaxx.core.navigation import ADVICE, Controller, Promise, Proposal, Situation
from dynaxx.core.records import Action

Plain = dict[str, Any]
BUDGET = 0.05
"""Share of the planned steps that is spent on gains after the plateau (specification V2)."""
ANNEAL = 0.1
"""Factor of the rate meanwhile: a plateau at a constant rate is a noise floor, which lies lower at a lower rate."""
GAIN = 0.1
"""Relative gain in the last stretch above which the run was not at its end: ten times the 1 % that a stop may cost."""
REST = 0.2
"""Share of the planned steps before the end is looked for again after such a gain."""
COST = 0.01
"""Relative gain by the planned end that a stop may cost (issue "Diagnosis and the navigator"): while the trend promises
more, within one standard error, the run goes on."""
DECAYED = 0.1
"""Rate over its peak below which the schedule has annealed by itself."""


class Converge(Controller[Plain]):
    """Advises to stop when 4 of 5 signals of convergence hold; after the post-plateau budget it stops the run.

    The finding `convergence` counts the signals (V1). The budget is spent at a tenth of the rate, where the schedule
    has not lowered it itself (V2); then the run ends, and the reason says how many steps were saved (V3). Never while
    something is wrong, grokking is under way, the schedule is yet to lower the rate (a decaying rate still gains), or
    the trend of the validation loss promises more than 1 % by the planned end.
    """

    about: ClassVar[str] = "ends a run that has converged"

    def init(self) -> Plain:
        """No end in sight."""
        return {"clock": started(), "began": None, "level": None, "not_before": 0}

    def decide(self, state: Plain, situation: Situation) -> tuple[Plain, Sequence[Proposal]]:
        """Advise, probe, stop."""
        state = {**state, "clock": tick(state["clock"], situation.step)}
        now, steps = state["clock"]["updates"], limits(situation).steps
        finding = _converged(situation)
        level_now = _level(situation)
        if state["began"] is None:
            if finding is None or level_now is None or now < state["not_before"]:
                return state, ()
            late = situation.steps is not None and situation.steps - situation.step <= 2 * _budget(situation)
            if late or yet_to_decay(situation) is not None or not hopeless(situation, COST):
                return state, ()
            state = {**state, "began": now, "level": level_now}
        budget = _budget(situation)
        if standing(situation) or level_now is None:
            return {**state, "began": None}, ()
        if now - state["began"] < budget:
            return state, () if finding is None else _last_look(finding, situation, budget)
        gain = (state["level"] - level_now) / abs(state["level"]) if state["level"] else 0.0
        if gain > GAIN or (finding is None and gain <= 0):
            return {**state, "began": None, "not_before": now + round(REST * steps)}, ()
        return state, (_stop(finding, situation, gain, budget),)


def _budget(situation: Situation) -> int:
    """Steps that are spent on gains after the plateau."""
    return max(limits(situation).horizon, round(BUDGET * limits(situation).steps))


def _converged(situation: Situation) -> Finding | None:
    """The finding, unless something healthy is going on that may yet bring a gain."""
    if any(f.name in HEALTHY_FINDINGS - {"edge_of_stability"} for f in situation.findings if f.name in situation.fresh):
        return None
    return next((f for f in situation.findings if f.name == "convergence" and f.name in situation.fresh), None)


def _last_look(finding: Finding, situation: Situation, budget: int) -> Sequence[Proposal]:
    """The advice, and the annealing."""
    word = Action(name=ADVICE, reason=f"{finding.title}: stopping now saves {_saved(situation)}")
    proposals = [_proposal(word, finding)]
    plan = planned(situation)
    lowered = plan is not None and plan.rate[-1] <= DECAYED * plan.rate.max()
    if lowered or "learning_rate" in situation.in_force:
        return proposals
    reason = f"{finding.title}: {budget} last steps at × {ANNEAL:g} of the rate, for what lies below the noise"
    arguments = {"factor": round_figure(ANNEAL)}
    anneal = Action(name="learning_rate", arguments=arguments, steps=4 * budget, reason=reason)
    return [*proposals, _proposal(anneal, finding, promise=unharmed(situation), level=3)]


def _stop(finding: Finding | None, situation: Situation, gain: float, budget: int) -> Proposal:
    title = "converged" if finding is None else finding.title
    reason = f"{title}; {budget} further steps gained {max(0.0, gain):.2%}; {_saved(situation)} saved"
    return _proposal(Action(name="stop", reason=reason), finding, level=6)


def _proposal(action: Action, finding: Finding | None, promise: Promise | None = None, level: int = 0) -> Proposal:
    return Proposal(
        controller="converge", action=action, finding=finding, cause="converged", promise=promise, level=level
    )


def _saved(situation: Situation) -> str:
    if situation.steps is None:
        return "what would have followed"
    left = situation.steps - situation.step
    return f"{left} of {situation.steps} steps ({left / situation.steps:.0%})"


def _level(situation: Situation) -> float | None:
    """The validation loss, or the training loss, now."""
    column = column_of(situation.run, VALIDATION)
    if column is not None:
        return latest(situation.run, column, situation.step, 3)
    column = column_of(situation.run, LOSS)
    if column is None:
        return None
    found = level(situation.run, column, situation.step - limits(situation).horizon, situation.step)
    return None if found is None else found.now
