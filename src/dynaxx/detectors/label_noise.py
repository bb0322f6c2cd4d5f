"""Labels that carry little or no information about their inputs."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Remedy, Test, Threshold
from dynaxx.detectors._depth import drop
from dynaxx.detectors._doubt import weigh_doubt
from dynaxx.detectors._facts import checked, matrices
from dynaxx.detectors._read import QUIETLY, end_of, rows
from dynaxx.detectors._start import NEAR, Start, start, weights_left
from dynaxx.detectors._weigh import Suspect, ranked, suspect
from dynaxx.errors import NotApplicable

STUCK = Threshold(
    value=0.9,
    origin="loss over ln C at the end: what a model that has learned nothing but the labels' frequencies keeps",
    false_alarms="no alarm in 88 healthy runs of the rescue suite, 35,200 steps, asked every 25",
)
FALLING = Threshold(
    value=0.003,
    origin="of ln C between the third and the last fifth of the run: what still gains that needs time",
    false_alarms="no alarm in 88 healthy runs of the rescue suite, asked every 25 steps; without it one alarmed",
)
RUNAWAY = 1.3
"""Loss over ln C above which the run has diverged, which is another matter."""
STEPS = 150
"""Steps at full rate that a model is given to learn anything."""
MOVING = 1e-4
"""Median update ratio below which the weights do not move enough to tell (TheDeepChecker 2022)."""
VANISHED = 2.0
"""Decades by which gradients fall over the depth in vanishing_gradients."""
LOOK = Remedy(text="Look at the examples with the largest losses; smooth the labels, or use a loss that bounds them.")
HALF = 0.5
"""Share of dead units, saturated outputs or outputs normalised already that explains the loss in another way."""


UNSURE = Threshold(
    value=1.7,
    origin="validation loss over the least that its accuracy allows; up to 0.9 in healthy runs whose training loss is "
    "the larger one (dropout, augmentation), 2 and more with a tenth to three quarters of the labels redrawn",
    false_alarms="no alarm in 88 healthy runs of the rescue suite, 35,200 steps, asked every 25",
)
HIGHER = 1.2
"""Training loss over validation loss: noise is in what is trained on. Overfitting and hard data have it below 1."""


class LabelNoise(Detector):
    """A classifier that moves as a healthy one and stays at ln C, or that is right far more often than it is sure.

    In the first case labels know nothing of the inputs; excluded are runs whose weights do not move, whose units are
    dead or whose gradients do not arrive. In the second, training labels contradict each other: the model learns the
    noise's share as doubt, which clean validation labels show. With accuracy a over C classes a model that is as sure
    as it is right loses −a ln a − (1−a) ln((1−a)/(C−1)) at most.
    """

    code = "D19"
    title = "labels without information"
    reads = ("loss", "outputs.guess_loss", "outputs.width", "update_ratio")

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """A loss at chance in spite of healthy updates, or doubt that accuracy does not warrant."""
        begun = start(run)
        if not begun.classifies:
            raise NotApplicable("the loss is not the cross-entropy of the model's outputs")
        loss = rows(run, "loss", least=STEPS)
        if _at_full_rate(run) < STEPS:
            raise NotApplicable(f"the rate has been at its height for fewer than {STEPS} steps")
        tail = loss.values[-max(20, len(loss.values) // 5) :]
        tail = tail[np.isfinite(tail)]
        if len(tail) == 0:
            raise NotApplicable("the loss is not finite")
        level = float(np.median(tail)) / begun.chance
        stuck = STUCK.value <= level <= RUNAWAY and _gain(loss.values) <= FALLING.value * begun.chance
        if stuck and _indifferent(run, begun) and _best(loss.values) >= STUCK.value * begun.chance:
            step = _usual_update(run)
            return None if not step >= MOVING or _fails_otherwise(run) else self._stuck(run, begun, level, step)
        return self._unsure(run, begun, float(np.median(tail)))

    def _stuck(self, run: Log, begun: Start, level: float, step: float) -> Finding:
        cosine = _largest(run, "gradient_noise.cosine")
        informed = checked(run, "label_shuffle").get("informative")
        learned = begun.chance * (1 - level)
        little = learned < 0.02 * begun.chance
        evidence = (
            Evidence(
                text=f"the loss is {level * begun.chance:.3g}, a guess loses {begun.chance:.3g}",
                columns=("loss", "outputs.width"),
                value=level,
                threshold=STUCK.value,
            ),
            Evidence(
                text=f"a step changes the weights by {step:.2g} of their size, no layer is dead or saturated",
                columns=("update_ratio", "activations.dead"),
                value=step,
                threshold=MOVING,
            ),
        )
        causes = (
            suspect(
                "shuffled_labels",
                0.5,
                2.0 if little else 0.7,
                1.0 if informed is None else 0.1 if informed else 8.0,
                why=f"{learned:.2g} nats were learned",
                remedies=(Remedy(text="Check that inputs and labels are permuted together."),),
            ),
            suspect(
                "label_noise",
                0.4,
                0.5 if little else 2.0,
                1.0 if informed is None else 3.0 if informed else 0.3,
                why=f"{learned:.2g} nats were learned",
                remedies=(LOOK,),
            ),
            suspect(
                "too_little_capacity",
                0.15,
                2.0 if cosine > 0.2 else 0.5,
                why="gradients of parts of a batch agree" if cosine > 0.2 else "",
            ),
        )
        title = f"the loss stays at {level:.0%} of ln {begun.classes} although the weights move"
        return self._finding(run, title, evidence, causes)

    def _unsure(self, run: Log, begun: Start, loss: float) -> Finding | None:
        if "val_loss" not in run.columns or "val_accuracy" not in run.columns:
            return None
        val, accuracy = _last(run, "val_loss"), min(_last(run, "val_accuracy"), 0.999)
        if not (loss > HIGHER * val and 2 / begun.classes < accuracy):
            return None
        warranted = -accuracy * np.log(accuracy) - (1 - accuracy) * np.log((1 - accuracy) / (begun.classes - 1))
        doubt = val / float(warranted)
        if doubt < UNSURE.value:
            return None
        evidence = (
            Evidence(
                text=f"{accuracy:.0%} of the validation set are right, which warrants a loss of {warranted:.3g}; it is "
                f"{val:.3g}",
                columns=("val_loss", "val_accuracy"),
                value=doubt,
                threshold=UNSURE.value,
            ),
            Evidence(text=f"the training loss is {loss / val:.2g} times the validation loss", columns=("loss",)),
        )
        noisy = suspect("label_noise", 0.6, why="the model is right and not sure", remedies=(LOOK,))
        strong = suspect(
            "regularisation_too_strong", 0.4, why="label smoothing or dropout in training alone make doubt, too"
        )
        weigh_doubt(run, strong, noisy)
        causes = (noisy, strong)
        return self._finding(
            run, f"the model is {accuracy:.0%} right and {doubt:.1f} times too unsure", evidence, causes
        )

    def _finding(self, run: Log, title: str, evidence: tuple[Evidence, ...], causes: tuple[Suspect, ...]) -> Finding:
        return Finding(
            code=self.code,
            name="label_noise",
            title=title,
            severity="warning",
            spans=((int(run["loss"].steps[0]), end_of(run)),),
            evidence=evidence,
            causes=ranked(*causes),
            test=Test(
                text="The loss on batches with permuted labels: equal to the loss now, labels carry no information.",
                check="label_shuffle",
            ),
        )


def _fails_otherwise(run: Log) -> bool:
    """Whether the log shows another reason for a loss at chance: dead, saturated, starved, alike or vanished."""
    shares = ("activations.dead", "activations.saturated", "outputs.normalised", "unit_symmetry")
    return (
        any(_largest(run, name) >= HALF for name in shares)
        or _starved(run)
        or drop(run) >= VANISHED
        or weights_left(run) < 0.1
    )


def _last(run: Log, name: str) -> float:
    """Median of the last evaluations."""
    values = rows(run, name).values[-4:]
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else float("nan")


def _indifferent(run: Log, begun: Start) -> bool:
    """Whether the last outputs decide nothing: what has two outputs and a loss of ln 2 may be no classifier at all."""
    guess = rows(run, "outputs.guess_loss").values[-10:]
    guess = guess[np.isfinite(guess)]
    return len(guess) == 0 or float(np.median(guess)) < (1 + NEAR) * begun.chance


def _best(loss: np.ndarray) -> float:
    """The lowest median of 16 steps on end: labels that were learned once are not without information."""
    loss = loss[np.isfinite(loss)]
    count = len(loss) // 16
    return float(np.median(loss[len(loss) - 16 * count :].reshape(count, 16), axis=1).min())


def _gain(loss: np.ndarray) -> float:
    """By how much the median of the last fifth is below that of the third fifth; 0 within three standard errors."""
    parts = np.array_split(loss[np.isfinite(loss)], 5)
    before, after = parts[2], parts[4]
    gain = float(np.median(before) - np.median(after))
    spread = 1.4826 * float(np.median(np.abs(after - np.median(after))))
    return gain if gain > 3 * 1.2533 * spread * float(np.sqrt(2 / len(after))) else 0.0


def _at_full_rate(run: Log) -> int:
    """Steps with at least half of the highest rate; all where rates are not logged."""
    if "lr" not in run.columns or len(run["lr"].steps) == 0:
        return len(run["loss"].steps)
    values = np.asarray(run["lr"].values, dtype=np.float64)
    highest = values.max(axis=1) if values.ndim == 2 else values
    return int((highest >= 0.5 * highest.max()).sum())


def _usual_update(run: Log) -> float:
    """The relative update that three quarters of the weight layers reach in the median."""
    ratio = rows(run, "update_ratio")
    places, _ = matrices(run, ratio.labels)
    values = ratio.values[:, places]
    values = np.median(np.where(np.isfinite(values), values, 0.0), axis=0)
    return float(np.quantile(values, 0.25)) if len(values) else float("nan")


def _starved(run: Log) -> bool:
    """Whether most gradient entries of the weight layers are exactly zero."""
    if "grad_zeros" not in run.columns:
        return False
    zeros = rows(run, "grad_zeros")
    places, numel = matrices(run, zeros.labels)
    share = np.nan_to_num(zeros.values[:, places]) @ numel / numel.sum()
    return float(np.median(share)) >= HALF


def _largest(run: Log, name: str) -> float:
    """The largest value among the last rows; 0 where it was not measured."""
    if name not in run.columns:
        return 0.0
    values = rows(run, name).values[-10:]
    values = values[np.isfinite(values)]
    return float(values.max()) if len(values) else 0.0
