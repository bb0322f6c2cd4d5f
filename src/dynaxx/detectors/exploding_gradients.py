"""Gradients that grow by orders of magnitude: over the steps, or from the last layers to the first."""

from typing import NamedTuple

import numpy as np

from dynaxx.core.findings import Cause, Detector, Evidence, Finding, Log, Severity, Test, Threshold
from dynaxx.detectors._acts import skip
from dynaxx.detectors._depth import depth
from dynaxx.detectors._facts import adaptive
from dynaxx.detectors._inputs import scale_of_inputs
from dynaxx.detectors._read import QUIETLY, end_of, fallen, rows, track
from dynaxx.detectors._remedies import FAN_IN, NORMALISE, STANDARDISE, clip, rate
from dynaxx.detectors._spans import stretches
from dynaxx.detectors._start import excess
from dynaxx.detectors._weigh import ranked, suspect
from dynaxx.errors import NotApplicable

GROWTH = Threshold(
    value=2.0,
    origin="decades above the median of the run's first quarter; SPAM (2025) reports spikes up to 3 decades",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)
PERSIST = Threshold(
    value=5.0,
    origin="rows on end; one batch of a heavy-tailed stream reaches the growth for a row, rarely for two",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)
DROP = Threshold(
    value=2.0,
    origin="decades per parameter from the last third of the depth to the first; AutoTrainer (2021) alarms at 70-fold",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)
DEPTH_PERSIST = 20
"""Track on end for the profile over depth, as for vanishing gradients."""
BASELINE = 20
"""Track that the level of the start is taken from at least."""


class _Symptom(NamedTuple):
    spans: tuple[tuple[int, int], ...]
    over_steps: bool
    size: float
    level: float
    sudden: bool
    evidence: Evidence


class ExplodingGradients(Detector):
    """Total gradient norm two decades above its level in the first quarter of the run, or three decades over depth.

    Not finite gradients are another detector's matter; here they make it critical.
    """

    code = "D2"
    title = "exploding gradients"
    reads = ("grad_norm",)

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """Growth over the steps first, then the profile over depth."""
        found = _over_steps(run) or _over_depth(run)
        if found is None:
            return None
        return Finding(
            code=self.code,
            name="exploding_gradients",
            title=f"gradients explode: {found.size:.1f} decades "
            + ("above their level at the start" if found.over_steps else "from the last to the first layers"),
            severity=_severity(run, found),
            spans=found.spans,
            evidence=(found.evidence,),
            causes=_causes(run, found),
            test=Test(
                text="Curvature along the gradient against 2/η: above it the rate is too high for this place, below "
                "it the gradient is large because of the data or the model.",
                check="directional_curvature",
            ),
        )


