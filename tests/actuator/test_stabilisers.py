"""Adaptive clipping, skipping of outliers and the ε switch: on norms with known statistics and in real trainings."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import dynaxx
from dynaxx.actuator.adaptive_clip import AdaptiveClip
from dynaxx.actuator.skip import Skip
from dynaxx.core.events import StepView
from dynaxx.core.parameters import Layout
from dynaxx.errors import BadInput


class Stream:
    """Gradients of chosen norms fed to an action, without a loop."""

    def __init__(self, action):
        self.action = action
        self.model = nn.Linear(3, 2)
        self.layout = Layout(self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

    def view(self, norm):
        direction = torch.randn(8, generator=torch.Generator().manual_seed(0))
        direction = direction / direction.norm() * norm
        self.model.weight.grad, self.model.bias.grad = direction[:6].reshape(2, 3), direction[6:]
        return StepView(step=1, layout=self.layout, optimizer=self.optimizer)

    def after(self, norm):
        """The gradient's norm once the action has seen it."""
        self.action.before(self.view(norm))
        return math.hypot(self.model.weight.grad.norm().item(), self.model.bias.grad.norm().item())

    def skips(self, norm):
        self.action.before(self.view(norm))
        return bool(self.action.skips)


def z_clip(norms, limit=2.5, decay=0.97, warmup=25):
    """The rule by hand in float64: Kumar et al. 2025, with population variance over the warm-up."""
    clipped, mean, variance = [], 0.0, 0.0
    for i, norm in enumerate(norms):
        used = norm
        if i >= warmup:
            z = (norm - mean) / math.sqrt(variance)
            if z > limit:
                used = mean + math.sqrt(variance) * limit**2 / z
            mean = decay * mean + (1 - decay) * used
            variance = decay * variance + (1 - decay) * (used - mean) ** 2
        else:
            seen = norms[: i + 1]
            mean, variance = float(np.mean(seen)), float(np.var(seen))
        clipped.append(used)
    return clipped


def norms_with_spikes(count=120):
    norms = np.random.default_rng(0).lognormal(0.0, 0.3, count)
    for at, factor in ((40, 10), (41, 30), (80, 6), (110, 100)):
        norms[at : at + 1] *= factor
    return norms.tolist()


def test_z_score_is_the_rule_by_hand():
    norms = norms_with_spikes()
    stream = Stream(AdaptiveClip())
    found = [stream.after(norm) for norm in norms]
    truth = z_clip(norms)
    np.testing.assert_allclose(found, truth, rtol=1e-5)
    cut = np.array(found) < 0.999 * np.array(norms)
    assert cut[[40, 41, 80, 110]].all()
    assert cut.sum() < 10


def test_quantile_is_that_of_the_last_window():
    norms = norms_with_spikes()
    stream = Stream(AdaptiveClip(by="quantile", quantile=0.75, window=40, warmup=10))
    found = [stream.after(norm) for norm in norms]
    truth = [n if i < 10 else min(n, np.quantile(norms[max(0, i - 40) : i], 0.75)) for i, n in enumerate(norms)]
    np.testing.assert_allclose(found, truth, rtol=1e-5)


def test_unclipped_gradients_keep_their_bits_and_equal_norms_are_no_outliers():
    stream = Stream(AdaptiveClip(warmup=5))
    for norm in [1.0] * 30 + [1.0 + 1e-7]:
        view = stream.view(norm)
        before = stream.model.weight.grad.clone()
        stream.action.before(view)
        assert torch.equal(stream.model.weight.grad, before)


@pytest.mark.parametrize("by", ["z_score", "quantile"])
def test_non_finite_norms_neither_count_nor_are_clipped(by):
    norms = norms_with_spikes(60)
    clean, spoilt = (Stream(AdaptiveClip(by=by, window=200)) for _ in range(2))
    for i, norm in enumerate(norms):
        if i in (3, 30, 50):
            for bad in (math.nan, math.inf):
                assert not math.isfinite(spoilt.after(bad))
        assert spoilt.after(norm) == pytest.approx(clean.after(norm), rel=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        AdaptiveClip,
        lambda: AdaptiveClip(by="quantile", window=30),
        lambda: Skip("outlier", window=20),
        lambda: AdaptiveClip(warmup=50),
    ],
)
def test_state_resumes_exactly(make):
    norms = norms_with_spikes()
    whole, first, second = (Stream(make()) for _ in range(3))
    found = [whole.after(n) for n in norms], [bool(whole.action.skips)]
    for norm in norms[:45]:
        first.after(norm)
    second.action.load_state_dict(copy.deepcopy(first.action.state_dict()))
    assert [second.after(n) for n in norms[45:]] == found[0][45:]
    assert [bool(second.action.skips)] == found[1]
    make().load_state_dict(make().state_dict())  # before the first step


