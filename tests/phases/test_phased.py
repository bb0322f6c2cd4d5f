"""One optimizer object over several phases: groups, rates, averages, perturbations, state."""

import io
import math
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dynaxx
from dynaxx.catalog import choice
from dynaxx.errors import BadInput, UnknownName
from dynaxx.phases import Phase, Phased
from dynaxx.schedules import LinearDecay, as_scheduler

FOUR = [
    Phase(name="first", until=0.25, optimizer="adamw:lr=1e-2", averaging="ema:half_life=5"),
    Phase(name="sculpt", until=0.5, optimizer="soap:lr=5e-3,every=3"),
    Phase(name="spread", until=0.75, optimizer="muon:lr=1e-2", averaging="swa:every=2", perturb="sam:rho=0.1,every=2"),
    Phase(name="settle", until=1.0, optimizer="adamw:lr=1e-2", perturb="none"),
]
STEPS = 80


def build(net, phases=FOUR, **options):
    model = net()
    optimizer = Phased(model, phases, steps=STEPS, **options)
    return model, optimizer, as_scheduler(optimizer, LinearDecay(steps=STEPS, warmup=5, final=0.1))


def loop(model, optimizer, scheduler, numbers):
    """Train over numbered batches; returns the losses, and the weights behind each step."""
    losses, seen = [], []
    for number in numbers:
        draw = torch.Generator().manual_seed(number)
        x, y = torch.randn(12, 6, generator=draw), torch.randint(3, (12,), generator=draw)

        def closure(x=x, y=y):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss.detach()

        perturber = optimizer.perturber
        if perturber is None:
            losses.append(float(closure()))
            optimizer.step()
        else:
            losses.append(float(perturber.around(optimizer, closure)))
        scheduler.step()
        optimizer.zero_grad()
        seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    return losses, seen


def averages(optimizer):
    return optimizer.averager.averages() if optimizer.averager is not None and optimizer.averager.ready else {}


def test_a_single_phase_is_its_optimizer_bit_for_bit(net):
    model, optimizer, scheduler = build(net, [Phase(name="all", optimizer="soap:lr=5e-3,every=3")])
    twin = net()
    plain = choice("optim", "soap:lr=5e-3,every=3").build(twin)
    other = as_scheduler(plain, LinearDecay(steps=STEPS, warmup=5, final=0.1))
    plain.perturber = None
    found, truth = loop(model, optimizer, scheduler, range(15)), loop(twin, plain, other, range(15))
    assert found[0] == truth[0]
    assert torch.equal(found[1][-1], truth[1][-1])


def test_options_by_name_hold_from_their_phase_on(net):
    """A matrix becomes a stack of two, one with gradients a thousand times the other's: then both move equally far."""
    words = "muon:lr=1e-2,momentum=0.0"
    plan = [Phase(name="a", until=5 / STEPS, optimizer=words), Phase(name="b", optimizer=words + ",stacked={'0':2}")]
    model, optimizer, scheduler = build(net, plan)
    shares = []
    for steps in (range(4), range(4, 5)):
        loop(model, optimizer, scheduler, steps)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(3))
        model[0].weight.grad[4:] *= 1e-3
        before = model[0].weight.detach().clone()
        optimizer.inner.step()
        strong, weak = (float(part.norm()) for part in (model[0].weight.detach() - before).chunk(2))
        shares.append(weak / strong)
        optimizer.zero_grad()
    assert shares[0] < 0.7
    assert shares[1] == pytest.approx(1, rel=0.2)


@pytest.fixture(scope="module")
def whole():
    """The uninterrupted run, with the state behind every step, through torch.save and weights_only."""

    def net(seed=0):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))

    model, optimizer, scheduler = build(net)
    saved, losses, weights = {}, [], []
    for n in range(STEPS):
        found = loop(model, optimizer, scheduler, [n])
        losses += found[0]
        weights += found[1]
        file = io.BytesIO()
        torch.save([model.state_dict(), optimizer.state_dict(), scheduler.state_dict()], file)
        saved[n + 1] = file.getvalue()
    return net, losses, weights, saved, averages(optimizer), optimizer.switches


