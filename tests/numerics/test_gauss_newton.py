"""Gauss–Newton and Fisher products against dense float64 matrices and closed forms."""

import time

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dynaxx.core.objective import Objective
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.numerics.gauss_newton import Fisher, GaussNewton
from dynaxx.numerics.hessian import Hessian


def net(out=3, dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.GELU(), nn.Dropout(dropout), nn.Linear(7, out)).double()


def batches(sizes=(20, 7), classes=3):
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 5, generator=g, dtype=torch.float64), torch.randint(0, classes, (n,), generator=g))
        for n in sizes
    ]


def cross_entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def jacobian(model, x):
    """∂f/∂θ by forward-mode-free brute force, shape (rows, width, n)."""
    parameters = dict(model.named_parameters())
    found = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (x,)))(parameters)
    return torch.cat([j.flatten(2) for j in found.values()], 2)


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


def softmax_matrix(p):
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


def dense_fisher(model, data, middle):
    """Mean over all examples of JᵀMJ."""
    total, n = 0, 0
    for batch in data:
        j, m = jacobian(model, batch[0]), middle(batch)
        total = total + torch.einsum("nai,nab,nbj->ij", j, m, j)
        n += len(batch[0])
    return (total / n).detach()


@pytest.mark.parametrize("sizes", [(20,), (20, 7)])
def test_gauss_newton_and_categorical_fisher_equal_the_dense_matrix(sizes):
    model, data = net(), batches(sizes)
    truth = dense_fisher(model, data, lambda b: softmax_matrix(model(b[0]).softmax(1)))
    objective = Objective(model, cross_entropy, data)
    close(GaussNewton(objective).dense(), truth)
    close(Fisher(objective).dense(), truth)
    hessian = Hessian(objective, check=False).dense()
    assert (hessian - truth).norm() > 0.1 * truth.norm(), "the model's curvature must be left out"


def test_microbatches_and_parameter_subsets_are_exact():
    model, data = net(), batches()
    whole = GaussNewton(Objective(model, cross_entropy, data)).dense()
    close(GaussNewton(Objective(model, cross_entropy, data, microbatch=6)).dense(), whole)
    part = GaussNewton(Objective(model, cross_entropy, data, parameters=["4.weight"]))
    where = GaussNewton(Objective(model, cross_entropy, data)).space.slices()["4.weight"]
    close(part.dense(), whole[where, where])


def test_gaussian_fisher_is_the_gauss_newton_matrix_of_half_the_squared_error():
    model, data = net(), batches()
    truth = dense_fisher(model, data, lambda b: torch.eye(3, dtype=torch.float64).expand(len(b[0]), 3, 3))
    half = Objective(model, lambda m, b: m(b[0]).square().sum(1).mean() / 2, data)
    close(Fisher(half, "gaussian").dense(), truth)
    close(GaussNewton(half).dense(), truth)


def test_empirical_fisher_is_the_mean_outer_product_of_each_examples_gradient():
    model, data = net(), batches()
    parameters = list(model.parameters())
    rows = []
    for x, y in data:
        for i in range(len(x)):
            found = torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), parameters)
            rows.append(torch.cat([g.flatten() for g in found]))
    rows = torch.stack(rows)
    objective = Objective(model, cross_entropy, data)
    close(Fisher(objective, kind="empirical").dense(), rows.T @ rows / len(rows))


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_monte_carlo_fisher_converges_to_the_exact_one_as_its_samples_grow(likelihood):
    objective = Objective(net(), cross_entropy, batches())
    exact = Fisher(objective, likelihood).dense()
    few = [Fisher(objective, likelihood, "monte_carlo", samples=4, seed=s).dense() for s in range(8)]
    many = Fisher(objective, likelihood, "monte_carlo", samples=1024).dense()
    error = [float((f - exact).norm() / exact.norm()) for f in few]
    far, near = sum(error) / len(error), float((many - exact).norm() / exact.norm())
    assert near < 0.04
    assert 8 < far / near < 32, "1/√samples: 16 times fewer errors with 256 times the samples"
    again = Fisher(objective, likelihood, "monte_carlo", samples=4, seed=0).dense()
    assert torch.equal(again, few[0])
    assert not torch.equal(few[0], few[1])


def test_sequences_count_every_position():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3)).double()
    x, y = torch.randint(0, 5, (6, 4)), torch.randint(0, 3, (6, 4))

    def loss(m, b):
        return F.cross_entropy(m(b[0]).flatten(0, 1), b[1].flatten())

    objective = Objective(model, loss, [(x, y)])
    close(Fisher(objective).dense(), GaussNewton(objective).dense())


