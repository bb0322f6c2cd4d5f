"""Rates of single layers in a live loop: equal to groups with those rates, nothing where the factor is 1, resumed."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import dynaxx
from dynaxx.errors import BadInput, UnknownName
from dynaxx.schedules import Cosine, LinearDecay, Meso, Micro, Rates, as_scheduler

OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.05),
    "sgd_nesterov": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=1e-2, weight_decay=0.3),
    "adamw_fused": lambda ps: torch.optim.AdamW(ps, lr=1e-2, weight_decay=0.3, fused=True),
    "adam_l2": lambda ps: torch.optim.Adam(ps, lr=1e-2, weight_decay=0.1),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=1e-2, momentum=0.5),
}
FACTORS = {"0": 0.25, "4": 3.0}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))


def data(n, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(16, 6, generator=generator), torch.randint(0, 3, (16,), generator=generator)) for _ in range(n)
    ]


def step(model, optimizer, batch):
    x, y = batch
    loss = functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_equals_groups_of_those_rates(tmp_path, kind):
    """In float64 both agree to rounding: the whole update is scaled, weight decay included."""
    ours, theirs = net().double(), net().double()
    optimizer = OPTIMIZERS[kind](ours.parameters())
    rate = optimizer.param_groups[0]["lr"]
    groups = [
        {"params": list(module.parameters()), "lr": rate * FACTORS.get(name, 1.0)}
        for name, module in theirs.named_children()
        if list(module.parameters())
    ]
    split = OPTIMIZERS[kind](groups)
    with dynaxx.watch(ours, optimizer, tmp_path / "run", quiet=True) as run:
        run.apply("layer_rates", factors=FACTORS)
        for x, y in data(10):
            step(ours, optimizer, (x.double(), y))
            step(theirs, split, (x.double(), y))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    view = run.view()
    assert len(optimizer.param_groups) == 1
    np.testing.assert_array_equal(view["lr"].values.ravel(), rate)
    np.testing.assert_allclose(view["lr.meso"].values[0], [0.25, 1.0, 1.0, 3.0])
    assert view["lr.meso"].labels == ("0", "1", "3", "4")


def test_the_update_that_is_measured_is_the_scaled_one(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients = []
    with dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True) as run:
        run.apply("layer_rates", factors={"3": 0.5})
        for x, y in data(3):
            functional.cross_entropy(model(x), y).backward()
            gradients.append([p.grad.norm() for p in (model[3].weight, model[3].bias)])
            optimizer.step()
            optimizer.zero_grad()
    truth = 0.05 * torch.tensor(gradients).norm(dim=1)
    np.testing.assert_allclose(run.view()["update_norm"].values[:, 2], truth, rtol=1e-5)


def test_factor_one_changes_no_bit_and_zero_freezes(tmp_path):
    bare, watched, frozen = net(), net(), net()
    for model, factors in ((bare, None), (watched, {".*": 1.0}), (frozen, {"3": 0.0})):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        run = None
        if factors is not None:
            run = dynaxx.watch(model, optimizer, tmp_path / str(len(factors)) / str(factors), quiet=True)
            run.apply("layer_rates", factors=factors)
        start = copy.deepcopy(model.state_dict())
        for batch in data(5):
            step(model, optimizer, batch)
        if run is not None:
            run.close()
    for a, b in zip(bare.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(frozen[3].weight, start["3.weight"])
    assert torch.equal(frozen[3].bias, start["3.bias"])
    assert not torch.equal(frozen[0].weight, start["0.weight"])


def test_other_layers_are_untouched_bit_for_bit(tmp_path):
    """One step: layers without a factor take the very step they take without the action."""
    bare, watched = net(), net()
    for model in (bare, watched):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        run = dynaxx.watch(model, optimizer, tmp_path / str(model is bare), quiet=True)
        if model is watched:
            run.apply("layer_rates", factors={"4": 0.1})
        step(model, optimizer, data(1)[0])
        run.close()
    for name, parameter in watched.named_parameters():
        assert torch.equal(parameter, bare.state_dict()[name]) == (not name.startswith("4")), name


def test_a_skipped_update_moves_nothing_and_an_error_leaves_nothing(tmp_path):
    class Failing(torch.optim.SGD):
        fail = False

        def step(self, closure=None):
            if self.fail:
                raise RuntimeError("out of memory")
            return super().step(closure)

    model = net()
    optimizer = Failing(model.parameters(), lr=0.1)
    run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True, rates=Rates(meso=Meso(every=1, memory=1)))
    run.apply("layer_rates", factors={"3": 0.3})
    run.apply("learning_rate", factor=0.5)
    batches = data(8)
    for batch in batches[:4]:
        step(model, optimizer, batch)
    run.apply("skip", when="always", steps=1)
    before = copy.deepcopy(dict(model.named_parameters()))
    step(model, optimizer, batches[4])
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    optimizer.fail = True
    with pytest.raises(RuntimeError, match="out of memory"):
        step(model, optimizer, batches[5])
    optimizer.zero_grad()
    optimizer.fail = False
    for batch in batches[6:]:
        step(model, optimizer, batch)
    assert optimizer.param_groups[0]["lr"] == 0.1
    run.close()
    assert run.step == 6


def test_several_sources_multiply(tmp_path):
    """base × scheduler × macro × micro × reactive in the group; explicit factors and meso in the layers."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    scheduler = as_scheduler(optimizer, LinearDecay(steps=40))
    rates = Rates(macro=Cosine(steps=40, warmup=4), micro=Micro(period=4, amplitude=0.5), meso=Meso(every=2, memory=4))
    used = []
    run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True, rates=rates)
    optimizer.register_step_pre_hook(lambda o, *_: used.append(o.param_groups[0]["lr"]))
    for i, batch in enumerate(data(12)):
        if i == 5:
            run.apply("learning_rate", factor=0.25, steps=3)
            run.apply("layer_rates", factors={"4": 2.0}, steps=3)
        step(model, optimizer, batch)
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4 * (1 - (i + 1) / 40))
    run.close()
    view = run.view()
    t = np.arange(12)
    base = 0.4 * (1 - t / 40)
    macro = np.array([Cosine(steps=40, warmup=4).factor(i) for i in t])
    micro = np.array([Micro(period=4, amplitude=0.5).factor(i) for i in t])
    reactive = np.where((t >= 5) & (t < 8), 0.25, 1.0)
    np.testing.assert_allclose(view["lr"].values.ravel(), base * macro * micro * reactive, rtol=1e-12)
    np.testing.assert_allclose(used, view["lr"].values.ravel(), rtol=1e-12)
    assert view["lr.factor"].steps.tolist() == [6, 7, 8]
    np.testing.assert_allclose(view["lr.macro"].values, macro[macro != 1.0])
    np.testing.assert_allclose(view["lr.micro"].values, micro[micro != 1.0])
    meso = view["lr.meso"]
    assert meso.steps.tolist() == list(range(4, 13))  # measured in step 2, in force from step 4 on
    weights = [56, 16, 72, 27]
    logs = np.log(meso.values.astype(np.float64))
    explicit = np.zeros_like(logs)
    explicit[2:5, 3] = np.log(2.0)
    np.testing.assert_allclose((logs - explicit) @ weights, 0, atol=1e-4)
    figure = dynaxx.catalog.get("figures", "learning_rate")().panels(view)
    titles = [panel.title for panel in figure]
    assert any("Factors that Dynaxx put" in title for title in titles)
    assert any("each layer's learning rate" in title for title in titles)


