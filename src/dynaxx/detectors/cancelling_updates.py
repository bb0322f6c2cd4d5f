"""Updates of some layers that undo what those of others gain."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Remedy, Test, Threshold
from dynaxx.detectors._read import QUIETLY, end_of, fallen, rows
from dynaxx.detectors._remedies import rate
from dynaxx.detectors._spans import moving_mean, stretches
from dynaxx.detectors._weigh import ranked, suspect
from dynaxx.errors import NotApplicable

SHARE = Threshold(
    value=0.7,
    origin="1 − |Σc|/Σ|c|: ten layers with independent signs have about 0.75 in the median, three about 0.5",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)
PERSIST = Threshold(
    value=30.0,
    origin="rows on end of a mean over 20",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)
WINDOW = 20


class CancellingUpdates(Detector):
    """1 − |Σ_l c_l| / Σ_l |c_l|, c_l the first-order change of the loss by layer l's update, a mean over 20 rows.

    With momentum in a noisy valley signs are random: a note. A warning where the loss does not fall.
    """

    code = "D33"
    title = "updates of layers cancel each other"
    reads = ("gradient_agreement.cancellation",)

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """More than what independent signs give, for long."""
        cancelled = rows(run, "gradient_agreement.cancellation", least=2 * WINDOW)
        level = np.nan_to_num(moving_mean(cancelled.values, WINDOW))
        if not np.isfinite(cancelled.values).any():
            raise NotApplicable("no update was measured")
        spans = stretches(cancelled.steps, level >= SHARE.value, int(PERSIST.value), end_of(run))
        if not spans:
            return None
        size, gone, cosine = float(level.max()), fallen(run), _cosine(run)
        return Finding(
            code=self.code,
            name="cancelling_updates",
            title=f"{size:.0%} of what the layers' updates change in the loss cancels out",
            severity="warning" if gone < 0 else "note",
            spans=spans,
            evidence=(
                Evidence(
                    text=f"1 − |Σc|/Σ|c| is {size:.2f} over {WINDOW} measured steps",
                    columns=("gradient_agreement.cancellation",),
                    steps=(spans[0][0], spans[-1][1]),
                    value=size,
                    threshold=SHARE.value,
                ),
                Evidence(text=f"successive gradients have the cosine {cosine:.2f}", columns=("gradient_agreement",)),
            ),
            causes=ranked(
                suspect(
                    "cancelling_updates",
                    0.5,
                    2.0 if cosine > 0.1 else 0.7,
                    why="gradients agree from step to step, and still the layers work against each other",
                    remedies=(Remedy(text="Lower the rates of the layers that raise the loss."), rate(0.5)),
                ),
                suspect(
                    "noise_floor",
                    0.4,
                    2.0 if abs(cosine) < 0.1 else 0.5,
                    why="successive gradients have nothing in common",
                    remedies=(rate(0.3),),
                ),
                suspect(
                    "momentum_too_high",
                    0.2,
                    4.0 if cosine < -0.1 else 0.5,
                    why="the momentum carries the weights past where the gradient has turned",
                ),
            ),
            test=Test(
                text="Two halves of a batch: where their gradients have nothing in common it is noise.",
                check="half_batch_noise",
            ),
        )


def _cosine(run: Log) -> float:
    if "gradient_agreement" not in run.columns:
        return 0.0
    values = rows(run, "gradient_agreement").values
    return float(np.nanmedian(values)) if np.isfinite(values).any() else 0.0
