"""Macro curves against torch's own schedulers, their formulas, and what every one of them must keep to."""

import copy
import io
import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
)

from dynaxx import catalog
from dynaxx.errors import BadInput
from dynaxx.schedules import (
    Constant,
    Cosine,
    InverseSqrt,
    LinearDecay,
    OneCycle,
    PowerDecay,
    WarmRestarts,
    WarmupStableDecay,
    as_scheduler,
)

STEPS = 140
CURVES = sorted(catalog.names("schedules"))


def optimizer(*rates):
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates or (0.3,)])


def rates_of(make, steps, *rates):
    inner = optimizer(*rates)
    scheduler = make(inner)
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in inner.param_groups])
        inner.step()
        scheduler.step()
    return torch.tensor(found, dtype=torch.float64)


TWINS = {
    "constant": (Constant(steps=STEPS, warmup=20), lambda o: LinearLR(o, 1 / 20, 1.0, total_iters=19), STEPS),
    "linear": (LinearDecay(steps=STEPS, final=0.1), lambda o: LinearLR(o, 1.0, 0.1, total_iters=STEPS), STEPS + 1),
    "cosine": (Cosine(steps=STEPS), lambda o: CosineAnnealingLR(o, T_max=STEPS), STEPS + 1),
    "cosine_final": (
        Cosine(steps=STEPS, final=0.2),
        lambda o: CosineAnnealingLR(o, T_max=STEPS, eta_min=0.2 * 0.3),
        STEPS + 1,
    ),
    "polynomial": (
        PowerDecay(steps=STEPS, power=1.7),
        lambda o: PolynomialLR(o, total_iters=STEPS, power=1.7),
        STEPS + 1,
    ),
    "one_cycle": (
        OneCycle(steps=STEPS),
        lambda o: OneCycleLR(o, 0.3, total_steps=STEPS, pct_start=0.1, cycle_momentum=False),
        STEPS - 1,
    ),
    "one_cycle_30": (
        OneCycle(steps=STEPS, warmup=0.3, start=0.1, final=1e-3),
        lambda o: OneCycleLR(
            o, 0.3, total_steps=STEPS, pct_start=0.3, div_factor=10, final_div_factor=100, cycle_momentum=False
        ),
        STEPS - 1,
    ),
    "restarts": (WarmRestarts(steps=STEPS), lambda o: CosineAnnealingWarmRestarts(o, T_0=20, T_mult=2), STEPS),
    "restarts_even": (
        WarmRestarts(steps=STEPS, cycle=14, growth=1, final=0.5),
        lambda o: CosineAnnealingWarmRestarts(o, T_0=14, eta_min=0.15),
        STEPS,
    ),
}


@pytest.mark.parametrize("name", TWINS)
def test_equals_torchs_scheduler(name):
    curve, torchs, steps = TWINS[name]
    ours, theirs = rates_of(lambda o: as_scheduler(o, curve), steps), rates_of(torchs, steps)
    # torch's chain products up over the steps; ours are closed forms.
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_warm_up_and_stable_and_decay():
    linear = WarmupStableDecay(steps=100, warmup=0.1, decay=0.2, shape="linear", final=0.1)
    assert [linear.factor(t) for t in (0, 4, 9, 10, 79, 80)] == pytest.approx([0.1, 0.5, 1, 1, 1, 1])
    assert [linear.factor(t) for t in (90, 100)] == pytest.approx([0.55, 0.1])
    root = WarmupStableDecay(steps=100, decay=20)
    assert [root.factor(t) for t in (80, 85, 95, 100)] == pytest.approx([1, 0.5, 1 - math.sqrt(0.75), 0])


def test_the_floor_holds_during_the_cool_down():
    """A peer's falls below its floor on the way and jumps back up at the end."""
    for shape in ("sqrt", "linear"):
        curve = WarmupStableDecay(steps=50, decay=0.5, shape=shape, final=0.1)
        values = [curve.factor(t) for t in range(60)]
        assert min(values) == pytest.approx(0.1)
        assert values == sorted(values, reverse=True)


def test_power_cool_down_is_min_of_the_constant_and_the_power():
    curve = PowerDecay(steps=1000, decay=0.4)
    c = 400**-1.2
    assert [curve.factor(t) for t in range(0, 1001, 50)] == pytest.approx(
        [min(1.0, c * (1000 - t) ** 1.2) for t in range(0, 1001, 50)]
    )


def test_inverse_square_root_is_that_of_the_transformer():
    curve = InverseSqrt(steps=100_000)
    paper = [min(t**-0.5, t * 4000**-1.5) * 4000**0.5 for t in (1, 2000, 4000, 16_000, 100_000)]
    assert [curve.factor(t - 1) for t in (1, 2000, 4000, 16_000, 100_000)] == pytest.approx(paper)
    assert InverseSqrt(steps=1000, warmup=10, final=0.3).factor(999) == 0.3


