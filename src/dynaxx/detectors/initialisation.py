"""A model that begins badly: too decided, too quiet, or with units that are equal."""

from typing import NamedTuple

import numpy as np

from dynaxx.core.findings import Cause, Detector, Evidence, Finding, Log, Remedy, Severity, Test, Threshold
from dynaxx.detectors._depth import depth
from dynaxx.detectors._facts import matrices, sigmoids
from dynaxx.detectors._inputs import scale_of_inputs
from dynaxx.detectors._read import QUIETLY, end_of, optional, rows
from dynaxx.detectors._remedies import FAN_IN, STANDARDISE
from dynaxx.detectors._start import LATEST, elasticity, start
from dynaxx.detectors._weigh import ranked, suspect
from dynaxx.errors import NotApplicable

EXCESS = Threshold(
    value=0.5,
    origin="nats above ln C; Karpathy (2019) and TheDeepChecker compare the first loss with ln C",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)
DECIDED = Threshold(
    value=1.0,
    origin="nats above ln C: the right answer begins e times less likely than by chance, and the first steps only "
    "unlearn it",
    false_alarms="0 of 108 healthy runs of the rescue suite, which begin at 0.25 or less; fine-tuned ones are told by "
    "their loss",
)
FLAT = Threshold(
    value=0.2,
    origin="‖g‖‖θ‖/L of the first steps, by how many per cent the loss changes with one per cent of the weights: 0.03 "
    "to 0.14 where weights begin at a hundredth of their size and less, 0.31 and more in healthy runs",
    false_alarms="0 of 108 healthy runs of the rescue suite",
)
SHRINK = Threshold(
    value=3.0,
    origin="decades by which the spread of outputs changes over the depth; SageMaker alarms at 10-fold, 7 of 10 "
    "healthy runs",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)
FAINT = Threshold(
    value=0.05,
    origin="spread of the first weight layer's outputs over that of the inputs: fan-in schemes give 0.58 to 1.4, a "
    "deviation of 0.02 on 16 inputs 0.08",
    false_alarms="healthy runs of the rescue suite have 0.5 and more",
)
SYMMETRIC = Threshold(
    value=0.5,
    origin="half of a layer's units equal another one; random weights give none",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)


LIVE = 1e-3
"""First gradient norm over the first loss below which the gradient itself is lost, by underflow or a step that is
skipped: the last layer's bias alone gives 0.03 and more, however small the weights are."""
QUIET = Threshold(
    value=5.0,
    origin="decades by which gradients per parameter of the first step fall from the last third of the depth to the "
    "first: 20 plain layers of torch's own initialisation",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)


BETWEEN = 2 / 3
"""Share of the depth that lies between the middles of its first and its last third."""


class _Fault(NamedTuple):
    cause: str
    severity: Severity
    title: str
    evidence: Evidence
    layers: tuple[str, ...] = ()


class Initialisation(Detector):
    """First loss of a guess against ln C, spread of the layers' outputs over the depth, units that are equal."""

    code = "D18"
    title = "initialisation"
    reads = ("outputs.guess_loss|activations.std|unit_symmetry|grad_norm",)

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """What the first measured step shows."""
        if len(run.steps) == 0 or int(run.steps[0]) > LATEST:
            raise NotApplicable("the log does not show the first steps")
        looks = (_symmetric, _decided, _depth, _quiet, _flat, _faint)
        faults = [fault for look in looks if (fault := look(run)) is not None]
        if not faults:
            return None
        worst = next((fault for fault in faults if fault.severity == "warning"), faults[0])
        first = int(run.steps[0])
        return Finding(
            code=self.code,
            name="initialisation",
            title=worst.title,
            severity=worst.severity,
            spans=((first, min(end_of(run), first + 9)),),
            layers=worst.layers,
            evidence=tuple(fault.evidence for fault in faults),
            causes=_causes(run, {fault.cause for fault in faults}),
            test=Test(
                text="Measure the inputs: a large scale there looks like large initial weights.",
                check="input_statistics",
            ),
        )


def _decided(run: Log) -> _Fault | None:
    try:
        found = start(run)
    except NotApplicable:
        return None
    if found.classes < 2 or not found.classifies or found.excess < EXCESS.value:
        return None
    evidence = Evidence(
        text=f"the first outputs lose {found.guess:.3g} nats on a guess; indifferent ones lose ln {found.classes} = "
        f"{found.chance:.3g}",
        columns=("outputs.guess_loss", "loss"),
        steps=(found.step, found.step),
        value=found.excess,
        threshold=EXCESS.value,
    )
    title = f"the model begins {found.excess:.3g} nats worse than a guess"
    severe = found.excess >= DECIDED.value
    return _Fault("initialisation_too_large", "warning" if severe else "note", title, evidence)


def _depth(run: Log) -> _Fault | None:
    """The spread of the outputs of layers with weights, from the first to the last but one: the last may be zero."""
    if "activations.std" not in run.columns:
        return None
    spread = rows(run, "activations.std", least=1)
    try:
        places, _ = matrices(run, spread.labels)
    except NotApplicable:
        return None
    inner = places[:-1]
    if int(spread.steps[0]) > LATEST or len(inner) < 2:
        return None
    values = spread.values[0, inner]
    if not (np.isfinite(values) & (values > 0)).all():
        return None
    change = float(np.log10(values[-1] / values[0]))
    if abs(change) < SHRINK.value:
        return None
    evidence = Evidence(
        text=f"the spread of outputs goes from {values[0]:.2g} in {spread.labels[inner[0]]} to {values[-1]:.2g} in "
        f"{spread.labels[inner[-1]]}",
        columns=("activations.std",),
        steps=(int(spread.steps[0]), int(spread.steps[0])),
        value=change,
        threshold=SHRINK.value if change > 0 else -SHRINK.value,
    )
    cause = "initialisation_too_large" if change > 0 else "initialisation_too_small"
    verb = "grow" if change > 0 else "shrink"
    return _Fault(cause, "warning", f"signals {verb} by {abs(change):.1f} decades over the depth", evidence)


