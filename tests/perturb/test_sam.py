"""SAM against ε by hand in float64: exact restoring, replayed numbers, scaling, accumulation, cost and sharpness."""

import copy
import math
import time
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import dynaxx
from dynaxx.core.loop import train_steps
from dynaxx.core.repeated import is_repeated
from dynaxx.core.task import Task
from dynaxx.errors import BadInput
from dynaxx.landscape import spectrum
from dynaxx.perturb import Sam


def double():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


X = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def closure_of(model, x=X, factor=1.0):
    def closure():
        loss = model(x).square().mean()
        (factor * loss).backward()
        return loss.detach()

    return closure


def gradient(model, weights, x=X):
    for p, w in zip(model.parameters(), weights, strict=True):
        p.data.copy_(w)
    return torch.autograd.grad(model(x).square().mean(), list(model.parameters()))


def by_hand(model, rho, adaptive, eta=0.01, x=X):
    """∇L(w + ε) from the paper's formula, on a copy."""
    other = copy.deepcopy(model)
    w = [p.detach().clone() for p in other.parameters()]
    g = gradient(other, w, x)
    t = [p.abs() + eta if adaptive else torch.ones_like(p) for p in w]
    norm = math.sqrt(sum(float((a * b).square().sum()) for a, b in zip(t, g, strict=True)))
    moved = [p + rho * a * a * b / norm for p, a, b in zip(w, t, g, strict=True)]
    return gradient(other, moved, x)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_the_gradient_is_that_of_the_paper_whatever_its_scale(adaptive, scale):
    model = double()
    before = [p.detach().clone() for p in model.parameters()]
    expected = by_hand(model, 0.3, adaptive)
    plain = gradient(copy.deepcopy(model), before)
    loss = Sam(model, rho=0.3, adaptive=adaptive).gradients(closure_of(model, factor=scale))
    assert float(loss) == float(model(X).square().mean().detach()), "the loss is that at the weights themselves"
    for p, w, e, g in zip(model.parameters(), before, expected, plain, strict=True):
        assert torch.equal(p.detach(), w)
        torch.testing.assert_close(p.grad / scale, e, rtol=1e-12, atol=1e-15)
        assert not torch.allclose(p.grad / scale, g, rtol=1e-2)


def test_where_the_quadratic_says_it_is():
    """L = ½ a w² at w: ε = ρ, so the gradient is a (w + ρ)."""
    w = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(w.weight, 2.0)

    def closure():
        (1.5 * w.weight.square().sum()).backward()

    Sam(w, rho=0.5).gradients(closure)
    assert w.weight.grad.item() == pytest.approx(3 * 2.5)


def noisy():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2))
    net[4].register_buffer("replaced", torch.zeros(1))
    return net


def test_the_second_pass_sees_the_same_numbers_and_leaves_no_trace():
    model, x = noisy(), X.float()
    masks, statistics, flags = [], [], []
    model[3].register_forward_hook(lambda m, i, o: masks.append(o == 0))

    def closure():
        flags.append(is_repeated())
        statistics.append(model[1].running_mean.clone())
        model[4].replaced = model[4].replaced + 1
        model(x).square().mean().backward()

    random = torch.get_rng_state()
    sam = Sam(model, rho=0.01)
    sam.gradients(closure)
    assert flags == [False, True]
    assert not is_repeated()
    assert (masks[0] == masks[1]).float().mean() > 0.97  # but for units that ε has switched
    after = torch.get_rng_state()
    torch.set_rng_state(random)
    once = noisy()
    torch.set_rng_state(random)
    once(x)
    assert torch.equal(after, torch.get_rng_state()), "the streams stand as after one pass"
    for name, buffer in once.named_buffers():
        expected = torch.ones(1) if name == "4.replaced" else buffer
        assert torch.equal(model.get_buffer(name), expected), name
    assert not torch.equal(statistics[0], statistics[1])


@pytest.mark.parametrize("begins", [1, 4])
def test_numbers_from_numpy_come_again_from_the_step_on_in_which_they_are_first_drawn(begins):
    """Its stream is copied only where passes draw from it; where they begin to, that one step has a single pass."""
    model = nn.Linear(2, 1)
    optimizer, drawn = torch.optim.SGD(model.parameters(), lr=0.0), []
    sam = Sam(model, rho=0.1)

    def closure(step):
        drawn.append((step, np.random.rand() if step >= begins else None))  # noqa: NPY002
        model(torch.ones(1, 2)).sum().backward()

    for step in range(1, 8):
        sam.around(optimizer, partial(closure, step))
        optimizer.zero_grad()
        resumed = Sam(model, rho=0.1)
        resumed.load_state_dict(sam.state_dict())
        sam = resumed
    passes = {step: [number for at, number in drawn if at == step] for step in range(1, 8)}
    assert {step: len(numbers) for step, numbers in passes.items()} == {s: 1 if s == begins > 1 else 2 for s in passes}
    assert all(len(set(numbers)) == 1 for numbers in passes.values())
    assert len({numbers[0] for step, numbers in passes.items() if step >= begins}) == 8 - begins


