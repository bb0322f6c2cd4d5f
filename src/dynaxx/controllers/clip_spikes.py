"""Clips the gradient at a quantile of its last norms where spikes come again and again."""

from collections.abc import Sequence
from typing import Any, ClassVar

from dynaxx.controllers._limits import limits
from dynaxx.controllers._promise import unharmed
from dynaxx.controllers._suspects import standing
from dynaxx.core.navigation import Controller, Proposal, Situation
from dynaxx.core.records import Action

Plain = dict[str, Any]
SPIKES = 3
"""Spikes within a window that count as recurring (references' table of patterns: at least 3)."""
QUANTILE = 0.9
"""The 90th percentile of gradient norms (Google's Deep Learning Tuning Playbook, 2023)."""
CLIPS = ("adaptive_clip", "gradient_clip")


class ClipSpikes(Controller[Plain]):
    """g ← clipped to the 90 % quantile of the last norms, after three spikes in a window.

    Not where clipping is always on already: then the threshold sets the rate, and the rate is to be lowered instead.
    It promises an unharmed loss.
    """

    about: ClassVar[str] = "clips at a quantile after recurring spikes"

    def init(self) -> Plain:
        """Nothing to remember: what is in force says it."""
        return {}

    def decide(self, state: Plain, situation: Situation) -> tuple[Plain, Sequence[Proposal]]:
        """Once, as long as it is in force."""
        since = situation.step - limits(situation).window
        spike = next((f for f in standing(situation) if f.name == "loss_spike"), None)
        if spike is None or sum(first > since for first, _ in spike.spans) < SPIKES:
            return state, ()
        promise = unharmed(situation)
        always = any(f.name == "clipping_always_on" for f in situation.findings)
        if promise is None or always or any(name in situation.in_force for name in CLIPS):
            return state, ()
        reason = f"{spike.title}: gradients beyond the {QUANTILE:.0%} quantile of the last norms are clipped"
        proposal = Proposal(
            controller="clip_spikes",
            action=Action(name="adaptive_clip", arguments={"by": "quantile", "quantile": QUANTILE}, reason=reason),
            finding=spike,
            cause=spike.causes[0].name if spike.causes else "",
            promise=promise,
            level=2,
        )
        return state, (proposal,)
