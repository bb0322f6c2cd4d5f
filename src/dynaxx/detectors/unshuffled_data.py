"""Examples that come sorted, or in the same order at every pass."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Remedy, Test, Threshold
from dynaxx.detectors._inputs import few_batches
from dynaxx.detectors._read import QUIETLY, end_of, fallen, rows
from dynaxx.detectors._weigh import ranked, suspect
from dynaxx.errors import NotApplicable

PERIODIC = Threshold(
    value=0.4,
    origin="correlation of the loss's residual with that of one, two and three epochs before, the least of them: an "
    "order that repeats does so at every pass (sorted data 0.54 to 0.97 at each by the end of 400 steps), the waves of "
    "an unsteady run only at some; 0 where each pass has its own order",
    false_alarms="of 506 healthy runs of the rescue suite two catapults reached 0.42 and 0.61 one epoch apart, 0.31 "
    "and 0.23 three apart",
)
TURNS = Threshold(
    value=0.3,
    origin="share of measured batches that are nearly of one class, another one than the batch before",
    false_alarms="no alarm in 148 healthy runs of the rescue suite, 59,200 steps, asked every 25",
)
NEIGHBOURS = Threshold(
    value=0.3,
    origin="correlation of the residual from one step to the next, where it repeats with the epoch: batches that are "
    "alike follow each other; 6 standard errors in 400 steps",
    false_alarms="no alarm in 148 healthy runs of the rescue suite, 59,200 steps, asked every 25",
)
PURE = 0.6
"""Mean probability of the top class from which a batch counts as being of one class."""
LEAST = 60
"""Pairs of steps, two epochs apart, in which a correlation of 0.4 is three standard errors; half of them at three."""
SHORTEST = 4
"""Steps of an epoch: in shorter ones every order repeats."""


class UnshuffledData(Detector):
    """Saw-tooth: correlation of ln loss about its running mean with itself one epoch earlier; batches of one class.

    The order of the examples repeats where the first is high, and they are sorted by class where batches are nearly
    of one class, by turns, or where the loss drifts within the epoch.
    """

    code = "D19"
    title = "unshuffled data"
    reads = ("loss", "epoch|outputs.top_share")

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """Sorted by class, or a period of one epoch."""
        turns = _turns(run)
        periodic, period, neighbours = _periodic(run)
        if np.isnan(turns) and np.isnan(periodic):
            raise NotApplicable(
                f"it takes {LEAST} steps over two epochs of at least {SHORTEST} steps, or a classifier's outputs"
            )
        pure, repeats = turns >= TURNS.value, periodic >= PERIODIC.value
        if not (pure or repeats) or few_batches(run):
            return None
        loss = rows(run, "loss")
        span = (int(loss.steps[0]), end_of(run))
        evidence: list[Evidence] = []
        if pure:
            evidence.append(
                Evidence(
                    text=f"{turns:.0%} of the batches are nearly of one class, and of another one than the batch "
                    "measured before",
                    columns=("outputs.top_share", "outputs.top_class"),
                    steps=span,
                    value=turns,
                    threshold=TURNS.value,
                )
            )
        if repeats:
            evidence.append(
                Evidence(
                    text=f"the loss repeats with the epoch of {period} steps: correlation {periodic:.2f} and more "
                    f"one to three epochs apart, {neighbours:.2f} from one step to the next",
                    columns=("loss", "epoch"),
                    steps=span,
                    value=periodic,
                    threshold=PERIODIC.value,
                )
            )
        drifts = pure or neighbours >= NEIGHBOURS.value
        return Finding(
            code=self.code,
            name="unshuffled_data",
            title="batches are sorted" if drifts else f"the order of the data repeats every {period} steps",
            severity="warning" if drifts else "note",
            spans=(span,),
            evidence=tuple(evidence),
            causes=ranked(
                suspect(
                    "unshuffled_data",
                    0.7,
                    5.0 if drifts else 2.0,
                    1.0 if repeats or fallen(run) > 0 else 0.2,  # a model that was lost answers with one class by turns
                    2.0 if repeats else 1.0,
                    why="batches of one class by turns" if pure else "the loss has the epoch's period",
                    remedies=(Remedy(text="Shuffle: DataLoader(shuffle=True), or a larger shuffle buffer."),),
                ),
                suspect(
                    "repeated_batch", 0.1, 2.0 if repeats and not drifts else 0.5, why="the same batches come back"
                ),
            ),
            test=Test(text="Count the labels of successive batches.", check="input_statistics"),
        )


def _turns(run: Log) -> float:
    """Share of batches of nearly one class whose top class differs from that of the batch before."""
    needed = ("outputs.top_share", "outputs.top_class", "outputs.width")
    if any(name not in run.columns for name in needed):
        return float("nan")
    share, index, width = (rows(run, name) for name in needed)
    if len(share) != len(index):  # of one signal: a part of the log is lost
        return float("nan")
    known = np.isfinite(share.values) & np.isfinite(index.values)
    if known.sum() < LEAST // 2 or not np.nanmax(width.values) >= 2:
        return float("nan")
    pure = share.values[known] >= PURE
    moved = np.diff(index.values[known]) != 0
    return float((pure[1:] & moved & pure[:-1]).mean())


def _periodic(run: Log) -> tuple[float, int, float]:
    """Least correlation of the loss's residual one to three epochs apart, their length, and that from step to step."""
    unknown = float("nan")
    if "epoch" not in run.columns:
        return unknown, 0, unknown
    epoch, loss = run["epoch"], run["loss"]
    steps, passes = np.asarray(epoch.steps), np.asarray(epoch.values, dtype=np.float64)
    if len(steps) < LEAST or not (np.isfinite(passes).all() and passes[-1] > passes[0]):
        return unknown, 0, unknown
    period = round(float((steps[-1] - steps[0]) / (passes[-1] - passes[0])))
    values = np.asarray(loss.values, dtype=np.float64)
    whole = len(loss.steps) == int(loss.steps[-1] - loss.steps[0]) + 1
    if period < SHORTEST or not whole or len(values) < 2 * period + LEAST or not np.isfinite(values).all():
        return unknown, period, unknown
    values = np.log(np.maximum(values, 1e-12)) if values.min() > 0 else values
    sums = np.cumsum(np.concatenate(([0.0], values)))
    centre = (sums[period:] - sums[:-period]) / period
    offset = period // 2
    residual = values[offset : offset + len(centre)] - centre
    apart = [_correlation(residual, epochs * period) for epochs in (1, 2, 3)]
    if len(residual) < 2 * period + LEAST or np.isnan(apart).any():  # not long enough to tell
        return unknown, period, unknown
    return min(apart), period, _correlation(residual, 1)


def _correlation(x: np.ndarray, lag: int) -> float:
    """Correlation of ranks between a series and itself `lag` places on: heavy tails must not make it."""
    one, other = (np.argsort(np.argsort(part)).astype(np.float64) for part in (x[:-lag], x[lag:]))
    if len(one) < LEAST // 2:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])
