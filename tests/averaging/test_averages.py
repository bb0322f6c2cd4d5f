"""Every averager against its formula in float64, in half precision, swapped, resumed, restarted, attached."""

import copy
import io
import itertools
import math

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import dynaxx
from dynaxx import catalog
from dynaxx.averaging import Cyclic, Ema, Latest, Swa, average_models, recompute_batch_norm
from dynaxx.core.methods import Averager
from dynaxx.errors import BadInput

OPTIONS = {
    "ema": {"half_life": 3},
    "swa": {"start": 1, "every": 2},
    "cyclic": {"period": 2, "growth": 2},
    "latest": {"window": 3, "every": 2},
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.3), nn.Linear(4, 2))


def walk(model, optimizer, steps, seed=1):
    """Train on noise; yields after each step."""
    generator = torch.Generator().manual_seed(seed)
    for i in range(steps):
        model(torch.randn(6, 3, generator=generator)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        yield i + 1


def bits(model, optimizer=None):
    state = {name: t.clone() for name, t in model.state_dict().items()}
    return state if optimizer is None else (state, copy.deepcopy(optimizer.state_dict()))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def truth(name, history):
    """The average of `history` (weights behind steps 1, 2, …) by the definition, in float64."""
    if name == "ema":
        mean, decay = history[0], 0.5 ** (1 / 3)
        for n, w in enumerate(history[1:], start=2):
            d = min(decay, (1 + n) / (10 + n))
            mean = d * mean + (1 - d) * w
        return mean
    steps = {"swa": [3, 5, 7, 9], "cyclic": [2, 6], "latest": [6, 8, 10]}[name]
    return torch.stack([history[step - 1] for step in steps]).mean(0)


def test_the_table_covers_every_entry():
    assert sorted(OPTIONS) == catalog.names("averaging")


@pytest.mark.parametrize("name", OPTIONS)
def test_it_is_its_formula(name):
    model = net()
    average = catalog.get("averaging", name)(model, **OPTIONS[name])
    assert isinstance(average, Averager)
    assert average.memory
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    average.attach(optimizer)
    history = {key: [] for key in average.weights.names}
    assert {"0.weight", "4.bias", "1.running_mean", "1.running_var"} <= history.keys()
    for _ in walk(model, optimizer, 10):
        for key, values in history.items():
            values.append(model.state_dict()[key].double())
    for key, mean in average.averages().items():
        torch.testing.assert_close(mean.double(), truth(name, history[key]), rtol=1e-6, atol=1e-7)
        if key != "0.bias":  # has no gradient before batch normalisation
            assert not torch.allclose(mean.double(), history[key][-1], rtol=1e-3, atol=1e-5), key
    with average.swapped():
        assert same({k: model.state_dict()[k] for k in history}, average.averages())


@pytest.mark.parametrize("name", OPTIONS)
def test_swapping_leaves_no_bit_behind(name):
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    average = catalog.get("averaging", name)(model, **OPTIONS[name]).attach(optimizer)
    assert not average.ready
    with pytest.raises(BadInput, match="nothing has been averaged yet, after 0 steps"), average.swapped():
        pass
    list(walk(model, optimizer, 10))
    model.train()
    before, random = bits(model), torch.get_rng_state()
    with average.swapped():
        recompute_batch_norm(model, [torch.randn(8, 3, generator=torch.Generator().manual_seed(2))])
        model(torch.randn(8, 3, generator=torch.Generator().manual_seed(3)))
        with pytest.raises(BadInput, match="already"), average.swapped():
            pass
        with pytest.raises(BadInput, match="its own averages"):
            average.update()
        torch.set_rng_state(random)
    assert same(before, bits(model))
    with pytest.raises(ZeroDivisionError), average.swapped():
        1 / 0  # noqa: B018
    assert same(before, bits(model))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("at", [0, 3, 6])
def test_it_goes_on_from_a_state_bit_for_bit(name, at):
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    kind = catalog.get("averaging", name)
    average = kind(model, **OPTIONS[name]).attach(optimizer)
    saved = None
    for step in itertools.chain([0], walk(model, optimizer, 10)):
        if step == at:
            buffer = io.BytesIO()
            parts = {"model": bits(model), "optimizer": optimizer.state_dict(), "average": average.state_dict()}
            torch.save({**parts, "random": torch.get_rng_state()}, buffer)
            buffer.seek(0)
            saved = torch.load(buffer, weights_only=True)
    other = net()
    optimizer = torch.optim.Adam(other.parameters(), lr=0.01)
    again = kind(other, **OPTIONS[name]).attach(optimizer)
    other.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    again.load_state_dict(saved["average"])
    kept = copy.deepcopy(saved["average"])
    torch.set_rng_state(saved["random"])
    generator = torch.Generator().manual_seed(1)
    for _ in range(at):
        torch.randn(6, 3, generator=generator)
    for _ in range(10 - at):
        other(torch.randn(6, 3, generator=generator)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert same(average.averages(), again.averages())
    assert repr(kept) == repr(saved["average"]), "the state was copied"
    assert average.step == again.step == 10


@pytest.mark.parametrize("name", OPTIONS)
def test_it_restarts_and_lets_go(name):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    kind = catalog.get("averaging", name)
    average = kind(model, **OPTIONS[name]).attach(optimizer)
    with pytest.raises(BadInput, match="attached already"):
        average.attach(optimizer)
    list(walk(model, optimizer, 7))
    average.restart()
    assert (average.ready, average.step) == (False, 0)
    fresh = kind(model, **OPTIONS[name]).attach(optimizer)
    list(walk(model, optimizer, 6))
    assert same(average.averages(), fresh.averages())
    average.detach()
    average.detach()
    list(walk(model, optimizer, 1))
    assert (average.step, fresh.step) == (6, 7)


def test_average_of_bfloat16_is_exact_where_that_of_torch_does_not_move():
    """optimizers.md §6 row 5: five time constants towards weights that stand still; 0.993 of the way is exact."""
    model = nn.Linear(64, 64).bfloat16()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    end = {n: p.detach() * 1.25 for n, p in model.named_parameters()}
    ours = Ema(model, decay=0.999, warmup=False)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    ours.update()
    theirs.update_parameters(model)
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_(end[n])
    for _ in range(5000):
        ours.update()
    for _ in range(500):  # ten times fewer: not one of them moves anything
        theirs.update_parameters(model)
    share = 1 - 0.999**5000
    assert share == pytest.approx(0.993, abs=5e-4)
    for name, mean in ours.averages().items():
        assert mean.dtype is torch.float32
        exact = start[name].double() + share * (end[name].double() - start[name].double())
        error = (mean.double() - exact).norm() / (exact - start[name].double()).norm()
        assert error < 1e-5  # asked for: 1 %
        assert torch.equal(theirs.module.get_parameter(name), start[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.complex64])
def test_other_types(dtype):
    p = nn.Parameter(torch.tensor([1.0, 2.0]).to(dtype))
    swa, latest = (kind([("p", p)], every=1) for kind in (Swa, Latest))
    for value in (1, 2, 6):
        with torch.no_grad():
            p.fill_(value)
        swa.update()
        latest.update()
    for average in (swa, latest):
        mean = average.averages()["p"]
        assert mean.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(mean, torch.full((2,), 3.0).to(mean.dtype))
        with average.swapped():
            assert p.dtype == dtype
        assert torch.equal(p.detach(), torch.full((2,), 6).to(dtype))


def test_what_stays_as_the_model_has_it():
    """Frozen parameters, masks with infinities, counters; equal values stay equal bit for bit."""
    model = net()
    model[0].weight.requires_grad_(False)
    model.register_buffer("mask", torch.full((2, 2), -math.inf).triu(1))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    average = Ema(model).attach(optimizer)
    assert "0.weight" not in average.weights.names
    before = bits(model)
    list(walk(model, optimizer, 5))
    with average.swapped():
        found = bits(model)
    assert all(torch.equal(found[k], before[k]) for k in before if not k.startswith("1."))
    assert int(found["1.num_batches_tracked"]) == 5


def test_a_subclass_that_calls_its_parents_step_counts_once():
    class Loud(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    torch.optim.SGD([nn.Parameter(torch.zeros(1))])  # from now on torch fires hooks for the parent's step too
    model = net()
    optimizer = Loud(model.parameters(), lr=0.1)
    average = Swa(model).attach(optimizer)
    list(walk(model, optimizer, 3))
    assert average.step == 3


def test_decay_and_half_life():
    model = nn.Linear(1, 1)
    assert Ema(model).decay == 0.999
    assert Ema(model, half_life=100).decay ** 100 == pytest.approx(0.5)
    assert Ema(model, decay=0.9).share(1) == pytest.approx(1 - 2 / 11)
    assert Ema(model).share(8989) > 0.001
    assert Ema(model).share(8990) == pytest.approx(0.001)


def test_cycles_are_those_of_warm_restarts():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for growth in (1, 2):
        schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 5, growth)
        average = Cyclic(model, period=5, growth=growth)
        for step in range(1, 60):
            optimizer.step()
            rate = optimizer.param_groups[0]["lr"]
            schedule.step()
            taken = average.share(step)
            assert (taken is not None) == (optimizer.param_groups[0]["lr"] > rate), step
            average.count += taken is not None


def test_batch_norm_is_that_of_the_batches():
    model = net().train()
    model[3].eval()
    batches = [(torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) + 1, "label") for n in (4, 10)]
    modes, random = [m.training for m in model.modules()], torch.get_rng_state()
    recompute_batch_norm(model, batches)
    seen = [model[0](x).detach() for x, _ in batches]
    mean = torch.cat(seen).mean(0)  # weighted by size: that of all examples
    var = (4 * seen[0].var(0) + 10 * seen[1].var(0)) / 14
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, var)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(random, torch.get_rng_state())
    assert model[1].momentum == 0.1
    with pytest.raises(BadInput, match="there is no batch"):
        recompute_batch_norm(model, [])
    recompute_batch_norm(nn.Linear(1, 1), iter([]))
    recompute_batch_norm(model, [{"x": batches[0][0]}], lambda m, b: m(b["x"]))
    torch.testing.assert_close(model[1].running_mean, seen[0].mean(0))


