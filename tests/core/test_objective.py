"""The objective: its value, gradient, weights, and what it refuses."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dynaxx.core.batches import mapped, split
from dynaxx.core.objective import Objective
from dynaxx.errors import BadInput


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 2)).double()


def batches(sizes=(9, 4)):
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 4, generator=g).double(), torch.randint(0, 2, (n,), generator=g)) for n in sizes]


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def test_value_and_gradient_are_means_over_examples():
    model = net().eval()
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    whole = F.cross_entropy(model(x), y)
    gradient = torch.autograd.grad(whole, list(model.parameters()))
    model.train()
    for options in ({}, {"microbatch": 2}):
        objective = Objective(model, loss, batches(), **options)
        assert objective.value() == pytest.approx(float(whole.detach()), rel=1e-14)
        for a, b in zip(objective.gradient(), gradient, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert objective.weight == 13.0


def test_training_mode_is_deterministic_and_leaves_no_trace():
    model = net().eval()
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    objective = Objective(model, loss, batches(), mode="training")
    assert objective.value() == objective.value() != Objective(model, loss, batches()).value()
    a, b = objective.gradient(), objective.gradient()
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module.training for module in model.modules())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler about itself
def test_the_compiled_model_is_taken_as_it_was():
    model = net()
    whole = Objective(model, loss, batches())
    wrapped = Objective(torch.compile(model), loss, batches())
    assert wrapped.names == whole.names
    assert wrapped.value() == whole.value()
    inplace = net()
    inplace[0].compile()
    assert Objective(inplace, loss, batches()).value() == whole.value()


def test_other_tensors_stand_in_the_places_of_parameters():
    model = net()
    objective = Objective(model, loss, batches(), parameters=["4.bias"])
    with torch.no_grad(), objective.prepared(), objective.at([model[4].bias + 1.0]):
        moved = sum(float(part) for part in objective.parts())
    with torch.no_grad():
        model[4].bias += 1.0
    assert moved == pytest.approx(objective.value(), rel=1e-14)


def test_float64_copy_is_apart():
    model = net().float()
    data = [(x.float(), y) for x, y in batches()]
    wide = Objective(model, loss, data).in_float64()
    with torch.no_grad():
        wide.parameters[0].zero_()
    assert float(model[0].weight.detach().abs().max()) > 0
    assert wide.gradient()[0].dtype == torch.float64
    fewer = Objective(model, loss, data).in_float64(3)
    assert [len(x) for x, _ in fewer.batches] == [3]
    assert fewer.shares == [1.0]


def test_what_is_not_finite_is_named():
    model = net()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(BadInput, match=r"'0\.weight' is not finite"):
        Objective(model, loss, batches()).gradient()
    model = net()
    data = batches()
    data[1][0][0, 0] = float("inf")
    with pytest.raises(BadInput, match=r"output of the module '0' is not finite on batch 1"):
        Objective(model, loss, data).gradient()
    with pytest.raises(BadInput, match="√0"):
        Objective(net(), lambda m, b: (m(b[0]) * 0.0).sum().sqrt(), batches()).gradient()
    with pytest.raises(BadInput, match="loss of batch 0 is nan"):
        Objective(net(), lambda m, b: loss(m, b) * float("nan"), batches()).gradient()


def test_zero_gradients_are_zero():
    found = Objective(net(), lambda m, b: 0.0 * m(b[0]).sum(), batches()).gradient()
    assert all(float(g.abs().max()) == 0.0 for g in found)
    part = Objective(net(), lambda m, b: m[4].bias.sum(), batches()).gradient()
    assert float(part[-1].abs().max()) == 1.0
    assert float(part[0].abs().max()) == 0.0


def test_parameters_without_a_derivative_are_refused_by_name():
    model = net()
    model.register_parameter("table", nn.Parameter(torch.arange(3), requires_grad=False))
    assert "table" not in Objective(model, loss, batches()).names
    with pytest.raises(BadInput, match=r"table.* are integers"):
        Objective(model, loss, batches(), parameters=["table"])
    with pytest.raises(BadInput, match=r"no .*nothing"):
        Objective(model, loss, batches(), parameters=["nothing"])
    with pytest.raises(BadInput, match="no parameter to differentiate by"):
        Objective(nn.Tanh(), loss, batches())


def test_bad_arguments_are_refused():
    with pytest.raises(BadInput, match="list of batches"):
        Objective(net(), loss, batches()[0][0])
    with pytest.raises(BadInput, match="sum to more than 0"):
        Objective(net(), loss, [])
    with pytest.raises(BadInput, match="0 or more"):
        Objective(net(), loss, batches(), weight=lambda b: 5.0 - len(b[0]))
    with pytest.raises(BadInput, match="microbatch"):
        Objective(net(), loss, batches(), microbatch=0)
    with pytest.raises(BadInput, match="scalar"):
        Objective(net(), lambda m, b: m(b[0]), batches()).value()
    with pytest.raises(BadInput, match="with a gradient"):
        Objective(net(), lambda m, b: loss(m, b).detach(), batches()).gradient()
    with pytest.raises(BadInput, match="init_process_group"):
        Objective(net(), loss, batches(), process_group="world")


def test_batches_of_any_nesting_are_split():
    batch = {"x": torch.arange(5), "pair": (torch.ones(5, 2), "name"), "table": torch.zeros(3)}
    parts = split(batch, 2)
    assert [len(part["x"]) for part in parts] == [2, 2, 1]
    assert parts[2]["pair"][0].shape == (1, 2)
    assert parts[0]["table"].shape == (3,)
    assert torch.equal(torch.cat([part["x"] for part in parts]), batch["x"])
    assert mapped(batch, lambda t: t + 1)["pair"][1] == "name"
