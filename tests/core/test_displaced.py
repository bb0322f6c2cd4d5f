import pytest
import torch
from torch import nn

from dynaxx.core.displaced import Displaced
from dynaxx.core.objective import Objective
from dynaxx.errors import BadInput
from dynaxx.numerics.hessian import Hessian


def quartic(dtype=torch.float64):
    model = nn.Linear(3, 1, bias=False, dtype=dtype)
    return model, Objective(model, lambda m, x: (m.weight**4).sum() + 0 * m(x).sum(), [torch.ones(2, 3, dtype=dtype)])


def test_value_gradient_and_curvature_are_those_of_where_it_stands_and_the_model_keeps_its_weights():
    model, objective = quartic()
    before = model.weight.detach().clone()
    point = Displaced(objective)
    hessian = Hessian(point)
    hessian(torch.ones(1, 3, dtype=torch.float64))
    place = torch.tensor([[1.0, 2.0, -1.0]], dtype=torch.float64)
    point.move([place])
    assert point.value() == 18.0
    assert torch.equal(point.gradient()[0], 4 * place**3)
    assert torch.allclose(hessian.dense(), torch.diag(12 * place[0] ** 2))
    assert torch.equal(model.weight, before)
    assert model.weight.grad is None


def test_a_float64_copy_stands_where_the_displaced_one_does():
    _, objective = quartic(torch.float32)
    point = Displaced(objective)
    point.move([torch.tensor([[1.0, 2.0, -1.0]])])
    wide = Displaced(point.in_float64())
    assert wide.parameters[0].dtype == torch.float64
    assert wide.value() == 18.0
    wide.move([torch.zeros(1, 3)])
    assert (wide.value(), point.value()) == (0.0, 18.0)


def test_a_restriction_stays_where_the_displaced_one_stands():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    point = Displaced(Objective(model, lambda m, x: m(x).mean(), [torch.ones(1, 1)]))
    point.move([torch.full((1, 1), 2.0), torch.full((1, 1), 5.0)])
    part = point.restricted(["1.weight"])
    assert part.value() == 10.0
    assert [g.item() for g in part.gradient()] == [2.0]


def test_another_loss_of_the_same_batches():
    _, objective = quartic()
    assert Displaced(objective, loss_fn=lambda m, x: m.weight.sum() * 0 + 7.0).value() == 7.0


def test_half_precision_is_refused():
    model = nn.Linear(2, 1).bfloat16()
    objective = Objective(model, lambda m, x: m(x).mean(), [torch.ones(1, 2).bfloat16()])
    with pytest.raises(BadInput, match="half precision"):
        Displaced(objective)
