import math

import pytest
import torch
from torch import nn

from dynaxx.core.events import Event
from dynaxx.errors import NotApplicable

EXPERTS = 4


class Mixture(nn.Module):
    def __init__(self, name="router", experts="experts"):
        super().__init__()
        self.add_module(name, nn.Linear(EXPERTS, EXPERTS, bias=False))
        nn.init.eye_(self.get_submodule(name).weight)
        self.add_module(experts, nn.ModuleList(nn.Linear(EXPERTS, EXPERTS) for _ in range(EXPERTS)))
        self.name = name

    def forward(self, x):
        return self.get_submodule(self.name)(x)


class Net(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.gate = nn.Linear(EXPERTS, 9)  # a gate of another kind: no experts beside it

    def forward(self, x):
        return [layer(x) for layer in self.layers], self.gate(x)


@pytest.fixture
def measured(bench):
    def measured(*inputs, layers=None):
        model = Net(*(layers or [Mixture()]))
        found = bench(model, torch.optim.SGD(model.parameters(), lr=0.1), "router")
        for x in inputs:
            found.look(x)
        values = found.measure(Event.STEP_END, found.begin())
        labels = found.columns["router.load_max"].axis.labels
        assert found.columns["router.entropy"].axis.labels == labels
        return labels, values["router.load_max"].tolist(), values["router.entropy"].tolist()

    return measured


def test_perfect_balance_is_one_and_collapse_the_number_of_experts(measured):
    even = torch.eye(EXPERTS).repeat(3, 1)
    labels, load, _ = measured(even)
    assert (labels, load) == (("layers.0.router",), [1.0])
    one = torch.zeros(10, EXPERTS)
    one[:, 2] = 1
    assert measured(one)[1] == [EXPERTS]


def test_entropy_is_that_of_the_routers_softmax(measured):
    assert measured(torch.zeros(5, EXPERTS))[2] == pytest.approx([math.log(EXPERTS)])
    assert measured(100 * torch.eye(EXPERTS))[2] == pytest.approx([0.0], abs=1e-6)
    x = torch.randn(6, 5, EXPERTS, generator=torch.Generator().manual_seed(0)) * 2
    p = torch.softmax(x.double(), -1)
    assert measured(x)[2] == pytest.approx([float(-(p * p.log()).sum(-1).mean())], rel=1e-5)


def test_load_over_random_tokens_and_several_forwards(measured):
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(n, 7, EXPERTS, generator=generator) for n in (1, 4)]
    choices = torch.cat([x.argmax(-1).flatten() for x in xs])
    share = torch.bincount(choices, minlength=EXPERTS).double() / len(choices)
    assert measured(*xs)[1] == pytest.approx([EXPERTS * float(share.max())], rel=1e-6)


@pytest.mark.parametrize("name", ["router", "gate", "gating", "gate_network"])
def test_routers_are_known_by_name_beside_their_experts(measured, name):
    labels, load, _ = measured(torch.eye(EXPERTS), layers=[Mixture(name), Mixture(name, "others"), Mixture(name)])
    assert labels == (f"layers.0.{name}", f"layers.2.{name}")
    assert load == [1.0, 1.0]


def test_a_wrapped_model_has_the_same_names(bench):
    model = torch.compile(Net(Mixture()), backend="eager")
    found = bench(model, torch.optim.SGD(model.parameters(), lr=0.1), "router")
    assert list(found.states["router"].taps) == ["layers.0.router"]


@pytest.mark.parametrize("model", [nn.Linear(2, 2), Net(), Net(Mixture("router", "others")), Net(Mixture("router"))])
def test_without_a_router_that_can_be_told_there_is_nothing_to_say(bench, model):
    if len(model._modules) and len(model.layers) and "experts" in model.layers[0]._modules:
        model.layers[0].router = nn.Sequential(nn.Linear(EXPERTS, EXPERTS))  # a router of several layers
    with pytest.raises(NotApplicable, match="not a mixture of experts, or its router cannot be told by name"):
        bench(model, torch.optim.SGD(model.parameters(), lr=0.1), "router")
