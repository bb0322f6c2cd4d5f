import numpy as np
import pytest
import torch
from torch import nn

from dynaxx.core.objective import Objective
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.numerics.tangent_kernel import alignment, drift, effective_rank, tangent_kernel


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3)).double()


def data():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(10, 4, generator=g, dtype=torch.float64)
    y = torch.randint(0, 3, (10,), generator=g)
    return [(x[:7], y[:7]), (x[7:], y[7:])]


def entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def jacobian(model, x):
    named = dict(model.named_parameters())
    parts = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (x,)))(named)
    return torch.cat([parts[name].flatten(2) for name in named], 2).detach()  # examples, outputs, n


def test_the_kernel_is_that_of_the_dense_jacobian_over_batches_of_unequal_size():
    model = net()
    j = jacobian(model, torch.cat([x for x, _ in data()]))
    flat = j.flatten(0, 1)
    objective = Objective(model, entropy, data())
    full = tangent_kernel(objective)
    assert (full.examples, full.outputs, full.backwards) == (10, 3, 30)
    assert np.allclose(full.matrix, flat @ flat.T, rtol=1e-10)
    assert np.allclose(full.by_example(), torch.einsum("icn,jcn->ij", j, j), rtol=1e-10)
    pseudo = tangent_kernel(objective, pseudo=True, examples=8)
    assert (pseudo.examples, pseudo.outputs, pseudo.backwards) == (8, 1, 8)
    assert np.allclose(pseudo.matrix, (j.sum(1) @ j.sum(1).T)[:8, :8], rtol=1e-10)


@pytest.mark.parametrize("entries", [1, 3 * 63, 4 * 3 * 63])
def test_parts_of_the_jacobian_give_the_same_kernel(entries):
    objective = Objective(net(), entropy, data())
    whole = tangent_kernel(objective)
    parts = tangent_kernel(objective, entries=entries)
    assert np.allclose(parts.matrix, whole.matrix, rtol=1e-12)
    assert parts.backwards > whole.backwards


def test_chosen_parameters_and_chosen_outputs():
    model = net()
    j = jacobian(model, torch.cat([x for x, _ in data()]))
    last = j[:, :, -21:]  # 3 × 6 weights and 3 biases
    part = tangent_kernel(Objective(model, entropy, data(), parameters=["3.weight", "3.bias"]), pseudo=True)
    assert np.allclose(part.matrix, last.sum(1) @ last.sum(1).T, rtol=1e-10)
    first = tangent_kernel(Objective(model, entropy, data()), outputs=lambda m, batch: m(batch[0])[:, 0])
    assert np.allclose(first.matrix, j[:, 0] @ j[:, 0].T, rtol=1e-10)


def test_a_linear_model_has_the_kernel_of_its_inputs():
    model = nn.Linear(4, 3, bias=False).double()
    x = data()[0][0]
    found = tangent_kernel(Objective(model, entropy, data()), examples=7)
    assert np.allclose(found.matrix, np.kron(x @ x.T, np.eye(3)))


def test_what_cannot_be_captured_says_so():
    model = net()

    def twice(m, b):
        return entropy(m, b) + entropy(m, b)

    with pytest.raises(BadInput, match="called it 2 times"):
        tangent_kernel(Objective(model, twice, data()))

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, x):
            return self.inner(x), x

    with pytest.raises(BadInput, match="got a tuple from it"):
        tangent_kernel(Objective(Pair(), lambda m, b: m(b[0])[0].sum(), data()))
    with pytest.raises(BadInput, match="have no gradient"):
        tangent_kernel(Objective(model, entropy, data()), outputs=lambda m, b: m(b[0]).detach())
    norm = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    with pytest.raises(NotApplicable, match="batch statistics forbid"):
        tangent_kernel(Objective(norm, entropy, data(), mode="training"))
    assert tangent_kernel(Objective(norm, entropy, data())).outputs == 3


def test_outputs_in_varying_number_need_the_pseudo_kernel():
    model = nn.Linear(2, 2).double()
    batches = [torch.ones(1, n, 2, dtype=torch.float64) for n in (2, 3)]
    objective = Objective(model, lambda m, x: m(x).mean(), batches)
    with pytest.raises(BadInput, match="example 1 has 6 outputs, the first has 4"):
        tangent_kernel(objective)
    assert tangent_kernel(objective, pseudo=True).matrix.shape == (2, 2)


def test_nothing_is_left_behind():
    model = net().train()
    stream = torch.get_rng_state()
    tangent_kernel(Objective(model, entropy, data()))
    assert torch.equal(torch.get_rng_state(), stream)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert not model._forward_hooks


def test_comparisons_and_their_invariances():
    k = np.array([[2.0, 1.0], [1.0, 3.0]])
    assert drift(2 * k, k) == pytest.approx(1)
    assert alignment(5 * k, k) == pytest.approx(1)
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(2, 2)))[0]
    other = np.diag([1.0, 4.0])
    assert alignment(q @ k @ q.T, q @ other @ q.T) == pytest.approx(alignment(k, other))
    assert alignment(k + 7, other, centred=True) == pytest.approx(alignment(k, other, centred=True))
    assert np.isnan(alignment(np.zeros((2, 2)), k))
    assert effective_rank(np.array([3.0, 3.0, 3.0, -1e-17])) == pytest.approx(3)
    assert effective_rank(np.array([1.0, 1e-12])) == pytest.approx(1, abs=1e-9)