def test_meso_sees_the_true_ratios_before_its_factor(tmp_path):
    """With strength 1 the next factor is what the raw ratios of plain SGD ask for: η ‖g‖ / ‖θ‖."""
    model = net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    meso = Meso(strength=1.0, caution=0.0, memory=1, every=1, spread=1e6)
    truth = []
    layers = [model[0], model[1], model[3], model[4]]
    with dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True, rates=Rates(meso=meso)) as run:
        history = meso.begin(4)
        for x, y in data(6):
            functional.cross_entropy(model(x.double()), y).backward()
            gradients = [torch.cat([p.grad.ravel() for p in layer.parameters()]).norm().item() for layer in layers]
            norms = [torch.cat([p.detach().ravel() for p in layer.parameters()]).norm().item() for layer in layers]
            truth.append(meso.factors(history, run.view()["grad_norm"].column.axis.weights if truth else [1] * 4))
            optimizer.step()
            optimizer.zero_grad()
            history = meso.observe(history, [0.01 * g / n for g, n in zip(gradients, norms, strict=True)], gradients)
    np.testing.assert_allclose(run.view()["lr.meso"].values, truth[1:], rtol=1e-5)


def training(folder, until, *, resume=False, save_at=0, meso=True):
    torch.manual_seed(3)
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    scheduler = as_scheduler(optimizer, Cosine(steps=60, warmup=5))
    rates = Rates(micro=Micro(period=7), meso=Meso(every=3, memory=12) if meso else None)
    run = dynaxx.watch(
        model, optimizer, folder, scheduler=scheduler, steps=60, resume=resume, quiet=True, rates=rates, budget=0.9
    )
    if not run.step:
        run.apply("layer_rates", factors={"3": 0.7})
        run.apply("adaptive_clip", by="z_score", warmup=5)
        run.apply("skip", when="outlier", window=10)
    for _ in range(3):
        for batch in run.batches(data(20)):
            step(model, optimizer, batch)
            scheduler.step()
            if run.step == save_at:
                run.save()
            if run.step == until:
                run.close("killed")
                return model, run
    run.close()
    return model, run


