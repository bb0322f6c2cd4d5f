"""Gradients too small for the number format: below its smallest normal, or rounded to zero or to few values."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Remedy, Test, Threshold
from dynaxx.detectors._facts import adaptive, matrices
from dynaxx.detectors._read import QUIETLY, Track, end_of, matching, rows
from dynaxx.detectors._rounding import LEVELS, grid
from dynaxx.detectors._spans import moving_mean, stretches
from dynaxx.detectors._weigh import ranked, suspect
from dynaxx.errors import NotApplicable

SHARE = Threshold(
    value=0.5,
    origin="half of the gradient entries of the weight layers",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)
PERSIST = Threshold(
    value=20.0,
    origin="rows on end of a mean over 10",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)
WINDOW = 10


class Underflow(Detector):
    """Share of gradient entries below the smallest normal, or exactly zero where the largest ones lie on a grid.

    Close to zero the numbers of a format are evenly spaced: gradients that were rounded there are small whole multiples
    of one number, whatever they were scaled by afterwards. Zeros without that mark are dead units or rare words.
    """

    code = "D16"
    title = "underflow"
    reads = ("precision.underflow|grad_zeros",)

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """Half of the entries, that last."""
        name = "precision.underflow" if "precision.underflow" in run.columns else "grad_zeros"
        axis = rows(run, name)
        if len(axis.steps) < 2 * WINDOW:
            raise NotApplicable(f"{name} has {len(axis.steps)} rows; {2 * WINDOW} are needed")
        places, numel = matrices(run, axis.labels)
        if len(places) == 0:
            raise NotApplicable("no layer with weights is trained")
        lost = (
            np.nan_to_num(axis.values[:, places])
            if name == "precision.underflow"
            else np.zeros((len(axis), len(places)))
        )
        rounded, unit = _rounded(run, axis, places)
        lost = np.maximum(lost, rounded)
        whole = moving_mean((lost * numel).sum(axis=1) / numel.sum(), WINDOW)
        spans = stretches(axis.steps, whole >= SHARE.value, int(PERSIST.value), end_of(run))
        if not spans:
            return None
        size = float(whole.max())
        by_layer = np.median(lost[-WINDOW:], axis=0)
        order = np.argsort(-by_layer)
        scaled = "precision.loss_scale" in run.columns
        scale = float(rows(run, "precision.loss_scale").values[-1]) if scaled else 1.0
        evidence = [
            Evidence(
                text=f"{size:.0%} of the gradient entries are below the smallest normal number or rounded to zero",
                columns=("precision.underflow", "grad_zeros", "grad_max"),
                steps=(spans[0][0], spans[-1][1]),
                value=size,
                threshold=SHARE.value,
            )
        ]
        if unit > 0:
            evidence.append(
                Evidence(
                    text=f"the largest gradients are whole multiples of {unit:.3g}", columns=("grad_max",), value=unit
                )
            )
        return Finding(
            code=self.code,
            name="underflow",
            title=f"{size:.0%} of the gradient entries underflow",
            severity="warning",
            spans=spans,
            layers=tuple(axis.labels[places[i]] for i in order if by_layer[i] >= SHARE.value),
            evidence=tuple(evidence),
            causes=ranked(
                suspect(
                    "underflow",
                    0.75,
                    1.5 if scale < 1024 else 1.0,
                    3.0 if unit > 0 else 1.0,
                    why="gradients are below what the format holds",
                    remedies=(Remedy(text="Compute in bfloat16, or scale the loss up (GradScaler, at least 2¹⁶)."),),
                ),
                suspect(
                    "loss_scale_stuck",
                    0.3,
                    5.0 if scaled and scale < 1024 else 0.5,
                    why=f"the loss scale is {scale:g}" if scaled else "no gradient scaler is known",
                    remedies=(Remedy(text="Let the scaler grow, or start it at 2¹⁶."),),
                ),
                suspect(
                    "vanishing_gradients",
                    0.2,
                    0.7 if adaptive(run) else 1.0,
                    why="small gradients in float32 would be harmless",
                ),
            ),
            test=Test(text="Compute one gradient in float32 on the same batch and count what is below 2⁻²⁴."),
        )


def _rounded(run: Log, axis: Track, places: np.ndarray) -> tuple[np.ndarray, float]:
    """Share of exact zeros of each layer where gradients were rounded near zero, at the rows of `axis`; the grid."""
    found = np.zeros((len(axis), len(places)))
    if "grad_zeros" not in run.columns or "grad_max" not in run.columns:
        return found, 0.0
    zeros, largest = rows(run, "grad_zeros"), rows(run, "grad_max")
    if zeros.labels != axis.labels or largest.labels != axis.labels:
        return found, 0.0
    unit = max((grid(largest.values[:, i]) for i in places), default=0.0)
    if unit == 0:
        return found, 0.0
    here, there = matching(zeros, largest)
    top = largest.values[there][:, places]
    near = top <= LEVELS * unit
    share = np.where(near, zeros.values[here][:, places], 0.0)
    shared, of = np.intersect1d(axis.steps, zeros.steps[here], assume_unique=True, return_indices=True)[1:]
    found[shared] = np.nan_to_num(share[of])
    return found, unit
