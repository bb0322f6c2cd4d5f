"""The learning-rate range test: curves with known optima, objects that must stay, and silence where nothing falls."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from dynaxx.core.objective import Objective
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.landscape import lr_range
from dynaxx.landscape._lr_curve import basin, descent, search, smoothed
from dynaxx.landscape._training import Scratch, stretch
from dynaxx.landscape.lr_range import LrRange


class Bowl(nn.Module):
    """L = mean of h (w − x)² / 2."""

    def __init__(self, h=(4.0, 1.0), start=3.0):
        super().__init__()
        self.w = nn.Parameter(torch.full((len(h),), start))
        self.register_buffer("h", torch.tensor(h))

    def forward(self, x):
        return ((self.w - x).square() * self.h).sum(1).mean() / 2


def loss(model, x):
    return model(x)


def data(noise=0.0, count=4, h=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [noise * torch.randn(8, h, generator=generator) for _ in range(count)]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.3)


def test_a_sweep_is_gradient_descent_at_the_rates_it_says():
    """On a noiseless bowl the loss at step t is known: w ← (1 − η h) w."""
    chart = lr_range(Bowl(), loss, data(), optimizer=sgd, seeds=1, looks=0, steps=60, lowest=1e-4, highest=3.0)
    w, h, expected = torch.full((2,), 3.0, dtype=torch.float64), torch.tensor([4.0, 1.0]).double(), []
    for rate in np.geomspace(1e-4, 3.0, 60):
        expected.append(float((h * w * w).sum() / 2))
        w = (1 - rate * h) * w
    seen = chart.arrays["losses"][0]
    kept = ~np.isnan(seen)
    assert seen[kept] == pytest.approx(np.array(expected)[kept], rel=1e-3, abs=1e-6)


def test_divergence_is_where_a_bowl_diverges():
    """Gradient descent climbs out of the bowl beyond η = 2/h = 0.5."""
    chart = lr_range(Bowl(), loss, data(0.3), optimizer=sgd, steps=200, lowest=1e-4, highest=10.0, looks=0)
    assert 0.5 < chart["divergence"] < 1.5
    assert chart["steepest"] < chart["safe_maximum"] < chart["divergence"]
    assert any("rose by 3 times" in note for note in chart.notes)
    assert np.isnan(chart.arrays["losses"][0][-1])  # it stopped there


def test_a_look_is_a_short_annealed_training():
    batches = data(count=1)
    chart = lr_range(Bowl((4.0, 0.1)), loss, batches, optimizer=sgd, seeds=1, looks=5)
    model = Bowl((4.0, 0.1)).double()
    for rate, seen in zip(chart.arrays["look_rates"], chart.arrays["look_losses"][:, 0], strict=True):
        twin = copy.deepcopy(model)
        optimizer = torch.optim.SGD(twin.parameters(), lr=rate)
        for t in range(40):
            optimizer.param_groups[0]["lr"] = rate * min((t + 1) / 4, 1 - t / 40)
            optimizer.zero_grad()
            loss(twin, batches[0].double()).backward()
            optimizer.step()
        final = loss(twin, batches[0].double()).item()
        assert seen == pytest.approx(final, rel=1e-4) or (seen == math.inf and not final < 1e30)


def test_the_recommended_rate_is_the_best_of_a_fine_grid():
    """On an ill-conditioned bowl with noise the best rate is narrow; the recommendation trains within 5 % of it."""
    bowl, batches = Bowl((4.0, 0.2)), data(1.0, count=16)
    chart = lr_range(bowl, loss, batches, optimizer=sgd, training=batches)
    grid = {}
    for rate in [*np.geomspace(0.05, 1.2, 12), chart["recommended"]]:
        finals = []
        for index in range(3):
            scratch = Scratch(Objective(bowl, loss, batches), sgd, 0)
            for t, batch in enumerate(stretch(batches, batches, index, 40, 0)):
                scratch.set_rate(rate * min((t + 1) / 4, 1 - t / 40))
                scratch.step(batch)
            finals.append(scratch.value())
        grid[rate] = np.mean(finals)
    assert grid[chart["recommended"]] < 1.05 * min(grid.values())
    assert chart["recommended_low"] <= chart["recommended"] * 2
    assert chart["recommended_high"] >= chart["recommended"] / 2
    assert chart.values["recommended"].error is not None


def live():
    """A model with dropout and running statistics, mid-training, with Adam's moments and two groups."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))
    groups = [{"params": model[0].parameters(), "lr": 1e-3}, {"params": model[1:].parameters(), "lr": 4e-3}]
    optimizer = torch.optim.Adam(groups)
    x = torch.randn(64, 3)
    batches = [(b, b.sum(1, keepdim=True)) for b in x.split(8)]
    for batch in batches[:3]:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(batch[0]), batch[1]).backward()
        optimizer.step()
    return model, optimizer, batches