def _over_steps(run: Log) -> _Symptom | None:
    norms = track(run, "grad_norm", 2 * BASELINE).total()  # every row: an explosion must not wait for a thinned one
    with np.errstate(divide="ignore", invalid="ignore"):
        total = np.log10(norms.values)
    finite = np.isfinite(total)
    if finite.sum() < 2 * BASELINE:
        raise NotApplicable(f"grad_norm is finite in {finite.sum()} rows; {2 * BASELINE} are needed")
    first = np.flatnonzero(finite)[: max(BASELINE, int(finite.sum()) // 4)]
    base = float(np.median(total[first]))
    above = np.where(finite, total - base, 0.0) >= GROWTH.value
    spans = stretches(norms.steps, above, int(PERSIST.value), end_of(run))
    if not spans:
        return None
    size = float(np.max(total[above & finite]) - base)
    text = f"the gradient norm is up to {size:.1f} decades above its level of {10**base:.3g} at the start"
    evidence = Evidence(
        text=text,
        columns=("grad_norm",),
        steps=(spans[0][0], spans[-1][1]),
        value=size,
        threshold=GROWTH.value,
    )
    onset = int(np.searchsorted(norms.steps, spans[0][0]))
    before = total[max(0, onset - 5) : onset][finite[max(0, onset - 5) : onset]]
    sudden = len(before) > 0 and bool(total[onset] - np.median(before) >= GROWTH.value)
    return _Symptom(spans, True, size, 10**base, sudden, evidence)


def _over_depth(run: Log) -> _Symptom | None:
    try:
        found = depth(run)
    except NotApplicable:  # too shallow: the growth over the steps has been looked at
        return None
    first, last = found.ends()
    rise = first - last
    spans = stretches(found.steps, rise >= DROP.value, DEPTH_PERSIST, end_of(run))
    if not spans:
        return None
    size = float(np.nanmedian(rise[rise >= DROP.value]))
    evidence = Evidence(
        text=f"gradients per parameter are {size:.1f} decades larger in the first layers than in the last",
        columns=("grad_norm",),
        steps=(spans[0][0], spans[-1][1]),
        value=size,
        threshold=DROP.value,
    )
    level = float(np.median(np.sqrt((rows(run, "grad_norm").values ** 2).sum(axis=1))))
    return _Symptom(spans, False, size, level, False, evidence)


def _severity(run: Log, found: _Symptom) -> Severity:
    if not np.isfinite(rows(run, "grad_norm").values[-1]).all():
        return "critical"
    if not found.over_steps:
        return "note" if adaptive(run) else "warning"
    recovered = found.spans[-1][1] < end_of(run)
    return "note" if recovered and fallen(run) > 0 else "warning"


def _causes(run: Log, found: _Symptom) -> tuple[Cause, ...]:
    onset = found.spans[0][0]
    ratio = _update_ratio_before(run, onset)
    scale = scale_of_inputs(run)
    early, begun = onset <= BASELINE, excess(run)
    clipped = clip(2 * found.level, "twice its median at the start")
    lower = rate(0.3)
    return ranked(
        suspect(
            "learning_rate_too_high",
            0.5,
            _odds(ratio, 0.03, 0.3),
            0.5 if not found.over_steps else 1.3,
            0.2 if begun > 1 else 1.0,
            why=f"before it the largest relative update of a step was {ratio:.2g}"
            if np.isfinite(ratio)
            else "the updates before it were not measured",
            remedies=(lower, clipped),
        ),
        suspect(
            "corrupted_batch",
            0.15,
            8.0 if found.sudden else 0.2,
            why=f"the norm jumped from one step to the next at step {onset}" if found.sudden else "",
            remedies=(skip("outlier", "one batch's gradient is far outside of what it was"),),
        ),
        suspect(
            "exploding_gradients",
            0.3,
            0.5 if found.over_steps else 6.0,
            why="the first layers have the larger gradients"
            if not found.over_steps
            else "the norm grew over the steps",
            remedies=(clipped, NORMALISE),
        ),
        suspect(
            "initialisation_too_large",
            0.15,
            3.0 if early and not found.over_steps else 0.4,
            12.0 if begun > 1 else 0.5,
            0.2 if scale > 5 else 1.0,
            why=f"it holds since step {onset}",
            remedies=(FAN_IN, lower),
        ),
        suspect(
            "inputs_not_normalised",
            0.1,
            _odds(scale, 3.0, 30.0),
            why=f"the inputs have a scale of {scale:.3g}" if np.isfinite(scale) else "",
            remedies=(STANDARDISE,),
        ),
    )


def _odds(value: float, low: float, high: float) -> float:
    """Likelihood ratio of a scale: 1/4 below `low`, 6 above `high`, 1 where it is not known or between."""
    return 1.0 if not np.isfinite(value) else 0.25 if value < low else 6.0 if value > high else 1.0


def _update_ratio_before(run: Log, onset: int) -> float:
    """The largest median relative update of a layer before the onset."""
    if "update_ratio" not in run.columns:
        return float("nan")
    ratio = rows(run, "update_ratio")
    before = ratio.values[ratio.steps <= onset][-BASELINE:]
    before = before[:, np.isfinite(before).all(axis=0)] if len(before) else before
    return float(np.median(before, axis=0).max()) if before.size else float("nan")
