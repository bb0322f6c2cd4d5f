"""Warm-up missing or too short: full-sized first steps throw the run back before it finds its way."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Test, Threshold
from dynaxx.detectors._acts import advice, clip, scale_rate
from dynaxx.detectors._dynamics import LARGE
from dynaxx.detectors._facts import adaptive, planned
from dynaxx.detectors._progress import ceiling, opening
from dynaxx.detectors._read import LOSS, optional, track, unbroken
from dynaxx.detectors._weigh import Suspect, ranked
from dynaxx.errors import NotApplicable

SHORT = Threshold(
    value=0.01,
    origin="share of the planned steps within which a rate that starts at full size reaches half its peak: usual "
    "warm-ups take 1 to 10 % (tuning playbook, 2023)",
    false_alarms="0 of 65 healthy rescue runs, asked at eight moments each (26 000 steps); seen when it was set",
)
THROWN = Threshold(
    value=1.3,
    origin="running median of five losses over the largest of the first three, in the first fifth of the run",
    false_alarms="with COST",
)
COST = Threshold(
    value=0.15,
    origin="share of the planned steps until the loss is back at its first value for good: a catapult (Lewkowycz 2020) "
    "takes a few steps and pays",
    false_alarms="with SHORT",
)
SETTLED = 0.03
"""First updates below this share of the weights are no larger than those of healthy runs later on."""


class WarmupMissing(Detector):
    """A rate at full size from the first steps, and a loss that rises over its first value and takes long to come back.

    A note where it came back soon: a catapult. A warning where it cost a good part of the run.
    """

    code = "D31"
    title = "warm-up missing or too short"
    reads = (LOSS, "lr")

    def detect(self, run: Log) -> Finding | None:
        """Compare the first fifth with the first loss."""
        loss, rates = unbroken(run, LOSS, 60), track(run, "lr", 10).largest().finite
        steps = planned(run) or int(loss.steps[-1])
        if int(loss.steps[0]) > max(5, steps // 100):
            raise NotApplicable(f"the log begins at step {loss.steps[0]}: the start cannot be seen")
        if len(rates) < 10 or not rates.values.max() > 0:
            raise NotApplicable("the learning rate has no positive finite values")
        early = rates.between(0, max(20, steps // 5)).values
        reached = int(rates.steps[int(np.argmax(rates.values >= 0.5 * early.max()))])
        if reached > max(3, float(SHORT) * steps):
            return None
        start, high_start = opening(loss), ceiling(loss)
        head = loss.between(0, max(40, steps // 5)).values
        if start <= 0 or len(head) < 20:
            raise NotApplicable("the first losses are not positive, or too few")
        medians = np.median(np.lib.stride_tricks.sliding_window_view(head, 5), axis=1)
        top = float(medians.max()) / high_start
        if top < float(THROWN):
            return None
        peak = int(loss.steps[int(np.argmax(medians)) + 2])
        after = loss.between(peak, loss.steps[-1])
        low = after.values < 0.9 * start
        run_of = np.convolve(low, np.ones(5), mode="valid") >= 4 if len(low) >= 5 else np.zeros(0, dtype=bool)
        back = int(after.steps[int(np.argmax(run_of))]) if run_of.any() else None
        if back is None and int(loss.steps[-1]) < 2 * float(COST) * steps:
            return None
        cost = (back if back is not None else int(loss.steps[-1])) / steps
        until = "is not back yet" if back is None else f"is back at step {back}"
        why = f"the loss rose {top:.3g}-fold after full-sized first steps"
        ratio = _first_updates(run)
        cold = Suspect("warmup_missing", 0.5, (advice("Raise the rate over the first 5 % of the steps."), clip(why)))
        cold.weigh(back is not None, 2.5, "once settled, the same rate trains", against=0.5)
        cold.weigh(None if ratio is None else ratio > SETTLED, 1.5, f"first updates of {ratio or 0:.2g}", against=0.15)
        cold.weigh(adaptive(run), 1.5, "second moments are estimated from few gradients at first", against=0.8)
        high = Suspect("learning_rate_too_high", 0.4, (scale_rate(0.3, None, why),))
        high.weigh(back is None, 3, "the loss never came back", against=0.4)
        high.weigh(
            None if ratio is None else ratio > float(LARGE), 2, f"first updates of {ratio or 0:.2g} of the weights"
        )
        large = Suspect("initialisation_too_large", 0.1, (advice("Initialise by the fan-in of the layers."),))
        return Finding(
            code=self.code,
            name="warmup_missing",
            title=f"full rate from step {reached}: the loss rose {top:.3g}-fold and {until}",
            severity="warning" if cost > float(COST) else "note",
            spans=((int(loss.steps[0]), back if back is not None else int(loss.steps[-1])),),
            evidence=(
                Evidence(
                    text=f"running median of the loss up to {top:.3g} × its first value, at step {peak}; it {until}",
                    columns=(loss.name,),
                    steps=(int(loss.steps[0]), peak),
                    value=top,
                    threshold=float(THROWN),
                ),
                Evidence(
                    text=f"the rate reached half its early peak at step {reached}", columns=("lr",), value=reached
                ),
            ),
            causes=ranked(cold, high, large),
            test=Test(
                text="Measure the curvature along the gradient at the present weights: below 2/η the rate is fine once "
                "the start is over.",
                check="directional_curvature",
            ),
        )


def _first_updates(run: Log) -> float | None:
    found = optional(run, "update_ratio.total")
    if found is None:
        return None
    values = found.between(2, 20).values
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) >= 3 else None
