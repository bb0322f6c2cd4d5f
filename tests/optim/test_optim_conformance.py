"""What every optimizer of the family must do; an entry joins by being there."""

import copy
import io
import math

import pytest
import torch
from torch import nn

from dynaxx import catalog
from dynaxx.core.methods import ModelOptimizer
from dynaxx.errors import BadInput

NAMES = catalog.names("optim")
# LARS takes its rate times a trust of 1e-3.
STEPS = 300
TAKES_SPARSE = {"SGD"}
TAKES_COMPLEX = {"SGD", "AdamW"}
RATES = {"lars": (30.0, 100.0, 10.0, 3.0)}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(params=NAMES)
def kind(request):
    return catalog.get("optim", request.param)


class Net(nn.Module):
    """Every sort of parameter: table, kernel, matrix, vector, one that is frozen and one that is never used."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.kernel = nn.Conv1d(6, 4, 3)
        self.norm = nn.LayerNorm(4)
        self.hidden = nn.Linear(4, 5)
        self.idle = nn.Linear(3, 3)
        self.frozen = nn.Linear(5, 5)
        self.frozen.requires_grad_(False)
        self.head = nn.Linear(5, 3)

    def forward(self, tokens):
        x = self.kernel(self.table(tokens).mT).mT
        return self.head(self.frozen(self.hidden(self.norm(x)).tanh()).tanh()).mean(1)


def loss_of(model, step):
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, 7, (16, 8), generator=generator)
    return nn.functional.cross_entropy(model(tokens), tokens[:, 0] % 3)


def train(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_it_is_an_optimizer_that_says_what_it_takes(kind):
    assert issubclass(kind, ModelOptimizer)
    assert kind.memory
    assert kind.passes >= 1
    optimizer = kind.for_model(Net())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert len(held) == sum(p.requires_grad for p in Net().parameters())
    assert all(p.requires_grad for group in optimizer.param_groups for p in group["params"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_planned_bytes_are_those_of_the_state(kind, dtype):
    whole = Net().to(dtype)
    optimizer = kind.for_model(whole)
    planned = optimizer.planned_bytes()
    for _ in range(2):
        loss = loss_of(whole, 0) + whole.idle(torch.ones(2, 3, dtype=dtype)).square().mean()
        loss.backward()
        optimizer.step()
    assert planned == optimizer.planned_bytes()
    assert planned == sum(
        v.numel() * v.element_size()
        for s in optimizer.state.values()
        for v in s.values()
        if isinstance(v, torch.Tensor)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_resumes_bit_for_bit_from_a_file_of_tensors(kind, dtype):
    model = Net().to(dtype)
    optimizer = kind.for_model(model)
    train(model, optimizer, range(13))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, optimizer, range(13, 30))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = Net().to(dtype)
    other.load_state_dict(saved["model"])
    again = kind.for_model(other)
    again.load_state_dict(saved["optimizer"])
    train(other, again, range(13, 30))
    assert same(weights(model), weights(other))


def test_two_that_load_one_state_share_nothing(kind):
    model = Net()
    optimizer = kind.for_model(model)
    train(model, optimizer, range(3))
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved)
    other = copy.deepcopy(model)
    again = kind.for_model(other)
    again.load_state_dict(saved)
    train(other, again, range(3, 6))
    for index, state in before["state"].items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(saved["state"][index][key])), key


def test_a_copy_goes_on_like_the_original(kind):
    model = Net()
    optimizer = kind.for_model(model)
    train(model, optimizer, range(4))
    other, again = copy.deepcopy((model, optimizer))
    train(model, optimizer, range(4, 8))
    train(other, again, range(4, 8))
    assert same(weights(model), weights(other))


def test_groups_keep_their_own_rate(kind):
    still, moved = nn.Linear(4, 4), nn.Linear(4, 4)
    optimizer = kind([{"params": [still.weight], "lr": 0.0}, {"params": [moved.weight]}], lr=0.01)
    before = still.weight.detach().clone(), moved.weight.detach().clone()
    for _ in range(3):
        (still(torch.ones(2, 4)).sum() + moved(torch.ones(2, 4)).sum()).backward()
        optimizer.step()
    assert torch.equal(before[0], still.weight)
    assert not torch.equal(before[1], moved.weight)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.01]


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, "fast", None])
def test_bad_values_are_refused_by_name(kind, value):
    weight = nn.Parameter(torch.ones(3, 3))
    with pytest.raises(BadInput, match="lr"):
        kind([weight], lr=value)
    good = kind([weight], lr=0.1)
    with pytest.raises(BadInput, match="lr"):
        good.add_param_group({"params": [nn.Parameter(torch.ones(3, 3))], "lr": value})
    assert len(good.param_groups) == 1
    with pytest.raises(BadInput, match="weight_decay"):
        kind([weight], weight_decay=value)


def test_a_model_without_trainable_parameters_is_refused(kind):
    with pytest.raises(BadInput, match="requires a gradient"):
        kind.for_model(nn.Linear(2, 2).requires_grad_(False))


def test_gradients_are_left_as_they_are(kind):
    model = Net()
    optimizer = kind.for_model(model)
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        before = [None if p.grad is None else (p.grad, p.grad.clone(), p.grad._version) for p in model.parameters()]
        optimizer.step()
        for p, old in zip(model.parameters(), before, strict=True):
            assert (p.grad is None) == (old is None)
            if old is not None:
                assert p.grad is old[0]
                assert torch.equal(p.grad, old[1])
                assert p.grad._version == old[2]


def test_absent_and_empty_gradients_change_nothing(kind):
    weight, empty = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(0, 3))
    optimizer = kind([weight, empty], lr=0.1)
    optimizer.step()
    assert torch.equal(weight, torch.ones(3, 3))
    empty.grad = torch.ones(0, 3)
    optimizer.step()
    optimizer.step()
    assert torch.equal(weight, torch.ones(3, 3))


def test_a_late_gradient_is_bias_corrected_from_its_own_start(kind):
    """A parameter whose first gradient comes late moves as one whose first gradient came at once."""
    early, late = (nn.Parameter(torch.eye(3)) for _ in range(2))
    at_once, mixed = kind([early], lr=0.01), kind([nn.Parameter(torch.eye(3)), late], lr=0.01)
    for _ in range(5):
        mixed.param_groups[0]["params"][0].grad = torch.randn(3, 3)
        mixed.step()
    for step in range(4):
        gradient = torch.randn(3, 3, generator=torch.Generator().manual_seed(step))
        early.grad, late.grad = gradient.clone(), gradient.clone()
        at_once.step()
        mixed.step()
    torch.testing.assert_close(early, late, rtol=1e-6, atol=1e-7)


def test_sparse_gradients_work_or_are_refused_by_name(kind):
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = kind(table.named_parameters(), lr=0.1)
    before = table.weight.detach().clone()
    table(torch.tensor([1])).sum().backward()
    if kind.__name__ not in TAKES_SPARSE:
        with pytest.raises(BadInput, match=r"weight.*sparse|sparse.*weight"):
            optimizer.step()
        assert torch.equal(before, table.weight)
    else:
        optimizer.step()
        optimizer.step()
        assert not torch.equal(before[1], table.weight[1])
        assert torch.equal(before[2], table.weight[2])


def test_complex_parameters_work_or_are_refused_by_name(kind):
    weight = nn.Parameter(torch.full((2, 2), 2 + 2j))
    if kind.__name__ not in TAKES_COMPLEX:
        with pytest.raises(BadInput, match="spectrum"):
            kind([("spectrum", weight)], lr=0.1)
        return
    optimizer = kind([weight], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        weight.abs().square().sum().backward()
        optimizer.step()
    assert weight.detach().abs().max() < 1.5


def test_the_closure_is_called_and_its_loss_returned(kind):
    model = Net()
    optimizer = kind.for_model(model)
    calls = []

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        calls.append(loss)
        return loss

    assert optimizer.step(closure) is calls[0]
    assert len(calls) == 1


def test_step_hooks_run_once(kind):
    torch.optim.AdamW([nn.Parameter(torch.ones(1))])  # torch puts its hooks around `step` of each class it makes
    torch.optim.SGD([nn.Parameter(torch.ones(1))])
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = kind([weight], lr=0.1)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert calls == ["before", "after"]


def quadratic():
    """½ tr(Xᵀ A X B) with condition numbers 100 and 10; the least value is 0."""
    a, b = torch.logspace(0, -2, 6).diag(), torch.logspace(0, -1, 4).diag()
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))
    x = nn.Parameter(torch.ones(6, 4))
    a = turn @ a @ turn.T
    return [x], lambda: 0.5 * (x * (a @ x @ b)).sum(), 0.0


def valley():
    """Rosenbrock's function in each of four columns, least value 0 at ones."""
    x = nn.Parameter(torch.stack([torch.tensor([-1.2, -0.5, 0.0, 0.5]), torch.tensor([1.0, 0.5, 0.2, 0.0])]))
    return [x], lambda: 1.0 * (5 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2).sum(), 0.0


