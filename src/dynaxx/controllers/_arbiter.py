"""Chooses among proposals: who may act, how often, and what must wait. Pure and without clock or chance.

The rules, in the order in which they are asked; the first that speaks decides:

1. healthy phenomena are left alone; so is a rise of the loss in the first tenth of a run, unless it is critical;
2. nothing but checks before the warm-up is over, unless the finding is critical;
3. bounds: the learning rate stays within [1/1000, 30] × planned, gradients are never scaled up;
4. an act must promise something or end by itself;
5. nothing is repeated for one stretch of a finding, nor before its cooldown is over; broken promises lengthen it, and
   words that were said before;
6. budget: acts in a window and in all, checks, updates repeated by rollbacks, updates spent in trials;
7. one act at a step, and one at a time on one thing (rate, clipping, layers, …) or for one cause, until it is judged;
   a critical finding's higher rung breaks in.

Stopping is exempt from 6 and 7: a ladder must be able to end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dynaxx.controllers._clock import started, tick
from dynaxx.controllers._judge import target
from dynaxx.controllers._limits import (
    ACTS,
    ACTS_IN_ALL,
    BACKOFF,
    BROKEN,
    CHECKS,
    LAYER_SPREAD,
    LEAST_RATE,
    MOST_RATE,
    ROLLBACKS,
    Limits,
    limits,
)
from dynaxx.controllers._reading import own_factor, rate_factor
from dynaxx.controllers._suspects import healthy
from dynaxx.core.navigation import ADVICE, Decision, Mode, Proposal, Situation

Plain = dict[str, Any]
SLOTS = {
    "learning_rate": "rate",
    "accumulate": "rate",
    "rate_band": "rate",
    "layer_rates": "layers",
    "gradient_clip": "clipping",
    "adaptive_clip": "clipping",
    "gradient_scale": "clipping",
    "rollback": "state",
    "trial": "state",
    "stop": "state",
}
"""What an action acts on; one that is not here acts on a thing of its own name."""
RISES = frozenset({"loss_spike", "divergence", "oscillation", "catapult"})
"""Findings that an early, healthy rise of the loss may look like."""
NO_CATAPULT = frozenset({"corrupted_batch", "non_finite_data", "overflow"})
"""Causes that no early rise passes by itself."""
REMEMBERED = 100
"""Acts and words that are remembered; four times what a run may do."""


@dataclass(frozen=True, slots=True)
class _Case:
    """What the rules are asked with."""

    state: Mapping[str, Any]
    situation: Situation
    limits: Limits
    now: int


def start() -> Plain:
    """The arbiter before the first decision.

    Returns:
        Plain data: the clock, what was done and said, and the refusals of the last decision.
    """
    spent = {"acts": 0, "check": 0, "lost": 0, "trial": 0}
    return {"clock": started(), "acts": [], "said": [], "refused": {}, "spent": spent}


def arbitrate(
    state: Mapping[str, Any], proposals: Sequence[Proposal], situation: Situation, mode: Mode
) -> tuple[Plain, list[Decision]]:
    """Decide.

    Args:
        state: What the last call returned, or `start()`.
        proposals: In any order.
        situation: Where the run is.
        mode: In "advise" only checks are taken, which leave no trace; all else is a word. In "off" nothing is.

    Returns:
        The next state and the decisions, in the order in which they are to be carried out. A refusal that was given at
        the last decision already is not repeated.
    """
    state = {**state, "clock": tick(state["clock"], situation.step)}
    decisions: list[Decision] = []
    refused: dict[str, str] = {}
    for proposal in sorted(proposals if mode != "off" else (), key=_rank):
        status, why = _decide(state, proposal, situation, mode)
        if status == "refused":
            key = f"{proposal.controller}:{proposal.action.name}:{proposal.cause}"
            refused[key] = why
            if state["refused"].get(key) == why:
                continue
        else:
            state = _entered(state, proposal, situation, taken=status == "taken")
        decisions.append(Decision(proposal=proposal, status=status, why=why, step=situation.step))
    return {**state, "refused": refused}, decisions


def _rank(proposal: Proposal) -> tuple[bool, bool, int, float, str, str]:
    """What is critical first, then the milder rung, then the surer cause; names make the order one.

    Checks come last: what one would find says nothing any more of a run that has just gone back.
    """
    found = proposal.finding
    critical = found is not None and found.severity == "critical"
    sure = 0.0 if found is None else next((c.confidence for c in found.causes if c.name == proposal.cause), 0.0)
    # Of two answers to something critical the ladder's higher rung: it has weighed what the lower ones can do.
    rung = -proposal.level if critical else proposal.level
    name = proposal.action.name
    return (name == "check", not critical, rung, -sure, proposal.controller, name)


def _decide(
    state: Plain, proposal: Proposal, situation: Situation, mode: Mode
) -> tuple[Literal["taken", "advised", "refused"], str]:
    case = _Case(state, situation, limits(situation), state["clock"]["updates"])
    for rule in (_nature, _bounds, _repeats, _budget, _conflict):
        why = rule(case, proposal)
        if why is not None:
            return "refused", why
    name = proposal.action.name
    if name == ADVICE:
        return "advised", "only a person can do it"
    if name not in situation.able:
        return "advised", f"this run cannot carry out {name} by itself"
    if mode == "advise" and name != "check":
        return "advised", "the mode is advise"
    return "taken", "no rule speaks against it"


def _nature(case: _Case, proposal: Proposal) -> str | None:
    """Rules 1 and 2."""
    found, step = proposal.finding, case.situation.step
    if found is not None and healthy(found):
        return f"{found.name} is a healthy phenomenon"
    if (found is not None and found.severity == "critical") or proposal.action.name in ("check", ADVICE):
        return None
    rises = found is not None and found.name in RISES and proposal.cause not in NO_CATAPULT
    if rises and step <= case.limits.catapult:
        return f"an early rise may be a catapult; it has time until step {case.limits.catapult}"
    if step < case.limits.warmup:
        return f"the run warms up until step {case.limits.warmup}"
    return None


def _bounds(case: _Case, proposal: Proposal) -> str | None:
    """Rules 3 and 4."""
    try:
        return _bounds_of(case, proposal)
    except (KeyError, TypeError, ValueError) as error:
        return f"its arguments cannot be read: {type(error).__name__}: {error}"


def _bounds_of(case: _Case, proposal: Proposal) -> str | None:
    action, situation = proposal.action, case.situation
    arguments = action.arguments
    rates = []
    if action.name == "learning_rate":
        rates = [float(arguments["factor"])]
    elif action.name == "rollback":
        rates = [float(a["arguments"]["factor"]) for a in arguments.get("then", ()) if a["name"] == "learning_rate"][
            -1:
        ]
    rates += [factor * rate_factor(situation) / own_factor(situation) for factor in rates]  # the others may end
    if action.name == "accumulate":
        rates = [float(arguments.get("rate", 1.0)) * own_factor(situation)]
    for factor in rates:
        if not LEAST_RATE <= factor <= MOST_RATE:
            return f"the rate would be × {factor:.3g}, outside [{LEAST_RATE:g}, {MOST_RATE:g}]"
    if action.name == "gradient_scale" and float(arguments["factor"]) > 1:
        return "gradients are not scaled up"
    if action.name == "layer_rates":
        values = [float(f) for f in arguments["factors"].values()]
        if min(values) <= 0 or max([*values, 1.0]) / min([*values, 1.0]) > LAYER_SPREAD * (1 + 1e-9):
            return f"layers' rates would differ by more than {LAYER_SPREAD:g} ×"
    passing = action.name in ("check", "rollback", "trial", "stop", ADVICE)
    if not passing and action.steps is None and proposal.promise is None:
        return "it neither promises anything nor ends by itself"
    return None


def _repeats(case: _Case, proposal: Proposal) -> str | None:
    """Rule 5."""
    if "stop" in case.situation.in_force:
        return "the run is about to end"
    word = _word(proposal)
    if proposal.finding is not None and word in case.state["said"]:
        return "this was answered so already"
    if proposal.level >= 4:  # the ladder never takes a rung twice for one incident, and goes further back each time
        return None
    key = _key(proposal)
    same = [a for a in case.state["acts"] if a["key"] == key]
    broken = sum(not o.kept for o in case.situation.outcomes if _key(o.proposal) == key)
    if broken >= BROKEN:
        return f"its promise was broken {broken} times"
    words = sum(not a["acted"] and a["name"] != "check" for a in same)
    rest = case.limits.cooldown * BACKOFF ** (broken + words)
    if same and case.now < same[-1]["at"] + rest:
        return f"it rests for {rest} updates"
    return None


def _budget(case: _Case, proposal: Proposal) -> str | None:
    """Rule 6."""
    spent, name = case.state["spent"], proposal.action.name
    if name in ("stop", ADVICE):
        return None
    if name == "check":
        return f"{CHECKS} checks were made" if spent["check"] >= CHECKS else None
    if spent["acts"] >= ACTS_IN_ALL:
        return f"{ACTS_IN_ALL} acts were done in this run"
    recent = [a for a in case.state["acts"] if a["at"] > case.now - case.limits.window and a["acted"]]
    if len(recent) >= ACTS:
        return f"{ACTS} acts were done within {case.limits.window} updates"
    if name == "rollback":
        if sum(a["name"] == "rollback" for a in recent) >= ROLLBACKS:
            return f"{ROLLBACKS} rollbacks were made within {case.limits.window} updates"
        lost = _lost(case.situation, proposal)
        if spent["lost"] + lost > case.limits.rollback:
            return f"rollbacks may repeat {case.limits.rollback} updates; {spent['lost']} are spent and {lost} wanted"
    passes = _passes(proposal)
    if passes and spent["trial"] + passes > case.limits.trial:
        return f"trials may spend {case.limits.trial} updates; {spent['trial']} are spent and {passes} wanted"
    both, wanted = (
        spent["lost"] + spent["trial"],
        passes + (_lost(case.situation, proposal) if name == "rollback" else 0),
    )
    if wanted and both + wanted > case.limits.repair:
        return f"repairs may take {case.limits.repair} updates; {both} are spent and {wanted} wanted"
    return None


def _conflict(case: _Case, proposal: Proposal) -> str | None:
    """Rule 7."""
    name, acts = proposal.action.name, case.state["acts"]
    if name in (ADVICE, "stop"):
        return None
    here = [a for a in acts if a["at"] == case.now and a["step"] == case.situation.step]
    if name == "check":
        taken = any(a["name"] == "check" or (a["slot"] == "state" and a["acted"]) for a in here)
        return "one look at a time" if taken else None
    if any(a["acted"] for a in here):
        return "something else is done at this step"
    done = [[o.step, _key(o.proposal)] for o in case.situation.outcomes]
    busy = [a for a in acts if a["acted"] and case.now < a["until"] and [a["step"], a["key"]] not in done]
    busy = [a for a in busy if not _breaks_in(proposal, a)]
    busy = [a for a in busy if a["slot"] == _slot(name) or (proposal.cause and a["key"][2] == proposal.cause)]
    return f"{busy[-1]['name']} of {busy[-1]['controller']} is still to be judged" if busy else None


def _breaks_in(proposal: Proposal, act: Mapping[str, Any]) -> bool:
    """Whether a higher rung need not wait for a lower one: something critical has begun, or got worse, since."""
    found = proposal.finding
    if found is None or found.severity != "critical":
        return False
    return proposal.level > act["level"] or found.onset > act["step"]


def _entered(state: Plain, proposal: Proposal, situation: Situation, *, taken: bool) -> Plain:
    """The state after an act or a word."""
    action, promise, spent = proposal.action, proposal.promise, dict(state["spent"])
    acted = taken and action.name != "check"
    now = state["clock"]["updates"]
    length = promise.steps if promise is not None else action.steps or 0
    act = {
        "at": now,
        "step": situation.step,
        "until": now + length if acted else now,
        "name": action.name,
        "key": _key(proposal),
        "slot": _slot(action.name),
        "controller": proposal.controller,
        "level": proposal.level,
        "acted": acted,
    }
    acts = [*state["acts"], act]
    if taken and action.name == "check":
        spent["check"] += 1
    elif taken:
        spent["acts"] += 1
    if acted and action.name == "rollback":
        spent["lost"] += _lost(situation, proposal)
        acts = [{**a, "until": min(a["until"], now)} for a in acts]  # what was pending went with the steps
    if acted:
        spent["trial"] += _passes(proposal)
    said = [*state["said"], _word(proposal)]
    return {**state, "acts": acts[-REMEMBERED:], "said": said[-REMEMBERED:], "spent": spent}


def _key(proposal: Proposal) -> list[str]:
    return [proposal.controller, proposal.action.name, proposal.cause]


def _word(proposal: Proposal) -> list[Any]:
    """The act and what it answers: what would be a repetition."""
    found = proposal.finding
    stretch = None if found is None else [found.name, found.onset]
    return [*_key(proposal), proposal.level, stretch, _plain(asdict(proposal.action)["arguments"])]


def _plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _slot(name: str) -> str:
    return SLOTS.get(name, name)


def _lost(situation: Situation, proposal: Proposal) -> int:
    """Updates that a rollback repeats; none where the run ends with it."""
    if any(action["name"] == "stop" for action in proposal.action.arguments.get("then", ())):
        return 0
    return max(0, situation.step - target(situation, proposal.action))


def _passes(proposal: Proposal) -> int:
    """Updates of all arms of trials that it makes, now or after going back; the arms that do nothing among them."""
    action = proposal.action
    then = [each["arguments"] for each in action.arguments.get("then", ()) if each["name"] == "trial"]
    trials = [action.arguments] if action.name == "trial" else then
    return sum((len(each["arms"]) + 1) * int(each["steps"]) for each in trials)
