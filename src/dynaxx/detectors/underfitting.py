"""Underfitting: training and validation loss both stop high, and what keeps them there."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Severity, Test, Threshold
from dynaxx.detectors._acts import advice, scale_rate
from dynaxx.detectors._doubt import weigh_doubt
from dynaxx.detectors._dynamics import dynamics
from dynaxx.detectors._facts import checked, group, planned
from dynaxx.detectors._progress import progress
from dynaxx.detectors._read import LOSS, VALIDATION, optional, unbroken
from dynaxx.detectors._start import trained
from dynaxx.detectors._validation import need_fall, validation
from dynaxx.detectors._weigh import Suspect, ranked
from dynaxx.errors import NotApplicable

GAINED = Threshold(
    value=0.35,
    origin="share of the first loss that is gained at most; classifiers and language models of the rescue suite gain "
    "0.6 and more",
    false_alarms="0 of 65 healthy rescue runs; what cannot be learned looks alike, so that it is an alarm "
    "only with a second sign",
)
CLOSE = Threshold(
    value=1.25,
    origin="validation over training loss at most: above it the training set is fitted better than what it stands for",
    false_alarms="with GAINED",
)
SHRUNK = Threshold(
    value=0.7,
    origin="norm of the weights over its first value at the end: the decay takes more than the gradient gives; healthy "
    "nets of the rescue suite grow",
    false_alarms="with GAINED",
)
BELOW = 0.95
"""Validation over training loss, medians over many steps of a run that stands still: what training has beside the data,
or its labels, holds the training loss up."""
DISTURBED = 0.8
"""Best validation over the present one below which the run is worse than it was: no lack of capacity."""
FLAT = 0.03
"""Largest fall by share in the next tenth of the run that may still be there: more is progress."""


class Underfitting(Detector):
    """Both losses high, close to each other and flat, at half of the planned steps and later.

    A note by itself: noise in the data looks alike, and a model that was trained before has little left to gain. A
    warning where the log shows what holds the model back: weights that decay shrinks, regularisation that costs more in
    training than in validation, or a copy that fits one batch.
    """

    code = "D12"
    title = "underfitting"
    reads = (LOSS, VALIDATION)

    def detect(self, run: Log) -> Finding | None:
        """Compare both losses with the first."""
        loss, found = unbroken(run, LOSS, 120), validation(run)
        need_fall(found)
        last = int(loss.steps[-1])
        if last < 0.5 * (planned(run) or 0):
            raise NotApplicable(f"step {last} of {planned(run)} is too early to call a high loss underfitting")
        now = progress(loss)
        ratio = found.now / max(now.level, 1e-12)
        if not 0.03 < now.gained < float(GAINED) or ratio > float(CLOSE) or now.trend.slope > 3 * now.trend.error:
            return None
        if float(found.smooth.min()) < DISTURBED * found.now:
            return None
        ahead = 0.1 * (planned(run) or last)
        if -now.trend.slope * ahead / abs(now.level) > FLAT:
            return None
        shrunk, decay = _shrunk(run), group(run, "weight_decay")
        fits = checked(run, "overfit_one_batch").get("solved")
        why = f"both losses stop at {now.gained:.0%} gained"
        seen = dynamics(run, now.first, now.last)
        capacity = Suspect("too_little_capacity", 0.25, (advice("Widen or deepen the model."),))
        capacity.weigh(fits, 0.6, "", against=2)
        capacity.weigh(shrunk is not None and shrunk < float(SHRUNK), 0.3, "")
        weights = Suspect("weight_decay_too_high", 0.15, (advice("Lower the weight decay tenfold."),))
        weights.weigh(
            None if shrunk is None else shrunk < float(SHRUNK),
            12,
            f"the weights shrank to {shrunk or 0:.0%} of their first norm",
            against=0.3,
        )
        weights.weigh(decay >= 0.2, 2, f"weight decay {decay:g}", against=0.6)
        below, costs = ratio < BELOW, checked(run, "eval_train_gap").get("differs")
        said = f"validation loss is {ratio:.2f} of the training loss"
        strong = Suspect("regularisation_too_strong", 0.2, (advice("Lower dropout, augmentation or label smoothing."),))
        strong.weigh(below, 6, said, against=0.5)
        strong.weigh(costs, 5, "one batch costs more in training mode", against=0.15)
        noisy = Suspect("label_noise", 0.2, (advice("Look at examples that never fit."),))
        noisy.weigh(below, 4, said)
        noisy.weigh(fits, 2, "one batch alone can be fitted")
        noisy.weigh(None if costs is None else not costs, 2, "one batch costs the same in both modes", against=0.3)
        weigh_doubt(run, strong, noisy)
        low = Suspect("learning_rate_too_low", 0.15, (scale_rate(3.0, None, why),))
        low.weigh(
            None if seen.agreement is None else seen.agreement > 0.3,
            3,
            "gradients of different batches agree",
            against=0.6,
        )
        low.weigh(
            None if seen.margin is None else seen.margin > 100,
            4,
            f"stability margin {seen.margin or 0:.3g}",
            against=0.6,
        )
        causes = ranked(capacity, weights, strong, noisy, low)
        held = below or causes[0].confidence >= 0.6
        severity: Severity = "warning" if held and not trained(run) else "note"
        return Finding(
            code=self.code,
            name="underfitting",
            title=f"both losses have stopped high: {now.gained:.0%} of the first loss gained at step {last}",
            severity=severity,
            spans=((now.first, last),),
            evidence=(
                Evidence(
                    text=f"training loss {now.start:.4g} → {now.level:.4g}, validation {found.now:.4g}; slope "
                    f"{now.trend.slope:+.2g} ± {now.trend.error:.2g} a step",
                    columns=(loss.name, found.track.name),
                    steps=(now.first, last),
                    value=now.gained,
                    threshold=float(GAINED),
                ),
            ),
            causes=causes,
            test=Test(
                text="Take the loss of one batch in both modes: unlike, it is the regularisation; alike, the labels.",
                check="eval_train_gap",
            )
            if below and costs is None
            else Test(
                text="Train a copy on one batch: if it fits, the model can, and the data or the regularisation hold it "
                "back; if not, capacity or the rate does.",
                check="overfit_one_batch",
            ),
        )


def _shrunk(run: Log) -> float | None:
    """Norm of the weights now over its first value."""
    norms = optional(run, "parameter_norm")
    if norms is None or len(norms) < 8:
        return None
    total = norms.total().finite.values
    return float(np.median(total[-3:]) / total[0]) if len(total) >= 8 and total[0] > 0 else None
