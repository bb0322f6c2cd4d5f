"""Gradient noise against closed forms: quadratics with Gaussian, unequal and stable noise; unequal mini-batches."""

import io
import math

import numpy as np
import pytest
import torch
from scipy.stats import levy_stable
from torch import nn

from dynaxx.core.objective import Objective
from dynaxx.core.snapshot import Snapshot
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.landscape import _minibatches, gradient_noise
from dynaxx.landscape._minibatches import Gradients, gradients, minibatches
from dynaxx.landscape._noise import critical_scale, normality, simple_scale
from dynaxx.landscape.gradient_noise import GradientNoise


class Bowl(nn.Module):
    """L = mean of h (θ − x)² / 2: gradients h (θ − x), Hessian diag h, Σ = h² s² for x of variance s²."""

    def __init__(self, theta, h):
        super().__init__()
        self.theta = nn.Parameter(theta)
        self.register_buffer("h", h)


def loss(model, x):
    return (model.h * (model.theta - x).square()).sum(1).mean() / 2


D, S = 40, 1.5


def setting(examples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    theta = (torch.randn(D, generator=generator).abs() + 0.2) * torch.linspace(2.0, 0.5, D)
    h = torch.linspace(0.3, 3.0, D)
    x = S * torch.randn(examples, D, generator=generator)
    return theta, h, x


def test_scales_equal_their_closed_forms_within_5_percent():
    theta, h, x = setting(16384)
    model = Bowl(theta, torch.ones(D))
    chart = gradient_noise(model, loss, [x], points=0, products=0, batch=128)
    assert chart["simple_scale"] == pytest.approx(D * S**2 / float(theta.square().sum()), rel=0.05)
    assert chart["trace"] == pytest.approx(D * S**2, rel=0.05)
    curved = gradient_noise(Bowl(theta, h), loss, [x], points=0, products=128, batch=128)
    simple = float((h * S).square().sum() / (h * theta).square().sum())
    critical = float((h**3 * S**2).sum() / (h**3 * theta**2).sum())
    assert abs(critical / simple - 1) > 0.1  # the two are told apart
    assert curved["simple_scale"] == pytest.approx(simple, rel=0.05)
    assert curved["critical_scale"] == pytest.approx(critical, rel=0.05)
    assert curved["critical_low"] < critical < curved["critical_high"]
    assert curved["recommended_low"] < critical < curved["recommended_high"]


def test_intervals_cover_the_truth_as_often_as_they_say():
    """64 mini-batches of 4 of 95 %: both scales, by the probe's own estimators."""
    theta, h, _ = setting(1)
    rng, hits = np.random.default_rng(0), np.zeros(2)
    truth = ((h * S).square().sum() / (h * theta).square().sum(), (h**3 * S**2).sum() / (h**3 * theta**2).sum())
    scale = h.double().numpy()
    for _ in range(120):
        rows = scale * (theta.double().numpy() - S / 2 * rng.standard_normal((64, D)))
        found = Gradients(
            rows=torch.tensor(rows), sizes=np.full(64, 4.0), mean=torch.tensor(rows.mean(0)), sketched=False
        )
        own, along = (rows[::4] ** 2 @ scale), (rows[::4] * scale) @ rows.mean(0)
        simple, critical = simple_scale(found), critical_scale(own, along, np.full(16, 4.0), 256.0, 64)
        hits += [simple.low < truth[0] < simple.high, critical.low < truth[1] < critical.high]
    assert 0.9 <= hits[0] / 120 <= 0.99
    assert hits[1] / 120 >= 0.9  # wider than it says: the noise shares less than the signal


def test_unequal_mini_batches_are_weighed_without_bias():
    theta, _, _ = setting(1)
    sizes = np.array([1.0, 2.0, 3.0, 10.0] * 8)
    rng, traces, squares = np.random.default_rng(1), [], []
    for _ in range(100):
        rows = theta.numpy() + S * rng.standard_normal((32, D)) / np.sqrt(sizes)[:, None]
        scale = simple_scale(Gradients(rows=torch.tensor(rows), sizes=sizes, mean=torch.zeros(D), sketched=False))
        traces.append(scale.trace.value)
        squares.append(scale.gradient.value)
    # The jackknife of ‖G‖² corrects no bias where there is none.
    assert np.mean(traces) == pytest.approx(D * S**2, abs=4 * np.std(traces) / 10)
    assert np.mean(squares) == pytest.approx(float(theta.square().sum()), abs=4 * np.std(squares) / 10)


def test_its_gradients_are_those_of_the_parts_and_it_splits_evenly():
    theta, h, x = setting(50)
    objective = Objective(Bowl(theta, h), loss, [x[:23], x[23:]])
    parts = minibatches(objective, 5)
    assert [len(part.batch) for part in parts] == [5, 6, 6, 6, 5, 5, 6, 5, 6]
    assert torch.equal(torch.cat([part.batch for part in parts]), x)
    assert sum(part.size for part in parts) == pytest.approx(50)
    found = gradients(objective, parts)
    expected = torch.stack([h * (theta - part.batch.mean(0)) for part in parts])
    assert torch.allclose(found.rows, expected, atol=1e-5)
    assert torch.allclose(found.mean, h * (theta - x.mean(0)), atol=1e-5)
    rows = found.deviations()
    apart = (expected - h * (theta - x.mean(0))) * torch.tensor([len(p.batch) for p in parts]).sqrt()[:, None]
    assert rows @ rows.T == pytest.approx((apart @ apart.T).numpy(), abs=1e-3)


def test_sketches_are_taken_where_gradients_do_not_fit(monkeypatch):
    torch.manual_seed(0)
    model = nn.Linear(6000, 1)
    x = torch.randn(64, 6000)
    batches = [(part, part[:, :1]) for part in x.split(16)]

    def squared(m, b):
        return (m(b[0]) - b[1]).square().mean()

    whole = gradient_noise(model, squared, batches, points=0, products=0)
    monkeypatch.setattr(_minibatches, "KEPT_BYTES", 1000)
    sketch = gradient_noise(model, squared, batches, points=0, products=0)
    assert any("sketches" in note for note in sketch.notes)
    assert not any("sketches" in note for note in whole.notes)
    assert sketch["trace"] == pytest.approx(whole["trace"], rel=0.05)


def noisy(kind, seed, count=144):
    """Per-example gradients θ − x with x Gaussian of unequal scales, or stable."""
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.standard_normal(30))
    if kind == "gaussian":
        x = rng.standard_normal((count, 30)) * scales
    else:
        x = levy_stable.rvs(1.3, 0.0, size=(count, 30), random_state=rng) * scales
    return torch.tensor(x, dtype=torch.float32)


