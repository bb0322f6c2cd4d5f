"""Layers that stay as they are: frozen, outside the optimizer, or reached by no gradient."""

from typing import NamedTuple

import numpy as np

from dynaxx.core.findings import Cause, Detector, Evidence, Finding, Log, Remedy, Severity, Test, Threshold
from dynaxx.detectors._facts import checked, layer_facts
from dynaxx.detectors._read import QUIETLY, end_of, fallen, matching, rows
from dynaxx.detectors._remedies import LEAKY
from dynaxx.detectors._spans import entries, within
from dynaxx.detectors._start import weights_left
from dynaxx.detectors._weigh import Suspect, ranked, suspect
from dynaxx.errors import NotApplicable

PERSIST = Threshold(
    value=5.0,
    origin="rows on end with an update of exactly zero while other layers move; chance gives no exact zero",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)
GRADIENT_PERSIST = Threshold(
    value=20.0,
    origin="steps on end with a gradient of exactly zero: sparse experts and embeddings rest for a few",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)
MINORITY = Threshold(
    value=0.95,
    origin="share of the parameters: adapters are trained between layers of a frozen majority, by intention",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)
SLOW = Threshold(
    value=0.5,
    origin="share of its start by which the loss has fallen after a quarter of the run: a head on frozen layers that "
    "were trained gets there, one on random layers does not",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)


SHRUNK = 0.1
"""Share of their first size that weights have left where decay has taken them: healthy ones grow or keep a half."""


class _Still(NamedTuple):
    """What is known of the layers that do not move, by label."""

    frozen: list[str]
    outside: list[str]
    disconnected: list[str]
    unused: list[str]
    spans: dict[str, tuple[tuple[int, int], ...]]


class LayersNotLearning(Detector):
    """Trainable layers with ‖Δθ_l‖ = 0 or ‖g_l‖ = 0 while others move, and layers that require no gradient.

    A gradient without an update: the optimizer does not hold the layer. A forward without a gradient: the loss is cut
    off from it. No forward: it is not used, which harms nothing.
    """

    code = "D20"
    title = "layers that do not learn"
    reads = ("grad_norm", "update_norm")

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """Exact zeros that last."""
        if not layer_facts(run):
            raise NotApplicable("the log does not say which layers are trainable")
        still = _look(run)
        harmful = [*still.outside, *still.disconnected]
        layers = [*harmful, *still.frozen, *still.unused]
        if not layers:
            return None
        end = end_of(run)
        spans = still.spans.get(layers[0], ((int(run.steps[0]), end),))
        return Finding(
            code=self.code,
            name="layers_not_learning",
            title=f"{len(layers)} layer(s) do not learn: {', '.join(layers[:3])}{' …' if len(layers) > 3 else ''}",
            severity="warning" if harmful else _severity_of_frozen(run, still.frozen),
            spans=spans,
            layers=tuple(layers),
            evidence=tuple(_evidence(still, end)),
            causes=_causes(run, still),
            test=Test(
                text="List the tensors that the optimizer holds, those that get gradients and those that move.",
                check="optimizer_holds",
            ),
        )


def _look(run: Log) -> _Still:
    facts = layer_facts(run)
    gradient, update = rows(run, "grad_norm", least=10), rows(run, "update_norm", least=int(PERSIST.value))
    trainable = [i for i, label in enumerate(update.labels) if label in facts and facts[label]["trainable"] > 0]
    frozen = [label for label in update.labels if label in facts and facts[label]["trainable"] == 0]
    end = end_of(run)
    moves = update.values[:, trainable]
    resting = (moves == 0) & (moves > 0).any(axis=1, keepdims=True)
    updated = {trainable[j]: s for j, s in entries(update.steps, resting, int(PERSIST.value), end).items()}
    slopes = gradient.values[:, trainable]
    flat = (slopes == 0) & (slopes > 0).any(axis=1, keepdims=True)
    cut = {trainable[j]: s for j, s in entries(gradient.steps, flat, int(GRADIENT_PERSIST.value), end).items()}
    spans = {update.labels[i]: s for i, s in {**updated, **cut}.items() if s[-1][1] >= end}
    here, there = matching(update, gradient)
    outside: list[str] = []
    for i in updated:
        at = within(update.steps[here], updated[i])
        if update.labels[i] in spans and i not in cut and np.median(gradient.values[there][at, i]) > 0:
            outside.append(update.labels[i])
    called = _called(run)
    without = [update.labels[i] for i in cut if update.labels[i] in spans]
    unused = [label for label in without if called.get(label) is False]
    return _Still(frozen, outside, [label for label in without if label not in unused], unused, spans)


def _called(run: Log) -> dict[str, bool]:
    """Which layers' forwards ran, of those that are looked into."""
    if "activations.mean" not in run.columns:
        return {}
    seen = rows(run, "activations.mean")
    return {label: bool(np.isfinite(seen.values[:, i]).any()) for i, label in enumerate(seen.labels)}


