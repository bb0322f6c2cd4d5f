"""Overfitting: the validation loss rises from its best while the training loss goes on falling."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Severity, Test, Threshold
from dynaxx.detectors._acts import advice, scale_rate, stop
from dynaxx.detectors._facts import checked, group
from dynaxx.detectors._progress import opening
from dynaxx.detectors._read import LOSS, VALIDATION, unbroken
from dynaxx.detectors._validation import Validation, accuracy, leapt, need_fall, still_better, validation
from dynaxx.detectors._weigh import Suspect, ranked
from dynaxx.numerics.two_sample import rank_shift

RISE = Threshold(
    value=0.1,
    origin="validation loss above its best by a tenth, as training-doctor and SageMaker have it of one evaluation",
    false_alarms="0 of 65 healthy rescue runs, asked at eight moments each (26 000 steps); seen when it was set",
)
SURE = Threshold(
    value=4.0,
    origin="and by so many standard deviations of one evaluation",
    false_alarms="with RISE",
)
BACK = Threshold(
    value=0.1,
    origin="and it takes back a tenth of what was gained: close to zero a tenth more is nothing",
    false_alarms="with RISE",
)
FITTED = Threshold(
    value=0.3,
    origin="training loss below this share of its first value while no validation of the second half is below that "
    "first value: worse than guessing",
    false_alarms="with RISE; under strong decay it is left to `grokking`",
)
APART = Threshold(
    value=20.0,
    origin="validation over training loss, with no gain of the validation in the last third: runs on all of the data "
    "have 3 to 10, on a tenth of them 100 and more",
    false_alarms="a note: 2 of 65 healthy rescue runs, full-batch descent, memorise as well",
)
SOLVED = 0.1
"""Validation loss as a share of the first loss below which the gap is of no account."""
GROKS = 0.1
"""Weight decay from which validation may yet follow a solved training set (Power 2022 has 1; a tenth to be safe)."""
STRONG = Threshold(
    value=0.4,
    origin="decoupled weight decay above which a validation loss that has not fallen below its first value yet is a "
    "note: Power 2022 groks at 1, where it rises at first; vision and language models are trained at 0.3 and less",
    false_alarms="modular addition at a decay of 0.5 to 2 alarmed without it (rescue suite, 1 of 54 healthy runs)",
)


class Overfitting(Detector):
    """The median of the last three evaluations is a tenth and four deviations above the best; the training loss fell.

    A note where a logged accuracy has not suffered: then the model is only too sure of itself; and where the validation
    is flat but far above a training loss that is solved.
    """

    code = "D11"
    title = "overfitting"
    reads = (VALIDATION, LOSS)

    def detect(self, run: Log) -> Finding | None:
        """Compare the last evaluations with the best, else with the training loss."""
        found = validation(run)
        need_fall(found)
        if leapt(found) is not None:
            return None  # nothing is memorised between two evaluations: `train_eval_gap` speaks of it
        apart = _apart(run, found)
        if apart is not None and apart.alarms:
            return apart
        rise = found.now - found.lowest
        after = found.track.values[found.best + 1 :]
        if len(after) < 3 or rise < float(RISE) * found.lowest or rise < float(SURE) * found.noise:
            return apart
        if rise < float(BACK) * max(found.gained, 0.0):
            return apart
        at_best = found.track.values[max(0, found.best - 2) : found.best + 3]
        share, p = rank_shift(at_best, after[-max(5, len(after) // 2) :])
        train = found.train[np.isfinite(found.train)]
        fell = bool(len(train) > 2 and np.median(train[-3:]) < found.train[found.best] * 0.98)
        if p > 0.05 or not fell:
            return apart
        best = int(found.track.steps[found.best])
        fine = still_better(accuracy(run), best)
        severity: Severity = "note" if fine or _groks(run, found) else "warning"
        return Finding(
            code=self.code,
            name="overfitting",
            title=f"validation loss {rise / found.lowest:.0%} above its best of {found.lowest:.4g} at step {best}",
            severity=severity,
            spans=((best, int(found.track.steps[-1])),),
            evidence=(
                Evidence(
                    text=f"validation loss {found.lowest:.4g} → {found.now:.4g}, {rise / max(found.noise, 1e-12):.0f} "
                    f"deviations of one evaluation; {share:.0%} of later evaluations are above those at the best",
                    columns=(found.track.name,),
                    steps=(best, int(found.track.steps[-1])),
                    value=rise / found.lowest,
                    threshold=float(RISE),
                ),
                Evidence(
                    text=f"training loss fell from {found.train[found.best]:.4g} to {np.median(train[-3:]):.4g}",
                    columns=("loss",),
                    steps=(best, int(found.track.steps[-1])),
                ),
                *_metric(fine),
            ),
            causes=_causes(run, found, fine, best),
            test=Test(
                text="Look at the losses of single training examples: a few that never fit are labels in doubt, all "
                "of them near zero is memory.",
                check="example_losses",
            ),
        )


def _apart(run: Log, found: Validation) -> Finding | None:
    """The training set is fitted, and the validation is no better than at first, or far above and flat."""
    loss = unbroken(run, LOSS, 60)
    start, half = opening(loss), len(found.track) // 2
    train, lowest = float(np.nanmedian(found.train[-3:])), float(found.smooth[half:].min())
    # A net that was trained before begins below its validation loss: it must not have got better either.
    worse = train < float(FITTED) * start and lowest >= max(start, 0.95 * float(found.track.values[0]))
    late = -max(3, len(found.track) // 3)
    flat = found.now > 0.98 * float(np.median(found.smooth[late - 2 : late + 1]))
    apart = flat and found.now > max(float(APART) * train, SOLVED * start)
    if not (worse or apart) or group(run, "weight_decay") >= GROKS:
        return None
    first, last = int(found.track.steps[0]), int(found.track.steps[-1])
    memory = Suspect("overfitting", 0.55, (stop("nothing carries over"), advice("Gather more data, or regularise.")))
    shift = Suspect("data_shift", 0.3, (advice("Compare the classes and the inputs of training and validation."),))
    labels = Suspect("label_noise", 0.2, (advice("Compare a few inputs with their labels by eye."),))
    repeated = Suspect("repeated_batch", 0.25, (advice("Count the distinct batches of an epoch."),))
    return Finding(
        code="D11",
        name="overfitting",
        title=f"fitted to {train:.3g} in training, validation at {found.now:.3g}: "
        + ("nothing carries over" if worse else "what is still learned does not carry over"),
        severity="warning" if worse else "note",
        spans=((first, last),),
        evidence=(
            Evidence(
                text=f"training loss {start:.4g} → {train:.4g}; no validation in the second half below {lowest:.4g}",
                columns=(loss.name, found.track.name),
                steps=(first, last),
                value=lowest / start if worse else found.now / max(train, 1e-12),
                threshold=1.0 if worse else float(APART),
            ),
        ),
        causes=ranked(memory, shift, labels, repeated),
        test=Test(text="Look at the losses of single training examples.", check="example_losses"),
    )


def _groks(run: Log, found: Validation) -> bool:
    """Whether it may be grokking: strong decay, and a validation loss that has only risen."""
    return group(run, "weight_decay") > float(STRONG) and found.best <= 1


def _metric(fine: bool | None) -> tuple[Evidence, ...]:
    if fine is None:
        return ()
    return (Evidence(text=f"the accuracy {'has not suffered' if fine else 'suffers too'}"),)


def _causes(run: Log, found: Validation, fine: bool | None, best: int):  # noqa: ANN202
    why = f"validation loss rises since step {best}"
    gap = found.now / max(float(np.nanmedian(found.train[-3:])), 1e-12)
    live = checked(run, "example_losses")
    share = live.get("outlier_share")
    memory = Suspect(
        "overfitting",
        0.6,
        (
            stop(why),
            advice("Regularise: weight decay, dropout, augmentation; or gather more data."),
            scale_rate(0.3, None, why),
        ),
    )
    memory.weigh(gap > 3, 3, f"validation loss is {gap:.3g} × the training loss", against=0.7)
    labels = Suspect("label_noise", 0.12, (advice("Look at the examples that fit last."),))
    labels.weigh(gap > 3 and fine is False, 1.5, "what is memorised does not carry over")
    labels.weigh(None if share is None else float(share) > 0.02, 6, f"{share} of the examples stand apart", against=0.4)
    shift = Suspect("data_shift", 0.08, (advice("Compare training and validation data."),))
    shift.weigh(found.best <= 1, 2, "the validation loss never fell to speak of", against=0.7)
    return ranked(memory, labels, shift)
