"""The ladder out of incidents: skip, clip, cut the rate, roll back, roll back with a lower rate, stop with a report."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np

from dynaxx.controllers._clock import started, tick
from dynaxx.controllers._ground import beyond, lost_ground
from dynaxx.controllers._judge import target
from dynaxx.controllers._limits import LEAST_RATE, ROLLBACKS, Limits, limits
from dynaxx.controllers._past import acts, exhausted, judged, proven, waiting
from dynaxx.controllers._promise import ERRORS, descent
from dynaxx.controllers._rates import AIM, CUTS, LARGE, beyond_all, jump, lower, ruinous
from dynaxx.controllers._reading import (
    LOSS,
    NORMAL,
    VALIDATION,
    column_of,
    latest,
    own_factor,
    rate_factor,
    round_figure,
    rows,
)
from dynaxx.controllers._suspects import Suspect, accused
from dynaxx.core.navigation import Controller, Promise, Proposal, Situation
from dynaxx.core.records import Action

Plain = dict[str, Any]
SKIP, CLIP, RATE, ROLLBACK, LOWER, STOP = 1, 2, 3, 4, 5, 6
MOST_TRIES = {RATE: ROLLBACKS, LOWER: ROLLBACKS}
"""How often a rung is taken in one incident, where more than once: those that go further each time."""
_DATA = (SKIP, CLIP, ROLLBACK, LOWER)
_GRADIENT = (CLIP, RATE, ROLLBACK, LOWER)
_RATE = (RATE, LOWER)
RUNGS: Mapping[str, tuple[int, ...]] = {
    "corrupted_batch": _DATA,
    "non_finite_data": _DATA,
    "overflow": _DATA,
    "exploding_gradients": _GRADIENT,
    "preconditioner_lag": _GRADIENT,
    "attention_logit_growth": _GRADIENT,
    "inputs_not_normalised": _RATE,
    "initialisation_too_large": _RATE,
    "learning_rate_too_high": _RATE,
    "momentum_too_high": _RATE,
    "warmup_missing": _RATE,
    "schedule_too_aggressive": _RATE,
}
"""The rungs that answer a cause, the mildest first. The same batch at another state did not spike (PaLM 2022), so
passing the data answers bad data; going back with the same rate does not answer a rate. Wiring is left to a person."""
RATES = frozenset({"learning_rate_too_high", "momentum_too_high", "warmup_missing", "schedule_too_aggressive"})
"""Causes that `rate_down` answers while they are no more than a warning, and its cuts help."""
PATIENT = RATES | {"inputs_not_normalised", "initialisation_too_large"}
"""Causes that are left to others, or to a person, while they are no more than a warning."""
_LEFT_OUT = frozenset({"non_finite_data", "overflow"})
"""Causes that every kind of `skip` answers whole."""
_STRICTER = ("non_finite", "gross", "outlier", "always")
"""What `skip` may leave out, the least first."""
HARM = 6.0
"""Robust standard deviations above its level before at which the loss counts as harmed (OLMo's training code, 2024)."""
BEFORE, AFTER = 50, 5
"""Rows that the level before and after is read from: the longest stretch within one cadence block, the shortest
median that two outliers do not move."""


class Recover(Controller[Plain]):
    """Climbs a ladder for each incident; what was tried and failed is never tried again within it.

    Which rungs there are follows from the cause, where it begins from the severity and from what the loss does: a
    critical finding whose loss has not come back demands a rollback at once. A rung has failed when its promise was
    broken or when the finding began anew after it. The incident is over after two horizons without an alarm. At most 3
    rollbacks in a window, in one incident each to an earlier checkpoint than the last, or with a lower rate to the
    first. A run that is still harmed, and does not recover by itself, when nothing is left or a whole window has
    passed, is stopped: every ladder ends.
    """

    about: ClassVar[str] = "answers spikes, divergence and non-finite values, the mildest remedy first"

    def init(self) -> Plain:
        """No incident."""
        return {"clock": started(), "seen": 0, "tried": [], "quiet": 0, "since": None, "onset": 0, "rollbacks": []}

    def decide(self, state: Plain, situation: Situation) -> tuple[Plain, Sequence[Proposal]]:
        """Climb one rung at most."""
        bounds = limits(situation)
        state = _noted(state, situation)
        suspect = _incident(situation)
        now = state["clock"]["updates"]
        if suspect is None:
            over = now - state["quiet"] >= 2 * bounds.horizon
            return ({**state, "tried": [], "since": None} if over else state), ()
        begins, onset = state["since"] is None, suspect.finding.onset
        since, onset = (now, onset) if begins else (state["since"], min(onset, state["onset"]))
        state = {**state, "quiet": now, "since": since, "onset": onset}
        if not _failed(state, suspect, situation, bounds):
            return state, ()
        proposal = _next(state, suspect, situation, bounds)
        return state, () if proposal is None else (proposal,)


def _noted(state: Plain, situation: Situation) -> Plain:
    """The state after what was taken of the last proposals is entered."""
    state = {**state, "clock": tick(state["clock"], situation.step)}
    mine = acts(situation, "recover")
    for decision in mine[state["seen"] :]:
        level, action = decision.proposal.level, decision.proposal.action
        if action.name == "stop":  # who resumes a stopped run begins anew
            state = {**state, "tried": [], "since": None}
            continue
        rung = {"level": level, "step": decision.step, "promised": decision.proposal.promise is not None}
        if action.name == "rollback":
            to = int(action.arguments["before"]) - 1
            rung["step"] = to
            entry = {"at": state["clock"]["updates"], "to": to, "lost": decision.step - to}
            state = {**state, "rollbacks": [*state["rollbacks"], entry]}
        state = {**state, "tried": [*state["tried"], rung]}
    return {**state, "seen": len(mine)}


def _incident(situation: Situation) -> Suspect | None:
    suspect = accused(situation, RUNGS.keys())
    if suspect is None or _thrown(suspect, situation):
        return None
    if suspect.finding.severity == "critical":
        return suspect
    if suspect.cause not in PATIENT:
        # What keeps the next batch out does not bring back what is lost, and while it is judged nothing else may.
        return None if lost_ground(situation) is not None else suspect
    return (
        suspect
        if suspect.cause in RATES and (_in_vain(suspect, situation) or ruinous(situation, suspect) is not None)
        else None
    )


def _thrown(suspect: Suspect, situation: Situation) -> bool:
    """Whether it began after a jump to a rate beyond all before: `level_schedule` goes back and holds the rate.

    A rate thrown up 80-fold makes gradients explode as a bad batch does; leaving such updates out brings nothing back.
    """
    found = jump(situation)
    held = "rate_band" in situation.in_force or bool(acts(situation, "level_schedule"))
    if found is None or held or found.after < found.before or "rate_band" not in situation.able:
        return False
    return suspect.finding.onset >= found.step and beyond_all(situation, found)


def _in_vain(suspect: Suspect, situation: Situation) -> bool:
    """Whether lower rates alone did not help: what too high a rate has done to the weights has to be taken back."""
    cuts = [o for o in judged(situation, "rate_down") if o.step >= suspect.finding.onset and o.proposal.finding]
    return len(cuts) >= CUTS or (bool(cuts) and not cuts[-1].kept)


def _failed(state: Plain, suspect: Suspect, situation: Situation, bounds: Limits) -> bool:
    """Whether it is time for the next rung: nothing was tried yet, or the last rung did not help."""
    if not state["tried"]:
        return True
    last = state["tried"][-1]
    anew = suspect.finding.onset > last["step"]
    if waiting(situation, "recover"):
        # Half a horizon, so that a remedy can begin to work; but nothing works on weights that are lost.
        early = situation.step < last["step"] + bounds.horizon // 2 and math.isfinite(_now(situation))
        return anew and suspect.finding.severity == "critical" and not early
    if not last["promised"]:
        return anew or situation.step >= last["step"] + bounds.horizon
    done = judged(situation, "recover")
    return anew or not done[-1].kept


def _next(state: Plain, suspect: Suspect, situation: Situation, bounds: Limits) -> Proposal | None:
    """The first rung that is open, from where severity and harm ask to begin."""
    critical = suspect.finding.severity == "critical"
    hurt = _harmed(situation, state["onset"])
    rungs = RUNGS[suspect.cause]
    if any(o.undone and o.judged == situation.step for o in situation.outcomes):
        rungs = (ROLLBACK, *rungs)  # the act that was just undone did it: to go back is enough
    if suspect.cause in RATES and ruinous(situation, suspect) is not None:
        rungs = [LOWER, RATE]
    elif critical and hurt:
        # Where a rollback is asked for and cannot be had, a cut of the rate is better than nothing; not for weights
        # that are lost.
        rungs = [rung for rung in rungs if rung >= ROLLBACK] + ([RATE] if math.isfinite(_now(situation)) else [])
    elif suspect.cause in RATES and not critical:
        rungs = [rung for rung in rungs if rung > RATE]
    elif not hurt and not critical:
        rungs = [rung for rung in rungs if rung < ROLLBACK]
    if not hurt and suspect.cause in _LEFT_OUT and "skip" in situation.in_force:
        return None  # what is in force has left it out already, and nothing of it stayed
    levels = [rung["level"] for rung in state["tried"]]
    wanted = (rung for rung in rungs if levels.count(rung) < MOST_TRIES.get(rung, 1))
    proposals = (_rung(rung, state, suspect, situation, bounds) for rung in wanted)
    late = state["clock"]["updates"] - state["since"] >= bounds.window or exhausted(situation)
    proposal = None if late and critical and hurt else next((p for p in proposals if p is not None), None)
    lasts = state["clock"]["updates"] - state["since"] >= 2 * bounds.horizon or not math.isfinite(_now(situation))
    if proposal is None and critical and hurt and lasts and not _recovering(situation):
        return _stop(state, suspect)
    return proposal


def _rung(rung: int, state: Plain, suspect: Suspect, situation: Situation, bounds: Limits) -> Proposal | None:
    """The proposal of a rung, or None where this run has no place for it."""
    if rung in (ROLLBACK, LOWER):
        return _rollback(rung, state, suspect, situation, bounds)
    action = {SKIP: _skip, CLIP: _clip, RATE: _cut}[rung](suspect, situation)
    if action is None or action.name not in situation.able:
        return None
    bound = _bound(situation, state["onset"])
    if bound is None:
        return None
    column, limit = bound
    promise = Promise(column=column, below=limit, steps=bounds.horizon)
    return _proposal(action, suspect, promise, rung)


def _skip(suspect: Suspect, situation: Situation) -> Action | None:
    when = "non_finite" if suspect.cause == "overflow" else "outlier"
    present = situation.in_force.get("skip")
    if present is not None and _STRICTER.index(present.arguments.get("when", "non_finite")) >= _STRICTER.index(when):
        return None
    return Action(name="skip", arguments={"when": when}, reason=_because(suspect, "such updates are left out"))


def _clip(suspect: Suspect, situation: Situation) -> Action | None:
    if "adaptive_clip" in situation.in_force or "gradient_clip" in situation.in_force:
        return None
    return Action(name="adaptive_clip", arguments={"by": "z_score"}, reason=_because(suspect, "outliers are clipped"))


def _cut(suspect: Suspect, situation: Situation) -> Action | None:
    factor = _lower(suspect, situation)
    if factor is None:
        return None
    reason = _because(suspect, f"the learning rate is multiplied by {factor:g}")
    return Action(name="learning_rate", arguments={"factor": factor}, reason=reason)


def _lower(suspect: Suspect, situation: Situation, aim: float = AIM) -> float | None:
    """The total factor after a cut, or None where it would be too low."""
    critical = suspect.finding.severity == "critical"
    cut, _ = lower(situation, suspect.finding.onset, deep=critical and suspect.cause in PATIENT, aim=aim)
    own = own_factor(situation)
    factor = round_figure(max(own * cut, LEAST_RATE, LEAST_RATE * own / rate_factor(situation)))
    return factor if factor < own else None


def _rollback(rung: int, state: Plain, suspect: Suspect, situation: Situation, bounds: Limits) -> Proposal | None:
    """To the newest healthy checkpoint before the incident, and before the last rollback's."""
    recent = [r for r in state["rollbacks"] if r["at"] > state["clock"]["updates"] - bounds.window]
    if "rollback" not in situation.able or len(recent) >= ROLLBACKS:
        return None
    further = [rung["step"] for rung in state["tried"] if rung["level"] in (ROLLBACK, LOWER)]
    reachable = [step for step in situation.healthy if step < suspect.finding.onset]
    earlier = [step for step in reachable if step < min(further, default=situation.step)]
    if not reachable or (rung == ROLLBACK and not earlier):
        return None
    to = earlier[-1] if earlier else reachable[0]  # with a lower rate the first one may be tried again
    lost = situation.step - to
    if sum(r["lost"] for r in state["rollbacks"]) + lost > bounds.rollback:
        return None
    then = [action for action in proven(situation) if action.name != "learning_rate"]
    factor = own_factor(situation)
    reason = "as before the rollback"
    if rung == LOWER:
        begins = suspect.cause in RATES and ruinous(situation, suspect) is not None
        cut = _lower(suspect, situation, LARGE if begins else AIM)
        if cut is None:
            return None
        factor, reason = cut, _because(suspect, f"after the rollback the learning rate is multiplied by {cut:g}")
    if recent and (guard := _skip(suspect, situation)) is not None and RUNGS[suspect.cause] == _DATA:
        then.append(guard)  # it was not one batch alone
    if factor != 1.0 or any(d.proposal.action.name == "learning_rate" for d in situation.decisions):
        then.append(Action(name="learning_rate", arguments={"factor": factor}, reason=reason))
    reason = _because(suspect, f"back to step {to}, the batches since are passed over")
    more = beyond(suspect.finding, situation) if RUNGS[suspect.cause] == _DATA else 0
    arguments = {"before": to + 1, "pass_data": True, "further": more, "then": [asdict(action) for action in then]}
    action = Action(name="rollback", arguments=arguments, reason=reason)
    assert target(situation, action) == to
    bound = _bound(situation, to)
    promise = None if bound is None else Promise(column=bound[0], below=bound[1], steps=bounds.horizon)
    return _proposal(action, suspect, promise, rung)


def _stop(state: Plain, suspect: Suspect) -> Proposal:
    levels = ", ".join(dict.fromkeys(_WORDS[rung["level"]] for rung in state["tried"])) or "nothing was possible"
    onset = suspect.finding.onset
    reason = _because(suspect, f"the run is lost since step {onset} and the ladder is at its end (tried: {levels})")
    return _proposal(Action(name="stop", reason=reason), suspect, None, STOP)


_WORDS = {SKIP: "skip", CLIP: "clip", RATE: "lower rate", ROLLBACK: "rollback", LOWER: "rollback with a lower rate"}


def _proposal(action: Action, suspect: Suspect, promise: Promise | None, level: int) -> Proposal:
    return Proposal(
        controller="recover",
        action=action,
        finding=suspect.finding,
        cause=suspect.cause,
        promise=promise,
        level=level,
    )


def _because(suspect: Suspect, what: str) -> str:
    return f"{suspect.finding.title} ({suspect.cause}, {suspect.confidence:.0%}): {what}"


def _baseline(situation: Situation, onset: int) -> tuple[float, float] | None:
    """Level and noise of the loss in the last rows before a step."""
    column = column_of(situation.run, LOSS)
    if column is None:
        return None
    _, values = rows(situation.run, column, 0, onset - 1)
    values = values[np.isfinite(values)][-BEFORE:]
    if len(values) < AFTER:
        return None
    middle = float(np.median(values))
    return middle, NORMAL * float(np.median(np.abs(values - middle)))


def _recovering(situation: Situation) -> bool:
    """Whether the loss comes down by itself, beyond the noise: then it is not lost."""
    found = descent(situation)
    return found is not None and found.last > ERRORS * found.error


def _bound(situation: Situation, onset: int) -> tuple[str, float] | None:
    """The column and the level at which the loss counts as recovered: as before the incident, within the noise."""
    column = column_of(situation.run, LOSS)
    if column is None:
        return None
    before = _baseline(situation, onset)
    if before is not None:
        return column, before[0] + HARM * before[1]
    now = latest(situation.run, column, situation.step)
    return None if now is None else (column, now)


def _harmed(situation: Situation, onset: int) -> bool:
    """Whether the loss has not come back: it is not finite, or far above its level before the incident."""
    now = _now(situation, onset)
    before = _baseline(situation, onset)
    return not math.isfinite(now) or before is None or now > before[0] + HARM * before[1] or _unusable(situation, onset)


def _unusable(situation: Situation, onset: int) -> bool:
    """Whether the model cannot be evaluated any more: running statistics that are lost do not show while it trains."""
    column = column_of(situation.run, VALIDATION)
    if column is None:
        return False
    steps, values = rows(situation.run, column, 0, situation.step)
    before = values[steps < onset]
    return len(values) > 0 and steps[-1] >= onset and not np.isfinite(values[-1]) and bool(np.isfinite(before).any())


def _now(situation: Situation, since: int = 0) -> float:
    """The median of the last rows of the loss since a step; infinite where most are not finite, or there are none."""
    column = column_of(situation.run, LOSS)
    if column is None:
        return math.inf
    _, values = rows(situation.run, column, since, situation.step)
    values = np.where(np.isfinite(values), values, math.inf)[-AFTER:]
    return float(np.median(values)) if len(values) else math.inf
