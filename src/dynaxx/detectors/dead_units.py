"""Units that are never active, so that nothing reaches the weights before them."""

import numpy as np

from dynaxx.core.findings import Cause, Detector, Evidence, Finding, Log, Test, Threshold
from dynaxx.detectors._depth import drop
from dynaxx.detectors._facts import layer_facts
from dynaxx.detectors._inputs import scale_of_inputs
from dynaxx.detectors._read import QUIETLY, end_of, fallen, rows
from dynaxx.detectors._remedies import FAN_IN, LEAKY, STANDARDISE, rate
from dynaxx.detectors._spans import entries
from dynaxx.detectors._start import excess, largest_step
from dynaxx.detectors._weigh import ranked, suspect
from dynaxx.errors import NotApplicable

SHARE = Threshold(
    value=0.5,
    origin="SageMaker Debugger's DeadRelu: more than half of a layer's units",
    false_alarms="no alarm in 155 healthy runs of the rescue suite, 62,000 steps, asked every 25; 4 notes",
)
ALARM = Threshold(
    value=0.85,
    origin="share of a layer from which it is an alarm: small layers of healthy nets lose up to 0.69",
    false_alarms="none in 155 healthy runs of the rescue suite, asked every 25 of 62,000 steps; at 0.5 one alarmed",
)
PERSIST = Threshold(
    value=8.0,
    origin="rows on end; a unit counts as dead after 8 measured steps without output, so that this is twice the window",
    false_alarms="no alarm in 155 healthy runs of the rescue suite, 62,000 steps, asked every 25; 4 notes",
)
COLLAPSE = Threshold(
    value=0.95,
    origin="nearly the whole layer: what is left cannot carry what the loss needs",
    false_alarms="no alarm in 155 healthy runs of the rescue suite, 62,000 steps, asked every 25; 4 notes",
)


QUIET = 5.0
"""Decades by which gradients of the first step fall over the depth where the weights began too small."""


class DeadUnits(Detector):
    """Share of a layer's units without one non-zero output in 8 measured steps."""

    code = "D3"
    title = "dead units"
    reads = ("activations.dead",)

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """Half of a layer or more, for as long again as it takes to call a unit dead."""
        dead = rows(run, "activations.dead")
        known = np.isfinite(dead.values)
        if known.any(axis=1).sum() < PERSIST.value:
            raise NotApplicable(f"units were looked at in {known.any(axis=1).sum()} windows; 8 are needed")
        over = np.where(known, dead.values, 0.0) >= SHARE.value
        found = entries(dead.steps, over, int(PERSIST.value), end_of(run))
        if not found:
            return None
        now = {i: float(np.nanmax(dead.values[:, i])) for i in found}
        order = sorted(found, key=lambda i: (found[i][0][0], -now[i]))
        spans = found[order[0]]
        lasting = any(found[i][-1][1] >= end_of(run) for i in found)
        collapsed = lasting and max(now.values()) >= COLLAPSE.value and not fallen(run) > 0.3
        start = bool(over[known[:, order[0]], order[0]][:1].any())
        worst = max(now, key=lambda i: now[i])
        return Finding(
            code=self.code,
            name="dead_units",
            title=f"{now[worst]:.0%} of the units of {dead.labels[worst]} are dead",
            severity="critical" if collapsed else "warning" if lasting and max(now.values()) >= ALARM.value else "note",
            spans=spans,
            layers=tuple(dead.labels[i] for i in order),
            evidence=(
                Evidence(
                    text=f"{dead.labels[worst]}: {now[worst]:.0%} of the units gave no output other than zero",
                    columns=("activations.dead",),
                    steps=(spans[0][0], spans[-1][1]),
                    value=now[worst],
                    threshold=SHARE.value,
                ),
                Evidence(
                    text="dead since units were first looked at"
                    if start
                    else f"alive at first, dead from step {spans[0][0]}",
                    columns=("activations.dead",),
                ),
            ),
            causes=_causes(run, start=start, weights=dead.labels[order[0]] in layer_facts(run)),
            test=Test(
                text="One batch on a copy at a tenth of the rate: units that revive were killed by large steps, units "
                "that stay dead began so.",
                check="overfit_one_batch",
            ),
        )


def _causes(run: Log, *, start: bool, weights: bool) -> tuple[Cause, ...]:
    scale, step, begun = scale_of_inputs(run), largest_step(run), excess(run)
    quiet = drop(run, first=True) >= QUIET
    return ranked(
        suspect(
            "dead_units",
            0.6,
            4.0 if start else 0.8,
            0.2 if quiet else 1.0,
            why="they began dead: the biases or the scale of the initial weights keep them below zero"
            if start
            else "nothing brings a dead unit back, as no gradient reaches it",
            remedies=(LEAKY,),
        ),
        suspect(
            "initialisation_too_small",
            0.1,
            20.0 if quiet else 0.2,
            why="gradients of the first step all but vanish over the depth" if quiet else "",
            remedies=(FAN_IN,),
        ),
        suspect(
            "initialisation_symmetric",
            0.1,
            60.0 if start and weights else 0.2,
            why="a layer with weights gives zeros only where they are all zero" if start and weights else "",
            remedies=(FAN_IN,),
        ),
        suspect(
            "learning_rate_too_high",
            0.4,
            0.2 if start else 2.0,
            3.0 if step > 0.1 else 0.7 if step > 0.05 or step == 0 else 0.35,
            0.2 if begun > 1 else 1.0,
            why=f"the largest early relative update of a layer was {step:.2g}" if step > 0 else "",
            remedies=(rate(0.3), LEAKY),
        ),
        suspect(
            "initialisation_too_large",
            0.1,
            15.0 if begun > 1 else 0.5,
            0.2 if scale > 5 else 1.0,
            why=f"the model began {begun:.3g} nats worse than a guess" if begun > 1 else "",
            remedies=(FAN_IN,),
        ),
        suspect(
            "inputs_not_normalised",
            0.1,
            5.0 if scale > 30 else 0.3 if scale < 5 else 1.0,
            why=f"the inputs have a scale of {scale:.3g}" if np.isfinite(scale) else "",
            remedies=(STANDARDISE,),
        ),
    )
