import copy

import pytest
import torch
from torch import nn

from dynaxx.errors import BadInput
from dynaxx.optim.kfac import KFAC, OMEGA

PLAIN = {"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "clip": None}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def product_data(inputs=3, outputs=2, repeat=1):
    """Every input with every output gradient: a and g are independent, so that A ⊗ G is the Fisher information."""
    a, g = torch.randn(7, inputs), torch.randn(5, outputs) + 0.5
    pairs = [(x, y) for x in a for y in g] * repeat
    return torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])


def dense(a, g, bias):
    """Mean of vec(g aᵀ) vec(g aᵀ)ᵀ and of vec(g aᵀ), in float64, with ones for the bias."""
    a = torch.cat([a, torch.ones(len(a), 1)], 1) if bias else a
    each = torch.einsum("no,ni->noi", g.double(), a.double()).flatten(1)
    return each.T @ each / len(each), each.mean(0)


def taken(layer, optimizer, x, g, *, steps=1, mean=True, parts=1):
    """The update of the last of some steps with the loss Σ gₙᵀ layer(xₙ), whose output gradients are gₙ."""
    for _ in range(steps):
        before = torch.cat(
            [p.detach().flatten(1) if p.dim() > 1 else p.detach()[:, None] for p in layer.parameters()], 1
        )
        optimizer.zero_grad()
        for xs, gs in zip(x.chunk(parts), g.chunk(parts), strict=True):
            terms = (layer(xs) * gs.view(layer(xs).shape)).flatten(1).sum(1)
            ((terms.mean() / parts) if mean else terms.sum()).backward()
        optimizer.step()
    after = torch.cat([p.detach().flatten(1) if p.dim() > 1 else p.detach()[:, None] for p in layer.parameters()], 1)
    return before - after


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_dense_natural_gradient_where_inputs_and_gradients_are_independent(bias):
    x, g = product_data()
    layer = nn.Linear(3, 2, bias=bias)
    found = taken(layer, KFAC.for_model(layer, damping=1e-10, **PLAIN), x, g)
    fisher, gradient = dense(x, g, bias)
    torch.testing.assert_close(found.flatten().double(), torch.linalg.solve(fisher, gradient), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("damping", [1e-3, 0.1, 10.0])
def test_ekfac_damps_exactly(damping):
    x, g = product_data()
    layer = nn.Linear(3, 2)
    found = taken(layer, KFAC.for_model(layer, damping=damping, corrected=True, **PLAIN), x, g, steps=3)
    fisher, gradient = dense(x, g, True)
    expected = torch.linalg.solve(fisher + damping * torch.eye(8), gradient)
    torch.testing.assert_close(found.flatten().double(), expected, rtol=1e-3, atol=1e-4)


def test_ekfac_corrects_eigenvalues_where_they_are_not_products():
    """By axis of the same basis the second moments are those of the dense Fisher information, whatever the data."""
    x, g = torch.randn(20, 3), torch.randn(20, 2)
    g = g * x[:, :1].square()
    layer = nn.Linear(3, 2, bias=False)
    optimizer = KFAC.for_model(layer, corrected=True, **{**PLAIN, "lr": 0.0})
    taken(layer, optimizer, x, g, steps=5)
    state = optimizer.state[layer.weight]
    turn = torch.kron(state["outputs_basis"], state["inputs_basis"]).double()
    truth = (turn.T @ dense(x, g, False)[0] @ turn).diagonal()
    torch.testing.assert_close(state["diagonal"].flatten().double() / (1 - 0.95**4), truth, rtol=1e-4, atol=1e-5)


def test_damping_means_the_same_at_every_batch_size_reduction_and_accumulation():
    updates = []
    for repeat, reduction, parts in ((1, "mean", 1), (3, "mean", 1), (1, "sum", 1), (2, "mean", 2)):
        torch.manual_seed(0)
        x, g = product_data(repeat=repeat)
        layer = nn.Linear(3, 2)
        optimizer = KFAC.for_model(layer, damping=0.05, reduction=reduction, accumulate=parts, **PLAIN)
        if reduction == "sum":  # the curvature of a sum is N times that of the mean, and so is its damping
            optimizer.param_groups[0]["damping"] *= len(x)
        updates.append(taken(layer, optimizer, x, g, mean=reduction == "mean", parts=parts))
    for other in updates[1:]:
        torch.testing.assert_close(other, updates[0], rtol=1e-4, atol=1e-5)


def test_a_convolution_of_one_position_is_a_linear_layer():
    x, g = product_data(inputs=8)
    layer, conv = nn.Linear(8, 2), nn.Conv2d(2, 2, 2)
    with torch.no_grad():
        conv.weight.copy_(layer.weight.view(2, 2, 2, 2))
        conv.bias.copy_(layer.bias)
    a = taken(layer, KFAC.for_model(layer, **PLAIN), x, g)
    b = taken(conv, KFAC.for_model(conv, **PLAIN), x.view(-1, 2, 2, 2), g)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 1}, {"dilation": 2}, {"padding": (0, 1)}])
