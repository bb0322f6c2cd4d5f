"""Batches whose inputs are unlike those of all others: not finite, or of another scale."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Remedy, Severity, Test, Threshold
from dynaxx.core.records import Action
from dynaxx.detectors._read import QUIETLY, Track, end_of, rows
from dynaxx.detectors._weigh import ranked, suspect
from dynaxx.errors import NotApplicable

OUTLIER = Threshold(
    value=8.0,
    origin="robust standard deviations of the logarithm, from median and MAD; normal ones pass it once in 1e15",
    false_alarms="no alarm in 95 healthy runs of the rescue suite, 38,000 steps, asked every 25; 3 notes",
)
FACTOR = Threshold(
    value=3.0,
    origin="least ratio to the median: where batches hardly differ, eight deviations are nothing",
    false_alarms="no alarm in 95 healthy runs of the rescue suite, 38,000 steps, asked every 25; 3 notes",
)
FAR = Threshold(
    value=10.0,
    origin="ratio to the median from which a batch that hurts is no hard one: mixtures of easy and hard data differ "
    "by a few times",
    false_alarms="no alarm in 95 healthy runs of the rescue suite, 38,000 steps, asked every 25; 3 notes",
)
SHIFT = 20
"""Track on end from which unlike batches are a shift of the data, not corruption."""
LEAST = 30
FLOOR = 0.02
"""Least robust deviation of the logarithm: 2 %, as in the log-median rule of diagnosis.md §3.3."""


class CorruptedBatch(Detector):
    """log max |x| and log std of the model's input, batch by batch, against the run's median and MAD; NaN and Inf.

    It sees the measured steps only. A batch whose loss is unlike all others with ordinary inputs is no matter of this
    detector: that may be a hard one.
    """

    code = "D19"
    title = "corrupted batches"
    reads = ("inputs.max", "inputs.nonfinite")

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """Values that are not finite, then scales that stand out."""
        largest, broken = rows(run, "inputs.max", least=1), rows(run, "inputs.nonfinite", least=1)
        bad = np.flatnonzero(broken.values > 0)
        if len(bad):
            return self._finding(run, broken.steps[bad], float(broken.values[bad].max()), finite=False)
        if len(largest.steps) < LEAST:
            raise NotApplicable(f"inputs were looked at in {len(largest.steps)} steps; {LEAST} are needed")
        apart = _apart(largest)
        if "inputs.std" in run.columns:
            spread = rows(run, "inputs.std")
            if len(spread.steps) == len(apart):
                apart = np.maximum(apart, _apart(spread))
        far = np.flatnonzero(apart > 0)
        if len(far) == 0:
            return None
        return self._finding(run, largest.steps[far], float(np.exp(apart[far].max())), finite=True)

    def _finding(self, run: Log, steps: np.ndarray, size: float, *, finite: bool) -> Finding:
        end = end_of(run)
        lasting = finite and len(steps) >= SHIFT and _runs_to_end(run, steps)
        harmed = _harm(run, steps)
        severity: Severity = (
            "critical"
            if not finite
            else "warning"
            if lasting or (harmed >= FACTOR.value and size >= FAR.value)
            else "note"
        )
        what = f"{size:.3g} times the usual scale" if finite else f"{size:.2%} of a batch is NaN or infinite"
        spans = ((int(steps[0]), end),) if lasting else _separate(steps)
        return Finding(
            code=self.code,
            name="corrupted_batch",
            title=f"{len(steps)} of the measured batches stand out: {what}",
            severity=severity,
            spans=spans,
            evidence=(
                Evidence(
                    text=f"inputs of {what} at the steps {', '.join(map(str, steps[:5]))}{' …' * (len(steps) > 5)}",
                    columns=("inputs.max", "inputs.std") if finite else ("inputs.nonfinite",),
                    steps=(int(steps[0]), int(steps[-1])),
                    value=size,
                    threshold=FACTOR.value if finite else 0.0,
                ),
                Evidence(text=f"their loss is up to {harmed:.3g} times that of their neighbours", columns=("loss",)),
            ),
            causes=ranked(
                suspect(
                    "corrupted_batch" if finite else "non_finite_data",
                    0.7,
                    0.2 if lasting else 2.0,
                    3.0 if harmed >= FACTOR.value else 1.0,
                    why=what,
                    remedies=(
                        Remedy(
                            text="Leave out updates whose gradient stands out.",
                            action=Action(name="skip", arguments={"when": "outlier" if finite else "non_finite"}),
                        ),
                        Remedy(text="Find these rows in the data and take them out."),
                    ),
                ),
                suspect(
                    "data_shift",
                    0.3,
                    8.0 if lasting else 0.2,
                    why="it stays so up to the last step" if lasting else "",
                    remedies=(Remedy(text="Look at what the data loader changed at that step."),),
                ),
                suspect(
                    "hard_batch",
                    0.1,
                    0.3 if harmed >= FACTOR.value or not finite else 2.0,
                    why="the loss took it in its stride",
                ),
            ),
            test=Test(
                text="Losses of the batch's rows: a few extreme ones are corrupt, all of them a shift.",
                check="example_losses",
            ),
        )


def _apart(column: Track) -> np.ndarray:
    """ln(x/median) where it stands out on the large side, 0 elsewhere."""
    good = np.isfinite(column.values) & (column.values > 0)
    if good.sum() < LEAST:
        return np.zeros(len(column.values))
    logs = np.log(np.where(good, column.values, 1.0))
    centre = float(np.median(logs[good]))
    scale = max(1.4826 * float(np.median(np.abs(logs[good] - centre))), FLOOR)
    away = np.where(good, logs - centre, 0.0)
    return np.where(away >= max(OUTLIER.value * scale, float(np.log(FACTOR.value))), away, 0.0)


def _harm(run: Log, steps: np.ndarray) -> float:
    """Largest loss at these steps over the median of the 20 before; 1 where there is none."""
    if "loss" not in run.columns:
        return 1.0
    loss = run["loss"]
    at, values = np.asarray(loss.steps), np.asarray(loss.values, dtype=np.float64)
    worst = 1.0
    for step in steps[:10]:
        place = int(np.searchsorted(at, step))
        before = values[max(0, place - 20) : place]
        before = before[np.isfinite(before)]
        now = values[place : place + 3]
        now = now[np.isfinite(now)]
        if len(before) >= 5 and len(now) and np.median(before) > 0:
            worst = max(worst, float(now.max() / np.median(before)))
    return worst


def _runs_to_end(run: Log, steps: np.ndarray) -> bool:
    """Whether every measured batch since the first of these stands out."""
    measured = np.asarray(run["inputs.max"].steps)
    return int((measured >= steps[0]).sum()) <= 1.1 * len(steps)


def _separate(steps: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Neighbouring steps as one stretch."""
    cut = np.flatnonzero(np.diff(steps) > 5)
    first, last = np.concatenate(([0], cut + 1)), np.concatenate((cut, [len(steps) - 1]))
    return tuple((int(steps[a]), int(steps[b])) for a, b in zip(first, last, strict=True))
