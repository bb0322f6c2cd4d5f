"""What every entry of the family "probes" must be."""

import contextlib
import functools
import io
import json
import random

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import nn
from torch.nn import functional

from dynaxx import catalog, landscape
from dynaxx.core.chart import Chart
from dynaxx.core.isolation import isolated_random
from dynaxx.core.objective import Objective
from dynaxx.core.records import Cost
from dynaxx.core.snapshot import Snapshot
from dynaxx.errors import NotApplicable
from dynaxx.numerics.operator import Operator

PROBES = catalog.names("probes")
SHORT = {
    "connectivity": {"other": 2, "initial": 3, "steps": 5, "points": 5},
    "critical_points": {"starts": 1, "iterations": 5},
    "lr_range": {"steps": 24, "seeds": 2, "looks": 3, "look_steps": 10},
    "trajectory_map": {"trajectory": (2, 3, 4), "grid": 5},
}
"""Options with which a probe takes a few seconds; all others run with their defaults. Other points are seeds."""


def made(name):
    options = dict(SHORT.get(name, {}))
    for key in options.keys() & {"other", "initial"}:
        options[key] = weights(options[key])
    if "trajectory" in options:
        options["trajectory"] = [
            Snapshot(step=i, run="a", load=functools.partial(weights, seed))
            for i, seed in enumerate(options["trajectory"])
        ]
    return catalog.get("probes", name)(**options)


def weights(seed):
    """Parameters and buffers of a net of that seed."""
    with isolated_random():
        torch.manual_seed(seed)
        return Net().state_dict()


class Net(nn.Module):
    """Dropout, running statistics, a frozen part that is in evaluation mode, and a model called with one batch."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.3))
        self.frozen = nn.BatchNorm1d(5).eval()
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.frozen(self.body(x)))


class Counted:
    """A loss that counts its passes over the 20 examples, those within curvature products apart."""

    def __init__(self, monkeypatch):
        self.passes = self.products = self._depth = 0
        original = Operator.__call__

        def call(operator, rows):
            self.products += len(rows) if self._depth == 0 else 0
            self._depth += 1
            try:
                return original(operator, rows)
            finally:
                self._depth -= 1

        monkeypatch.setattr(Operator, "__call__", call)

    def __call__(self, model, batch):
        self.passes += len(batch[0]) / 20 if self._depth == 0 else 0
        return functional.cross_entropy(model(batch[0]), batch[1])


def setting(monkeypatch, mode="evaluation"):
    torch.manual_seed(1)
    model = Net().train()
    model.frozen.eval()
    x, y = torch.randn(20, 3), torch.randint(0, 2, (20,))
    loss = Counted(monkeypatch)
    return Objective(model, loss, [(x[:12], y[:12]), (x[12:], y[12:])], mode=mode), loss


def state(model):
    """Everything that a probe must leave as it is."""
    streams = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()]  # noqa: NPY002
    tensors = [t.detach().clone() for t in model.state_dict().values()]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    return streams, tensors, grads, (modes, hooks, [p.requires_grad for p in model.parameters()])


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_there_are_probes():
    assert "spectrum" in PROBES


@pytest.mark.parametrize("mode", ["evaluation", "training"])
@pytest.mark.parametrize("name", PROBES)
def test_it_leaves_no_trace_and_stays_within_its_price(name, mode, monkeypatch):
    objective, loss = setting(monkeypatch, mode)
    model, probe = objective.model, made(name)
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = None if i == 1 else torch.full_like(parameter, float(i))
    price = probe.price(objective)
    assert isinstance(price, Cost)
    assert loss.passes == loss.products == 0  # a price is free
    before = state(model)
    chart = None
    with contextlib.suppress(NotApplicable):
        chart = probe.run(objective)
    assert same(state(model), before)
    assert loss.products <= price.products
    assert loss.passes <= price.forwards + 1e-9
    if chart is not None:
        assert chart.cost.products == loss.products
        assert chart.cost.forwards <= price.forwards
        assert chart.cost.backwards <= price.backwards
        assert chart.cost.seconds > 0


@pytest.mark.parametrize("name", PROBES)
def test_it_says_the_same_again(name, monkeypatch):
    charts = []
    for draws in (0, 3):
        objective, _ = setting(monkeypatch)
        torch.rand(draws)  # the global streams play no part
        charts.append(made(name).run(objective))
    one, two = charts
    assert list(one.values) == list(two.values)
    for key, value in one.values.items():
        assert value.value == pytest.approx(two[key], rel=1e-4, abs=1e-6, nan_ok=True), key
    for key, array in one.arrays.items():
        np.testing.assert_allclose(array, two.arrays[key], rtol=1e-3, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", PROBES)
def test_its_chart_is_written_read_and_drawn(name, monkeypatch):
    objective, _ = setting(monkeypatch)
    chart = made(name).run(objective)
    assert chart.probe == name
    assert "Net" in chart.title
    text = json.dumps(chart.to_dict(), allow_nan=False)
    assert Chart.from_dict(json.loads(text)).to_dict() == chart.to_dict()
    assert all(value.about for value in chart.values.values())
    assert name in str(chart)
    assert chart.panels
    buffer = io.BytesIO()
    chart.plot().savefig(buffer, format="png", dpi=50)
    buffer.seek(0)
    assert imread(buffer)[..., :3].std() > 0.01


@pytest.mark.parametrize("name", PROBES)
def test_it_is_entered_whole(name):
    kind = catalog.get("probes", name)
    assert catalog.about("probes", name)
    assert "Args:" in (kind.__doc__ or "")  # the command line takes its options' help from there
    assert callable(vars(landscape)[name])
