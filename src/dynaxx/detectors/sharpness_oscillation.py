"""Sharpness goes up and down by turns while the loss merely looks noisy: hopping between two steep valleys."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Test, Threshold
from dynaxx.detectors._acts import advice, scale_rate
from dynaxx.detectors._progress import progress
from dynaxx.detectors._read import LOSS, optional, track, unbroken
from dynaxx.detectors._weigh import Suspect, ranked
from dynaxx.errors import NotApplicable
from dynaxx.numerics.robust_scale import CONSISTENT

TURNS = Threshold(
    value=0.8,
    origin="share of measurements that turn the direction; of independent values two thirds do, of 12 and more values "
    "0.8 is two deviations above",
    false_alarms="a note at any rate unless the loss stands still",
)
SWING = Threshold(
    value=0.35,
    origin="typical change between measurements of a factor 1.4; the tracked eigenvalue is exact to a percent",
    false_alarms="with TURNS",
)
LEAST = 12
"""Fewest measurements: fewer turns happen by chance."""


class SharpnessOscillation(Detector):
    """Turning points and size of the log changes of the largest eigenvalue, over the last measurements.

    At the edge of stability sharpness hovers at 2/η and turns about it while the loss falls on average (Cohen 2021):
    then it is a note, and nothing needs to be done.
    """

    code = "D29"
    title = "sharpness oscillates"
    reads = ("stability_margin.sharpness|sharpness", LOSS)

    def detect(self, run: Log) -> Finding | None:
        """Count turns."""
        found = track(run, self.reads[0], LEAST).finite
        good = found.rows(found.values > 0).rows(slice(-60, None))
        if len(good) < LEAST:
            raise NotApplicable(f"{found.name} has {len(good)} positive values; {LEAST} are needed")
        changes = np.diff(np.log(good.values))
        turns = float(np.mean(np.sign(changes[1:]) != np.sign(changes[:-1])))
        swing = CONSISTENT * float(np.median(np.abs(changes)))
        if turns < float(TURNS) or swing < float(SWING):
            return None
        first, last = int(good.steps[0]), int(good.steps[-1])
        margin = optional(run, "stability_margin")
        near = None if margin is None else margin.finite.between(first, last)
        middle = None if near is None or len(near) == 0 else float(np.median(near.values))
        now = progress(unbroken(run, LOSS, 80))
        falling = now.trend.slope < -2 * now.trend.error
        why = f"sharpness swings by ×{np.exp(swing):.2f}"
        edge = Suspect("edge_of_stability", 0.45, (advice("Nothing needs to be done."),))
        edge.weigh(falling, 4, "the loss falls on average", against=0.2)
        edge.weigh(
            None if middle is None else 0.7 < middle < 1.5, 4, f"the margin hovers at {middle or 0:.2g}", against=0.3
        )
        rate = Suspect("learning_rate_too_high", 0.35, (scale_rate(0.5, None, why),))
        rate.weigh(None if middle is None else middle < 1, 3, f"the stability margin is {middle or 0:.2g}", against=0.4)
        rate.weigh(falling, 0.4, "", against=2.5)
        ill = Suspect("ill_conditioned", 0.15, (advice("Use a preconditioned optimizer or average the weights."),))
        return Finding(
            code=self.code,
            name="sharpness_oscillation",
            title=f"sharpness turns at {turns:.0%} of {len(good)} measurements, by ×{np.exp(swing):.2f}",
            severity="note" if falling or middle is None or middle > 1 else "warning",
            spans=((first, last),),
            evidence=(
                Evidence(
                    text=f"{turns:.0%} of {len(good)} measurements turn back, typical change ×{np.exp(swing):.2f}",
                    columns=(found.name,),
                    steps=(first, last),
                    value=turns,
                    threshold=float(TURNS),
                ),
            ),
            causes=ranked(edge, rate, ill),
            test=Test(
                text="Measure the curvature along the gradient: above 2/η the steps overshoot.",
                check="directional_curvature",
            ),
        )