def _quiet(run: Log) -> _Fault | None:
    """Gradients of the first step over the depth: small weights pass nothing back."""
    try:
        found = depth(run)
    except NotApplicable:
        return None
    first, last = found.ends()
    drop = float(last[0] - first[0])
    activations = BETWEEN * sigmoids(run) * np.log10(4)  # decades that no initialisation can give back
    if int(found.steps[0]) > LATEST or not drop >= QUIET.value + activations:
        return None
    evidence = Evidence(
        text=f"gradients per parameter of step {found.steps[0]} fall by {drop:.1f} decades towards the first layers",
        columns=("grad_norm",),
        steps=(int(found.steps[0]), int(found.steps[0])),
        value=drop,
        threshold=QUIET.value,
    )
    title = f"gradients of the first step fall by {drop:.1f} decades over the depth"
    return _Fault("initialisation_too_small", "warning", title, evidence)


def _flat(run: Log) -> _Fault | None:
    """A loss that hardly depends on the weights: all that they multiply is next to zero."""
    slope = elasticity(run, 5)
    if not slope < FLAT.value or int(run["grad_norm"].steps[0]) > LATEST:
        return None
    gradient, loss = optional(run, "grad_norm"), optional(run, "loss")
    if gradient is None or loss is None or not gradient.total().values[0] > LIVE * abs(loss.values[0]):
        return None
    evidence = Evidence(
        text=f"one per cent of the weights changes the first losses by {slope:.2g} %",
        columns=("grad_norm", "parameter_norm", "loss"),
        value=slope,
        threshold=FLAT.value,
    )
    return _Fault("initialisation_too_small", "warning", "the first losses hardly depend on the weights", evidence)


def _faint(run: Log) -> _Fault | None:
    """Spread of the first weight layer's outputs against that of the inputs: behind it a normalisation may hide it."""
    if not {"activations.std", "inputs.std"} <= set(run.columns):
        return None
    spread, inputs = rows(run, "activations.std"), rows(run, "inputs.std")
    try:
        places, _ = matrices(run, spread.labels)
    except NotApplicable:
        return None
    if int(spread.steps[0]) > LATEST or len(places) == 0 or not inputs.values[0] > 0:
        return None
    share, label = float(spread.values[0, places[0]] / inputs.values[0]), spread.labels[places[0]]
    if not 0 < share < FAINT.value:
        return None
    evidence = Evidence(
        text=f"{label} gives out {share:.2g} of the spread of what goes in",
        columns=("activations.std", "inputs.std"),
        steps=(int(spread.steps[0]), int(spread.steps[0])),
        value=share,
        threshold=FAINT.value,
    )
    return _Fault("initialisation_too_small", "warning", f"{label} begins with faint weights", evidence, (label,))


def _symmetric(run: Log) -> _Fault | None:
    """Hidden layers whose units began equal; a warning where they are equal still after some updates."""
    if "unit_symmetry" not in run.columns:
        return None
    share = rows(run, "unit_symmetry", least=1)
    try:
        places, _ = matrices(run, share.labels)
    except NotApplicable:
        return None
    hidden = places[:-1]
    if int(share.steps[0]) > LATEST or len(hidden) == 0:
        return None
    alike = hidden[share.values[0, hidden] >= SYMMETRIC.value]
    if len(alike) == 0:
        return None
    later = share.values[min(9, len(share.steps) - 1), alike]
    still = bool((later >= SYMMETRIC.value).any())
    most = len(alike) > len(hidden) / 2  # zeros behind a skip connection are a choice, but not in most layers
    labels = tuple(share.labels[i] for i in alike)
    evidence = Evidence(
        text=f"{share.values[0, alike].max():.0%} of the units of {labels[0]} equal another one at step "
        f"{share.steps[0]}, {later.max():.0%} at step {share.steps[min(9, len(share.steps) - 1)]}",
        columns=("unit_symmetry",),
        value=float(share.values[0, alike].max()),
        threshold=SYMMETRIC.value,
    )
    title = f"units of {labels[0]} begin equal" + (" and stay so" if still else "")
    return _Fault("initialisation_symmetric", "warning" if still or most else "note", title, evidence, labels)


def _causes(run: Log, faults: set[str]) -> tuple[Cause, ...]:
    scale = scale_of_inputs(run)
    large = "initialisation_too_large" in faults
    inputs = 20.0 if scale > 5 else 0.2 if scale < 3 else 1.0
    return ranked(
        suspect(
            "initialisation_symmetric",
            0.9,
            3.0,
            why="equal units receive equal gradients and stay equal",
            remedies=(Remedy(text="Initialise weights at random; only the last layer may begin at zero."),),
        )
        if "initialisation_symmetric" in faults
        else None,
        suspect(
            "initialisation_too_large",
            0.7,
            1 / inputs if inputs > 1 else 2.0,
            why=f"the inputs have a scale of {scale:.3g}" if np.isfinite(scale) else "the outputs are far from 0",
            remedies=(FAN_IN,),
        )
        if large
        else None,
        suspect(
            "inputs_not_normalised",
            0.3,
            inputs,
            why=f"the inputs have a scale of {scale:.3g}" if np.isfinite(scale) else "",
            remedies=(STANDARDISE,),
        )
        if large
        else None,
        suspect("initialisation_too_small", 0.8, 2.0, why="what goes in does not come out", remedies=(FAN_IN,))
        if "initialisation_too_small" in faults
        else None,
    )