def mse(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def everything(model, optimizer):
    model_state = {k: v.clone() for k, v in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters()]
    state = copy.deepcopy(optimizer.state_dict())
    return model_state, grads, state, torch.get_rng_state(), [m.training for m in model.modules()]


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def test_a_live_optimizer_and_its_model_stay_bit_for_bit():
    model, optimizer, batches = live()
    optimizer.register_step_post_hook(lambda *_: pytest.fail("the live optimizer's hooks ran"))
    before = everything(model, optimizer)
    chart = lr_range(
        model, mse, batches, optimizer=optimizer, training=DataLoader(batches, batch_size=None, shuffle=True)
    )
    assert equal(everything(model, optimizer), before)
    assert "recommended" in chart.values


def test_its_moments_go_along_and_groups_keep_their_proportion():
    model, optimizer, batches = live()
    scratch = Scratch(Objective(model, mse, batches), optimizer, 0)
    twin = [p for group in scratch.optimizer.param_groups for p in group["params"]]
    assert all(a is b for a, b in zip(twin, scratch.model.parameters(), strict=True))
    mine, theirs = (o.state[p]["exp_avg"] for o, p in ((scratch.optimizer, twin[0]), (optimizer, model[0].weight)))
    assert torch.equal(mine, theirs)
    assert mine is not theirs
    scratch.set_rate(0.8)
    assert [group["lr"] for group in scratch.optimizer.param_groups] == pytest.approx([0.2, 0.8])


def test_an_optimizer_with_attributes_of_its_own_and_a_scheduler_is_copied_whole():
    class Counting(torch.optim.SGD):
        def __init__(self, params, lr):
            super().__init__(params, lr)
            self.table = [0]

        def step(self, closure=None):
            self.table[0] += 1
            return super().step(closure)

    bowl = Bowl()
    optimizer = Counting(bowl.parameters(), lr=0.1)
    torch.optim.lr_scheduler.ConstantLR(optimizer)  # puts a method of its own in the place of step
    scratch = Scratch(Objective(bowl, loss, data()), optimizer, 0)
    scratch.step(data()[0])
    assert optimizer.table == [0]
    assert scratch.optimizer.table == [1]
    assert not torch.equal(scratch.model.w, bowl.w)


def test_rates_held_in_tensors_are_filled():
    bowl = Bowl()
    optimizer = torch.optim.Adam(bowl.parameters(), lr=torch.tensor(0.1))
    scratch = Scratch(Objective(bowl, loss, data()), optimizer, 0)
    scratch.set_rate(0.5)
    assert scratch.optimizer.param_groups[0]["lr"].item() == 0.5
    assert optimizer.param_groups[0]["lr"].item() == pytest.approx(0.1)


def test_orders_differ_and_repeat():
    batches = list(range(6))
    one, two = (list(stretch(batches, (), index, 12, seed=0)) for index in (0, 1))
    assert one != two
    assert sorted(one[:6]) == sorted(one[6:]) == batches  # epoch by epoch
    assert one == list(stretch(batches, (), 0, 12, seed=0))

    class Stream:
        def __iter__(self):
            return iter(batches)

    assert list(stretch(Stream(), (), 1, 4, seed=0)) == [4, 5, 0, 1]


@pytest.mark.parametrize("what", ["constant", "minimum", "noise"])
def test_no_descent_is_no_suggestion(what):
    bowl, batches = Bowl(start=0.0), data(count=8)
    if what == "constant":
        chart = lr_range(nn.Linear(2, 1), lambda m, x: (m(x) * 0).mean() + 1, batches)
    elif what == "minimum":
        chart = lr_range(bowl, loss, batches, optimizer=sgd)
    else:  # the loss differs by batch, not by weights

        def random_loss(model, x):
            return x.square().mean() + 0 * model.w.sum()

        chart = lr_range(bowl, random_loss, data(1.0, count=64), optimizer=sgd)
    assert not {"steepest", "safe_maximum", "recommended"} & set(chart.values)
    assert any("No suggestion" in note for note in chart.notes)
    chart.plot().savefig(io.BytesIO(), format="png", dpi=40)


def test_noise_alone_is_seldom_taken_for_descent():
    rng = np.random.default_rng(0)
    calls = [descent(1 + 0.3 * rng.standard_normal(100)).clear for _ in range(500)]
    assert np.mean(calls) < 0.01
    falling = 1 + 0.1 * rng.standard_normal(100) - np.concatenate([np.zeros(60), np.linspace(0, 0.8, 40)])
    assert descent(falling).clear


def test_divergent_everywhere_says_so():
    bowl = Bowl((1e12, 1e12))
    chart = lr_range(bowl, loss, data(), optimizer=sgd, lowest=1e-3)
    assert any("Lower `lowest`" in note for note in chart.notes)
    assert "recommended" not in chart.values
    chart.plot()


def test_no_looks_no_recommendation():
    chart = lr_range(Bowl(), loss, data(0.1), optimizer=sgd, looks=0)
    assert "steepest" in chart.values
    assert "recommended" not in chart.values
    assert any("none is recommended" in note for note in chart.notes)


def test_smoothing_does_not_lag():
    place = np.linspace(0, 1, 101)
    curve = smoothed(np.square(place - 0.5))
    assert curve.argmin() == 50
    assert smoothed(3 * place)[10:-10] == pytest.approx(3 * place[10:-10])


@pytest.mark.parametrize("best", [-7.0, -1.2, 0.4, 5.5])
def test_the_search_brackets_the_minimum(best):
    seen = []

    def look(k):
        seen.append(k)
        return (k - best) ** 2

    places = search(look, 12, -20, 20)
    assert len(seen) == len(set(seen)) <= 12
    assert {math.floor(best), math.ceil(best)} <= set(places)


def test_a_basin_ends_where_the_level_is_crossed():
    places = np.arange(5.0)
    losses = np.array([4.0, 2.0, 1.0, 1.2, 3.2])
    assert basin(places, losses, 1.5) == pytest.approx((1.5, 3.15))
    assert basin(places, losses, 9.0) == (0.0, 4.0)
    assert basin(np.arange(3.0), np.array([2.0, 1.0, math.inf]), 1.5) == pytest.approx((0.5, 1.0))


def test_a_horizon_scales_the_recommendation_alone():
    own, long = (lr_range(Bowl(), loss, data(0.3), optimizer=sgd, looks=4, horizon=h) for h in (None, 320))
    assert long["recommended"] == pytest.approx(own["recommended"] / 2)
    assert long["steepest"] == own["steepest"]
    assert any("0.5 × the best of the looks" in note for note in long.notes)


@pytest.mark.parametrize(
    "options",
    [{"steps": 3}, {"seeds": 0}, {"looks": -1}, {"look_steps": 1}, {"lowest": 0.0}, {"lowest": 2.0, "highest": 1.0},
     {"divergence": 0.0}],
)  # fmt: skip
def test_bad_options(options):
    with pytest.raises(BadInput, match=next(iter(options))):
        LrRange(**options)


def test_bad_objects():
    bowl, other = Bowl(), Bowl()
    with pytest.raises(BadInput, match="not the model's"):
        lr_range(bowl, loss, data(), optimizer=sgd(other))
    with pytest.raises(BadInput, match=r"must return a torch\.optim\.Optimizer"):
        lr_range(bowl, loss, data(), optimizer=lambda model: model)
    with pytest.raises(BadInput, match="rate above 0"):
        lr_range(bowl, loss, data(), optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.0))
    with pytest.raises(BadInput, match="re-iterable"):
        lr_range(bowl, loss, data(), optimizer=sgd, training=iter(data()))
    with pytest.raises(BadInput, match="no batch"):
        lr_range(bowl, loss, data(), optimizer=sgd, training=[])
    with pytest.raises(NotApplicable, match="closure"):
        lr_range(bowl, loss, data(), optimizer=lambda m: torch.optim.LBFGS(m.parameters()))
    with pytest.raises(NotApplicable, match="first training batch"):
        lr_range(bowl, loss, data(), optimizer=sgd, training=[torch.full((8, 2), math.nan)])
    with torch.no_grad():  # the message names the parameter
        bowl.w.fill_(math.nan)
    with pytest.raises(BadInput, match=r"\bw\b"):
        lr_range(bowl, loss, data(), optimizer=sgd)


def test_one_epoch_is_as_long_as_the_batches():
    chart = lr_range(Bowl(), loss, data(), optimizer=sgd, training=data(count=23), steps=None, looks=0, seeds=1)
    assert len(chart.arrays["rates"]) == 23
