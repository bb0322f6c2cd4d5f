"""A momentum whose memory takes up a good part of the run: each step follows gradients of long ago."""

import math

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Test, Threshold
from dynaxx.detectors._acts import lower_momentum
from dynaxx.detectors._facts import planned
from dynaxx.detectors._read import LOSS, track
from dynaxx.detectors._weigh import ranked, suspect
from dynaxx.errors import NotApplicable

SHARE = Threshold(
    value=0.2,
    origin="memory 1/(1 − β) over the planned steps: an exponential mean settles after three memories, so that from a "
    "fifth on 60 % of the run are spent before the first steps are forgotten",
    false_alarms="none possible at β = 0.9 beyond 50 steps, at 0.95 beyond 100, at 0.99 beyond 500",
)
LEAST = 20
"""Steps of the log from which it is said: the settings are known at once, but a run that is stopped is no matter."""


class MomentumMemory(Detector):
    """1/(1 − β) against the planned steps, for momentum and for Adam's β₁.

    A mean over gradients that old points where the loss no longer falls: the weights overshoot, and a change of the
    rate shows only after so many steps. In gradient descent with momentum it multiplies the rate as well.
    """

    code = "D38"
    title = "momentum remembers too long"
    reads = (LOSS,)

    def detect(self, run: Log) -> Finding | None:
        """Compare the settings with the plan."""
        steps, beta = planned(run), _momentum(run)
        if steps is None:
            raise NotApplicable("the planned number of steps is unknown: the memory cannot be compared with it")
        if beta is None:
            raise NotApplicable("the log does not say how much momentum the optimizer has")
        loss = track(run, LOSS, LEAST)
        memory = 1 / max(1 - beta, 1 / (10 * steps))
        share = memory / steps
        if share < float(SHARE):
            return None
        usual = max(0.9, 1 - 50 / steps)
        why = f"momentum {beta:.4g} averages over {memory:.0f} steps, {share:.0%} of the {steps} planned"
        return Finding(
            code=self.code,
            name="momentum_memory",
            title=why,
            severity="warning",
            spans=((int(loss.steps[0]), int(loss.steps[-1])),),
            evidence=(
                Evidence(
                    text=f"{why}; the first steps weigh e⁻³ only after {math.ceil(3 * memory)} steps",
                    columns=("manifest",),
                    value=share,
                    threshold=float(SHARE),
                ),
            ),
            causes=ranked(
                suspect(
                    "momentum_too_high",
                    0.75,
                    2.0 if share > 2 * float(SHARE) else 1.0,
                    why=why,
                    remedies=(lower_momentum(usual, why),),
                ),
            ),
            test=Test(text="Train a copy with a momentum of 0.9 for one memory and compare the losses."),
        )


def _momentum(run: Log) -> float | None:
    """The largest momentum or β₁ over the optimizer's groups."""
    found: list[float] = []
    for group in (run.manifest.get("optimizer") or {}).get("groups") or ():
        for key in ("momentum", "beta", "betas"):
            first = str(group.get(key)).strip("()[] ").split(",")[0]
            try:
                found.append(float(first))
            except ValueError:
                continue
    return max((beta for beta in found if 0 <= beta < 1), default=None)