def test_the_positions_of_a_convolution_are_those_of_its_products(options):
    """Outputs are W times the captured inputs, so their Gram matrix is W A Wᵀ."""
    conv = nn.Conv2d(2, 4, 3, bias=False, **options)
    optimizer = KFAC.for_model(conv, decay=0.0, **{**PLAIN, "lr": 0.0})
    x = torch.randn(6, 2, 7, 6)
    y = conv(x)
    y.square().sum(1).mean().backward()
    optimizer.step()
    w = conv.weight.detach().flatten(1)
    rows = y.detach().permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(w @ optimizer.state[conv.weight]["inputs"] @ w.T, rows.T @ rows / len(rows))


@pytest.mark.parametrize("loss_per", ["example", "position"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_factors_of_sequences(sharing, loss_per):
    n, t = 6, 4
    layer = nn.Linear(3, 2)
    optimizer = KFAC.for_model(layer, sharing=sharing, loss_per=loss_per, decay=0.0, **{**PLAIN, "lr": 0.0})
    x, g = torch.randn(n, t, 3), torch.randn(n, t, 2)
    terms = n * t if loss_per == "position" else n
    ((layer(x) * g).sum() / terms).backward()
    optimizer.step()
    a = torch.cat([x, torch.ones(n, t, 1)], -1)
    a, g = (a.mean(1), g.sum(1)) if sharing == "reduce" else (a.flatten(0, 1), g.flatten(0, 1))
    state = optimizer.state[layer.weight]
    torch.testing.assert_close(state["inputs"], a.T @ a / len(a))
    torch.testing.assert_close(state["outputs"], g.T @ g / terms)


def test_an_embedding_has_the_exact_diagonal_of_one_token_examples():
    table = nn.Embedding(5, 3)
    optimizer = KFAC.for_model(table, damping=0.1, **PLAIN)
    tokens, g = torch.tensor([0, 1, 1, 3]), torch.randn(4, 3)
    before = table.weight.detach().clone()
    ((table(tokens) * g).sum() / 4).backward()
    gradient = table.weight.grad.clone()
    optimizer.step()
    each = torch.zeros(4, 5, 3)
    each[range(4), tokens] = g
    expected = gradient / (each.square().mean(0) + 0.1)
    torch.testing.assert_close(before - table.weight.detach(), expected)


def test_sampled_labels_give_the_true_fisher_information():
    layer = nn.Linear(3, 4)
    x = torch.randn(50, 3)
    optimizer = KFAC.for_model(layer, fisher="sampled", decay=0.99, **{**PLAIN, "lr": 0.0})
    for _ in range(200):
        optimizer.zero_grad()
        logits = layer(x)
        optimizer.observe(logits)
        assert layer.weight.grad is None
        nn.functional.cross_entropy(logits, torch.zeros(50, dtype=torch.long)).backward()
        optimizer.step()
    p = layer(x).detach().softmax(-1)
    truth = p.mean(0).diag() - p.T @ p / 50
    found = optimizer.state[layer.weight]["outputs"] / (1 - 0.99**200)
    torch.testing.assert_close(found, truth, rtol=0.1, atol=0.01)


def test_damping_follows_the_quadratic_model():
    """On a quadratic with F the Hessian the model is right and damping falls; where the loss rises it grows."""
    layer = nn.Linear(2, 1)
    optimizer = KFAC.for_model(layer, damping=0.1, **PLAIN)
    with pytest.raises(BadInput, match="Call step first"):
        optimizer.adjust_damping(torch.tensor(1.0), torch.tensor(1.0))
    layer(torch.randn(4, 2)).square().mean().backward()
    optimizer.step()
    predicted = optimizer._predicted
    assert float(predicted) < 0
    one = torch.tensor(1.0)
    assert optimizer.adjust_damping(one, one + predicted) == pytest.approx(0.1 * OMEGA)
    assert optimizer.adjust_damping(one, one + 0.5 * predicted) == pytest.approx(0.1 * OMEGA)
    assert optimizer.adjust_damping(one, one - predicted) == pytest.approx(0.1)
    assert optimizer.adjust_damping(one, one * torch.nan) == pytest.approx(0.1 / OMEGA)


def test_steps_are_no_longer_than_the_clip_in_the_fisher_metric():
    x, g = product_data()
    layer = nn.Linear(3, 2)
    found = taken(layer, KFAC.for_model(layer, damping=1e-10, **{**PLAIN, "clip": 1e-4}), x, g)
    fisher, _ = dense(x, g, True)
    assert float(found.flatten().double() @ fisher @ found.flatten().double()) == pytest.approx(1e-4, rel=1e-2)


def test_which_layers_have_factors():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.grouped = nn.Conv2d(4, 4, 1, groups=2)
            self.long = nn.Linear(3, 40)
            self.plain = nn.Linear(3, 4)
            self.tied = nn.Linear(3, 4)
            self.again = nn.Linear(3, 4)
            self.again.weight = self.tied.weight

    groups = KFAC.for_model(Odd(), max_dim=20).param_groups
    with_factors = [n for g in groups if g["rule"] == "kfac" for n in g["param_names"]]
    assert sorted(with_factors) == ["plain.bias", "plain.weight"]


def test_bad_use_is_named(monkeypatch):
    layer = nn.Sequential(nn.Linear(2, 2))
    optimizer = KFAC.for_model(layer)
    layer[0].weight.grad = torch.ones(2, 2)
    with pytest.raises(BadInput, match=r"'0' has a gradient, and its hook saw none"):
        optimizer.step()
    with pytest.raises(BadInput, match=r"observe\(logits\)"):
        optimizer.observe(torch.zeros(2, 2))
    layer(torch.full((3, 2), torch.nan)).sum().backward()
    with pytest.raises(BadInput, match=r"'0' could not be decomposed.*not finite"):
        optimizer.step()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    layer(torch.ones(3, 2)).sum().backward()
    with pytest.raises(BadInput, match="there are several"):
        optimizer.step()


def test_it_trains_a_net_faster_than_its_gradient():
    x = torch.randn(128, 10) @ torch.randn(10, 10)
    y = (x @ torch.randn(10, 3)).argmax(1)
    net = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 3))
    losses = {}
    for name, make in {
        "kfac": lambda m: KFAC.for_model(m, lr=0.1),
        "sgd": lambda m: torch.optim.SGD(m.parameters(), 0.1, 0.9),
    }.items():
        model = copy.deepcopy(net)
        optimizer = make(model)
        for _ in range(60):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        losses[name] = float(loss.detach())
    assert losses["kfac"] < losses["sgd"]


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_its_blocks_are_those_of_curvlinops(sharing):
    curvlinops = pytest.importorskip("curvlinops")
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4))
    x, y, loss = torch.randn(8, 2, 6, 6), torch.randint(0, 4, (8,)), nn.CrossEntropyLoss()
    optimizer = KFAC.for_model(net, decay=0.0, sharing=sharing, **{**PLAIN, "lr": 0.0})
    loss(net(x), y).backward()
    optimizer.step()
    factors = [(optimizer.state[m.weight]["outputs"], optimizer.state[m.weight]["inputs"]) for m in (net[0], net[3])]
    peer = curvlinops.KFACLinearOperator(
        net, loss, list(net.parameters()), [(x, y)], fisher_type="empirical", kfac_approx=sharing,
        separate_weight_and_bias=False, check_deterministic=False,
    )  # fmt: skip
    truth, start = peer @ torch.eye(sum(p.numel() for p in net.parameters())), 0
    for g, a in factors:
        rows, columns = len(g), len(a) - 1
        weight = torch.arange(rows * columns).view(rows, columns)
        order = start + torch.cat([weight, rows * columns + torch.arange(rows)[:, None]], 1).flatten()
        torch.testing.assert_close(torch.kron(g, a), truth[order][:, order])
        start += rows * (columns + 1)