def test_the_average_of_models():
    states = [{"w": torch.full((2,), v).bfloat16(), "mask": torch.tensor([-math.inf]), "n": torch.tensor(i)}
              for i, v in enumerate((1.0, 2.0, 6.0))]  # fmt: skip
    found = average_models(iter(states))
    assert found["w"].tolist() == [3.0, 3.0]
    assert found["w"].dtype is torch.bfloat16
    assert found["mask"].tolist() == [-math.inf]
    assert int(found["n"]) == 2
    assert states[0]["w"].tolist() == [1.0, 1.0]
    with pytest.raises(BadInput, match=r"model 2 .*lacks 1 parameter \(w\)"):
        average_models([{"w": torch.ones(1)}, {}])
    with pytest.raises(BadInput, match=r"has besides 1 parameter \(v\)"):
        average_models([{}, {"v": torch.ones(1)}])
    with pytest.raises(BadInput, match=r"other shapes of 1 parameter \(w\)"):
        average_models([{"w": torch.ones(1)}, {"w": torch.ones(2)}])
    with pytest.raises(BadInput, match="there is no state"):
        average_models([])


def test_checkpoints_carry_it(tmp_path):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    average = Latest(model, window=2, every=2).attach(optimizer)
    with dynaxx.watch(model, optimizer, tmp_path / "run", state={"average": average}, quiet=True) as run:
        list(walk(model, optimizer, 5))
        run.save()
    expected = average.averages()
    other = net()
    optimizer = torch.optim.AdamW(other.parameters())
    again = Latest(other, window=2, every=2)
    with dynaxx.watch(other, optimizer, tmp_path / "run", state={"average": again}, resume=True, quiet=True):
        assert same(again.averages(), expected)


