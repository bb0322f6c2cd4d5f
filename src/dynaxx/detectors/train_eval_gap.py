"""Train against evaluation mode: one model, two losses, by dropout or by the statistics of normalisation."""

import math

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Test, Threshold
from dynaxx.detectors._acts import advice
from dynaxx.detectors._doubt import weigh_doubt
from dynaxx.detectors._facts import checked, dropout
from dynaxx.detectors._progress import opening
from dynaxx.detectors._read import LOSS, VALIDATION, unbroken
from dynaxx.detectors._validation import LEAP, Validation, leapt, need_fall, validation
from dynaxx.detectors._weigh import Suspect, ranked
from dynaxx.errors import NotApplicable

BELOW = Threshold(
    value=0.9,
    origin="validation loss over training loss over the last third from which it is worth a note: dropout 0.1 to 0.3 "
    "costs 5 to 25 %, and without anything that training adds the training loss is the lower one",
    false_alarms="a note",
)
TWICE = Threshold(
    value=0.5,
    origin="and from which it may be an alarm: half of the training loss is what training adds",
    false_alarms="at 0.6 one of 54 healthy rescue runs alarmed, with a dropout of 0.57; at 0.5 none",
)
HIGH = Threshold(
    value=0.25,
    origin="and the training loss still above this share of its first value: near zero the ratio says little",
    false_alarms="with BELOW",
)
HELD = Threshold(
    value=0.3,
    origin="an alarm only while the validation loss itself is above this share of its first value: strong dropout that "
    "generalises is a choice",
    false_alarms="with BELOW",
)
DROWNED = Threshold(
    value=0.4,
    origin="or, down to a tenth of its first value, while the validation loss is below this share of the training "
    "loss: dropout of 0.9 leaves 0.28 to 0.37, noisy augmentation 0.57",
    false_alarms="0 of 108 healthy rescue runs at their ends, on which it was set; 1 of 52 fresh ones, by HELD",
)
STAYED = Threshold(
    value=3,
    origin="evaluations from the leap on before it is an alarm: the digits task at its full rate leaps 24-fold for "
    "one of them, as its batch normalisation lags, and a statistic that is spoilt stays so for dozens of steps",
    false_alarms="0 in three runs of that task on fresh seeds, 1007 steps asked at 104 evaluations; two of them leapt",
)
EXTREME = Threshold(
    value=0.8,
    origin="share of units that a module is known to drop from which it is an alarm at once: usual are 0.5 for hidden "
    "units and 0.2 for inputs (Srivastava et al. 2014); healthy runs of the rescue suite draw up to 0.6",
    false_alarms="0 of 12 healthy runs with heavy dropout whose logs say how much",
)
FALLING = 0.9
"""Best validation loss of the last third over the best before, below which it still falls fast."""
SAME = Threshold(
    value=1.5,
    origin="the same batch in both modes, loss over loss; half as much again is more than dropout of 0.3 makes",
    false_alarms="only live checks raise it; a check is asked for on suspicion",
)