def test_outliers_are_left_out_by_six_deviations_of_the_window():
    norms = norms_with_spikes()
    stream = Stream(Skip("outlier", window=64))
    found = [stream.skips(norm) for norm in norms]
    truth, kept = [], []
    for norm in norms:
        window = kept[-64:]
        limit = np.mean(window) + 6 * np.std(window, ddof=1) if len(window) >= 32 else math.inf
        truth.append(norm > limit)
        kept.append(min(norm, limit))
    assert found == truth
    assert found[40]
    assert found[41]
    assert found[110]
    assert stream.skips(math.nan)


def test_a_lasting_change_of_level_stops_being_an_outlier():
    stream = Stream(Skip("outlier", window=16))
    generator = np.random.default_rng(1)
    for _ in range(16):
        assert not stream.skips(generator.uniform(0.9, 1.1))
    later = [stream.skips(generator.uniform(9, 11)) for _ in range(16)]
    assert later[0]
    assert not any(later[8:])


def spiky(folder, kind, steps=80, **arguments):
    """A regression whose targets are a thousand times too large in three steps; the loss before and after them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run = dynaxx.watch(model, optimizer, folder, quiet=True)
    if kind:
        run.apply(kind, **arguments)
    generator = torch.Generator().manual_seed(2)
    losses = []
    while run.step < steps and len(losses) < steps + 10:
        i = len(losses)
        x = torch.randn(32, 4, generator=generator)
        y = x.sum(dim=1, keepdim=True) * (1000.0 if i in (40, 55, 70) else 1.0)
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    run.close()
    return np.array(losses), run


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("adaptive_clip", {}),
        ("adaptive_clip", {"by": "quantile", "window": 40}),
        ("skip", {"when": "outlier", "window": 40}),
    ],
)
def test_planted_spikes_do_no_harm(tmp_path, kind, arguments):
    bare, _ = spiky(tmp_path / "bare", None)
    losses, run = spiky(tmp_path / "run", kind, **arguments)
    calm = losses[30:40].mean()
    assert losses[[41, 56, 71]].max() < 3 * calm + 0.1
    assert losses[-5:].mean() < calm
    assert not (bare[41:46] < 100 * calm).all()  # without it the same spikes throw the training off
    if kind == "adaptive_clip":
        coefficients = run.view()["clip_coefficient"].values
        assert (coefficients[[40, 55, 70]] < 0.01).all()
        assert run.view()["grad_norm.total"].values[40] > 100 * np.median(run.view()["grad_norm.total"].values)
    else:
        assert [event["step"] for event in run.view().events("update_left_out")] == [40, 54, 68]


def test_a_closure_evaluated_several_times_counts_once(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True)
    run.apply("adaptive_clip", by="quantile", window=4, warmup=2)
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))

    def closure():
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    state = run._actuator.state_dict()["adaptive_clip"]["state"]
    run.close()
    assert state["seen"] == 3


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam])
def test_epsilon_is_raised_and_put_back(tmp_path, kind):
    models = [nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [kind(m.parameters(), lr=0.1) for m in models]
    run = dynaxx.watch(models[1], optimizers[1], tmp_path / "run", quiet=True)
    for i in range(6):
        if i == 2:
            run.apply("epsilon", value=1e-2, steps=2)
        for model, optimizer in zip(models, optimizers, strict=True):
            if model is models[0]:
                optimizer.param_groups[0]["eps"] = 1e-2 if i in (2, 3) else 1e-8
            model(torch.full((1, 3), 1e-3)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert optimizers[1].param_groups[0]["eps"] == 1e-8
        assert torch.equal(models[0].weight, models[1].weight), i
    run.close()


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("adaptive_clip", {"by": "median"}, "by=...\\) must be 'z_score' or 'quantile'. Got 'median'"),
        ("adaptive_clip", {"limit": 0.0}, "limit=...\\) must be positive and finite. Got 0.0"),
        ("adaptive_clip", {"decay": 1.0}, "decay=...\\) must be in \\(0, 1\\). Got 1.0"),
        ("adaptive_clip", {"quantile": 1.5}, "quantile=...\\) must be in \\(0, 1\\)"),
        ("adaptive_clip", {"by": "quantile", "window": 10}, "warmup=...\\) must be at most window = 10. Got 25"),
        ("skip", {"when": "outlier", "limit": math.nan}, "limit=...\\) must be positive and finite. Got nan"),
        ("skip", {"when": "outlier", "window": 2}, "window=...\\) must be an integer of at least 4. Got 2"),
        ("epsilon", {"value": 0.0}, "value=...\\) must be positive and finite"),
        ("epsilon", {}, "the groups of SGD have no ε"),
    ],
)
def test_bad_input(tmp_path, name, arguments, said):
    model = nn.Linear(2, 1)
    run = dynaxx.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path / "run", quiet=True)
    with pytest.raises(BadInput, match=said):
        run.apply(name, **arguments)
    run.close()
