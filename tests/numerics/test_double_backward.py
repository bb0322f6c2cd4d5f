"""Products by double backward: what a row of them shares, and what happens where the kept graph does not fit."""

from contextlib import suppress

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dynaxx.core.objective import Objective
from dynaxx.numerics.hessian import Hessian


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.out = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.4)), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.body(x))


class Checkpointed(Dropping):
    def forward(self, x):
        return self.out(checkpoint(self.body, x, use_reentrant=False))


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(5, 9)

    def forward(self, x):
        q, k, v = self.qkv(x)[None].chunk(3, dim=-1)
        return functional.scaled_dot_product_attention(q, k, v)[0]


def made(kind):
    torch.manual_seed(0)
    batch = (torch.randn(13, 5, dtype=torch.float64), torch.randint(0, 3, (13,)))
    return Objective(kind().double().train(), lambda m, b: functional.cross_entropy(m(b[0]), b[1]), [batch])


@pytest.mark.parametrize("kind", [Dropping, Checkpointed, Attending])
def test_products_in_a_row_are_those_taken_alone_and_share_the_setting(kind, monkeypatch):
    """A checkpointed part runs forward again within each product: it must find the modes set in all of them."""
    objective = made(kind)
    model = objective.model
    rows = Hessian(objective, check=False).space.random(3, seed=0)
    alone = [Hessian(objective, check=False)(row[None]) for row in rows]
    entered, prepared = [], objective.prepared
    monkeypatch.setattr(objective, "prepared", lambda **options: entered.append(1) or prepared(**options))
    operator, random = Hessian(objective, check=False), torch.get_rng_state()
    with suppress(ZeroDivisionError), operator.opened():
        together = [operator(row[None]) for row in rows]
        with operator.opened():
            again = operator(rows[:1])
        assert not model.training
        raise ZeroDivisionError
    assert len(entered) == 1
    assert all(torch.equal(a, b) for a, b in zip([*alone, alone[0]], [*together, again], strict=True))
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)
    operator(rows[:1])
    assert len(entered) == 2


class Full(torch.autograd.Function):
    """Tanh whose derivative finds no memory while there is a list to take one from."""

    @staticmethod
    def forward(ctx, x, failures):
        ctx.failures = failures
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, slope):
        if ctx.failures:
            ctx.failures.pop()
            raise torch.OutOfMemoryError("out of memory")
        (x,) = ctx.saved_tensors
        return slope / x.cosh().square(), None


def test_a_graph_that_does_not_fit_is_freed_from_then_on():
    failures: list[int] = []
    model = nn.Linear(5, 3).double()
    batch = torch.randn(13, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    objective = Objective(model, lambda m, x: Full.apply(m(x), failures).square().mean(), [batch])
    operator = Hessian(objective, check=False)
    rows = operator.space.random(1, seed=0)
    truth = operator(rows)
    operator(rows)
    assert operator.builds == 1
    failures.append(1)
    assert torch.equal(operator(rows), truth)
    operator(rows)
    assert operator.builds == 3
    failures += [1, 1]
    with pytest.raises(torch.OutOfMemoryError):
        operator(rows)
