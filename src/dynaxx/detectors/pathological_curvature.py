"""Gradients of the middle layers an order of magnitude below those of both ends."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Remedy, Test, Threshold
from dynaxx.detectors._depth import Depth, depth
from dynaxx.detectors._facts import adaptive
from dynaxx.detectors._read import QUIETLY, end_of, fallen, rows
from dynaxx.detectors._remedies import NORMALISE
from dynaxx.detectors._spans import stretches, within
from dynaxx.detectors._weigh import ranked, suspect
from dynaxx.errors import NotApplicable

DIP = Threshold(
    value=1.0,
    origin="decades; spec D22: an order below the ends",
    false_alarms="no alarm in 31 healthy runs of the rescue suite, 12,400 steps, asked every 25",
)
PERSIST = Threshold(
    value=30.0,
    origin="rows on end of a mean over 10",
    false_alarms="no alarm in 31 healthy runs of the rescue suite, 12,400 steps, asked every 25",
)
LEAST_LAYERS = 5
"""Fewer layers have no middle to speak of."""


class PathologicalCurvature(Detector):
    """log₁₀ RMS gradient per parameter of the middle third of the weight layers against the lower of both ends.

    It states the measured condition number λ₁/λ̄, the sharpness over the mean eigenvalue, where the log has them.
    """

    code = "D22"
    title = "middle layers' gradients an order below the ends"
    reads = ("grad_norm",)

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """A dip of a decade that lasts."""
        found = depth(run)
        if len(found.labels) < LEAST_LAYERS:
            raise NotApplicable(f"the model has {len(found.labels)} layers with weights; a middle needs {LEAST_LAYERS}")
        dip, middle = _dip(found)
        spans = stretches(found.steps, dip >= DIP.value, int(PERSIST.value), end_of(run))
        if not spans:
            return None
        size = float(np.median(dip[within(found.steps, spans)]))
        condition = _condition(run)
        evidence = [
            Evidence(
                text=f"gradients per parameter of the middle layers are {size:.1f} decades below both ends",
                columns=("grad_norm",),
                steps=(spans[0][0], spans[-1][1]),
                value=size,
                threshold=DIP.value,
            )
        ]
        if np.isfinite(condition):
            evidence.append(
                Evidence(
                    text=f"the largest eigenvalue of the Hessian is {condition:.3g} times the mean one",
                    columns=("sharpness", "trace.mean"),
                    value=condition,
                )
            )
        follows = not adaptive(run)
        return Finding(
            code=self.code,
            name="pathological_curvature",
            title=f"the middle layers' gradients are {size:.1f} decades below both ends",
            severity="warning" if follows and size >= 2 * DIP.value and not fallen(run) > 0.3 else "note",
            spans=spans,
            layers=middle,
            evidence=tuple(evidence),
            causes=ranked(
                suspect(
                    "ill_conditioned",
                    0.6,
                    2.0 if condition > 1e3 else 1.0,
                    why=f"λ₁/λ̄ = {condition:.3g}" if np.isfinite(condition) else "layers differ in their gradients",
                    remedies=(
                        Remedy(text="Use an optimizer that adaptive by layer or coordinate (AdamW, SOAP)."),
                        NORMALISE,
                    ),
                ),
                suspect(
                    "vanishing_gradients",
                    0.25,
                    2.0 if size > 2 else 0.7,
                    why="the middle passes little on",
                    remedies=(NORMALISE,),
                ),
            ),
            test=Test(text="Spectrum of the Hessian by layer: `dynaxx probe spectrum --by-layer` on a checkpoint."),
        )


def _dip(found: Depth) -> tuple[np.ndarray, tuple[str, ...]]:
    """By how much the middle third is below the lower end, in decades, and its layers."""
    count = len(found.labels)
    third = count // 3
    first, last = found.ends()
    return np.minimum(first, last) - found.level[:, third : count - third].mean(axis=1), found.labels[
        third : count - third
    ]


def _condition(run: Log) -> float:
    """Sharpness over the mean eigenvalue at the last step where both were measured."""
    if "sharpness" not in run.columns or "trace.mean" not in run.columns:
        return float("nan")
    top, mean = rows(run, "sharpness"), rows(run, "trace.mean")
    if len(top.steps) == 0 or len(mean.steps) == 0 or top.steps[-1] != mean.steps[-1] or mean.values[-1] <= 0:
        return float("nan")
    return float(top.values[-1] / mean.values[-1])