def test_every_and_start():
    model = double()
    counts = []
    sam = Sam(model, every=3, start=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(9):
        calls = []
        closure = closure_of(model)
        sam.around(optimizer, lambda: calls.append(0) or closure())  # noqa: B023
        optimizer.zero_grad()
        counts.append(len(calls))
    assert counts == [1, 1, 1, 1, 2, 1, 1, 2, 1]


class Squares(Task):
    def model(self):
        return double()

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def batches(self, split, seed):
        return list(X.split([3, 5]))

    def loss(self, model, batch):
        return model(batch).square().mean()


def test_accumulation_is_the_whole_batch():
    """All micro-batches at w, then all at w + ε."""
    task, model = Squares(), double()
    expected = [p - 0.1 * g for p, g in zip(model.parameters(), by_hand(model, 0.2, False), strict=True)]
    steps = train_steps(
        task, model, task.optimizer(model), task.batches("train", 0), accumulate=2, perturber=Sam(model, rho=0.2)
    )
    (loss,) = steps
    torch.testing.assert_close(loss, double()(X).square().mean())
    for p, e in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), e.detach(), rtol=1e-12, atol=1e-14)


def test_a_gradient_that_is_not_finite_is_left_to_the_scaler():
    model = double().float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    sam = Sam(model, rho=0.1)
    x, calls = X.float(), []

    def closure(factor):
        def run():
            calls.append(0)
            loss = model(x).square().mean()
            scaler.scale(loss * factor).backward()
            return loss

        return run

    before = [p.detach().clone() for p in model.parameters()]
    sam.around(optimizer, closure(math.inf), scaler=scaler)
    assert len(calls) == 1
    assert scaler.get_scale() == 2.0
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    optimizer.zero_grad()
    expected = by_hand(model, 0.1, False, x=x)
    sam.around(optimizer, closure(1.0), scaler=scaler)
    assert len(calls) == 3
    for p, b, e in zip(model.parameters(), before, expected, strict=True):
        torch.testing.assert_close(p.detach(), b - 0.1 * e)


def test_a_pass_that_fails_leaves_the_weights():
    model = double()
    before = [p.detach().clone() for p in model.parameters()]
    calls = []

    def closure():
        calls.append(0)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        closure_of(model)()

    with pytest.raises(RuntimeError, match="out of memory"):
        Sam(model, rho=1.0).gradients(closure)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert not is_repeated()
    sam = Sam(model, rho=1.0)  # the same where the loop calls the three by itself and forgets restore
    sam.begin()
    closure_of(model)()
    assert sam.ascend()
    assert not torch.equal(before[0], model[0].weight)
    sam.begin()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_no_gradient_sparse_and_frozen():
    net = nn.ModuleDict({"e": nn.Embedding(5, 2, sparse=True), "unused": nn.Linear(2, 2), "o": nn.Linear(2, 1)})
    net["o"].bias.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    seen = []

    def closure():
        seen.append(copy.deepcopy(net.state_dict()))
        net["o"](net["e"](torch.tensor([1, 3, 3]))).square().sum().backward()

    Sam(net, rho=1.0).gradients(closure)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    moved = {k for k in before if not torch.equal(before[k], seen[1][k])}
    assert moved == {"e.weight", "o.weight"}
    length = sum(float((before[k] - seen[1][k]).square().sum()) for k in moved) ** 0.5
    assert length == pytest.approx(1.0, rel=1e-5)
    assert net["e"].weight.grad.is_sparse


def test_a_watched_run_sees_the_first_pass_and_not_the_second(tmp_path, monkeypatch):
    """One forward a microbatch; gradient noise from the first pass; the gradient's norm is that of the second."""
    monkeypatch.setattr("dynaxx.session.instruments.PRICING", 2)
    names = ["activations", "effective_batch", "gradient_noise", "grad_norm"]

    def run(perturbed):
        model = double().float()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        task, batches = Squares(), list(X.float().split(2)) * 8
        sam = Sam(model, rho=0.1) if perturbed else None
        folder = tmp_path / str(perturbed)
        with dynaxx.watch(model, optimizer, folder, signals=names, quiet=True) as watched:
            for loss in train_steps(task, model, optimizer, batches, accumulate=4, perturber=sam):
                watched.log(loss=loss)
        return watched.view()

    plain, perturbed = run(False), run(True)
    assert perturbed["loss"].steps.tolist() == list(range(1, 9))
    assert {*names, "loss"} <= {name.partition(".")[0] for name in plain.columns}
    for name in plain.columns:
        if not name.startswith("grad_norm"):
            a, b = (torch.tensor(view[name].values) for view in (plain, perturbed))
            torch.testing.assert_close(a, b, equal_nan=True, msg=name)
    a, b = (torch.tensor(view["grad_norm"].values) for view in (plain, perturbed))
    assert not torch.allclose(a, b, rtol=1e-2)


