"""Ends a run that has converged: advises at once, spends a last 5 % of the steps, then stops and says what it saved."""

from collections.abc import Sequence
from typing import Any, ClassVar

from dynaxx.controllers._clock import started, tick
from dynaxx.controllers._limits import limits
from dynaxx.controllers._plateau import may_gain, promising
from dynaxx.controllers._promise import unharmed
from dynaxx.controllers._rates import planned, yet_to_decay
from dynaxx.controllers._reading import LOSS, VALIDATION, column_of, latest, level, round_figure
from dynaxx.controllers._suspects import standing
from dynaxx.core.findings import Finding
from dynaxx.core.navigation import ADVICE, Controller, Promise, Proposal, Situation
from dynaxx.core.records import Action

Plain = dict[str, Any]
BUDGET = 0.05
"""Share of the planned steps that is spent on gains after the plateau (specification V2)."""
ANNEAL = 0.1
"""Factor of the rate meanwhile: a plateau at a constant rate is a noise floor, which lies lower at a lower rate."""
STRETCHES = 3
"""Budgets that are spent at most: a lowered rate gains for a while, as a decay over a fifth of the steps does."""
COST = 0.01
"""Relative gain by the planned end that a stop may cost (issue "Diagnosis and the navigator"): while the trend promises
more, the run goes on. Also what a stretch must gain for another one to be worth its steps."""
REST = 0.1
"""Share of the planned steps before the end is looked for again after an alarm has interrupted the last stretch."""
HELD = frozenset({"learning_rate", "accumulate", "layer_rates"})
"""Acts that hold the rate of a run that is being mended: where it rests now is not where its plan leads."""
DECAYED = 0.1
"""Rate over its peak below which the schedule has annealed by itself."""


class Converge(Controller[Plain]):
    """Advises to stop when 4 of 5 signals of convergence hold; after the post-plateau budget it stops the run.

    The finding `convergence` counts the signals (V1). The budget is spent at a tenth of the rate, where the schedule
    has not lowered it itself, and again while that gains (V2); then the run ends, and the reason says how many steps
    were saved (V3). Never while something is wrong, grokking is under way, the schedule is yet to lower the rate (a
    decaying rate still gains), or the trend of the validation loss promises more than 1 % by the planned end.
    """

    about: ClassVar[str] = "ends a run that has converged"

    def init(self) -> Plain:
        """No end in sight."""
        return {"clock": started(), "began": None, "since": None, "stretch": 0, "levels": [], "not_before": 0}

    def decide(self, state: Plain, situation: Situation) -> tuple[Plain, Sequence[Proposal]]:
        """Advise, probe, stop."""
        state = {**state, "clock": tick(state["clock"], situation.step)}
        now, budget, level_now = state["clock"]["updates"], _budget(situation), _level(situation)
        if state["began"] is None:
            finding = _converged(situation)
            if finding is None or level_now is None or now < state["not_before"] or not _at_rest(situation, budget):
                return state, ()
            begun = {"began": now, "since": situation.step, "stretch": 1, "levels": [level_now]}
            return {**state, **begun}, _last_look(finding, situation, budget)
        if standing(situation) or level_now is None:
            rest = round(REST * limits(situation).steps)
            return {**state, "began": None, "since": None, "not_before": now + rest}, ()
        if now - state["began"] < state["stretch"] * budget:
            return state, ()
        levels = [*state["levels"], level_now]
        if state["stretch"] < STRETCHES and levels[-2] - level_now > COST * abs(levels[-2]):
            return {**state, "stretch": state["stretch"] + 1, "levels": levels}, ()
        told = _stop(_converged(situation), situation, levels, state["stretch"] * budget)
        return {**state, "began": None, "not_before": now + limits(situation).steps}, (told,)  # it is said once


def _at_rest(situation: Situation, budget: int) -> bool:
    """Whether an end is worth having and nothing more is to be hoped for."""
    if situation.steps is not None and situation.steps - situation.step <= 2 * budget:
        return False  # as good as over
    if standing(situation) or HELD & situation.in_force.keys() or yet_to_decay(situation) is not None:
        return False
    more = may_gain(situation)
    return more is not None and more < COST


def _budget(situation: Situation) -> int:
    """Steps that are spent on gains after the plateau."""
    return max(limits(situation).horizon, round(BUDGET * limits(situation).steps))


def _converged(situation: Situation) -> Finding | None:
    """The finding, unless something healthy is going on that may yet bring a gain."""
    if promising(situation):
        return None
    return next((f for f in situation.findings if f.name == "convergence" and f.name in situation.fresh), None)


def _last_look(finding: Finding, situation: Situation, budget: int) -> Sequence[Proposal]:
    """The advice, and the annealing."""
    word = Action(name=ADVICE, reason=f"{finding.title}: stopping now saves {_saved(situation)}")
    proposals = [_proposal(word, finding)]
    plan = planned(situation)
    lowered = plan is not None and plan.rate[-1] <= DECAYED * plan.rate.max()
    if lowered:
        return proposals
    reason = f"{finding.title}: {budget} last steps at × {ANNEAL:g} of the rate, for what lies below the noise"
    arguments = {"factor": round_figure(ANNEAL)}
    anneal = Action(name="learning_rate", arguments=arguments, steps=(STRETCHES + 1) * budget, reason=reason)
    return [*proposals, _proposal(anneal, finding, promise=unharmed(situation), level=3)]


def _stop(finding: Finding | None, situation: Situation, levels: Sequence[float], spent: int) -> Proposal:
    gain = (levels[0] - levels[-1]) / abs(levels[0]) if levels[0] else 0.0
    title = "converged" if finding is None else finding.title
    reason = f"{title}; {spent} further steps gained {gain:.2%}; {_saved(situation)} saved"
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
