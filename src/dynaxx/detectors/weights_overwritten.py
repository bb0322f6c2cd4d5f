"""Weights that change between two steps by more than the optimizer moves them: a flipped bit, or another writer."""

from typing import NamedTuple

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Test, Threshold
from dynaxx.detectors._acts import advice, roll_back
from dynaxx.detectors._read import QUIETLY, Track, end_of, track
from dynaxx.detectors._weigh import ranked, suspect
from dynaxx.errors import NotApplicable

BEYOND = Threshold(
    value=30.0,
    origin="change of a layer's norm over the largest movement that its updates made in as many steps before; Adam can "
    "lengthen them 7-fold in ten steps (see _dynamics.BEYOND), four times that is out of its reach",
    false_alarms="none in 90 healthy runs of the rescue suite, 36 000 steps",
)
SHARE = Threshold(
    value=0.3,
    origin="and of the layer's own norm: a smaller jump is absorbed",
    false_alarms="with BEYOND",
)
ALONE = Threshold(
    value=5.0,
    origin="and every other layer's change within this factor of its own updates: a diverging step moves them all",
    false_alarms="with BEYOND",
)
CALM = 3.0
"""Largest gradient over the largest of the 64 steps before, up to which gradients are as ever."""
BEFORE = 8
"""Rows that show a layer's usual movement."""


class _Jump(NamedTuple):
    step: int
    layer: str
    before: float
    after: float
    beyond: float


class WeightsOverwritten(Detector):
    """|‖θ_l‖ₜ − ‖θ_l‖ₛ| against (t − s) · max ‖Δθ_l‖ of the rows before, layer by layer: one layer leaps alone.

    By the triangle inequality the norm cannot change by more than the updates in between. Either the update that was
    measured is far smaller than the leap, or it is the leap, with gradients as ever. What the session did itself, a
    rollback or a blend, is in the log as a receipt and is left out.
    """

    code = "D39"
    title = "weights overwritten"
    reads = ("parameter_norm", "update_norm", "grad_norm")

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """Look for the largest leap."""
        found = _largest(run)
        if found is None:
            return None
        end = end_of(run)
        why = f"‖θ‖ of {found.layer} went from {found.before:.3g} to {found.after:.3g} by step {found.step}"
        return Finding(
            code=self.code,
            name="weights_overwritten",
            title=f"{found.layer} leapt at step {found.step}: its norm from {found.before:.3g} to {found.after:.3g}",
            severity="warning",
            spans=((found.step, end),),
            layers=(found.layer,),
            evidence=(
                Evidence(
                    text=f"{why}, {found.beyond:.3g} times what its updates did before; no other layer leapt",
                    columns=("parameter_norm", "update_norm"),
                    steps=(found.step, found.step),
                    value=found.beyond,
                    threshold=float(BEYOND),
                ),
            ),
            causes=ranked(
                suspect(
                    "weights_overwritten",
                    0.8,
                    4.0,
                    why=why,
                    remedies=(
                        roll_back(found.step, why, pass_data=False),
                        advice("Look for code that writes to the weights, and test the machine's memory."),
                    ),
                )
            ),
            test=Test(text="Look at the largest entries of the layer: one of them is far outside of all others."),
        )


def _largest(run: Log) -> _Jump | None:
    norms, moves = track(run, "parameter_norm", BEFORE + 2), track(run, "update_norm", BEFORE + 2)
    slopes = track(run, "grad_norm", BEFORE + 2)
    if norms.values.ndim != 2 or norms.labels != moves.labels or norms.labels != slopes.labels:
        raise NotApplicable("norms of weights, updates and gradients are not by the same layers")
    change = np.abs(np.diff(norms.values, axis=0))
    jump: _Jump | None = None
    for row in np.flatnonzero((change > float(SHARE) * norms.values[:-1]).any(axis=1)):
        first, last = int(norms.steps[row]), int(norms.steps[row + 1])
        usual = moves.between(0, first).finite.values[-2 * BEFORE :]
        own = moves.between(last, last).values
        if row < BEFORE or len(usual) < BEFORE or len(own) == 0 or _acted(run, first, last):
            continue
        gap, size = last - first, norms.values[row]
        reach = gap * np.maximum(usual.max(axis=0), 1e-6 * size)
        beyond = np.where(size > 0, change[row] / reach, 0.0)
        layer = int(np.nanargmax(beyond))
        unmeasured = bool(change[row, layer] > float(BEYOND) * own[0, layer])  # no update of that size was there
        moved = np.maximum(reach, gap * own[0]) if unmeasured else reach
        explained = change[row] <= float(ALONE) * moved
        unmoved = unmeasured or _calm(slopes, layer, first, last)
        if beyond[layer] < float(BEYOND) or change[row, layer] < float(SHARE) * size[layer] or not unmoved:
            continue
        if not np.delete(explained, layer).all() or (jump is not None and beyond[layer] <= jump.beyond):
            continue
        jump = _Jump(
            last, norms.labels[layer], float(size[layer]), float(norms.values[row + 1, layer]), float(beyond[layer])
        )
    return jump


def _calm(slopes: Track, layer: int, first: int, last: int) -> bool:
    """Whether a layer's gradients in between were no larger than before, so that they cannot have moved it so far."""
    before, now = slopes.between(first - 64, first).values[:, layer], slopes.between(first + 1, last).values[:, layer]
    return len(before) >= BEFORE and len(now) > 0 and bool(now.max() <= CALM * before.max())


def _acted(run: Log, first: int, last: int) -> bool:
    """Whether the session itself did something to the run in between."""
    return any(first <= int(event.get("step", -1)) <= last for event in run.events("receipt"))
