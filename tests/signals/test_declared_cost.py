"""Every signal costs what it declares: what it reads, and the products and passes it takes."""

import pytest
import torch
from _every_signal import DEAR, NAMES, batches, facts, taken
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dynaxx.core.events import UPDATE_COST, StepView
from dynaxx.core.parameters import Layout
from dynaxx.numerics.hessian import Hessian
from dynaxx.session.instruments import Instruments


class Sweeps(TorchDispatchMode):
    """Counts the elements that operations read: of every tensor given to one that is neither a view nor a constant.

    An `out=`, and what `copy_` writes to, are not read. Integer tables and masks count as elements like the others.
    """

    constant = frozenset({"new_zeros", "new_empty", "new_full", "zeros_like", "ones_like", "empty_like", "full_like"})
    overwrite = frozenset({"copy_", "_foreach_copy_", "zero_", "fill_"})

    def __init__(self):
        super().__init__()
        self.read = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._overloadpacket.__name__
        view = name == "_unsafe_view" or any(
            r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns
        )
        if not view and name not in self.constant:
            given = [args[1:] if name in self.overwrite else args, {k: v for k, v in kwargs.items() if k != "out"}]
            self.read += sum(t.numel() for t in tree_leaves(given) if isinstance(t, torch.Tensor))
        return func(*args, **kwargs)


def wide():
    """Tensors so large that what is read beside them does not show."""
    return nn.Sequential(nn.Linear(700, 800), nn.Linear(800, 500))


def swept(call, model):
    with torch.no_grad(), Sweeps() as sweeps:
        call()
    return sweeps.read / sum(p.numel() for p in model.parameters())


def test_sweeps_count_what_is_read():
    x = torch.ones(100)
    model = nn.ParameterList([x])
    for call, truth in [
        (lambda: torch.linalg.vector_norm(x), 1),
        (lambda: torch.linalg.vector_norm(x - x), 3),
        (lambda: x.view(10, 10).T.reshape(2, 50), 1),
        (lambda: torch.zeros_like(x).copy_(x), 1),
        (lambda: torch._foreach_norm([x, x]), 2),
        (lambda: torch.mul(x, x, out=torch.empty(100)), 2),
        (lambda: x.new_zeros(7).fill_(3), 0),
    ]:
        assert swept(call, model) == truth


@pytest.mark.parametrize("name", DEAR)
def test_a_dear_signal_takes_no_more_than_it_declares(name, bench, monkeypatch):
    found = taken(bench, name, steps=3)
    products, examples = [], []
    multiply = Hessian.__call__

    def counted(operator, rows):
        products.append(len(rows))
        return multiply(operator, rows)

    monkeypatch.setattr(Hessian, "__call__", counted)
    (found.model(batches()[4])).square().mean().backward()
    view = found.begin(**facts(found.model))
    found.model.register_forward_pre_hook(lambda _, inputs: examples.append(len(inputs[0])))
    with torch.no_grad():
        found.signals[name].measure(found.states[name], view)
    cost = found.signals[name].cost
    assert sum(products) <= cost.products
    if cost.products:
        assert products
        assert sum(examples) == 4, "one graph, kept for all products"
    else:
        assert sum(examples) / 4 == cost.forwards


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(DEAR)))
def test_the_declared_cost_is_what_is_read(name, bench):
    model = wide()
    if name == "router":
        model.gate, model.experts = nn.Linear(2, 2), nn.Linear(2, 2)
    found = taken(bench, name, model, steps=2)
    signal = found.signals[name]
    view = found.begin(**facts(model))
    view.before = [torch.randn_like(p) for p in view.parameters]
    view.memo("before_norms", lambda: torch.ones(len(found.layout.layers)))
    model.register_forward_pre_hook(lambda *_: pytest.fail("a measurement ran the model"))
    measured = swept(lambda: signal.measure(found.states[name], view), model)
    assert measured == pytest.approx(signal.cost.sweeps, abs=0.15)
    assert (signal.cost.forwards, signal.cost.backwards) == (0, 0)


def test_the_price_of_the_update_is_what_is_read():
    model = wide()
    layout = Layout(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    instruments = Instruments(model, layout, ["update_norm"], None, budget=0.02, warn=pytest.fail)
    view = StepView(step=1, layout=layout, optimizer=optimizer)

    def prepare():
        instruments.keep(view)
        instruments.compare(view)

    assert swept(prepare, model) == pytest.approx(UPDATE_COST.sweeps, abs=0.15)