def _severity_of_frozen(run: Log, frozen: list[str]) -> Severity:
    """A warning where nobody freezes on purpose: from scratch, behind learning layers, where the loss hardly falls."""
    facts = layer_facts(run)
    wanted = [label for label in frozen if facts[label]["kind"] != "Embedding"]
    if not wanted:
        return "note"
    order = list(facts)
    share = sum(facts[label]["numel"] for label in frozen) / max(1, sum(layer["numel"] for layer in facts.values()))
    scratch = "start" in run.manifest.get("facts", {}) and run.manifest["facts"]["start"] is None
    behind = any(facts[label]["trainable"] > 0 for label in order[: order.index(wanted[0])])
    settled = end_of(run) >= int(run.manifest.get("steps") or 0) // 4
    slow = settled and fallen(run) < SLOW.value
    return "warning" if scratch or slow or (behind and share < MINORITY.value) else "note"


def _evidence(still: _Still, end: int) -> list[Evidence]:
    texts = (
        (still.outside, "get gradients and do not move", ("grad_norm", "update_norm")),
        (still.disconnected, "get a gradient of exactly zero", ("grad_norm",)),
        (still.frozen, "require no gradient", ()),
        (still.unused, "are never called in the forward", ("activations.mean",)),
    )
    return [
        Evidence(
            text=f"{', '.join(labels[:5])} {what}",
            columns=columns,
            steps=(still.spans[labels[0]][0][0], end) if labels[0] in still.spans else None,
            value=0.0,
        )
        for labels, what, columns in texts
        if labels
    ]


def _causes(run: Log, still: _Still) -> tuple[Cause, ...]:
    optimizer, held = run.manifest.get("optimizer", {}), checked(run, "optimizer_holds")
    foreign = float(optimizer.get("foreign", held.get("foreign", 0)) or 0)
    known = "foreign" in optimizer or "foreign" in held
    rebuild = Remedy(text="Build the optimizer from this model's parameters, after the model is complete.")
    joint = Remedy(
        text="If a second optimizer holds them, have both watched as one: dynaxx.optim.Joint(first, second)."
    )
    dead = 0.0
    if "activations.dead" in run.columns:
        values = rows(run, "activations.dead").values[-5:]
        dead = float(values[np.isfinite(values)].max()) if np.isfinite(values).any() else 0.0
    constant, left = _constant_outputs(run), weights_left(run)
    blocked = _blocked(run, still)
    later = bool(still.outside) and still.spans[still.outside[0]][0][0] > 5
    causes: list[Suspect | None] = [
        suspect(
            "parameters_not_in_optimizer",
            0.6,
            0.1 if foreign else 6.0 if known else 1.5,
            0.3 if later else 1.0,
            why="they receive gradients and no update",
            remedies=(rebuild, joint),
        )
        if still.outside
        else None,
        suspect(
            "stale_parameters",
            0.3,
            20.0 if foreign else 0.1 if known else 1.0,
            5.0 if later else 1.0,
            why=f"the optimizer holds {foreign:.0f} parameters that are not the model's"
            if foreign
            else "they learned at first" * later,
            remedies=(rebuild,),
        )
        if still.outside
        else None,
        suspect(
            "loss_disconnected",
            0.6,
            0.3 if dead >= 0.9 or constant else 3.0,
            0.2 if blocked or left < SHRUNK else 1.0,
            why="their outputs are computed and no gradient comes back",
            remedies=(Remedy(text="Look for detach(), no_grad(), argmax or .data between them and the loss."),),
        )
        if still.disconnected
        else None,
        suspect(
            "dead_units",
            0.2,
            12.0 if dead >= 0.9 else 4.0 if blocked else 0.1,
            0.5 if constant or left < SHRUNK else 1.0,
            why="every layer before one has lost its gradient since then" if blocked else f"{dead:.0%} are dead",
            remedies=(LEAKY,),
        )
        if still.disconnected
        else None,
        suspect(
            "weight_decay_too_high",
            0.1,
            60.0 if left < SHRUNK else 0.2,
            why=f"the weights have shrunk to {left:.2g} of their size",
            remedies=(Remedy(text="Lower the weight decay tenfold."),),
        )
        if still.disconnected
        else None,
        suspect(
            "initialisation_symmetric",
            0.2,
            20.0 if constant else 0.1,
            why="a layer's outputs do not vary at all: zero weights pass nothing on",
            remedies=(Remedy(text="Initialise weights at random; only the last layer may begin at zero."),),
        )
        if still.disconnected
        else None,
        suspect(
            "frozen_parameters",
            0.85,
            2.0 if not (still.outside or still.disconnected) else 0.2,
            why="requires_grad is False",
            remedies=(Remedy(text="Set requires_grad_(True) where they are to be trained."),),
        )
        if still.frozen
        else None,
        suspect("loss_disconnected", 0.3, why="no forward calls them")
        if still.unused and not still.disconnected
        else None,
    ]
    return ranked(*causes)


def _blocked(run: Log, still: _Still) -> bool:
    """Whether layers that did learn have lost their gradients together, from the first one of the model on."""
    if not still.disconnected or min(still.spans[label][0][0] for label in still.disconnected) <= 2:
        return False
    order = [label for label, facts in layer_facts(run).items() if facts["trainable"] > 0]
    return len(still.disconnected) > 1 and set(order[: len(still.disconnected)]) == set(still.disconnected)


def _constant_outputs(run: Log) -> bool:
    """Whether the outputs of a layer with weights had no spread in the first steps."""
    if "activations.std" not in run.columns:
        return False
    spread, facts = rows(run, "activations.std"), layer_facts(run)
    values = spread.values[:5, [i for i, label in enumerate(spread.labels) if label in facts]]
    return bool((np.where(np.isfinite(values), values, 1.0) <= 1e-12).any())