@pytest.mark.parametrize("kind", ["gaussian", "stable"])
def test_heavy_tails_are_found_and_unequal_scales_are_not_heavy_tails(kind):
    model = Bowl(torch.ones(30), torch.ones(30))
    said = [gradient_noise(model, loss, [noisy(kind, seed)], batch=1, products=0, points=0) for seed in range(2)]
    notes = ["\n".join(chart.notes) for chart in said]
    if kind == "gaussian":
        assert not any("heavier than Gaussian" in note or "not Gaussian" in note for note in notes)
        assert np.mean([chart["tail_index"] for chart in said]) == pytest.approx(2.0, abs=0.2)
    else:
        assert all("heavier than Gaussian" in note and "not Gaussian" in note for note in notes)
        assert np.mean([chart["tail_index"] for chart in said]) == pytest.approx(1.3, abs=0.25)


def test_false_alarms_of_normality_are_as_frequent_as_its_p_value_says(monkeypatch):
    monkeypatch.setattr("dynaxx.landscape._noise.DRAWS", 40)
    rng = np.random.default_rng(2)
    scales = np.exp(rng.standard_normal(12))
    p = np.array([normality(rng.standard_normal((40, 12)) * scales, seed).p_value for seed in range(100)])
    assert 0.03 < np.mean(p <= 0.1) < 0.18
    assert 0.42 < p.mean() < 0.6
    skewed = rng.exponential(size=(60, 1)) * np.ones(3) + 0.1 * rng.standard_normal((60, 3))
    assert normality(skewed - skewed.mean(0), 0).p_value < 0.05


def test_noise_that_depends_on_the_point_is_told_from_noise_that_does_not():
    _, _, x = setting(512)

    def quartic(model, batch):  # gradients θ x²: noise grows with θ
        return (model.theta * batch).square().sum(1).mean() / 2

    here = gradient_noise(Bowl(torch.ones(D), torch.ones(D)), loss, [x], products=0, batch=16)
    assert any("No change" in note for note in here.notes)
    assert here.arrays["change_ratio"] == pytest.approx([1.0, 1.0], abs=1e-3)
    model = Bowl(torch.ones(D), torch.ones(D))
    there = [
        Snapshot(step=s, run="a", load=lambda f=f: {"theta": torch.full((D,), f)}) for s, f in ((1, 2.0), (2, 0.5))
    ]
    moved = gradient_noise(model, quartic, [x], products=0, trajectory=there)
    assert moved.arrays["change_ratio"] == pytest.approx([4.0, 0.25], rel=1e-3)
    assert moved.arrays["change_alignment"] == pytest.approx([1.0, 1.0], abs=1e-3)
    assert sum("depends on the point" in note for note in moved.notes) == 2
    assert torch.equal(model.theta.detach(), torch.ones(D))


def test_variance_measured_on_groups_falls_as_one_over_the_batch():
    theta, h, x = setting(4096)
    chart = gradient_noise(Bowl(theta, h), loss, [x], batch=64, points=0, products=0)
    batches, variances = chart.arrays["observed_batch"], chart.arrays["observed_variance"]
    assert list(batches[:4]) == [64, 128, 256, 512]
    assert variances[:3] * batches[:3] == pytest.approx(float((h * S).square().sum()), rel=0.15)
    assert chart["variance"] == pytest.approx(chart["trace"] / 64)


def test_no_gradient_to_speak_of_is_said():
    _, h, x = setting(256)
    chart = gradient_noise(Bowl(torch.zeros(D), h), loss, [x], points=0)
    assert "recommended_low" not in chart.values
    assert chart["simple_high"] == math.inf
    assert any("No batch range" in note for note in chart.notes)
    chart.plot().savefig(io.BytesIO(), format="png", dpi=40)


def test_what_cannot_be_measured_is_refused():
    theta, h, x = setting(20)
    model = Bowl(theta, h)
    for option in ({"batch": 0}, {"products": -1}, {"products": 1}, {"points": -1}):
        with pytest.raises(BadInput, match=next(iter(option))):
            GradientNoise(**option)
    with pytest.raises(NotApplicable, match="at least 8 mini-batches"):
        gradient_noise(model, loss, [x], batch=5)
    with pytest.raises(NotApplicable, match="no noise"):
        gradient_noise(model, loss, [x[:1]] * 9)
    with pytest.raises(BadInput, match="lacks 'theta'"):
        gradient_noise(model, loss, [x], trajectory=[Snapshot(step=3, run="a", load=dict)])
    with torch.no_grad():
        model.theta[0] = math.nan
    with pytest.raises(BadInput, match="theta"):
        gradient_noise(model, loss, [x])