def logistic():
    """Two points of each label at one place: the optimum gives the log odds, its loss the entropies."""
    x = torch.eye(3)
    share = torch.tensor([0.2, 0.5, 0.9])
    weight = nn.Parameter(torch.zeros(1, 3))
    entropy = -(share * share.log() + (1 - share) * (1 - share).log()).mean()
    return (
        [weight],
        lambda: nn.functional.binary_cross_entropy_with_logits((x @ weight.T)[:, 0], share),
        float(entropy),
    )


def factorisation():
    """½ ‖A Bᵀ − M‖² with M of rank 2: the least value is 0."""
    g = torch.Generator().manual_seed(2)
    truth = torch.randn(6, 2, generator=g) @ torch.randn(2, 5, generator=g)
    a, b = (nn.Parameter(0.5 * torch.randn(n, 2, generator=g)) for n in (6, 5))
    return [a, b], lambda: 0.5 * (a @ b.T - truth).square().sum() / 10, 0.0


@pytest.mark.parametrize("target", [quadratic, valley, logistic, factorisation])
def test_it_reaches_the_least_value(kind, target):
    """Within 1 % of the way at one of some rates, annealed to zero: a method that cannot descend reaches none."""
    excess = []
    for rate in RATES.get(kind.__module__.rpartition(".")[2], (0.1, 0.03, 0.3, 0.01)):
        parameters, loss, least = target()
        options = {"momentum": 0.9} if kind.__name__ == "SGD" else {}
        optimizer = kind(parameters, lr=rate, weight_decay=0.0, **options)
        start = float(loss().detach()) - least
        for step in range(STEPS):
            optimizer.zero_grad()
            value = loss()
            if not bool(value.isfinite()):
                break
            value.backward()
            optimizer.param_groups[0]["lr"] = rate * (1 - step / STEPS)
            optimizer.step()
        excess.append((float(loss().detach()) - least) / start)
        if excess[-1] < 0.01:
            return
    pytest.fail(f"{kind.__name__} left {min(excess):.3f} of the loss of {target.__name__}: {excess}")