@pytest.mark.parametrize("at", [3, 10, 15, 19, 20, 21, 30, 39, 40, 41, 50, 59, 60, 61, 70, 79])
def test_resume_is_bit_exact_in_every_phase_and_right_across_every_switch(whole, at):
    net, losses, weights, saved, averaged, switches = whole
    model, optimizer, scheduler = build(net)
    loop(model, optimizer, scheduler, [1000])  # as after any use: what is loaded replaces all of it
    states = torch.load(io.BytesIO(saved[at]), weights_only=True)
    for each, state in zip((model, optimizer, scheduler), states, strict=True):
        each.load_state_dict(state)
    assert optimizer.taken == at
    found = loop(model, optimizer, scheduler, range(at, STEPS))
    assert found[0] == losses[at:]
    assert all(torch.equal(a, b) for a, b in zip(found[1], weights[at:], strict=True))
    torch.testing.assert_close(averages(optimizer), averaged, rtol=0, atol=0)
    assert optimizer.switches == switches


def test_the_plan_is_followed(whole):
    net, *_, switches = whole
    assert [(s.source, s.target, s.step) for s in switches] == [
        ("first", "sculpt", 20), ("sculpt", "spread", 40), ("spread", "settle", 60)
    ]  # fmt: skip
    assert all(s.gradients == 8 for s in switches)
    model, optimizer, scheduler = build(net)
    seen = []
    for n in range(STEPS):
        seen.append((optimizer.name, type(optimizer.inner).__name__, type(optimizer.averager).__name__,
                     type(optimizer.perturber).__name__))  # fmt: skip
        loop(model, optimizer, scheduler, [n])
    assert seen[0] == seen[19] == ("first", "AdamW", "Ema", "NoneType")
    assert seen[20] == seen[39] == ("sculpt", "SOAP", "Ema", "NoneType")
    assert seen[40] == seen[59] == ("spread", "Muon", "Swa", "Sam")
    assert seen[60] == seen[79] == ("settle", "AdamW", "Swa", "NoneType")
    assert optimizer.averager.step == 20


def test_a_saved_state_is_not_shared_with_the_run_that_loads_it(net):
    model, optimizer, scheduler = build(net)
    loop(model, optimizer, scheduler, range(17))
    state = optimizer.state_dict()
    kept = deepcopy(state)
    again, other, its = build(net)
    other.load_state_dict(state)
    loop(again, other, its, range(17, 40))
    torch.testing.assert_close(state["state"][0], kept["state"][0], rtol=0, atol=0)
    torch.testing.assert_close(state["state"]["phased"]["gradients"], kept["state"]["phased"]["gradients"])


def test_groups_and_their_rates_last_through_the_phases(net):
    """A scheduler's curve reaches every optimizer, times what its phase was made with."""
    model, optimizer, scheduler = build(net)
    groups = list(optimizer.param_groups)
    names = [group["param_names"] for group in groups]
    assert names == [["0.weight", "2.weight"], ["0.bias", "2.bias", "4.bias"], ["4.weight"]]
    for n in range(STEPS):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([1e-2 * LinearDecay(steps=STEPS, warmup=5, final=0.1).factor(n)] * 3)
        assert optimizer.rates == pytest.approx([0.5 if 20 <= n < 40 else 1.0] * 3)
        loop(model, optimizer, scheduler, [n])
        assert all(a is b for a, b in zip(optimizer.param_groups, groups, strict=True))
        assert optimizer.inner.param_groups is optimizer.param_groups
    assert [group["param_names"] for group in groups] == names


def test_a_rate_that_is_written_is_the_rate_that_is_taken(net, train):
    """Half the rate, half the step: SOAP's direction does not depend on it; without decay."""
    moved = []
    for factor in (1.0, 0.5):
        model = net()
        optimizer = Phased(
            model,
            [
                Phase(name="a", until=0.5, optimizer="adamw:weight_decay=0.0"),
                Phase(name="b", optimizer="soap:weight_decay=0.0"),
            ],
            steps=40,
        )
        for n in range(20):
            train(model, optimizer, n)
        for group in optimizer.param_groups:
            group["lr"] *= factor
        moved.append(train(model, optimizer, 20)[1])
    assert moved[1] == pytest.approx(0.5 * moved[0], rel=1e-3)


