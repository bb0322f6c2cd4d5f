"""Advises on weight decay, which a run cannot change by itself: more where it overfits, less where weights shrink."""

from collections.abc import Sequence
from typing import Any, ClassVar

from dynaxx.controllers._suspects import accused
from dynaxx.core.navigation import ADVICE, Controller, Proposal, Situation
from dynaxx.core.records import Action

Plain = dict[str, Any]
WORDS = {
    "overfitting": "raise the weight decay to {more}, augment the data, or end at the best checkpoint",
    "weight_decay_too_high": "lower the weight decay to {less}",
    "weight_decay_coupled": "use decoupled weight decay: AdamW instead of Adam with weight_decay",
    "regularisation_too_strong": "lower dropout first, then the weight decay to {less}",
}
STEP = 3.0
"""Factor of one try: half a decade, the grid on which decays are searched."""
SMALL = 0.01
"""What is advised where there is no decay yet: AdamW's default in torch."""


class WeightDecay(Controller[Plain]):
    """A word where the cause is the weight decay, with the value to try next: × 3 or ÷ 3."""

    about: ClassVar[str] = "advises on weight decay"

    def init(self) -> Plain:
        """Nothing to remember."""
        return {}

    def decide(self, state: Plain, situation: Situation) -> tuple[Plain, Sequence[Proposal]]:
        """Advice alone."""
        suspect = accused(situation, WORDS.keys())
        if suspect is None:
            return state, ()
        groups = (situation.run.manifest.get("optimizer") or {}).get("groups") or ()
        decay = max(
            (float(g["weight_decay"]) for g in groups if isinstance(g.get("weight_decay"), float | int)), default=0.0
        )
        words = WORDS[suspect.cause].format(more=f"{decay * STEP or SMALL:.3g}", less=f"{decay / STEP:.3g}")
        reason = f"{suspect.finding.title} ({suspect.cause}, {suspect.confidence:.0%}): {words}"
        action = Action(name=ADVICE, reason=reason)
        return state, (
            Proposal(controller="weight_decay", action=action, finding=suspect.finding, cause=suspect.cause),
        )