def test_one_cycle_ends_at_its_last_update():
    curve = OneCycle(steps=200)
    assert curve.factor(0) == pytest.approx(1 / 25)
    assert curve.factor(19) == 1.0
    assert curve.factor(199) == pytest.approx(1 / 25e4)
    assert OneCycle(steps=1).factor(0) == pytest.approx(1 / 25e4)
    assert OneCycle(steps=10, warmup=0).factor(0) == 1.0


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("warmup", [7, 0.1])
def test_every_curve(name, warmup):
    kind = catalog.get("schedules", name)
    curve = kind(steps=90, warmup=warmup)
    values = [curve.factor(t) for t in range(91)]
    assert all(0 <= v <= 1 for v in values)
    assert max(values) == 1.0
    first = values.index(1.0) + 1
    assert first == (7 if warmup == 7 else 9)  # the peak is reached in the last update of the warm-up
    assert values[:first] == sorted(values[:first])
    assert [curve.factor(t) for t in (91, 1000)] == [values[90]] * 2
    assert values == [kind(steps=90, warmup=warmup).factor(t) for t in range(91)]
    with pytest.raises(FrozenInstanceError):
        curve.steps = 3
    assert replace(curve, steps=180).steps == 180


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps=...\\) must be an integer of at least 1. Got 0"),
        ({"steps": 10.0}, "must be an integer of at least 1. Got 10.0"),
        ({"steps": 10, "warmup": 10}, "warmup=...\\) must leave steps behind it: less than 10. Got 10"),
        ({"steps": 10, "warmup": -1}, "must be in \\[0, steps = 10\\]. Got -1"),
        ({"steps": 10, "warmup": 1.5}, "share must be in \\[0, 1\\]. Got 1.5. For steps give an integer"),
        ({"steps": 10, "warmup": math.nan}, "Got nan"),
    ],
)
def test_bad_options(name, options, said):
    with pytest.raises(BadInput, match=said):
        catalog.get("schedules", name)(**options)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Cosine(steps=10, final=1.5), "Cosine\\(final=...\\) must be a share of the peak"),
        (lambda: WarmupStableDecay(steps=10, shape="cubic"), "must be 'sqrt' or 'linear'. Got 'cubic'"),
        (lambda: WarmupStableDecay(steps=10, decay=11), "decay=...\\) must be in \\[0, steps = 10\\]"),
        (lambda: PowerDecay(steps=10, power=0.0), "power=...\\) must be positive and finite. Got 0.0"),
        (lambda: OneCycle(steps=10, start=2.0), "start=...\\) must be a share"),
        (lambda: WarmRestarts(steps=10, cycle=0), "cycle=...\\) must be a share"),
        (lambda: WarmRestarts(steps=10, growth=1.5), "growth=...\\) must be an integer"),
        (lambda: InverseSqrt(steps=10, warmup=0), "at least one step"),
        (lambda: as_scheduler(object(), Cosine(steps=1)), "must be a torch.optim.Optimizer. Got object"),
        (lambda: as_scheduler(optimizer(), lambda t: 1.0), "must be a curve"),
    ],
)
def test_bad_options_of_single_curves(make, said):
    with pytest.raises(BadInput, match=said):
        make()


def test_scheduler_keeps_the_proportions_of_groups_and_tensor_rates():
    curve = WarmupStableDecay(steps=30, warmup=5)
    found = rates_of(lambda o: as_scheduler(o, curve), 30, 0.1, 0.4)
    torch.testing.assert_close(found[:, 1], 4 * found[:, 0])
    tensor = torch.tensor(0.4)
    inner = optimizer(tensor)
    scheduler = as_scheduler(inner, curve)
    assert inner.param_groups[0]["lr"] is tensor  # changed in place: compiled optimizers hold on to it
    assert float(tensor) == pytest.approx(0.08)
    inner.step()
    scheduler.step()
    assert float(tensor) == pytest.approx(0.16)


def test_scheduler_state_is_plain_and_resumes():
    curve = Cosine(steps=40, warmup=4)
    whole = rates_of(lambda o: as_scheduler(o, curve), 40)
    inner = optimizer()
    scheduler = as_scheduler(inner, curve)
    for _ in range(13):
        inner.step()
        scheduler.step()
    buffer = io.BytesIO()
    torch.save({"optimizer": inner.state_dict(), "scheduler": scheduler.state_dict()}, buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    again = optimizer()
    resumed = as_scheduler(again, curve)
    again.load_state_dict(state["optimizer"])
    kept = copy.deepcopy(state["scheduler"])
    resumed.load_state_dict(state["scheduler"])
    assert state["scheduler"] == kept
    found = []
    for _ in range(13, 40):
        found.append(again.param_groups[0]["lr"])
        again.step()
        resumed.step()
    assert found == whole[13:, 0].tolist()


def test_scheduler_composes_with_torchs_as_a_lambda_does():
    curve = Cosine(steps=20, warmup=3)
    makers = {
        "sequential": lambda part: lambda o: SequentialLR(o, [part(o), CosineAnnealingLR(o, 8)], [10]),
        "late": lambda part: lambda o: SequentialLR(o, [LinearLR(o, 0.1, 1.0, 5), part(o)], [5]),
        "chained": lambda part: lambda o: ChainedScheduler([part(o), ExponentialLR(o, 0.9)], optimizer=o),
    }
    for make in makers.values():
        ours = rates_of(make(lambda o: as_scheduler(o, curve)), 18)
        twin = rates_of(make(lambda o: LambdaLR(o, curve.factor)), 18)
        assert ours.tolist() == twin.tolist()
