from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from dynaxx.core.records import Axis, Column
from dynaxx.runlog.array import LabelledArray
from dynaxx.runlog.derive import statistic


class MemoryLog:
    """A log made of arrays: the contract `core.findings.Log` on real LabelledArrays, as RunView hands them out."""

    def __init__(self, columns: Mapping[str, Any], manifest: Mapping[str, Any], events: list[dict[str, Any]]) -> None:
        self.manifest, self._events = manifest, events
        self._arrays = {name: _array(name, given, self) for name, given in columns.items()}
        self.columns = {name: array.column for name, array in self._arrays.items()}

    @property
    def steps(self):
        return np.unique(np.concatenate([a.steps for a in self._arrays.values()])) if self._arrays else np.empty(0, int)

    def events(self, kind=None):
        return [event for event in self._events if kind is None or event.get("kind") == kind]

    def __getitem__(self, name):
        if name not in self._arrays and "." in name:  # derived columns, as RunView has them
            base, _, suffix = name.rpartition(".")
            array = self._arrays[base]
            return LabelledArray(
                Column(name=name), array.steps, lambda: statistic(suffix, array.values, array.column), self
            )
        return self._arrays[name]


def _array(name, given, log):
    steps, values, labels = None, given, None
    if isinstance(given, tuple):
        steps, values, labels = (*given, None)[:3]
    values = np.array(values, dtype=np.float64)
    steps = np.arange(1, len(values) + 1) if steps is None else np.array(steps, dtype=np.int64)
    if values.ndim == 2 and labels is None:
        labels = tuple(f"layer{i}" for i in range(values.shape[1]))
    axis = None if values.ndim == 1 else Axis(name="layer", labels=tuple(labels))
    return LabelledArray(Column(name=name, axis=axis), steps, lambda: values, log)


@pytest.fixture(scope="session")
def make_log():
    """make_log({"loss": values | (steps, values) | (steps, values2d, labels)}, manifest={...}, events=[...])."""

    def make(columns, manifest=None, events=None, steps=None):
        facts = {"steps": steps, "model": {"layers": []}, "optimizer": {"class": "SGD", "groups": [{"lr": 0.1}]}}
        return MemoryLog(columns, {**facts, **(manifest or {})}, list(events or []))

    return make


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def facts_of():
    """facts_of(4) or facts_of([("0", "Linear", 1000, 1000), …], "Adam", lr=…): the manifest of such a model."""

    def facts(layers, optimizer="SGD", **group):
        if isinstance(layers, int):
            layers = [(f"layer{i}", "Linear", 1000, 1000) for i in range(layers)]
        names = ("name", "kind", "numel", "trainable")
        return {
            "model": {"layers": [dict(zip(names, layer, strict=True)) for layer in layers]},
            "optimizer": {"class": optimizer, "groups": [{"lr": 0.1, **group}]},
        }

    return facts
