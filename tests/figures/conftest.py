"""Synthetic runs, written as real run folders: healthy, diverged, huge, and with nothing but a loss."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from dynaxx.core.records import Axis, Column
from dynaxx.runlog import LogWriter, open_run


@dataclass
class Synthetic:
    """Columns in memory, to be changed at will before they are written."""

    columns: dict[str, Column] = field(default_factory=dict)
    steps: dict[str, np.ndarray] = field(default_factory=dict)
    values: dict[str, np.ndarray] = field(default_factory=dict)
    manifest: dict = field(default_factory=dict)
    events: list[dict] | tuple = ()

    def put(self, name, steps, values, labels=(), unit="1", axis="layer", about="", reduce="none", dtype="float32"):
        axis = Axis(name=axis, labels=tuple(labels)) if labels else None
        self.columns[name] = Column(name=name, axis=axis, unit=unit, about=about, reduce=reduce, dtype=dtype)
        self.steps[name] = np.asarray(steps, dtype=np.int64)
        self.values[name] = np.array(values, dtype=dtype)

    def write(self, folder):
        """Write the run and open it."""
        log = LogWriter(folder, manifest=self.manifest)
        for name, column in self.columns.items():
            steps = self.steps[name]
            for at in range(0, len(steps), 4096):
                part = slice(at, at + 4096)
                values = self.values[name][part]
                log.rows(
                    name.replace(" ", "_"), steps[part], [(column, values, None)], walls=1.7e9 + 0.07 * steps[part]
                )
        for event in self.events:
            log.event(**event)
        log.close()
        return open_run(folder)


def layer_names(count):
    kinds = ("attention.query", "attention.value", "attention.out", "mlp.up", "mlp.down")
    return ["embedding", *(f"blocks.{i // 5}.{kinds[i % 5]}" for i in range(count - 2)), "head"]


def healthy(steps=3000, layers=22, seed=0, every=10):
    """A run like a small transformer's; signals with a cadence see the first 100 steps and every `every`-th."""
    rng = np.random.default_rng(seed)
    run = Synthetic()
    names = layer_names(layers)
    t = np.arange(1, steps + 1)
    slow = t[(t <= 100) | (t % every == 0)]
    decay = 1.2 + 2.9 * np.exp(-t / (steps / 8)) + 0.35 * np.exp(-t / steps)
    run.put(
        "loss",
        t,
        decay + 0.07 * rng.standard_normal(steps),
        unit="nat",
        about="mean loss of the batch",
        dtype="float64",
    )
    evaluated = t[:: steps // 30]
    run.put("val_loss", evaluated, decay[evaluated - 1] + 0.05 + 0.15 * (evaluated / steps) ** 3, unit="nat")
    run.put("accuracy", t, 1 - decay / 4.6 + 0.02 * rng.standard_normal(steps))
    run.put("val_accuracy", evaluated, 1 - decay[evaluated - 1] / 4.6 - 0.01)
    warm = np.minimum(t / (steps / 20), 1) * (0.55 + 0.45 * np.cos(np.pi * t / steps))
    run.put(
        "lr", t, np.stack([3e-4 * warm, 3e-4 * warm, 3e-5 * warm], 1), ["group 0", "group 1", "group 2"], axis="group"
    )
    run.put("epoch", t, t / (steps / 3.5), unit="passes")
    run.put("effective_batch", t, np.full(steps, 64.0), unit="examples")
    depth = np.linspace(0, 1, layers)

    def wander(n, sigma):
        return np.exp(np.cumsum(rng.standard_normal((n, layers)) * sigma / np.sqrt(n), axis=0))

    norms = 0.3 * 10 ** (-0.9 * depth) * wander(steps, 0.8) * np.exp(0.25 * rng.standard_normal((steps, layers)))
    norms[steps // 2 : steps // 2 + 3] *= 12
    norms = (norms * (0.4 + decay[:, None] / 4)).astype(np.float32)
    run.put(
        "grad_norm",
        t,
        norms,
        names,
        "loss/parameter",
        reduce="l2",
        about="L2 norm of the gradient: accumulated, before clipping",
    )
    total = np.sqrt(np.square(norms).sum(1))
    run.put("clip_coefficient", t, np.minimum(1, 0.9 / total))
    run.put("grad_max", slow, norms[slow - 1] / 9, names)
    run.put("grad_zeros", slow, 0.02 * rng.random((len(slow), layers)), names)
    ratio = 1e-3 * warm[slow - 1, None] * wander(len(slow), 0.7) * 10 ** (0.6 * np.sin(9 * depth))
    run.put("update_ratio", slow, ratio, names)
    run.put("parameter_norm", slow, 8 + 4 * depth + np.sqrt(slow / 900)[:, None], names, reduce="l2")
    run.put("update_norm", slow, 10 * ratio, names, reduce="l2")
    units = [f"{n}.relu" for n in names[1:-1]]
    shape = (len(slow), len(units))
    run.put("activations.mean", slow, 0.4 + 0.1 * rng.standard_normal(shape), units, axis="activation")
    run.put("activations.std", slow, 0.9 * wander(len(slow), 0.5)[:, 1:-1], units, axis="activation")
    run.put("activations.zeros", slow, np.clip(0.5 + 0.04 * rng.standard_normal(shape), 0, 1), units, axis="activation")
    dead = np.linspace(0, 0.2, len(slow))[:, None] * (np.arange(len(units)) % 4 == 1)
    run.put("activations.dead", slow, dead, units, axis="activation")
    heads = [f"blocks.{i}.attention" for i in range(max(1, layers // 5))]
    shape = (len(slow), len(heads))
    run.put(
        "attention.logit_max",
        slow,
        4 + np.log1p(slow)[:, None] * (1 + 0.2 * rng.random(shape)),
        heads,
        axis="attention",
    )
    run.put(
        "attention.entropy",
        slow,
        3 - 0.2 * np.log1p(slow)[:, None] + 0.1 * rng.random(shape),
        heads,
        "nat",
        "attention",
    )
    run.put("logit_norm", slow, 5 + np.sqrt(slow) / 4)
    run.put("optimizer_state.effective_step", slow, ratio / norms[slow - 1], names, "learning rate")
    run.put("optimizer_state.momentum_ratio", slow, np.clip(0.3 * wander(len(slow), 0.4), 0, 1), names)
    run.put("optimizer_state.epsilon_dominated", slow, 0.01 * rng.random((len(slow), layers)), names)
    walk = np.cumsum(rng.standard_normal((len(slow), 64)) + 0.6 * np.exp(-slow / steps * 4)[:, None], axis=0)
    walk = walk.astype(np.float32)
    moved = np.linalg.norm(np.diff(walk, axis=0), axis=1)
    run.put("trajectory.sketch", slow, walk, [str(i) for i in range(64)], axis="sketch")
    run.put("trajectory.distance", slow, np.linalg.norm(walk - walk[0], axis=1), unit="parameter")
    run.put("trajectory.path_length", slow[1:], np.cumsum(moved), unit="parameter")
    run.put("trajectory.cosine", slow[1:], np.tanh(0.3 * rng.standard_normal(len(slow) - 1) + np.exp(-slow[1:] / 500)))
    parts = {"data": 0.004, "forward": 0.020, "backward": 0.041, "optimizer": 0.007, "measuring": 0.001}
    for name, mean in {**parts, "step": sum(parts.values())}.items():
        run.put(f"system.{name}_seconds", slow, mean * np.exp(0.1 * rng.standard_normal(len(slow))), unit="s")
    run.put("system.samples_per_second", slow, 64 / run.values["system.step_seconds"], unit="1/s")
    run.put("system.memory_host", slow, 2**30 * (1.1 + 0.1 * np.sqrt(slow / steps)), unit="bytes")
    run.manifest = {
        "created": "2025-03-01T10:00:00Z",
        "command": "dynaxx train stdlib-lm --size tiny",
        "task": "stdlib-lm",
        "model": {
            "class": "Transformer",
            "numel": 1_234_567,
            "layers": [{"name": n, "kind": "Linear", "numel": 4096, "trainable": 4096} for n in names],
        },
        "software": {"python": "3.11.2", "torch": "2.13.0"},
    }
    signals = [
        {"name": "grad_norm", "cadence": 1, "seconds": 4e-4},
        {"name": "activations", "cadence": every, "seconds": 2e-3},
    ]
    run.events = [
        {"kind": "self_test", "step": 3, "seen": "pre-clip, unscaled gradients"},
        {"kind": "calibration", "step": 100, "signals": signals, "overhead": 0.007, "budget": 0.02},
    ]
    return run


def diverged(steps=2000, at=1400):
    """The same until a step from which loss and gradients are NaN, after a blow-up over decades."""
    run = healthy(steps, 12, seed=7)
    loss = run.values["loss"]
    loss[at - 60 : at] *= np.exp(np.linspace(0, 14, 60))
    loss[400] = np.inf
    for name, values in run.values.items():
        steps = run.steps[name]
        if name == "grad_norm":
            values[(steps > at - 60) & (steps <= at)] *= np.exp(np.linspace(0, 14, 60))[:, None]
        if name.startswith(
            ("loss", "val_", "accuracy", "grad_", "update", "parameter_norm", "activations", "trajectory")
        ):
            values[steps > at] = np.nan
    gone = np.arange(at + 1, at + 61)
    counts = np.zeros((60, 12))
    counts[:, 4:] = 4096
    run.put("grad_nonfinite", gone, counts, layer_names(12), "entries", reduce="sum")
    return run


def only_loss(steps=40):
    """A run with nothing but a short loss."""
    run = Synthetic()
    run.put("loss", np.arange(1, steps + 1), 2.0 / np.sqrt(np.arange(1, steps + 1)))
    return run


@pytest.fixture(name="healthy", scope="session")
def _healthy(tmp_path_factory):
    return healthy().write(tmp_path_factory.mktemp("runs") / "healthy")


@pytest.fixture(name="diverged", scope="session")
def _diverged(tmp_path_factory):
    return diverged().write(tmp_path_factory.mktemp("runs") / "diverged")


@pytest.fixture(name="huge", scope="session")
def _huge(tmp_path_factory):
    return healthy(20_000, 500, seed=3, every=50).write(tmp_path_factory.mktemp("runs") / "huge")


@pytest.fixture(name="only_loss", scope="session")
def _only_loss(tmp_path_factory):
    return only_loss().write(tmp_path_factory.mktemp("runs") / "only-loss")


@pytest.fixture
def make(tmp_path):
    """A small run from events and name=(steps, values) or name=(steps, values, axis, labels)."""

    def made(events=(), **columns):
        run = Synthetic(events=events)
        for name, (steps, values, *over) in columns.items():
            axis, labels = over or ("layer", ())
            run.put(name, list(steps), values, labels, axis=axis, dtype="float64", reduce="l2" if labels else "none")
        return run.write(tmp_path / "run")

    return made
