"""Whatever a log holds, the detectors of layers, data and formats answer: a finding, none, or why they cannot."""

import json

import numpy as np
import pytest

from dynaxx import catalog
from dynaxx.core.findings import Finding
from dynaxx.detectors._diagnose import check_columns
from dynaxx.errors import NotApplicable
from dynaxx.runlog import Table

NAMES = (
    "attention_logit_growth", "cancelling_updates", "class_imbalance", "clipping_always_on", "corrupted_batch",
    "coupled_weight_decay", "dead_units", "double_softmax", "epsilon_dominates", "exploding_gradients",
    "gradients_not_cleared", "initialisation", "label_noise", "layers_not_learning", "noise_dominated", "overflow",
    "pathological_curvature", "repeated_batch", "saturation", "throughput", "underflow", "unshuffled_data",
    "update_mismatch", "update_size", "vanishing_gradients", "wrong_loss_sign",
)  # fmt: skip
WIDE = (
    "grad_norm", "grad_max", "grad_zeros", "update_norm", "update_ratio", "parameter_norm", "precision.underflow",
    "optimizer_state.epsilon_dominated", "activations.dead", "activations.mean", "activations.std",
    "activations.saturated", "attention.logit_max", "attention.entropy", "unit_symmetry", "lr",
)  # fmt: skip
NARROW = (
    "loss", "val_loss", "val_accuracy", "epoch", "clip_coefficient", "effective_batch", "gradient_agreement",
    "gradient_agreement.cancellation", "gradient_noise", "gradient_noise.error", "gradient_noise.trace",
    "gradient_noise.gradient", "gradient_noise.cosine", "inputs.mean", "inputs.std", "inputs.max", "inputs.nonfinite",
    "inputs.fingerprint", "outputs.width", "outputs.normalised", "outputs.guess_loss", "outputs.top_share",
    "outputs.top_class", "precision.loss_scale", "precision.skipped", "system.step_seconds", "system.data_seconds",
    "system.memory_host", "sharpness", "trace.mean",
)  # fmt: skip


def odd(rng, shape):
    """Numbers of one of many kinds, with holes."""
    kind = rng.integers(8)
    values = [
        np.zeros(shape), np.ones(shape), np.full(shape, np.nan), np.full(shape, np.inf), rng.normal(size=shape),
        10.0 ** rng.uniform(-40, 30, shape), rng.random(shape), rng.integers(0, 3, shape).astype(float),
    ][kind]  # fmt: skip
    holes = rng.random(shape) < rng.choice([0, 0, 0.1, 0.5])
    values = values.copy()
    values[holes] = rng.choice([np.nan, np.inf, -np.inf, 0.0])
    return values


def odd_log(rng):
    """A log of some columns at steps of their own; half of the logs begin like a classifier's."""
    layers = int(rng.integers(1, 9))
    columns = {}
    for name in (*WIDE, *NARROW):
        if rng.random() < 0.1:
            continue
        count = int(rng.choice([0, 1, 3, 30, 150, 350]))
        steps = np.sort(rng.choice(np.arange(1, 400), size=count, replace=False))
        columns[name] = (steps, odd(rng, (count, layers) if name in WIDE else (count,)))
    if rng.random() < 0.5:
        steps = np.arange(1, 401)
        columns["outputs.width"] = (steps, np.full(400, 10.0))
        columns["outputs.guess_loss"] = (steps, np.full(400, 2.3))
        columns["loss"] = (steps, np.r_[2.3, odd(rng, 399)])
    facts = [
        {
            "name": str(i),
            "kind": str(rng.choice(["Linear", "LayerNorm", "Embedding", "Conv2d"], p=[0.6, 0.1, 0.1, 0.2])),
            "numel": 10,
            "trainable": int(rng.choice([0, 10], p=[0.1, 0.9])),
        }
        for i in range(int(rng.choice([0, layers])))
    ]
    group = {"lr": 0.1, "weight_decay": 0.1, "eps": 1e-8, "momentum": 0.9, "maximize": bool(rng.integers(2))}
    manifest = {"model": {"layers": facts}, "optimizer": {"class": "Adam", "groups": [group]}, "facts": {"start": None}}
    return Table(columns, manifest=manifest if rng.random() < 0.9 else {})


@pytest.fixture(scope="module")
def logs():
    rng = np.random.default_rng(0)
    return [odd_log(rng) for _ in range(120)]


@pytest.mark.parametrize("name", NAMES)
def test_odd_numbers_bring_no_accident(name, logs):
    detector = catalog.get("detectors", name)()
    answered = 0
    for log in logs:
        try:
            check_columns(detector, log)
            found = detector.detect(log)
        except NotApplicable:
            continue
        answered += 1
        if found is not None:
            assert isinstance(found, Finding)
            assert Finding.from_dict(json.loads(json.dumps(found.as_dict()))).spans == found.spans
    assert answered, "no log of them could be judged: the test says nothing"
