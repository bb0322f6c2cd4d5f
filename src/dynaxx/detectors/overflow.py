"""Updates that are left out because gradients overflow, and a loss scale that cannot leave its floor."""

from typing import NamedTuple

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Remedy, Test, Threshold
from dynaxx.detectors._acts import clip
from dynaxx.detectors._read import QUIETLY, end_of, rows
from dynaxx.detectors._remedies import rate
from dynaxx.detectors._rounding import grid
from dynaxx.detectors._spans import moving_mean, stretches
from dynaxx.detectors._weigh import ranked, suspect
from dynaxx.errors import NotApplicable

SKIPPED = Threshold(
    value=0.1,
    origin="share of the updates; a scaler that doubles every 2000 steps leaves out 0.0005 of them",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)
SCALE = Threshold(
    value=1.0,
    origin="DeepSpeed's and Megatron's least loss scale: below it gradients in 16 bits are smaller than without one",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)
EMPTY = Threshold(
    value=0.5,
    origin="share of the steps without any gradient, between steps that have one: no loss is flat that often by chance",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)
WINDOW = 10
WARMUP = 20
"""Updates in which a scaler that starts at 2¹⁶ may halve its way down."""
RETURNS = 5
"""Times that gradients must come back: a model that died does not."""


class _Lost(NamedTuple):
    """Updates that were left out: where, how many of how many, and the least loss scale (NaN without a scaler)."""

    spans: tuple[tuple[int, int], ...]
    share: float
    scale: float
    stuck: bool
    evidence: tuple[Evidence, ...]


class Overflow(Detector):
    """Share of updates left out under a gradient scaler, its level, and steps that have no gradient at all.

    The scaler alone cannot tell overflow from a cliff; the size of the gradients does.
    """

    code = "D16"
    title = "overflow"
    reads = ("grad_norm",)

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """A tenth of the updates, a scale at its floor, or half of the steps without a gradient."""
        lost = _scaled(run) if "precision.loss_scale" in run.columns else _empty(run)
        if lost is None:
            return None
        grown = _growth(run)
        scaled = np.isfinite(lost.scale)
        return Finding(
            code=self.code,
            name="overflow",
            title=f"{lost.share:.0%} of the updates are left out"
            + (f", loss scale down to {lost.scale:g}" if scaled else ""),
            severity="critical" if lost.stuck and lost.share >= SKIPPED.value else "warning",
            spans=lost.spans,
            evidence=(
                *lost.evidence,
                Evidence(
                    text=f"gradients at the end are {grown:.3g} times those of the start",
                    columns=("grad_norm",),
                    value=grown,
                ),
            ),
            causes=ranked(
                suspect(
                    "overflow",
                    0.5,
                    2.0 if grown > 3 else 1.0,
                    1.5 if scaled and not lost.stuck else 0.8,
                    why="gradients overflow whatever the scale" if lost.stuck else "the scale is halved over and over",
                    remedies=(
                        Remedy(text="Compute in bfloat16, which has the range of float32."),
                        clip("gradients overflow"),
                        rate(0.5),
                    ),
                ),
                suspect(
                    "loss_scale_stuck",
                    0.4,
                    4.0 if lost.stuck else 2.5 if not scaled else 0.5,
                    why=f"the scale stays at {lost.scale:g}" if scaled else "most steps bring no gradient at all",
                    remedies=(Remedy(text="Compute in bfloat16, or let the scaler lower its scale."),),
                ),
                suspect(
                    "learning_rate_too_high",
                    0.2,
                    4.0 if grown > 10 else 0.3,
                    why=f"gradients grew {grown:.3g}-fold",
                    remedies=(rate(0.3),),
                ),
            ),
            test=Test(
                text="Replay the batch: the first tensor that is not finite says where it overflows.",
                check="non_finite_origin",
            ),
        )


def _scaled(run: Log) -> _Lost | None:
    """What the gradient scaler says."""
    scale, skipped = rows(run, "precision.loss_scale", least=WINDOW), rows(run, "precision.skipped", least=WINDOW)
    taken = np.diff(skipped.steps, prepend=0)
    share = moving_mean(skipped.values / np.maximum(taken + skipped.values, 1), WINDOW)
    storm = stretches(skipped.steps, (share >= SKIPPED.value) & (skipped.steps > WARMUP), WINDOW, end_of(run))
    floor = stretches(scale.steps, scale.values <= SCALE.value, WINDOW, end_of(run))
    spans = storm or floor
    if not spans:
        return None
    worst, least = float(np.nan_to_num(share).max()), float(scale.values[np.isfinite(scale.values)].min(initial=np.inf))
    left_out = Evidence(
        text=f"{skipped.values.sum():.0f} updates were left out because gradients were not finite",
        columns=("precision.skipped",),
        steps=(spans[0][0], spans[-1][1]),
        value=worst,
        threshold=SKIPPED.value,
    )
    level = Evidence(
        text=f"the loss scale went from {scale.values[0]:g} to {scale.values[-1]:g}, at least {least:g}",
        columns=("precision.loss_scale",),
        value=least,
        threshold=SCALE.value,
    )
    return _Lost(spans, worst, least, bool(floor), (left_out, level))


def _empty(run: Log) -> _Lost | None:
    """Without a scaler that is known: steps at which no layer has a gradient, between steps at which layers have."""
    norms = rows(run, "grad_norm")
    if len(norms.steps) < 2 * WARMUP:
        raise NotApplicable(f"grad_norm has {len(norms.steps)} rows; {2 * WARMUP} are needed")
    none = (norms.values == 0).all(axis=1)
    returns = int(((~none[1:]) & none[:-1]).sum())
    share = float(none.mean())
    if share < EMPTY.value or returns < RETURNS or _rounded_away(run):
        return None
    span = (int(norms.steps[none][0]), end_of(run))
    evidence = Evidence(
        text=f"{share:.0%} of the steps bring no gradient to any layer; it came back {returns} times",
        columns=("grad_norm",),
        steps=span,
        value=share,
        threshold=EMPTY.value,
    )
    return _Lost((span,), share, float("nan"), False, (evidence,))


def _rounded_away(run: Log) -> bool:
    """Whether gradients are zero because they were rounded to a grid: underflow, not overflow."""
    if "grad_max" not in run.columns:
        return False
    largest = rows(run, "grad_max").values
    return any(grid(largest[:, i]) > 0 for i in range(largest.shape[1]))


def _growth(run: Log) -> float:
    """Median gradient norm of the last tenth of the rows that have one over that of the first; 1 without any."""
    total = np.sqrt((rows(run, "grad_norm").values ** 2).sum(axis=1))
    total = total[np.isfinite(total) & (total > 0)]
    tenth = max(1, len(total) // 10)
    return float(np.median(total[-tenth:]) / np.median(total[:tenth])) if len(total) else 1.0
