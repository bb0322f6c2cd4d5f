import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import dynaxx
from dynaxx.core.events import Event
from dynaxx.errors import NotApplicable
from dynaxx.numerics.attention import statistics


class Block(nn.Module):
    """Two ways to attend: torch's function, called twice, and its module."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(4, 8)
        self.module = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        q, k = self.project(x).chunk(2, -1)
        first = functional.scaled_dot_product_attention(q, k, x, is_causal=True)
        second = functional.scaled_dot_product_attention(k, q, first)
        return self.module(second, second, second)[0]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()

    def forward(self, x):
        return self.block(x)


@pytest.fixture
def found(bench):
    torch.manual_seed(0)
    model = Net()
    return bench(model, torch.optim.SGD(model.parameters(), lr=0.1), "attention")


def read(found):
    values = found.measure(Event.STEP_END, found.begin())
    if not values:
        return {}
    labels = found.columns["attention.entropy"].axis.labels
    both = zip(values["attention.logit_max"].tolist(), values["attention.entropy"].tolist(), strict=True)
    return dict(zip(labels, both, strict=True))


def test_every_call_is_a_row_named_after_its_module(found):
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))
    found.look(x)
    rows = read(found)
    assert list(rows) == ["block", "block#2", "block.module"]
    q, k = found.model.block.project(x).detach().chunk(2, -1)
    for row, truth in zip(rows.values(), (statistics(q, k, x, is_causal=True), statistics(k, q, x)), strict=False):
        assert row == pytest.approx([float(t) for t in truth], rel=1e-6)
    assert 0 < rows["block.module"][1] <= math.log(5)
    assert read(found) == {}  # each forward is told once


def test_of_several_forwards_the_largest_logit_and_the_mean_entropy(found):
    xs = [torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(i)) * (i + 1) for i in range(3)]
    each = []
    for x in xs:
        found.look(x)
        each.append(read(found))
    for x in xs:
        found.look(x)
    for label, (logit, entropy) in read(found).items():
        assert logit == max(rows[label][0] for rows in each)
        assert entropy == pytest.approx(sum(rows[label][1] for rows in each) / 3, rel=1e-6)


def test_a_compiled_model_is_not_spoken_of(bench):
    model = torch.compile(Net(), backend="eager")
    with pytest.raises(NotApplicable, match="compiled model"):
        bench(model, torch.optim.SGD(model.parameters(), lr=0.1), "attention")


def test_looking_does_not_add_to_the_models_operations(tmp_path):
    """The logits that are computed anew run while the model's operations are counted."""
    x = torch.randn(2, 64, 4)
    rates = []
    for signals in (["flops"], ["flops", "attention"]):
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with dynaxx.watch(model, optimizer, tmp_path / str(len(signals)), signals=signals, quiet=True) as run:
            for _ in range(3):
                model(x).sum().backward()
                optimizer.step()
            rates.append(run._live._flops_per_sample)
    assert rates[0] == rates[1] > 0