def test_weight_decay_keeps_its_share_unless_it_is_named(net):
    phases = [
        Phase(name="a", until=0.3, optimizer="adamw:lr=1e-2,weight_decay=0.1"),
        Phase(name="b", until=0.6, optimizer="muon:lr=2e-2"),
        Phase(name="c", optimizer="soap:lr=1e-3,weight_decay=0.2"),
    ]
    model, optimizer, scheduler = build(net, phases)
    told = []
    for n in range(STEPS):
        loop(model, optimizer, scheduler, [n])
        told.append([group["weight_decay"] for group in optimizer.param_groups])
    assert told[0] == [0.1, 0.0, 0.1]
    assert told[30] == pytest.approx([0.05, 0.0, 0.05])
    assert told[60] == [0.2, 0.0, 0.2]


def test_by_signal_and_by_hand(net):
    """A switch of the optimizer waits for its gradients; another is at once."""
    phases = [
        Phase(name="a", optimizer="adamw"),
        Phase(name="b", optimizer="soap", averaging="ema"),
        Phase(name="c", perturb="sam"),
    ]
    model, optimizer, scheduler = build(net, phases, switch_when=lambda step: step == 10, gradients=4)
    loop(model, optimizer, scheduler, range(13))
    assert optimizer.name == "a"
    loop(model, optimizer, scheduler, [13])
    assert (optimizer.name, optimizer.switches[0].step, optimizer.switches[0].gradients) == ("b", 14, 4)
    assert not optimizer.in_grace(14)
    assert optimizer.in_grace(15)
    assert optimizer.in_grace(14 + 80)  # twice 2 / (1 − 0.95)
    assert not optimizer.in_grace(14 + 81)
    loop(model, optimizer, scheduler, [14])
    assert optimizer.averager.step == 1
    optimizer.switch("c")
    assert (optimizer.name, optimizer.averager.step, optimizer.averager.ready) == ("c", 0, False)
    assert optimizer.perturber is not None
    optimizer.switch("a")
    loop(model, optimizer, scheduler, range(15, 19))
    assert (optimizer.name, optimizer.averager, optimizer.perturber) == ("a", None, None)
    assert len(optimizer.switches) == 2
    assert optimizer.switches[-1].incoming == "AdamW"