def test_bad_input():
    model = nn.Linear(2, 1)
    for options, message in (
        ({"rho": 0.0}, r"Sam\(rho=\.\.\.\) must be more than 0"),
        ({"rho": math.nan}, "rho"),
        ({"every": 0}, r"Sam\(every=\.\.\.\) must be a whole number of at least 1\. Got 0"),
        ({"every": 2.0}, "every"),
        ({"start": -1}, "start"),
        ({"eta": -1.0}, "eta"),
        ({"per_rank": True}, "must be a DistributedDataParallel. Got Linear"),
    ):
        with pytest.raises(BadInput, match=message):
            Sam(model, **options)
    with pytest.raises(BadInput, match=r"2 parameters \(weight, bias\) in half precision"):
        Sam(nn.Linear(2, 1).bfloat16())
    with pytest.raises(BadInput, match="no parameter requires a gradient"):
        Sam(nn.ReLU())


def blobs(seed, count=1000):
    """optimizers.md §6 row 2: ten Gaussian classes in 20 dimensions, 20 % of the labels drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(10, 20, generator=generator)
    y = torch.randint(0, 10, (count,), generator=generator)
    x = centres[y] + torch.randn(count, 20, generator=generator)
    wrong = torch.rand(count, generator=generator) < 0.2
    return x, torch.where(wrong, torch.randint(0, 10, (count,), generator=generator), y)


def trained(make, epochs=150, seed=0):
    """MLP 128 × 2, OneCycle SGD 0.1; returns λ₁ of the training loss."""
    torch.manual_seed(seed)
    x, y = blobs(seed)
    model = nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    steps = epochs * (len(x) // 100)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    sam = make(model, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=generator).split(100):
            a, b = x[chosen], y[chosen]

            def closure():
                loss = nn.functional.cross_entropy(model(a), b)  # noqa: B023
                loss.backward()
                return loss

            if sam is None:
                closure()
                optimizer.step()
            else:
                sam.around(optimizer, closure)
            schedule.step()
            optimizer.zero_grad()
    chart = spectrum(
        model, lambda m, batch: nn.functional.cross_entropy(m(batch[0]), batch[1]), [(x, y)],
        eigenvalues=1, probes=2, steps=20, samples=2,
    )  # fmt: skip
    return chart["largest_eigenvalue"]


def test_every_fifth_step_flattens():
    """Asked for: at least 3 ×. Seed 0: 0.353 against 0.054."""
    plain = trained(lambda m, n: None)
    flat = trained(lambda m, n: Sam(m, rho=0.5, every=5))
    assert plain > 3 * flat


@pytest.mark.slow
def test_the_published_order_of_sharpness():
    """optimizers.md §6 rows 2 and 3: SAM of either kind, every fifth step, and from late steps on, three seeds."""
    methods = {
        "plain": lambda m, n: None,
        "rho 0.05": lambda m, n: Sam(m, rho=0.05),
        "rho 0.2": lambda m, n: Sam(m, rho=0.2),
        "adaptive": lambda m, n: Sam(m, rho=1.0, adaptive=True),
        "every 5": lambda m, n: Sam(m, rho=0.5, every=5),
        "last 50 %": lambda m, n: Sam(m, rho=0.2, start=n // 2),
        "last 25 %": lambda m, n: Sam(m, rho=0.2, start=3 * n // 4),
        "last 10 %": lambda m, n: Sam(m, rho=0.2, start=9 * n // 10),
    }
    for seed in range(3):
        at = {name: trained(make, seed=seed) for name, make in methods.items()}
        assert at["plain"] > 1.5 * at["rho 0.05"] > 3 * at["rho 0.2"]
        assert at["plain"] > 3 * max(at["every 5"], at["adaptive"], at["last 50 %"])
        assert at["last 50 %"] < at["last 25 %"] < at["last 10 %"]
        assert at["plain"] < 2 * at["last 10 %"], "the rate is annealed: too late"


@pytest.mark.slow
def test_every_fifth_step_costs_a_quarter_at_most():
    """Asked for: ≤ 1.25 ×, of which 1.2 are the passes; the best of alternating blocks, on a net of 10 ms a step."""
    torch.manual_seed(0)
    x, y = torch.randn(256, 512), torch.randint(0, 10, (256,))
    model = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    sam = Sam(model, every=5)

    def closure():
        nn.functional.cross_entropy(model(x), y).backward()

    def plain():
        closure()
        optimizer.step()

    def block(step):
        began = time.process_time()
        for _ in range(10):
            step()
            optimizer.zero_grad()
        return time.process_time() - began

    times = [(block(plain), block(lambda: sam.around(optimizer, closure))) for _ in range(12)]
    bare, perturbed = (min(each) for each in zip(*times, strict=True))
    assert perturbed < 1.25 * bare
