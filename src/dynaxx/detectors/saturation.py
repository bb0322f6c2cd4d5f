"""Bounded activations that sit in the flat ends of their function."""

import numpy as np

from dynaxx.core.findings import Cause, Detector, Evidence, Finding, Log, Remedy, Test, Threshold
from dynaxx.detectors._inputs import scale_of_inputs
from dynaxx.detectors._read import QUIETLY, end_of, rows
from dynaxx.detectors._remedies import FAN_IN, STANDARDISE, rate
from dynaxx.detectors._spans import entries, moving_mean
from dynaxx.detectors._start import largest_step
from dynaxx.detectors._weigh import ranked, suspect
from dynaxx.errors import NotApplicable

SHARE = Threshold(
    value=0.5,
    origin="half of a layer's outputs: DeepDiagnosis (2022) and SageMaker Debugger count half of the units or entries",
    false_alarms="no alarm in 41 healthy runs of the rescue suite, 16,400 steps, asked every 25",
)
PERSIST = Threshold(
    value=20.0,
    origin="rows on end of a mean over 10, as TheDeepChecker's buffer of 10 batches",
    false_alarms="no alarm in 41 healthy runs of the rescue suite, 16,400 steps, asked every 25",
)
WINDOW = 10


class Saturation(Detector):
    """Share of the outputs of tanh, sigmoid and their like at which the slope is under 2 %.

    The activation that ends the model is left out: decided predictions saturate it, as they should.
    """

    code = "D4"
    title = "saturated activations"
    reads = ("activations.saturated",)

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """Half of a layer's outputs or more, that last."""
        share = rows(run, "activations.saturated", least=2 * WINDOW)
        bounded = np.flatnonzero(np.isfinite(share.values).any(axis=0))
        inner = bounded[bounded < len(share.labels) - 1]
        if len(inner) == 0:
            raise NotApplicable("no activation inside the model is bounded, so none can saturate")
        level = moving_mean(share.values[:, inner], WINDOW)
        over = np.where(np.isfinite(level), level, 0.0) >= SHARE.value
        found = {int(inner[j]): s for j, s in entries(share.steps, over, int(PERSIST.value), end_of(run)).items()}
        if not found:
            return None
        size = {i: float(np.nanmax(share.values[over[:, j], i])) for j, i in enumerate(inner) if i in found}
        order = sorted(found, key=lambda i: -size[i])
        spans = found[min(found, key=lambda i: found[i][0][0])]
        start = float(np.nanmedian(share.values[:3, order[0]]))
        lasting = any(found[i][-1][1] >= end_of(run) for i in found)
        return Finding(
            code=self.code,
            name="saturation",
            title=f"{size[order[0]]:.0%} of the outputs of {share.labels[order[0]]} are saturated",
            severity="warning" if lasting else "note",
            spans=spans,
            layers=tuple(share.labels[i] for i in order),
            evidence=(
                Evidence(
                    text=f"{share.labels[order[0]]}: {size[order[0]]:.0%} of the outputs are where the slope is < 2 %",
                    columns=("activations.saturated",),
                    steps=(spans[0][0], spans[-1][1]),
                    value=size[order[0]],
                    threshold=SHARE.value,
                ),
                Evidence(text=f"in the first steps it was {start:.0%}", columns=("activations.saturated",)),
            ),
            causes=_causes(run, start, first=order[0] == int(inner[0])),
            test=Test(
                text="Measure the inputs: a scale far from 1 saturates the first layer from the first step.",
                check="input_statistics",
            ),
        )


def _causes(run: Log, start: float, *, first: bool) -> tuple[Cause, ...]:
    scale, step = scale_of_inputs(run), largest_step(run)
    began = start >= SHARE.value
    return ranked(
        suspect(
            "saturated_activations",
            0.5,
            1.5,
            why="a saturated unit passes next to no gradient on",
            remedies=(Remedy(text="Normalise before the activation, or use one that is not bounded."),),
        ),
        suspect(
            "initialisation_too_large",
            0.3,
            6.0 if began else 0.15,
            0.3 if scale > 5 else 1.0,
            why=f"{start:.0%} were saturated in the first steps already",
            remedies=(FAN_IN,),
        ),
        suspect(
            "inputs_not_normalised",
            0.15,
            20.0 if scale > 5 else 0.2 if scale < 3 else 1.0,
            2.0 if first else 0.5,
            why=f"the inputs have a scale of {scale:.3g}" if np.isfinite(scale) else "the first layer saturates",
            remedies=(STANDARDISE,),
        ),
        suspect(
            "learning_rate_too_high",
            0.3,
            0.15 if began else 1.5,
            3.0 if step > 0.1 else 0.7,
            why=f"it rose from {start:.0%} at the start; early updates were {step:.2g} of the weights",
            remedies=(rate(0.3),),
        ),
    )