def test_one_count_a_step_under_watch_and_the_log_tells_the_phase(net, tmp_path):
    model, optimizer, scheduler = build(net)
    run = dynaxx.watch(
        model, optimizer, tmp_path / "run", scheduler=scheduler, steps=STEPS, quiet=True, signals=["phase", "lr"]
    )
    loop(model, optimizer, scheduler, range(30))
    assert run.step == 30
    run.save()
    loop(model, optimizer, scheduler, range(30, 45))
    run.close()
    truth = torch.cat([p.detach().flatten() for p in model.parameters()])
    model, optimizer, scheduler = build(net)
    run = dynaxx.watch(
        model,
        optimizer,
        tmp_path / "run",
        scheduler=scheduler,
        steps=STEPS,
        quiet=True,
        signals=["phase", "lr"],
        resume=True,
    )
    assert (run.step, optimizer.name) == (30, "sculpt")
    loop(model, optimizer, scheduler, range(30, 45))
    run.close()
    assert torch.equal(truth, torch.cat([p.detach().flatten() for p in model.parameters()]))
    view = dynaxx.open_run(tmp_path / "run")
    phase = view["phase"].values.tolist()
    assert phase == [0.0] * 20 + [1.0] * 20 + [2.0] * 5
    rates = view["phase.rate"]
    assert list(rates.steps) == list(range(21, 41))
    assert set(rates.values.tolist()) == {0.5}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_and_kernels_and_frozen_parameters(dtype):
    """State stays in float32 at least, and comes back in it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 5)).to(dtype)
    model[0].bias.requires_grad_(False)
    plan = [Phase(name=name, until=(i + 1) / 3, optimizer=name) for i, name in enumerate(("adamw", "soap", "muon"))]
    optimizer = Phased(model, plan, steps=24)
    x, frozen = torch.randn(4, 3, 4, 4, dtype=dtype), model[0].bias.detach().clone()
    for _ in range(20):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [s.target for s in optimizer.switches] == ["soap", "muon"]
    assert all(math.isfinite(f) and 0 < f <= 1 for s in optimizer.switches for f in s.factors)
    assert torch.equal(frozen, model[0].bias)
    saved = deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    wide = torch.promote_types(dtype, torch.float32)
    assert {s["momentum_buffer"].dtype for s in optimizer.state.values() if "momentum_buffer" in s} == {wide}
    again = optimizer.state_dict()["state"]
    for index in range(len(again) - 1):
        torch.testing.assert_close(again[index], saved["state"][index], rtol=0, atol=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.01, total_steps=STEPS),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda n: 0.99**n),
    ],
)
def test_schedulers_of_torch_write_the_rates_they_mean(net, make):
    """Those that multiply the last rate, and those that start from the base, as without phases."""
    model = net()
    optimizer = Phased(model, FOUR, steps=STEPS)
    twin = torch.optim.SGD([{"params": [p]} for p in net().parameters()][:3], lr=1e-2, momentum=0.9)
    scheduler, other = make(optimizer), make(twin)
    for n in range(STEPS - 1):
        loop(model, optimizer, scheduler, [n])
        twin.step()
        other.step()
        ours = [group["lr"] for group in optimizer.param_groups]
        assert ours == pytest.approx([group["lr"] for group in twin.param_groups], rel=1e-12)


def test_under_a_gradient_scaler_a_step_that_is_left_out_does_not_count(net):
    model = net()
    plan = [Phase(name="a", until=0.5, optimizer="adamw:fused=True"), Phase(name="b", optimizer="soap")]
    optimizer, scaler = Phased(model, plan, steps=20), torch.amp.GradScaler("cpu", init_scale=8.0)
    for n in range(12):
        loss = model(torch.full((4, 6), torch.inf if n == 3 else 0.1 * n)).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert (optimizer.taken, optimizer.name) == (11, "b")
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_bad_plans(net):
    model = net()

    def refused(message, *phases, kind=BadInput, **options):
        with pytest.raises(kind, match=message):
            Phased(model, list(phases), **{"steps": 10, **options})

    a = Phase(name="a", until=0.5, optimizer="adamw")
    refused("must be a list of Phase. Got 'adamw'", "adamw")
    refused("first phase must name an optimizer. Got no phase")
    refused("Got optimizer=None in 'a'", Phase(name="a"))
    refused("name of its own. Got 'a' again", a, Phase(name="a"))
    refused(r"in \(0.5, 1\] of the steps. Got until=0.5", a, Phase(name="b", until=0.5))
    refused("Got until='half'", Phase(name="b", until="half", optimizer="sgd"))
    refused("Got until=nan", Phase(name="b", until=math.nan, optimizer="sgd"))
    refused("Got until=1.5", Phase(name="b", until=1.5, optimizer="sgd"))
    refused("'b' has no step of its own, from 0.5 to 0.54 of 10 steps", a, Phase(name="b", until=0.54))
    refused("No optimizer is named 'adamx'. Did you mean 'adamw'", Phase(name="a", optimizer="adamx"), kind=UnknownName)
    refused("No averager is named", Phase(name="a", optimizer="sgd", averaging="emma"), kind=UnknownName)
    refused(r"AdamW\(lr=...\)", Phase(name="a", optimizer="adamw:lr=-1.0"))
    refused("kfac cannot share a plan", a, Phase(name="b", optimizer="kfac"))
    refused(r"Phased\(steps=...\) must be a whole number of at least 1. Got 0", a, steps=0)
    refused(r"Phased\(gradients=...\)", a, gradients=0)
    optimizer = Phased(model, [a, Phase(name="b")], steps=10)
    with pytest.raises(UnknownName, match="No phase is named 'c'"):
        optimizer.switch("c")
    with pytest.raises(BadInput, match="this is the present phase"):
        optimizer.switch("a")
    with pytest.raises(BadInput, match="cannot be copied or pickled"):
        deepcopy(optimizer)
    with pytest.raises(BadInput, match="groups are those of all phases"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(BadInput, match="not the state of a Phased"):
        optimizer.load_state_dict(choice("optim", "adamw").build(model).state_dict())
    with pytest.raises(BadInput, match="Give the same phases"):
        optimizer.load_state_dict(Phased(model, [a], steps=10).state_dict())
    text = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4))
    with pytest.raises(BadInput, match="embeddings"):
        Phased(text, [a, Phase(name="b", optimizer="sgd")], steps=10)
    assert Phased(text, [a, Phase(name="b", optimizer="sgd")], steps=10, force=True).names == ("a", "b")
    assert math.isclose(optimizer.planned_bytes(), choice("optim", "adamw").build(model).planned_bytes())
