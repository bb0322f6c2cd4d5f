"""Accumulates batches where noise rules the gradient, for as long as passes allow."""

from collections.abc import Sequence
from typing import Any, ClassVar

from dynaxx.controllers._limits import limits
from dynaxx.controllers._past import waiting
from dynaxx.controllers._promise import unharmed
from dynaxx.controllers._reading import latest
from dynaxx.controllers._suspects import Suspect, accused
from dynaxx.core.navigation import Controller, Promise, Proposal, Situation
from dynaxx.core.records import Action

Plain = dict[str, Any]
CAUSES = frozenset({"batch_too_small", "noise_floor", "batch_too_large"})
"""What the number of examples behind an update answers."""
MOST = 8
"""Most batches to one update: three doublings, each judged."""
PASSES = 0.2
"""Further passes that accumulation may cost, as a share of the planned ones; with trials it stays below the 1.3 × of a
clean twin that a repair may cost."""
LEAST = 2.0
"""Noise scale over examples of an update below which more examples would not pay: at 1 half of the gain is had
(McCandlish et al. 2018)."""
LARGEST_ERROR = 0.5
"""Relative standard error of the noise scale above which it is not believed."""


class BatchSize(Controller[Plain]):
    """k batches to an update, k doubled while the noise scale is more than twice the examples behind one.

    The rate stays: the floor that noise sets goes with η / k, and a rate that grew with k, as it does where larger
    batches are to save time (Goyal et al. 2017), would put it back where it was (benchmarks/policies.py: with it the
    loss ended 1.4 × as high, without it 0.5 ×). It holds for as many updates as a fifth of the planned passes pays for,
    and promises an unharmed loss. An accumulation that has become wasteful is halved.
    """

    about: ClassVar[str] = "accumulates batches by the gradient noise scale"

    def init(self) -> Plain:
        """Nothing to remember: decisions and outcomes say it."""
        return {}

    def decide(self, state: Plain, situation: Situation) -> tuple[Plain, Sequence[Proposal]]:
        """Double or halve."""
        suspect = accused(situation, CAUSES)
        if suspect is None or waiting(situation, "batch_size"):
            return state, ()
        noise = latest(situation.run, "gradient_noise", situation.step, 3)
        error = latest(situation.run, "gradient_noise.error", situation.step, 3)
        examples = latest(situation.run, "effective_batch", situation.step, 3)
        promise = unharmed(situation)
        if noise is None or not examples or promise is None or (error is not None and error > LARGEST_ERROR):
            return state, ()
        present = situation.in_force.get("accumulate")
        batches = 1 if present is None else int(present.arguments["batches"])
        if suspect.cause == "batch_too_large":
            wanted = batches // 2
        else:
            wanted = min(MOST, 2 * batches) if noise >= LEAST * examples else batches
        spent = sum(_further(d.proposal.action) for d in situation.decisions)
        steps = int((PASSES * limits(situation).steps - spent) / max(1, wanted - 1))
        if wanted in (0, batches) or steps < limits(situation).horizon:
            return state, ()
        words = f"a noise scale of {noise:.3g} examples against {examples:.3g} behind one update"
        return state, (_proposal(suspect, wanted, steps, words, promise),)


def _proposal(suspect: Suspect, batches: int, steps: int, words: str, promise: Promise) -> Proposal:
    reason = f"{suspect.finding.title}: {words}; {batches} batches to an update"
    return Proposal(
        controller="batch_size",
        action=Action(name="accumulate", arguments={"batches": batches}, steps=steps, reason=reason),
        finding=suspect.finding,
        cause=suspect.cause,
        promise=promise,
        level=3,
    )


def _further(action: Action) -> int:
    """Passes beyond one per update that an accumulation was granted."""
    if action.name != "accumulate" or action.steps is None:
        return 0
    return (int(action.arguments["batches"]) - 1) * action.steps
