"""Grokking under way: the training set is solved, the validation not yet, and the weights shrink."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Threshold
from dynaxx.detectors._acts import advice
from dynaxx.detectors._facts import group
from dynaxx.detectors._progress import opening
from dynaxx.detectors._read import LOSS, VALIDATION, track, unbroken
from dynaxx.detectors._validation import validation
from dynaxx.detectors._weigh import Suspect, ranked

SOLVED = Threshold(
    value=0.05,
    origin="training loss below this share of its first value: the training set is solved (Power 2022, figure 1)",
    false_alarms="a note at any rate",
)
APART = Threshold(
    value=10.0,
    origin="and the validation loss so many times the training loss",
    false_alarms="a note at any rate",
)


class Grokking(Detector):
    """Training loss solved, validation far above it and not getting worse, weight norm falling (Power 2022, Liu 2022).

    A note: nothing is wrong, and stopping now would miss what may come.
    """

    code = "D26"
    title = "grokking under way"
    reads = (LOSS, VALIDATION, "parameter_norm")

    def detect(self, run: Log) -> Finding | None:
        """Compare both losses over the last third of the evaluations."""
        found, loss = validation(run), unbroken(run, LOSS, 60)
        third = max(3, len(found.track) // 3)
        begin = int(found.track.steps[-third])
        train = float(np.nanmedian(found.train[-third:]))
        now = found.now
        if not 0 <= train < float(SOLVED) * opening(loss) or now < float(APART) * max(train, 1e-12):
            return None
        if now < 0.2 * float(found.track.values[0]):
            return None
        rising = float(np.median(found.track.values[-third:])) > 1.1 * float(
            np.median(found.track.values[-2 * third : -third])
        )
        norm = track(run, "parameter_norm").total().finite
        before, after = norm.between(0, begin), norm.between(begin, norm.steps[-1])
        if rising or len(before) == 0 or len(after) < 2:
            return None
        shrunk = 1 - float(after.values[-1]) / float(before.values[-1])
        decay = group(run, "weight_decay")
        if shrunk < 0.02 or decay <= 0:
            return None
        cause = Suspect("grokking", 0.5, (advice("Go on: keep the weight decay and do not stop early."),))
        cause.weigh(decay > 0, 2, f"weight decay {decay:g} pulls", against=0.4)
        cause.weigh(shrunk > 0.02, 2, f"the weights shrank by {shrunk:.1%}")
        other = Suspect("overfitting", 0.35, (advice("If the validation loss stays, regularise or gather more data."),))
        return Finding(
            code=self.code,
            name="grokking",
            title=f"training solved at {train:.2g}, validation still {now:.3g}, weights shrinking",
            severity="note",
            spans=((begin, int(found.track.steps[-1])),),
            evidence=(
                Evidence(
                    text=f"training loss {train:.3g}, {train / opening(loss):.1%} of its first value; validation loss "
                    f"{now / max(train, 1e-12):.0f} times that and not rising",
                    columns=(loss.name, found.track.name),
                    steps=(begin, int(found.track.steps[-1])),
                    value=now / max(train, 1e-12),
                    threshold=float(APART),
                ),
                Evidence(
                    text=f"the norm of the weights fell by {shrunk:.1%} since step {begin}",
                    columns=("parameter_norm",),
                    value=shrunk,
                ),
            ),
            causes=ranked(cause, other),
        )
