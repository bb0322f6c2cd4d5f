"""Gradients that add up over the steps because nobody clears them."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Remedy, Test, Threshold
from dynaxx.detectors._read import QUIETLY, Track, end_of, matching, rows
from dynaxx.detectors._spans import moving_mean, stretches, within
from dynaxx.detectors._weigh import ranked, suspect
from dynaxx.errors import NotApplicable

COSINE = Threshold(
    value=0.95,
    origin="a sum of t independent gradients of equal size has cosine √(1 − 1/t) with the one before: 0.95 at t = 10",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)
GROWTH = Threshold(
    value=3.0,
    origin="norm over the smallest before it: a sum of independent gradients grows as √t, 3-fold in 10 steps",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)
EXCESS = Threshold(
    value=10.0,
    origin="squared norm over ‖G‖² + tr Σ/B, its expectation for one batch; a sum of t gradients has t to t² of it",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)
PERSIST = Threshold(
    value=30.0,
    origin="rows on end of a mean over 5, up to the last measured one: leaving a plateau has the cosine and the growth "
    "for about 20 steps",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)
WINDOW = 5


class GradientsNotCleared(Detector):
    """Successive gradients point the same way and the norm has grown: what a running sum does, and little else.

    Full-batch descent in a smooth valley has the cosine, and a falling norm.
    """

    code = "D34"
    title = "gradients are not cleared"
    reads = ("gradient_agreement", "grad_norm")

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """Cosine near 1 for long, with growth of the norm or a norm that no single batch has."""
        cosine = rows(run, "gradient_agreement", least=int(PERSIST.value))
        norms = rows(run, "grad_norm", least=int(PERSIST.value))
        consecutive = np.diff(cosine.steps, prepend=cosine.steps[0] - 1) == 1
        if consecutive.sum() < PERSIST.value:
            raise NotApplicable("the cosine was not measured at enough consecutive steps")
        at, level = cosine.steps[consecutive], moving_mean(cosine.values[consecutive], WINDOW)
        spans = stretches(at, level >= COSINE.value, int(PERSIST.value), end_of(run))
        if not spans or spans[-1][1] < at[-1]:
            return None
        moving = _moving(run, norms)
        total = np.sqrt((norms.values[:, moving] ** 2).sum(axis=1))
        inside = within(norms.steps, spans) & np.isfinite(total)
        resting = np.sqrt((norms.values[:, ~moving] ** 2).sum(axis=1))
        if np.median(resting[inside] > total[inside]) > 0:  # no zero_grad of the optimizer clears what it does not hold
            return None
        before = total[(norms.steps <= norms.steps[inside][0]) & (total > 0)] if inside.any() else total[:0]
        if not inside.any() or len(before) == 0:
            return None
        grown = float(np.median(total[inside]) / before.min())
        excess = _excess(run, norms.steps, total, spans[-1]) if moving.all() else float("nan")
        if not (grown >= GROWTH.value or excess >= EXCESS.value) or excess < 2:
            return None
        size = float(np.median(cosine.values[within(cosine.steps, spans)]))
        evidence = [
            Evidence(
                text=f"the cosine between successive gradients stays at {size:.3f}",
                columns=("gradient_agreement",),
                steps=(spans[0][0], spans[-1][1]),
                value=size,
                threshold=COSINE.value,
            ),
            Evidence(
                text=f"while their norm is {grown:.3g} times what it was before",
                columns=("grad_norm",),
                value=grown,
                threshold=GROWTH.value,
            ),
        ]
        if np.isfinite(excess):
            evidence.append(
                Evidence(
                    text=f"the squared norm is {excess:.3g} times that of one batch's gradient at the same weights",
                    columns=("grad_norm", "gradient_noise.trace", "gradient_noise.gradient"),
                    value=excess,
                    threshold=EXCESS.value,
                )
            )
        return Finding(
            code=self.code,
            name="gradients_not_cleared",
            title=f"gradients repeat each other (cosine {size:.2f}) and grow: they are not cleared between steps",
            severity="critical" if excess >= EXCESS.value else "warning",
            spans=spans,
            evidence=tuple(evidence),
            causes=ranked(
                suspect(
                    "gradients_not_cleared",
                    0.7,
                    10.0 if excess >= EXCESS.value else 1.5,
                    2.0 if grown >= GROWTH.value else 1.0,
                    why="a running sum turns slowly and grows",
                    remedies=(Remedy(text="Call optimizer.zero_grad() once per step, after the update."),),
                ),
                suspect(
                    "repeated_batch",
                    0.15,
                    0.1 if excess >= EXCESS.value else 1.0,
                    why="one batch again and again gives gradients that agree, of the size of one batch's",
                ),
                suspect(
                    "learning_rate_too_low",
                    0.1,
                    0.1 if grown >= GROWTH.value else 2.0,
                    why="steps so short that the gradient hardly turns",
                ),
            ),
            test=Test(
                text="Compute the batch's gradient anew: its norm is far below the one that the optimizer was given.",
                check="half_batch_noise",
            ),
        )


def _moving(run: Log, norms: Track) -> np.ndarray:
    """Which layers are updated; all where that was not measured."""
    moving = np.ones(len(norms.labels), dtype=bool)
    if "update_norm" in run.columns:
        update = rows(run, "update_norm")
        if update.labels == norms.labels:
            moving = np.asarray((update.values > 0).any(axis=0))
    return moving


def _excess(run: Log, steps: np.ndarray, total: np.ndarray, span: tuple[int, int]) -> float:
    """Median ratio of the squared norm to its expectation from the noise scale; NaN where that was not measured."""
    needed = ("gradient_noise.trace", "gradient_noise.gradient", "effective_batch")
    if any(name not in run.columns for name in needed):
        return float("nan")
    trace, gradient, batch = (rows(run, name) for name in needed)
    here, there = matching(trace, gradient)
    at = trace.steps[here]
    size = np.interp(at, batch.steps, batch.values)
    expected = np.maximum(gradient.values[there], 0) + trace.values[here] / np.maximum(size, 1)
    place = np.searchsorted(steps, at)
    good = (place < len(steps)) & (expected > 0) & np.isfinite(expected) & within(at, (span,))
    if not good.any():
        return float("nan")
    ratio = total[place[good]] ** 2 / expected[good]
    return float(np.median(ratio[np.isfinite(ratio)])) if np.isfinite(ratio).any() else float("nan")
