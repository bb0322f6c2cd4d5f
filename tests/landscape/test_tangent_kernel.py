import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from dynaxx.core.objective import Objective
from dynaxx.errors import BadInput
from dynaxx.landscape import tangent_kernel
from dynaxx.landscape.tangent_kernel import TangentKernelProbe


class Wide(nn.Module):
    """One hidden layer in the parametrisation of the theory: f = v·tanh(Wx/√d)/√n."""

    def __init__(self, width, seed):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(width, 64, generator=g))
        self.v = nn.Parameter(torch.randn(width, generator=g))

    def forward(self, x):
        return torch.tanh(x @ self.w.T / 8) @ self.v / len(self.v) ** 0.5


def square(model, batch):
    return (model(batch[0]) - batch[1]).square().mean() / 2


def parity():
    digits = load_digits()
    x = torch.tensor(digits.data[:32] / 16, dtype=torch.float32)
    return x, torch.tensor(1.0 - 2 * (digits.target[:32] % 2), dtype=torch.float32)


def moved(width, seed):
    """Drift after 400 steps of gradient descent at 1/λ₁ of the kernel, and the relative change of the weights."""
    model, batch = Wide(width, seed), parity()
    options = {"examples": 32, "targets": lambda batch: batch[1]}
    before = tangent_kernel(model, square, [batch], **options)
    start = [p.detach().clone() for p in model.parameters()]
    rate = 32 / before["largest"]
    for _ in range(400):
        gradient = torch.autograd.grad(square(model, batch), list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradient, strict=True):
                p -= rate * g
    after = tangent_kernel(model, square, [batch], reference=before, **options)
    change = sum((p.detach() - s).square().sum() for p, s in zip(model.parameters(), start, strict=True))
    gain = after["centred_alignment"] / before["centred_alignment"]
    return after, float(change / sum(s.square().sum() for s in start)) ** 0.5, gain


def test_a_narrow_network_moves_its_kernel_towards_the_targets_and_a_wide_one_hardly():
    (narrow, _, gain), (wide, _, no_gain) = moved(64, 0), moved(2048, 0)
    assert narrow["drift"] > 0.5
    assert wide["drift"] < 0.1
    assert any("lazy;" in note for note in wide.notes)
    assert 0 < wide["kernel_distance"] < narrow["kernel_distance"]
    assert gain > 1.2
    assert no_gain == pytest.approx(1, abs=0.1)


@pytest.mark.slow
def test_drift_falls_as_one_over_the_width_and_the_weights_move_as_one_over_its_root():
    """Theory: −1 for the kernel (Lee et al. 2019 find it empirically) and −1/2 for the weights, at large width."""
    widths = (64, 128, 256, 512, 1024, 2048)
    found = np.array([[(c["drift"], w) for c, w, _ in (moved(n, s) for s in range(5))] for n in widths]).mean(1)
    assert np.all(np.diff(found[:, 0]) < 0)
    assert found[0, 0] > 0.5
    assert np.polyfit(np.log2(widths[2:]), np.log2(found[2:, 0]), 1)[0] == pytest.approx(-1, abs=0.12)
    assert np.polyfit(np.log2(widths), np.log2(found[:, 1]), 1)[0] == pytest.approx(-0.475, abs=0.05)


def classifier():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)).double()


def digits(n=40):
    data = load_digits()
    x = torch.tensor(data.data[:n] / 16)
    y = torch.tensor(data.target[:n])
    return [(x[:25], y[:25]), (x[25:], y[25:])]


def entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def test_the_alignment_with_the_targets_is_that_of_the_formula():
    model = classifier()
    for pseudo in (True, False):
        chart = tangent_kernel(model, entropy, digits(), examples=40, pseudo=pseudo, targets=lambda batch: batch[1])
        k = chart.arrays["kernel"]
        k = k if pseudo else k.reshape(40, 10, 40, 10).trace(axis1=1, axis2=3)
        y = np.concatenate([b[1] for b in digits()])
        same = (y[:, None] == y).astype(float)
        assert chart["alignment"] == pytest.approx((k * same).sum() / np.linalg.norm(k) / np.linalg.norm(same))
        h = np.eye(40) - 1 / 40
        a, b = h @ k @ h, h @ same @ h
        assert chart["centred_alignment"] == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def test_the_reference_may_be_a_chart_a_model_or_weights():
    model, other = classifier(), classifier()
    with torch.no_grad():
        other[0].weight *= 1.5
    chart = tangent_kernel(other, entropy, digits())
    values = [
        tangent_kernel(model, entropy, digits(), reference=reference)["drift"]
        for reference in (chart, other, other.state_dict())
    ]
    assert values == pytest.approx([values[0]] * 3)
    assert values[0] > 0.01
    same = tangent_kernel(model, entropy, digits(), reference=model)
    assert (same["drift"], same["kernel_distance"]) == (0, pytest.approx(0, abs=1e-12))


@pytest.mark.parametrize(
    ("before", "reading"),
    [
        (np.diag([2.0, 1.05]), "lazy;"),  # drift 0.02
        (np.diag([1.0, 0.5]), "between lazy and rich;"),  # twice as large: grown, not turned
        (np.diag([1.0, 2.0]), "rich;"),  # cosine 0.8, turning 0.6
    ],
)
def test_the_reading_follows_its_rule(before, reading):
    model = nn.Linear(2, 1, bias=False).double()
    batch = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64).sqrt())  # K = diag(2, 1)
    here = tangent_kernel(model, lambda m, x: m(x).mean(), [batch])
    reference = replace(here, arrays={"kernel": before})
    moved = tangent_kernel(model, lambda m, x: m(x).mean(), [batch], reference=reference)
    assert any(note.startswith(f"Training so far: {reading}") for note in moved.notes)
    assert moved["turning"] == pytest.approx(0.6 if reading == "rich;" else moved["turning"])


def test_a_rescaled_output_has_drift_but_no_distance():
    model, x = nn.Linear(3, 1, bias=False).double(), torch.eye(3, dtype=torch.float64)

    def loss(m, b):
        return m(b).mean()

    chart = tangent_kernel(model, loss, [x], outputs=lambda m, b: m(b))
    larger = tangent_kernel(model, loss, [x], outputs=lambda m, b: 3 * m(b), reference=chart)
    assert larger["drift"] == pytest.approx(8)
    assert larger["kernel_distance"] == pytest.approx(0, abs=1e-12)
    assert larger["effective_rank"] == pytest.approx(3)


def test_what_is_not_applicable_is_said():
    notes = tangent_kernel(classifier(), entropy, digits()).notes
    assert any("without targets=" in note for note in notes)
    assert any("without reference=" in note for note in notes)


def test_it_stays_within_its_price_is_drawn_and_written():
    model = classifier()
    objective = Objective(model, entropy, digits())
    probe = TangentKernelProbe(reference=model)
    price, chart = probe.price(objective), probe.run(objective)
    assert chart.cost.forwards <= price.forwards
    assert chart.cost.backwards <= price.backwards
    json.dumps(chart.to_dict(), allow_nan=False)
    chart.plot().savefig("/dev/null", format="png")


def test_bad_input():
    with pytest.raises(BadInput, match="at least 2"):
        TangentKernelProbe(examples=1)
    model = classifier()
    with pytest.raises(BadInput, match=r"lacks '0.weight'"):
        tangent_kernel(model, entropy, digits(), reference={})
    few = tangent_kernel(model, entropy, digits(), examples=5)
    with pytest.raises(BadInput, match=r"needs a kernel of shape \(40, 40\)"):
        tangent_kernel(model, entropy, digits(), reference=few)
    with pytest.raises(BadInput, match="a target for each of 40 examples"):
        tangent_kernel(model, entropy, digits(), targets=lambda batch: batch[1][:3])
