"""A weight decay so strong that the weights are those of the last few dozen steps."""

import math

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Remedy, Test, Threshold
from dynaxx.detectors._facts import groups
from dynaxx.detectors._progress import ROWS, progress
from dynaxx.detectors._read import LOSS, QUIETLY, Track, optional, track, unbroken
from dynaxx.detectors._weigh import ranked, suspect
from dynaxx.errors import NotApplicable

DECAY = Threshold(
    value=0.01,
    origin="ηλ, what a step takes off a weight: weights then rest where an update is √(2ηλ) = 0.14 of them (Kosson "
    "2024), above the 0.1 that TheDeepChecker (2022) alarms at. AdamW's own setting has 1e-5, grokking 1e-3",
    false_alarms="healthy runs of the rescue suite have 0.006 and less",
)
FORGETS = Threshold(
    value=0.02,
    origin="ηλ at which updates of equilibrium are √(2ηλ) = 0.2 of the weights, and half of what is learned goes in 35 "
    "steps, whether or not the weights have shrunk",
    false_alarms="none in 516 healthy runs of the rescue suite, where ηλ is 0.006 at most",
)
SHRUNK = Threshold(
    value=0.7,
    origin="norm of the weights over its first value, as `underfitting` has it: the decay takes more than it is given",
    false_alarms="with DECAY",
)
GAINED = Threshold(
    value=0.8,
    origin="share of the first loss gained up to which it is an alarm: classifiers that learn gain 0.9 and more",
    false_alarms="with DECAY",
)


class WeightDecay(Detector):
    """ηλ of the optimizer's groups, for decay that acts on the weights: AdamW and its like, and SGD.

    Half of what a weight has learned is gone after ln 2/(ηλ) steps. A warning where the loss is high and the weights
    have shrunk, or half goes in 35 steps; else a note. Decay that goes through Adam's second moments is
    `coupled_weight_decay`'s.
    """

    code = "D40"
    title = "weight decay outweighs the gradient"
    reads = (LOSS, "lr", "parameter_norm")

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """The largest product of rate and decay against how the weights went."""
        decays = [float(g.get("weight_decay") or 0.0) for g in groups(run)]
        if not decays or max(decays) <= 0:
            return None
        if not _acts_on_weights(run):
            kind = (run.manifest.get("optimizer") or {}).get("class") or "the optimizer"
            raise NotApplicable(f"it is known of SGD and AdamW alone that decay acts on the weights, not of {kind}")
        taken = _taken(track(run, "lr"), decays)
        if taken < DECAY.value:
            return None
        loss = unbroken(run, LOSS, ROWS)
        now, left = progress(loss), _left(run)
        harmful = now.gained < GAINED.value and (left < SHRUNK.value or taken >= FORGETS.value)
        half = math.log(2) / taken
        span = (int(loss.steps[0]), now.last)
        return Finding(
            code=self.code,
            name="weight_decay",
            title=f"the decay takes {taken:.2g} of every weight in a step: half of what is learned goes in {half:.0f}",
            severity="warning" if harmful else "note",
            spans=(span,),
            evidence=(
                Evidence(
                    text=f"rate × weight decay reaches {taken:.2g}",
                    columns=("lr",),
                    steps=span,
                    value=taken,
                    threshold=DECAY.value,
                ),
                Evidence(
                    text=f"the norm of the weights is {left:.2f} of its first value, {now.gained:.0%} of the first "
                    "loss is gained",
                    columns=("parameter_norm", loss.name),
                    value=left,
                    threshold=SHRUNK.value,
                ),
            ),
            causes=ranked(
                suspect(
                    "weight_decay_too_high",
                    0.7,
                    5.0 if left < SHRUNK.value else 2.0 if taken >= FORGETS.value else 0.5,
                    why=f"weights went to {left:.0%}, at {taken:.2g} a step",
                    remedies=(Remedy(text=f"Lower the weight decay {taken / 1e-4:.2g}-fold, to 1e-4 a step."),),
                ),
                suspect("learning_rate_too_high", 0.15, why="the rate multiplies the decay"),
            ),
            test=Test(text="Train a copy for a hundred steps without decay and compare the losses."),
        )


def _acts_on_weights(run: Log) -> bool:
    """Whether λθ is taken off the weights themselves, at the rate."""
    kind = str((run.manifest.get("optimizer") or {}).get("class", ""))
    return kind in ("SGD", "AdamW") or any(g.get("decoupled_weight_decay") for g in groups(run))


def _taken(rates: Track, decays: list[float]) -> float:
    """The largest ηλ that held for a tenth of the rows, over the groups."""
    values = rates.values if rates.values.ndim == 2 else rates.values[:, None]
    reached = np.quantile(values[np.isfinite(values).all(axis=1)], 0.9, axis=0)
    return max((float(a) * b for a, b in zip(np.broadcast_to(reached, len(decays)), decays, strict=True)), default=0.0)


def _left(run: Log) -> float:
    """Norm of the weights, the last three rows over the first; 1 where it was not measured."""
    norms = optional(run, "parameter_norm")
    total = None if norms is None else norms.total().finite.values
    return float(np.median(total[-3:]) / total[0]) if total is not None and len(total) >= 8 and total[0] > 0 else 1.0