def test_bad_input():
    model = nn.Linear(2, 1)
    for kind, options, message in (
        (Ema, {"decay": 1.0}, r"Ema\(decay=\.\.\.\) must be at least 0 and below 1\. Got 1\.0"),
        (Ema, {"half_life": 0}, "more than 0 steps"),
        (Ema, {"decay": 0.9, "half_life": 3}, "give one of them"),
        (Swa, {"every": 0}, r"Swa\(every=\.\.\.\) must be a whole number of at least 1\. Got 0"),
        (Swa, {"start": 1.5}, "Got 1.5"),
        (Latest, {"window": 0}, "window"),
        (Cyclic, {"growth": 0.5}, "growth"),
        (Cyclic, {"period": True}, "period"),
    ):
        with pytest.raises(BadInput, match=message):
            kind(model, **options)
    with pytest.raises(BadInput, match="no parameter requires a gradient"):
        Ema(nn.ReLU())
    ema, other = Ema(model), Ema(nn.Linear(3, 1))
    ema.update()
    with pytest.raises(BadInput, match=r"other shapes of 1 parameter \(weight\)"):
        other.load_state_dict(ema.state_dict())
    with pytest.raises(
        BadInput, match=r"lacks 2 parameters \(0\.weight, 0\.bias\) and has 2 parameters \(weight, bias\)"
    ):
        Ema(nn.Sequential(nn.Linear(2, 1))).load_state_dict(ema.state_dict())
