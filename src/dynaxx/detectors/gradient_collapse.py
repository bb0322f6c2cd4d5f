"""Gradients collapse in all layers at once: the run was thrown into a flat region, or a bad minimum."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Test, Threshold
from dynaxx.detectors._acts import advice, roll_back, scale_rate
from dynaxx.detectors._dynamics import dynamics, too_high
from dynaxx.detectors._progress import opening
from dynaxx.detectors._read import LOSS, optional, track, unbroken
from dynaxx.detectors._weigh import Suspect, ranked
from dynaxx.errors import NotApplicable

FALL = Threshold(
    value=100.0,
    origin="two orders of magnitude below the typical norm of the run so far, in every layer: a healthy gradient "
    "falls no faster than the loss does",
    false_alarms="0 of 65 healthy rescue runs, asked at eight moments each (26 000 steps); seen when it was set",
)
UNSOLVED = Threshold(
    value=0.3,
    origin="and the loss still above this share of its first value: a solved training set has no gradient either",
    false_alarms="with FALL",
)
ROWS = 20
"""Steps over which the fall must last: their median is compared."""


class GradientCollapse(Detector):
    """Median gradient norm of the last steps against the usual one, by layer; the layer that fell least decides.

    Relative to the loss: gradients of a loss that falls a thousandfold fall too.
    """

    code = "D28"
    title = "gradients collapse in all layers"
    reads = ("grad_norm", LOSS)

    def detect(self, run: Log) -> Finding | None:
        """Compare the last steps with the steps before."""
        norms, loss = track(run, "grad_norm", 3 * ROWS).finite, unbroken(run, LOSS, 3 * ROWS)
        if len(norms) < 3 * ROWS:
            raise NotApplicable(f"grad_norm has {len(norms)} finite rows; {3 * ROWS} are needed")
        values = norms.values if norms.values.ndim == 2 else norms.values[:, None]
        stride = max(1, len(values) // 1000)
        usual = np.quantile(values[:-ROWS:stride], 0.75, axis=0)
        alive = usual > 0
        if not alive.any():
            raise NotApplicable("no layer has a gradient in a quarter of the steps: nothing can collapse")
        values, usual = values[:, alive], usual[alive]
        now = np.median(values[-ROWS:], axis=0)
        ratio = float(np.max(now / np.maximum(usual, 1e-300)))
        level = float(np.median(loss.values[-ROWS:]))
        if ratio * float(FALL) > 1 or level < float(UNSOLVED) * opening(loss):
            return None
        low = np.flatnonzero((values < usual / np.sqrt(float(FALL))).all(axis=1))
        breaks = np.flatnonzero(np.diff(low) > ROWS)
        row = int(low[0 if len(breaks) == 0 else breaks[-1] + 1])
        begin, last = int(norms.steps[row]), int(norms.steps[-1])
        labels = tuple(name for name, live in zip(norms.labels, alive, strict=True) if live) if norms.labels else ()
        return Finding(
            code=self.code,
            name="gradient_collapse",
            title=f"all gradients {1 / max(ratio, 1e-12):.3g} times smaller since step {begin}, loss still {level:.3g}",
            severity="warning",
            spans=((begin, last),),
            layers=labels,
            evidence=(
                Evidence(
                    text=f"the layer that fell least has {ratio:.2g} of its usual norm; the loss has "
                    f"{level / max(opening(loss), 1e-300):.0%} of its first value",
                    columns=("grad_norm", loss.name),
                    steps=(begin, last),
                    value=ratio,
                    threshold=1 / float(FALL),
                ),
            ),
            causes=_causes(run, begin, row, values),
            test=Test(
                text="Train a copy on one batch from here: a flat region is not left, a healthy state fits it.",
                check="overfit_one_batch",
            ),
        )


def _causes(run: Log, begin: int, row: int, values: np.ndarray):  # noqa: ANN202
    why = f"gradients collapsed at step {begin}"
    total = np.sqrt((values**2).sum(axis=1))
    before = total[max(0, row - 30) : row + 1]
    usual = float(np.median(total[: max(row, 1)]))
    thrown = bool(len(before) and usual > 0 and before.max() > 5 * usual)
    zeros = optional(run, "activations.dead")
    dead = None
    if zeros is not None:
        late = zeros.values[zeros.steps >= begin]
        late = late[np.isfinite(late)]
        dead = bool(late.max() > 0.5) if len(late) else None
    rate = too_high(
        Suspect("learning_rate_too_high", 0.35, (roll_back(begin, why, pass_data=False), scale_rate(0.3, None, why))),
        dynamics(run, max(1, begin - 50), begin),
    )
    rate.weigh(thrown, 4, "a gradient five times the usual one came right before", against=0.7)
    units = Suspect("dead_units", 0.2, (roll_back(begin, why), advice("Use an activation with a slope everywhere.")))
    units.weigh(dead, 6, "more than half of the units of a layer are dead", against=0.3)
    saturated = Suspect("saturated_activations", 0.12, (advice("Normalise inputs and activations."),))
    found = optional(run, "activations.saturated")
    high = None if found is None or not np.isfinite(found.values).any() else bool(np.nanmax(found.values[-5:]) > 0.5)
    saturated.weigh(high, 6, "more than half of the activations of a layer are saturated", against=0.3)
    valley = Suspect("flat_valley", 0.15, (scale_rate(3.0, 100, why),))
    valley.weigh(not thrown, 1.5, "nothing unusual came before", against=0.6)
    return ranked(rate, units, saturated, valley)