@pytest.mark.parametrize("at", [9, 31, 40])  # with a measurement on its way, between two, at the end of an epoch
def test_resume_is_exact(tmp_path, at):
    whole, _ = training(tmp_path / "whole", 0)
    training(tmp_path / "cut", at + 2, save_at=at)
    resumed, run = training(tmp_path / "cut", 0, resume=True)
    assert run.resumed_from.step == at
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    np.testing.assert_array_equal(
        dynaxx.open_run(tmp_path / "whole")["lr.meso"].values, dynaxx.open_run(tmp_path / "cut")["lr.meso"].values
    )
    plain, _ = training(tmp_path / "plain", 0, meso=False)
    assert not torch.equal(plain[0].weight, whole[0].weight)


def test_bad_input(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True)
    for factors, error, said in (
        ({}, BadInput, "must be a mapping of layer → factor. Got {}"),
        ({"0": -1.0}, BadInput, "must be finite and not negative. Got -1.0 for '0'"),
        ({"(": 1.0}, BadInput, "'\\(' is not a regular expression"),
        ({"9": 1.0}, UnknownName, "No layer is named '9'.*There are: 0, 1, 3, 4"),
    ):
        with pytest.raises(error, match=said):
            run.apply("layer_rates", factors=factors)
    run.close()
    for rates, state, said in (
        (Cosine(steps=3), None, "rates=...\\) must be a dynaxx.schedules.Rates"),
        (Rates(), {"rates": torch.Generator()}, "may not use the name 'rates'"),
    ):
        with pytest.raises(BadInput, match=said):
            dynaxx.watch(model, optimizer, tmp_path / "other", quiet=True, rates=rates, state=state)


def test_resuming_without_the_rates_is_said(tmp_path):
    training(tmp_path / "run", 10, save_at=9)
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    scheduler = as_scheduler(optimizer, Cosine(steps=60, warmup=5))
    run = dynaxx.watch(model, optimizer, tmp_path / "run", scheduler=scheduler, steps=60, resume=True, quiet=True)
    assert any("extra['rates'] was saved and is not given" in reason for reason in run._training.reasons)
    run.close()
