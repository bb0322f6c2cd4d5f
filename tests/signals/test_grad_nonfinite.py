import pytest
import torch
from torch import nn

from dynaxx.core.events import Event


@pytest.fixture
def found(small, bench):
    return bench(small, torch.optim.SGD(small.parameters(), lr=0.1), "grad_nonfinite")


def test_finite_gradients_have_no_row(small, backward, found):
    backward(small)
    small.conv.weight.grad[0] = 3e38  # finite, though its norm is not
    small.head.weight.grad[0] = 1e-45
    assert found.measure(Event.GRADS_READY, found.begin()).get("grad_nonfinite", torch.zeros(5)).tolist() == [0] * 5
    small.conv.weight.grad[0] = 1.0
    assert found.step() == {}


def test_every_bad_entry_is_counted_in_its_layer(small, backward, found):
    backward(small)
    small.conv.weight.grad[0, 0] = torch.tensor([torch.nan, 1.0, torch.inf])
    small.conv.bias.grad[3] = -torch.inf
    small.head.weight.grad[:2] = torch.nan
    assert found.measure(Event.GRADS_READY, found.begin())["grad_nonfinite"].tolist() == [0, 3, 0, 0, 8]
    assert found.columns["grad_nonfinite"].reduce == "sum"


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_bad_entry_of_any_kind_is_enough(small, backward, found, bad):
    backward(small)
    small.conv.bias.grad[2] = bad
    assert found.measure(Event.GRADS_READY, found.begin())["grad_nonfinite"].tolist() == [0, 1, 0, 0, 0]


def test_the_last_bad_layer_of_the_list_is_the_first_in_the_backward(bench):
    """A division 0/0 behind the second layer poisons it and all before it, and leaves what comes after it alone."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            x = self.second(self.first(x))
            x = torch.where(torch.arange(4) == 2, (x - x).sqrt(), x)  # slope 1/(2·0) times 0
            return self.third(x)

    model = Net()
    found = bench(model, torch.optim.SGD(model.parameters(), lr=0.1), "grad_nonfinite")
    model(torch.randn(3, 4)).sum().backward()
    counts = found.measure(Event.GRADS_READY, found.begin())["grad_nonfinite"]
    truth = [sum(int((~p.grad.isfinite()).sum()) for p in layer.parameters()) for layer in model.children()]
    assert counts.tolist() == truth
    assert [count > 0 for count in truth] == [True, True, False]
    assert max(i for i, count in enumerate(truth) if count) == 1
