"""Labels that carry little or no information about their inputs."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Remedy, Test, Threshold
from dynaxx.detectors._read import checked
from dynaxx.detectors._reading import end_of, matrices, rows, suspect, weighed
from dynaxx.detectors._start import start
from dynaxx.errors import NotApplicable

STUCK = Threshold(
    value=0.9,
    origin="loss over ln C at the end: what a model that has learned nothing but the labels' frequencies keeps",
    false_alarms="",
)
FALLING = Threshold(
    value=0.003,
    origin="of ln C between the third and the last fifth of the run: what still gains that needs time",
    false_alarms="",
)
RUNAWAY = 1.3
"""Loss over ln C above which the run has diverged, which is another matter."""
STEPS = 150
"""Steps at full rate that a model is given to learn anything."""
MOVING = 1e-4
"""Median update ratio below which the weights do not move enough to tell (TheDeepChecker 2022)."""
HALF = 0.5
"""Share of dead units, saturated outputs or outputs normalised already that explains the loss in another way."""


class LabelNoise(Detector):
    """A classifier that moves as a healthy one and stays at ln C: labels that know nothing of the inputs.

    Excluded are runs whose weights do not move, whose units are dead or whose gradients do not arrive: those fail for
    reasons of their own. Noise in a part of the labels is a floor of the loss that a log cannot tell from hard data.
    """

    code = "D19"
    title = "labels without information"
    reads = ("loss", "outputs.guess_loss", "outputs.width", "update_ratio")

    def detect(self, run: Log) -> Finding | None:
        """A loss at chance in spite of healthy updates."""
        begun = start(run)
        if not begun.classifies:
            raise NotApplicable("the loss is not the cross-entropy of the model's outputs")
        loss = rows(run, "loss", least=STEPS)
        if _at_full_rate(run) < STEPS:
            raise NotApplicable(f"the rate has been at its height for fewer than {STEPS} steps")
        tail = loss.values[-max(20, len(loss.values) // 5) :]
        tail = tail[np.isfinite(tail)]
        level = float(np.median(tail)) / begun.chance if len(tail) else float("nan")
        if not STUCK.value <= level <= RUNAWAY or _gain(loss.values) > FALLING.value * begun.chance:
            return None
        step = _usual_update(run)
        failed = ("activations.dead", "activations.saturated", "outputs.normalised", "unit_symmetry")
        if not step >= MOVING or any(_largest(run, name) >= HALF for name in failed) or _starved(run):
            return None
        cosine = _largest(run, "gradient_noise.cosine")
        probe = checked(run, "label_shuffle")
        informed = probe.get("informative")
        span = (int(loss.steps[0]), end_of(run))
        learned = begun.chance * (1 - level)
        return Finding(
            code=self.code,
            name="label_noise",
            title=f"the loss stays at {level:.0%} of ln {begun.classes} although the weights move",
            severity="warning",
            spans=(span,),
            evidence=(
                Evidence(
                    text=f"the loss is {level * begun.chance:.3g}, a guess loses {begun.chance:.3g}",
                    columns=("loss", "outputs.width"),
                    steps=span,
                    value=level,
                    threshold=STUCK.value,
                ),
                Evidence(
                    text=f"a step changes the weights by {step:.2g} of their size, no layer is dead or saturated",
                    columns=("update_ratio", "activations.dead"),
                    value=step,
                    threshold=MOVING,
                ),
            ),
            causes=weighed(
                (
                    suspect(
                        "shuffled_labels",
                        0.5,
                        2.0 if learned < 0.02 * begun.chance else 0.7,
                        1.0 if informed is None else 0.1 if informed else 8.0,
                        why=f"{learned:.2g} nats were learned",
                        remedies=(Remedy(text="Check that inputs and labels are permuted together."),),
                    ),
                    suspect(
                        "label_noise",
                        0.4,
                        2.0 if learned >= 0.02 * begun.chance else 0.5,
                        1.0 if informed is None else 3.0 if informed else 0.3,
                        why=f"{learned:.2g} nats were learned",
                        remedies=(Remedy(text="Look at the examples with the largest losses."),),
                    ),
                    suspect(
                        "too_little_capacity",
                        0.15,
                        2.0 if cosine > 0.2 else 0.5,
                        why="gradients of parts of a batch agree" if cosine > 0.2 else "",
                    ),
                )
            ),
            test=Test(
                text="The loss on batches with permuted labels: equal to the loss now, labels carry no information.",
                check="label_shuffle",
            ),
        )


def _gain(loss: np.ndarray) -> float:
    """By how much the median of the last fifth is below that of the third fifth; 0 within three standard errors."""
    parts = np.array_split(loss[np.isfinite(loss)], 5)
    before, after = parts[2], parts[4]
    gain = float(np.median(before) - np.median(after))
    spread = 1.4826 * float(np.median(np.abs(after - np.median(after))))
    return gain if gain > 3 * 1.2533 * spread * float(np.sqrt(2 / len(after))) else 0.0


def _at_full_rate(run: Log) -> int:
    """Steps with at least half of the highest rate; all where rates are not logged."""
    if "lr" not in run.columns:
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
