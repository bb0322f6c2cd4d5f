"""A model, its optimizer and some signals, taken through steps by hand: exceptions and every number come out."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dynaxx import catalog
from dynaxx.core.contracts import ForwardSignal
from dynaxx.core.events import Event, Need, StepView
from dynaxx.core.parameters import Layout
from dynaxx.numerics.reductions import before_norms
from dynaxx.session.forward import ForwardWatch

sys.path.insert(0, str(Path(__file__).parent))  # for `_every_signal`


class Bench:
    """Takes signals through the steps of a model as the session does.

    Attributes:
        columns: Name → column, of everything measured so far.
        states: Name → state of the signal.
    """

    def __init__(self, model, optimizer, *names, layers=None):
        self.model, self.optimizer = model, optimizer
        self.layout = Layout(model, layers)
        self.signals = {name: catalog.get("signals", name)() for name in names}
        self.states = {name: signal.init(model, self.layout) for name, signal in self.signals.items()}
        looking = [(s, self.states[name]) for name, s in self.signals.items() if isinstance(s, ForwardSignal)]
        self.watch = ForwardWatch(model, looking, self._broken) if looking else None
        self.columns = {}
        self.number = 0

    @staticmethod
    def _broken(signal, error):
        raise error

    def look(self, *inputs):
        """A training forward that is looked into."""
        self.watch.enter()
        output = self.model(*inputs)
        self.watch.leave(inputs, output)
        return output

    def begin(self, **facts):
        """The coming step, as the session would show it."""
        self.number += 1
        return StepView(step=self.number, layout=self.layout, optimizer=self.optimizer, **facts)

    def measure(self, event, view):
        """Column → value in float64, folded by layer where the log would fold it."""
        found = {}
        for name, signal in self.signals.items():
            if signal.at is not event:
                continue
            with torch.no_grad():
                self.states[name], measurements = signal.measure(self.states[name], view)
            for each in measurements:
                self.columns[each.column.name] = each.column
                found[each.column.name] = self.folded(each)
        return found

    @staticmethod
    def folded(measurement):
        value = torch.as_tensor(measurement.value, dtype=torch.float64)
        if measurement.fold is None:
            return value
        assert measurement.column.reduce == "l2"
        rows = torch.zeros(len(measurement.column.axis), dtype=torch.float64)
        return rows.index_add_(0, torch.tensor(measurement.fold), value.square()).sqrt()

    def step(self, before_update=None, **facts):
        """From complete gradients to the end of the update; `before_update` is the loop's own clipping."""
        view = self.begin(**facts)
        found = self.measure(Event.GRADS_READY, view)
        if before_update is not None:
            before_update()
        if any(Need.UPDATE in s.needs for s in self.signals.values()):
            view.before = [p.clone() for p in view.parameters]
            before_norms(view)
        self.optimizer.step()
        if view.before is not None:
            for then, now in zip(view.before, view.parameters, strict=True):
                then.sub_(now)
        return found | self.measure(Event.STEP_END, view)


@pytest.fixture
def bench():
    return Bench


class Layers:
    """Truth by layer in float64, from dense tensors."""

    @staticmethod
    def of(model):
        rows = {}
        for name, parameter in model.named_parameters():
            rows.setdefault(name.rpartition(".")[0] or "(root)", []).append(parameter)
        return list(rows.values())

    @classmethod
    def map(cls, model, function, entry=lambda p: p.grad):
        """function(all the layer's entries as one float64 vector), by layer."""
        values = []
        for parameters in cls.of(model):
            parts = [torch.zeros(p.numel()) if entry(p) is None else entry(p).detach().flatten() for p in parameters]
            values.append(float(function(torch.cat([part.double() for part in parts]))))
        return values


@pytest.fixture
def layers():
    return Layers


class Small(nn.Module):
    """A convolution, a layer frozen, one that is never used, a parameter at the root."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.5]))
        self.conv = nn.Conv1d(2, 4, 3)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(4, 3, bias=False)

    def forward(self, x):
        hidden = torch.relu(self.conv(x)).mean(-1)
        return self.head(self.frozen(hidden)) * self.scale


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Small()


@pytest.fixture
def backward():
    """Fill a small model's gradients from random data."""

    def backward(model, seed=0, factor=1.0):
        x = torch.randn(6, 2, 9, generator=torch.Generator().manual_seed(seed))
        (model(x).square().mean() * factor).backward()

    return backward
