"""What the number format cannot hold: overflow storms, a loss scale that is stuck, gradients that underflow."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Remedy, Severity, Test, Threshold
from dynaxx.core.records import Action
from dynaxx.detectors._read import adaptive
from dynaxx.detectors._reading import end_of, matrices, moving_mean, rows, stretches, suspect, weighed
from dynaxx.detectors._remedies import rate
from dynaxx.errors import NotApplicable

SKIPPED = Threshold(
    value=0.1,
    origin="share of the updates since the last row; a scaler that doubles every 2000 steps leaves out 0.0005 of them",
    false_alarms="",
)
SCALE = Threshold(
    value=1.0,
    origin="DeepSpeed's and Megatron's least loss scale: below it gradients in 16 bits are smaller than without one",
    false_alarms="",
)
UNDERFLOW = Threshold(
    value=0.5,
    origin="half of a layer's gradient entries below the smallest normal, or lost to zero close to it",
    false_alarms="",
)
HALF_NORMAL = 2.0**-14
"""Smallest normal number of float16; its grid ends at 2⁻²⁴."""
PERSIST = 20
WINDOW = 10
WARMUP = 20
"""Updates in which a scaler that starts at 2¹⁶ may halve its way down."""


class Precision(Detector):
    """Updates left out, the level of the loss scale, and gradient entries under the smallest normal.

    The scaler alone cannot tell overflow from underflow; the size of the gradients does.
    """

    code = "D16"
    title = "limits of the number format"
    reads = ("precision.underflow",)

    def detect(self, run: Log) -> Finding | None:
        """Overflow first, as it costs whole updates; then underflow."""
        if len(rows(run, "precision.underflow").steps) < WINDOW:
            raise NotApplicable(f"precision was measured in fewer than {WINDOW} rows")
        return self._overflow(run) or self._underflow(run)

    def _overflow(self, run: Log) -> Finding | None:
        if "precision.loss_scale" not in run.columns or "precision.skipped" not in run.columns:
            return None
        scale, skipped = rows(run, "precision.loss_scale", least=1), rows(run, "precision.skipped", least=1)
        updates = np.diff(skipped.steps, prepend=max(0, int(skipped.steps[0]) - 1)) + skipped.values
        share = moving_mean(np.minimum(skipped.values / np.maximum(updates, 1), 1.0), WINDOW)
        stormy = (share >= SKIPPED.value) & (skipped.steps > WARMUP)
        spans = stretches(skipped.steps, stormy, WINDOW, end_of(run))
        least = float(np.nanmin(scale.values))
        floor = stretches(scale.steps, scale.values <= SCALE.value, WINDOW, end_of(run))
        if not (spans or floor):
            return None
        stuck = bool(floor)
        lost = float(skipped.values.sum())
        severity: Severity = "critical" if stuck and spans else "warning"
        where = spans or floor
        growing = _gradient_growth(run)
        return Finding(
            code=self.code,
            name="precision",
            title=f"{lost:.0f} updates left out, loss scale down to {least:g}",
            severity=severity,
            spans=where,
            evidence=(
                Evidence(
                    text=f"{lost:.0f} updates were left out because gradients were not finite",
                    columns=("precision.skipped",),
                    steps=(where[0][0], where[-1][1]),
                    value=float(np.nanmax(share)),
                    threshold=SKIPPED.value,
                ),
                Evidence(
                    text=f"the loss scale went from {scale.values[0]:g} to {scale.values[-1]:g}, at least {least:g}",
                    columns=("precision.loss_scale",),
                    value=least,
                    threshold=SCALE.value,
                ),
                Evidence(
                    text=f"gradients at the end are {growing:.3g} times those of the start",
                    columns=("grad_norm",),
                    value=growing,
                ),
            ),
            causes=weighed(
                (
                    suspect(
                        "overflow",
                        0.6,
                        2.0 if growing > 3 else 1.2,
                        why="gradients overflow whatever the scale" if stuck else "the scale is halved again and again",
                        remedies=(
                            Remedy(text="Compute in bfloat16, which has the range of float32."),
                            Remedy(
                                text="Clip what is unusual.",
                                action=Action(name="adaptive_clip", arguments={"by": "z_score"}),
                            ),
                            rate(0.5),
                        ),
                    ),
                    suspect(
                        "loss_scale_stuck",
                        0.4,
                        4.0 if stuck else 0.3,
                        why=f"the scale stays at {least:g}",
                        remedies=(Remedy(text="Compute in bfloat16, or raise the scaler's growth and least scale."),),
                    ),
                    suspect(
                        "learning_rate_too_high",
                        0.2,
                        4.0 if growing > 10 else 0.5,
                        why=f"gradients grew {growing:.3g}-fold",
                        remedies=(rate(0.3),),
                    ),
                )
            ),
            test=Test(
                text="Replay the batch: the first tensor that is not finite says where it overflows.",
                check="non_finite_origin",
            ),
        )

    def _underflow(self, run: Log) -> Finding | None:
        small = rows(run, "precision.underflow")
        places, numel = matrices(run, small.labels)
        if len(places) == 0:
            return None
        lost = small.values[:, places]
        lost = np.maximum(lost, _flushed(run, small.steps, tuple(small.labels[i] for i in places)))
        whole = moving_mean((np.nan_to_num(lost) * numel).sum(axis=1) / numel.sum(), WINDOW)
        spans = stretches(small.steps, whole >= UNDERFLOW.value, PERSIST, end_of(run))
        if not spans:
            return None
        size = float(np.nanmax(whole))
        by_layer = np.median(np.nan_to_num(lost)[-WINDOW:], axis=0)
        order = np.argsort(-by_layer)
        scaled = "precision.loss_scale" in run.columns
        last = float(rows(run, "precision.loss_scale").values[-1]) if scaled else 1.0
        return Finding(
            code=self.code,
            name="precision",
            title=f"{size:.0%} of the gradient entries underflow",
            severity="warning",
            spans=spans,
            layers=tuple(small.labels[places[i]] for i in order if by_layer[i] >= UNDERFLOW.value),
            evidence=(
                Evidence(
                    text=f"{size:.0%} of the entries are below the smallest normal number of the format, or zero near "
                    "it",
                    columns=("precision.underflow", "grad_zeros", "grad_max"),
                    steps=(spans[0][0], spans[-1][1]),
                    value=size,
                    threshold=UNDERFLOW.value,
                ),
            ),
            causes=weighed(
                (
                    suspect(
                        "underflow",
                        0.75,
                        1.5 if scaled and last < 1024 else 1.2,
                        why="gradients are below what the format holds",
                        remedies=(
                            Remedy(text="Compute in bfloat16, or scale the loss up (GradScaler, at least 2¹⁶)."),
                        ),
                    ),
                    suspect(
                        "loss_scale_stuck",
                        0.3,
                        5.0 if scaled and last < 1024 else 0.1,
                        why=f"the loss scale is {last:g}" if scaled else "there is no gradient scaler",
                        remedies=(Remedy(text="Let the scaler grow, or start it at 2¹⁶."),),
                    ),
                    suspect(
                        "vanishing_gradients",
                        0.2,
                        0.7 if adaptive(run) else 1.0,
                        why="small gradients in float32 would be harmless",
                    ),
                )
            ),
            test=Test(text="Compute one gradient in float32 on the same batch and count what is below 2⁻²⁴."),
        )


def _flushed(run: Log, steps: np.ndarray, labels: tuple[str, ...]) -> np.ndarray:
    """Share of exact zeros where the largest gradient of a layer is below the smallest normal of float16."""
    found = np.zeros((len(steps), len(labels)))
    if "grad_zeros" not in run.columns or "grad_max" not in run.columns:
        return found
    zeros, largest = rows(run, "grad_zeros"), rows(run, "grad_max")
    place = {label: i for i, label in enumerate(zeros.labels)}
    columns = [place[label] for label in labels if label in place]
    if len(columns) != len(labels) or zeros.labels != largest.labels or len(zeros.steps) != len(largest.steps):
        return found
    near = (largest.values[:, columns] > 0) & (largest.values[:, columns] < HALF_NORMAL)
    here, there = np.intersect1d(steps, zeros.steps, assume_unique=True, return_indices=True)[1:]
    found[here] = np.where(near, zeros.values[:, columns], 0.0)[there]
    return found


def _gradient_growth(run: Log) -> float:
    """Median gradient norm of the last tenth of the rows over that of the first; 1 where it is not logged."""
    if "grad_norm" not in run.columns:
        return 1.0
    total = np.sqrt((rows(run, "grad_norm").values ** 2).sum(axis=1))
    total = total[np.isfinite(total) & (total > 0)]
    tenth = max(1, len(total) // 10)
    return float(np.median(total[-tenth:]) / np.median(total[:tenth])) if len(total) else 1.0