def test_several_calls_of_the_model_are_one_output():
    model = net()
    (a, y), (b, _) = batches((8, 8))

    def contrast(m, batch):
        first, second = m(batch[0]), m(batch[1])
        return (first * second).sum(1).sin().mean() + F.cross_entropy(first, batch[2])

    one = Objective(model, contrast, [(a, b, y)])

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, a, b):
            return torch.stack([self.inner(a), self.inner(b)])

    def joined(m, batch):
        first, second = m(batch[0], batch[1])
        return (first * second).sum(1).sin().mean() + F.cross_entropy(first, batch[2])

    other = GaussNewton(Objective(Both(), joined, [(a, b, y)])).dense()
    close(GaussNewton(one).dense(), other)
    with pytest.raises(NotApplicable, match="called 2 times"):
        Fisher(one).dense()


def test_dropout_in_training_mode_is_the_same_at_every_product():
    objective = Objective(net(dropout=0.4), cross_entropy, batches(), mode="training")
    operator = GaussNewton(objective)
    row = operator.space.random(1, seed=0)
    assert torch.equal(operator(row), operator(row))
    matrix = torch.cat([operator(r[None]) for r in torch.eye(operator.space.n, dtype=torch.float64)])
    close(matrix, matrix.T)
    assert torch.linalg.eigvalsh((matrix + matrix.T) / 2)[0] > -1e-12


def test_it_follows_the_weights_and_keeps_its_graph():
    model = net()
    objective = Objective(model, cross_entropy, batches((20,)))
    operator = GaussNewton(objective)
    row = operator.space.random(1, seed=0)
    before = operator(row)
    operator(row)
    assert operator.builds == 1
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    after = operator(row)
    assert operator.builds == 2
    close(after, GaussNewton(objective)(row))
    assert (after - before).norm() > 1e-3 * before.norm()


def test_nothing_of_the_model_changes():
    model = net(dropout=0.3).train()
    weights, random = [p.clone() for p in model.parameters()], torch.get_rng_state()
    for operator in (GaussNewton, Fisher):
        built = operator(Objective(model, cross_entropy, batches(), mode="training"))
        built(built.space.random(2, seed=0))
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(random, torch.get_rng_state())
    assert not model._forward_hooks
    assert model.training


def test_a_loss_linear_in_the_output_has_none():
    operator = GaussNewton(Objective(net(), lambda m, b: m(b[0]).mean(), batches()))
    assert float(operator(operator.space.random(2, seed=0)).abs().max()) == 0.0


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return 3 * g * ctx.saved_tensors[0] ** 2


def test_a_loss_without_a_second_derivative_by_the_output_is_refused_and_not_zero():
    operator = GaussNewton(Objective(net(), lambda m, b: Cube.apply(m(b[0])).mean(), batches()))
    with pytest.raises(NotApplicable, match=r"Cube is marked once_differentiable"):
        operator(operator.space.random(1, seed=0))


def test_what_it_would_be_wrong_about_is_refused():
    data = batches()

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, x):
            return self.inner(x), x

    def product(operator):
        return operator(operator.space.random(1, seed=0))

    with pytest.raises(NotApplicable, match=r"returns one tensor.*tuple.*Wrap"):
        product(GaussNewton(Objective(Pair(), lambda m, b: F.cross_entropy(m(b[0])[0], b[1]), data)))
    with pytest.raises(NotApplicable, match="penalty"):
        product(GaussNewton(Objective(net(), lambda m, b: cross_entropy(m, b) + m[0].weight.square().sum(), data)))
    with pytest.raises(NotApplicable, match="own output"):
        product(GaussNewton(Objective(net(5), lambda m, b: F.cross_entropy(m(m(b[0])), b[1]), data)))
    with pytest.raises(NotApplicable, match="never calls"):
        product(GaussNewton(Objective(net(), lambda m, b: F.cross_entropy(m[4](m[0](b[0])), b[1]), data)))
    with pytest.raises(BadInput, match="samples"):
        Fisher(Objective(net(), cross_entropy, data), kind="monte_carlo", samples=0)


@pytest.mark.slow
def test_a_product_costs_at_most_two_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 10))
    x, y = torch.randn(256, 784), torch.randint(0, 10, (256,))
    objective = Objective(model, cross_entropy, [(x, y)])
    operator = GaussNewton(objective)
    row = operator.space.random(1, seed=0)
    operator(row)

    def best(call):
        times = []
        for _ in range(9):
            start = time.thread_time()
            call()
            times.append(time.thread_time() - start)
        return min(times)

    assert best(lambda: operator(row)) < 2.2 * best(objective.gradient)
