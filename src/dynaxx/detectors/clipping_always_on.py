"""Gradient clipping that changes nearly every update."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Remedy, Test, Threshold
from dynaxx.detectors._facts import adaptive
from dynaxx.detectors._read import QUIETLY, end_of, fallen, rows
from dynaxx.detectors._remedies import rate
from dynaxx.detectors._spans import moving_mean, stretches
from dynaxx.detectors._weigh import ranked, suspect
from dynaxx.errors import NotApplicable

SHARE = Threshold(
    value=0.5,
    origin="Google's tuning playbook (2023): more than half of the updates clipped is extremely aggressive",
    false_alarms="no alarm in 8 healthy runs of the rescue suite, 3,200 steps, asked every 25",
)
HARD = Threshold(
    value=0.1,
    origin="median factor by which the gradient is shrunk: the threshold is a tenth of the usual norm, so it and not "
    "the rate sets the size of steps",
    false_alarms="no alarm in 8 healthy runs of the rescue suite, 3,200 steps, asked every 25",
)
WINDOW = 100
"""Steps that the share is taken over: its standard error is under 0.05."""


class ClippingAlwaysOn(Detector):
    """Share of the last 100 steps whose gradient the loop's own clipping shrank.

    A warning only where the steps follow the gradient's size and clipping has taken it over; Adam's do not.
    """

    code = "D24"
    title = "gradient clipping always on"
    reads = ("clip_coefficient",)

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """More than half of the steps, over a hundred or more."""
        factor = rows(run, "clip_coefficient")
        if len(factor.steps) < 2 * WINDOW:
            raise NotApplicable(f"clipping was seen in {len(factor.steps)} steps; {2 * WINDOW} are needed")
        share = moving_mean((factor.values < 1).astype(np.float64), WINDOW)
        share[:WINDOW] = 0.0  # the first steps have large gradients in healthy runs, too
        spans = stretches(factor.steps, share >= SHARE.value, WINDOW, end_of(run))
        if not spans:
            return None
        on = float((factor.values[WINDOW:] < 1).mean())
        size = float(np.nanmedian(factor.values[WINDOW:]))
        gone = fallen(run)
        harmful = size < HARD.value and not adaptive(run) and not gone > 0.5
        return Finding(
            code=self.code,
            name="clipping_always_on",
            title=f"{on:.0%} of the updates are clipped, by the factor {size:.2g} in the median",
            severity="warning" if harmful else "note",
            spans=spans,
            evidence=(
                Evidence(
                    text=f"clipping shrank {on:.0%} of the gradients after step {factor.steps[WINDOW]}",
                    columns=("clip_coefficient",),
                    steps=(spans[0][0], spans[-1][1]),
                    value=on,
                    threshold=SHARE.value,
                ),
                Evidence(text=f"the median factor is {size:.2g}", value=size, threshold=HARD.value),
            ),
            causes=ranked(
                suspect(
                    "clipping_too_tight",
                    0.5,
                    3.0 if size < HARD.value else 1.0,
                    1.5 if not gone > 0.3 else 1.0,
                    why=f"the threshold is {size:.2g} of the usual norm",
                    remedies=(
                        Remedy(text=f"Clip at the 90th percentile of the norms: {1 / max(size, 1e-6):.3g} × now."),
                    ),
                ),
                suspect(
                    "learning_rate_too_high",
                    0.3,
                    _growing(run),
                    why="clipping may be all that keeps the run together",
                    remedies=(rate(0.5),),
                ),
            ),
            test=Test(
                text="Curvature along the gradient against 2/η: far below it the rate leaves room and clipping is "
                "too tight.",
                check="directional_curvature",
            ),
        )


def _growing(run: Log) -> float:
    """Likelihood ratio of growing unclipped norms."""
    if "grad_norm" not in run.columns:
        return 1.0
    total = np.sqrt((rows(run, "grad_norm").values ** 2).sum(axis=1))
    total = total[np.isfinite(total)]
    half = len(total) // 2
    if half < WINDOW // 2:
        return 1.0
    return 4.0 if np.median(total[half:]) > 3 * np.median(total[:half]) else 0.5