class TrainEvalGap(Detector):
    """The losses of one batch in both modes where a live check has taken them; else validation far below training."""

    code = "D27"
    title = "train and evaluation differ"
    reads = (LOSS, VALIDATION)

    def detect(self, run: Log) -> Finding | None:
        """Prefer the live check: it compares the same batch."""
        live = checked(run, "eval_train_gap")
        train, evaluation = live.get("train"), live.get("eval")
        if train and evaluation and train > 0 and evaluation > 0:
            return self._same_batch(run, float(train), float(evaluation))
        found = validation(run)
        need_fall(found)
        at = leapt(found)
        if at is not None:
            return self._leap(found, at)
        third = max(3, len(found.track) // 3)
        values, beside = found.track.values[-third:], found.train[-third:]
        if not np.isfinite(beside).all() or beside.min() <= 0:
            raise NotApplicable("the training loss between evaluations is missing or not positive")
        ratio, level = float(np.median(values / beside)), float(np.median(beside))
        if ratio > float(BELOW) or not float(HIGH) < level / _opening(run) < 1:
            return None
        first, last = int(found.track.steps[-third]), int(found.track.steps[-1])
        strong = Suspect(
            "regularisation_too_strong", 0.55, (advice("Lower dropout, augmentation or label smoothing."),)
        )
        strong.weigh(level > 0.5 * _opening(run), 2, "the training loss is held up to half of its first value and more")
        noisy = Suspect("label_noise", 0.3, (advice("Look at the examples with the largest losses."),))
        weigh_doubt(run, strong, noisy)
        easier = Suspect(
            "data_shift", 0.2, (advice("Check that validation is not easier, or part of the training data."),)
        )
        modes = Suspect("train_eval_mismatch", 0.2, (advice("Compare one batch in both modes."),))
        return Finding(
            code=self.code,
            name="train_eval_gap",
            title=f"validation loss is {ratio:.2f} of the training loss: what training adds costs more than it",
            severity="warning" if _held(run, found, ratio) else "note",
            spans=((first, last),),
            evidence=(
                Evidence(
                    text=f"validation {np.median(values):.4g}, training {level:.4g} over the last {third} evaluations",
                    columns=(found.track.name, "loss"),
                    steps=(first, last),
                    value=ratio,
                    threshold=float(BELOW),
                ),
            ),
            causes=ranked(strong, noisy, easier, modes),
            test=Test(
                text="Compute the loss of one batch in training and in evaluation mode: unlike, it is dropout or the "
                "statistics; alike, the validation data are easier.",
                check="eval_train_gap",
            ),
        )

    def _leap(self, found: Validation, at: int) -> Finding:
        step, last = int(found.track.steps[at]), int(found.track.steps[-1])
        before, after = float(found.track.values[at - 1]), float(found.track.values[at])
        why = (
            f"validation went from {before:.4g} to {after:.4g} at step {step}, training stayed at {found.train[at]:.4g}"
        )
        modes = Suspect(
            "train_eval_mismatch",
            0.6,
            (advice("Estimate the running statistics of the normalisation anew, by forward passes in training mode."),),
        )
        modes.why.append(why)
        batch = Suspect("corrupted_batch", 0.35, (advice("Look at the inputs since the evaluation before."),))
        shift = Suspect("data_shift", 0.15, (advice("Check that the validation data are the same as before."),))
        return Finding(
            code=self.code,
            name="train_eval_gap",
            title=f"the validation loss leapt {after / before:.3g}-fold at step {step}, and the training loss did not",
            severity="warning" if len(found.track.values) - at >= float(STAYED) else "note",
            spans=((step, last),),
            evidence=(
                Evidence(
                    text=why,
                    columns=(found.track.name, "loss"),
                    steps=(step, last),
                    value=after / before,
                    threshold=LEAP,
                ),
            ),
            causes=ranked(modes, batch, shift),
            test=Test(
                text="Compute the loss of one batch in both modes: unlike, it is the running statistics.",
                check="eval_train_gap",
            ),
        )

    def _same_batch(self, run: Log, train: float, evaluation: float) -> Finding | None:
        ratio = train / evaluation
        if 1 / float(SAME) < ratio < float(SAME):
            return None
        event = [e for e in run.events("check") if e.get("name") == "eval_train_gap"][-1]
        step = int(event.get("step", 0))
        over = ratio > 1
        strong = Suspect("regularisation_too_strong", 0.5, (advice("Lower dropout or augmentation."),))
        strong.weigh(over, 5, f"the batch costs {ratio:.2f} times as much in training mode", against=0.05)
        modes = Suspect("train_eval_mismatch", 0.4, (advice("Raise the momentum of batch-norm statistics."),))
        modes.weigh(not over, 8, f"the batch costs {1 / ratio:.2f} times as much in evaluation mode", against=0.6)
        return Finding(
            code=self.code,
            name="train_eval_gap",
            title=f"a batch costs {max(ratio, 1 / ratio):.2f}× as much in {'training' if over else 'evaluation'} mode",
            severity="warning" if not over or ratio > float(SAME) ** 2 else "note",
            spans=((step, step),),
            evidence=(
                Evidence(
                    text=f"loss {train:.4g} in training mode, {evaluation:.4g} in evaluation mode",
                    steps=(step, step),
                    value=math.exp(abs(math.log(ratio))),
                    threshold=float(SAME),
                ),
            ),
            causes=ranked(strong, modes),
        )


def _held(run: Log, found: Validation, ratio: float) -> bool:
    """Whether the validation loss suffers from what training adds."""
    if (dropout(run) or 0.0) >= float(EXTREME):
        return True
    third = max(3, len(found.track) // 3)
    if found.smooth[-third:].min() < FALLING * found.smooth[:-third].min():
        return False  # it costs nothing yet: the validation loss goes on falling
    share = found.now / float(found.track.values[0])
    return ratio < float(TWICE) and (share > float(HELD) or (share > 0.1 and ratio < float(DROWNED)))


def _opening(run: Log) -> float:
    """The first training loss."""
    return opening(unbroken(run, LOSS, 16))
