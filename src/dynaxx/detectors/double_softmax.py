"""Outputs that are probabilities already and are normalised a second time by the loss."""

import math

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Remedy, Test, Threshold
from dynaxx.detectors._read import QUIETLY, end_of, rows
from dynaxx.detectors._weigh import ranked, suspect
from dynaxx.errors import NotApplicable

NORMALISED = Threshold(
    value=0.99,
    origin="share of output vectors that sum to 1 without a negative entry (UMLAUT 2021, TheDeepChecker 2022)",
    false_alarms="no alarm in 95 healthy runs of the rescue suite, 38,000 steps, asked every 25",
)
DECIDED = Threshold(
    value=3.0,
    origin="nats of a guess above ln C: outputs so decided that their cross-entropy leaves a band of one nat",
    false_alarms="no alarm in 95 healthy runs of the rescue suite, 38,000 steps, asked every 25",
)
LEAST = 50
"""Steps that the loss must have stayed in its band."""
SLACK = 1e-3


class DoubleSoftmax(Detector):
    """With z ≥ 0 and Σz = 1, the cross-entropy of softmax(z) lies in [ln(e + C − 1) − 1, ln(e + C − 1)]: never near 0.

    So it is seen where outputs are probabilities, or far more decided than such a loss, and the loss stays in the band.
    Outputs that are probabilities and are read as such lose less than the band's lower end once the model learns.
    """

    code = "D35"
    title = "outputs normalised twice"
    reads = ("outputs.normalised", "outputs.guess_loss", "outputs.width", "loss")

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """Probabilities, or decided logits, with a loss that cannot leave the band."""
        normalised, guess = rows(run, "outputs.normalised", least=3), rows(run, "outputs.guess_loss", least=3)
        width, loss = rows(run, "outputs.width", least=1), rows(run, "loss", least=LEAST)
        if not np.isfinite(width.values[0]) or width.values[0] < 2:
            raise NotApplicable("the model returns no vectors of two entries or more")
        classes = round(float(width.values[0]))
        high = math.log(math.e + classes - 1)
        low = high - 1
        values = loss.values[np.isfinite(loss.values)]
        if len(values) < LEAST or values.min() < low - SLACK or values.max() > high + SLACK:
            return None
        share = float(np.median(normalised.values))
        decided = float(np.median(guess.values[-3:])) - math.log(classes)
        if not (share >= NORMALISED.value or decided >= DECIDED.value):
            return None
        span = (int(loss.steps[0]), end_of(run))
        inside = share >= NORMALISED.value
        near = float(np.median(values[-LEAST:])) <= low + 0.25
        return Finding(
            code=self.code,
            name="double_softmax",
            title=f"the loss cannot fall below {low:.3g}: outputs are normalised twice",
            severity="warning",
            spans=(span,),
            evidence=(
                Evidence(
                    text=f"{share:.0%} of the output vectors are probabilities"
                    if inside
                    else f"outputs are {decided:.1f} nats from indifferent, which the loss does not show",
                    columns=("outputs.normalised",) if inside else ("outputs.guess_loss",),
                    steps=span,
                    value=share if inside else decided,
                    threshold=NORMALISED.value if inside else DECIDED.value,
                ),
                Evidence(
                    text=f"every loss lies between {values.min():.3g} and {values.max():.3g}; probabilities that are "
                    f"normalised again lose {low:.3g} to {high:.3g}",
                    columns=("loss",),
                    steps=span,
                    value=float(values.min()),
                    threshold=low,
                ),
            ),
            causes=ranked(
                suspect(
                    "double_softmax",
                    0.8,
                    5.0 if inside else 2.0,
                    2.0 if near else 1.0,
                    why="the loss stays in the band of a second softmax",
                    remedies=(Remedy(text="Give the loss logits: take the softmax out of the model."),),
                ),
                suspect(
                    "learning_rate_too_low",
                    0.2,
                    0.1 if near else 1.0,
                    why="the loss has not left the neighbourhood of ln C",
                ),
            ),
            test=Test(
                text="Fit one batch on a copy: a loss that stops at the lower end of the band is normalised twice.",
                check="overfit_one_batch",
            ),
        )
