"""Batches far below or far above the gradient noise scale."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Remedy, Test, Threshold
from dynaxx.detectors._facts import checked
from dynaxx.detectors._read import QUIETLY, end_of, fallen, rows
from dynaxx.detectors._remedies import rate
from dynaxx.detectors._weigh import ranked, suspect
from dynaxx.errors import NotApplicable

SMALL = Threshold(
    value=30.0,
    origin="noise scale over batch: at 1 a larger batch still saves steps (McCandlish 2018), at 30 only 3 % of the "
    "gradient's square is signal",
    false_alarms="no alarm in 65 healthy runs of the rescue suite, 26,000 steps, asked every 25; 2 notes",
)
LARGE = Threshold(
    value=0.1,
    origin="noise scale over batch: examples beyond it bring under 10 % of the steps (McCandlish 2018)",
    false_alarms="no alarm in 65 healthy runs of the rescue suite, 26,000 steps, asked every 25; 2 notes",
)
ERROR = Threshold(
    value=0.5,
    origin="relative standard error of the noise scale: two of them are a factor that the bounds outweigh",
    false_alarms="no alarm in 65 healthy runs of the rescue suite, 26,000 steps, asked every 25; 2 notes",
)
LEAST = 3
"""Measurements that must agree."""


class NoiseDominated(Detector):
    """tr Σ/‖G‖² against the examples behind one update; both are notes unless the loss has stopped falling on noise."""

    code = "D15"
    title = "batch size against the gradient noise"
    reads = ("gradient_noise", "effective_batch")

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """The median of the last measurements whose error is small."""
        scale, size = rows(run, "gradient_noise"), rows(run, "effective_batch")
        error = rows(run, "gradient_noise.error") if "gradient_noise.error" in run.columns else None
        sure = np.isfinite(scale.values) & (scale.values > 0)
        if error is not None and len(error.steps) == len(scale.steps):
            sure &= error.values <= ERROR.value
        if sure.sum() < LEAST:
            raise NotApplicable(f"the noise scale was measured {sure.sum()} time(s) with an error under 50 %; 3 needed")
        steps, values = scale.steps[sure][-5:], scale.values[sure][-5:]
        batch = float(np.median(size.values[-100:]))
        if not (np.isfinite(batch) and batch > 0):
            raise NotApplicable("effective_batch is not a positive number")
        ratio = values / batch
        low, high = float(ratio.min()), float(ratio.max())
        if low >= SMALL.value:
            return self._finding(run, steps, float(np.median(ratio)), batch, small=True)
        if high <= LARGE.value:
            return self._finding(run, steps, float(np.median(ratio)), batch, small=False)
        return None

    def _finding(self, run: Log, steps: np.ndarray, ratio: float, batch: float, *, small: bool) -> Finding:
        cosine = _cosine(run)
        flat = _flat(run)
        stuck = small and flat and fallen(run) < 0.1
        wanted = ratio * batch
        halves = checked(run, "half_batch_noise")
        cause = "batch_too_small" if small else "batch_too_large"
        return Finding(
            code=self.code,
            name="noise_dominated",
            title=f"the noise scale is {wanted:.3g} examples, the batch {batch:g}",
            severity="warning" if stuck else "note",
            spans=((int(steps[0]), end_of(run)),),
            evidence=(
                Evidence(
                    text=f"tr Σ/‖G‖² is {ratio:.3g} batches in {len(steps)} measurements",
                    columns=("gradient_noise", "effective_batch"),
                    steps=(int(steps[0]), int(steps[-1])),
                    value=ratio,
                    threshold=SMALL.value if small else LARGE.value,
                ),
                Evidence(text=f"successive gradients have the cosine {cosine:.2f}", columns=("gradient_agreement",)),
            ),
            causes=ranked(
                suspect(
                    cause,
                    0.6,
                    2.0 if not small or flat else 0.8,
                    2.0 if halves else 1.0,
                    why=f"the noise scale is {ratio:.2g} batches",
                    remedies=(
                        Remedy(text=f"Accumulate towards {min(wanted, 32 * batch):.3g} examples an update."),
                        rate(0.5),
                    )
                    if small
                    else (Remedy(text=f"A batch of {max(1.0, wanted):.3g} examples takes next to as few steps."),),
                ),
                suspect(
                    "noise_floor",
                    0.3,
                    3.0 if flat and abs(cosine) < 0.1 else 0.5,
                    why="steps bounce in the noise",
                    remedies=(rate(0.3),),
                )
                if small
                else None,
            ),
            test=Test(
                text="Gradients of two halves of a batch: their cosine near 0 is noise.", check="half_batch_noise"
            ),
        )


def _cosine(run: Log) -> float:
    if "gradient_agreement" not in run.columns:
        return 0.0
    values = rows(run, "gradient_agreement").values
    return float(np.nanmedian(values[-20:])) if np.isfinite(values[-20:]).any() else 0.0


def _flat(run: Log) -> bool:
    """Whether the second half of the loss is no lower than the first, within its own noise."""
    if "loss" not in run.columns:
        return False
    values = rows(run, "loss").values
    values = values[np.isfinite(values)]
    half = len(values) // 2
    if half < 20:
        return False
    return bool(np.median(values[half:]) >= np.median(values[:half]) - 0.1 * np.std(values[half:]))
