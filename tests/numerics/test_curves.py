import numpy as np
import pytest
import torch
from torch import nn

from dynaxx.core.objective import Objective
from dynaxx.errors import NotApplicable
from dynaxx.numerics.curves import Curve, coefficients, segment, train_curve


@pytest.mark.parametrize("kind", ["bezier", "polygon"])
@pytest.mark.parametrize("points", [2, 3, 5])
def test_a_curve_is_affine_and_has_its_ends(kind, points):
    for t in np.linspace(0, 1, 21).tolist():
        found = coefficients(kind, points, t)
        assert sum(found) == pytest.approx(1)
        assert min(found) >= 0
    assert coefficients(kind, points, 0.0) == [1.0] + [0.0] * (points - 1)
    assert coefficients(kind, points, 1.0) == pytest.approx([0.0] * (points - 1) + [1.0])


def test_closed_forms():
    a, b, c = (
        {"w": torch.tensor(x, dtype=torch.float64), "n": torch.tensor(7)} for x in ([0.0, 0], [4.0, 0], [4.0, 8])
    )
    assert Curve(kind="bezier", points=(a, b, c)).at(0.25)["w"].tolist() == [0.375 * 4 + 0.25, 0.5]
    assert Curve(kind="polygon", points=(a, b, c)).at(0.75)["w"].tolist() == [4.0, 4.0]
    assert segment(a, c).at(0.25)["w"].tolist() == [1.0, 2.0]
    assert segment(a, c).at(0.5)["n"].item() == 7


class Ring(nn.Module):
    """The loss is (‖w‖² − 1)², zero on the unit circle."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 0.0]))

    def forward(self, x):
        return (self.w.square().sum() - x).square().mean()


def ring():
    model = Ring()
    objective = Objective(model, lambda m, x: m(x), [torch.ones(4), torch.ones(4)])
    ends = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}
    return model, objective, ends


@pytest.mark.parametrize(("kind", "bends"), [("bezier", 1), ("polygon", 3)])
def test_a_curve_goes_round_the_ring(kind, bends):
    """The straight line has a barrier of (1/2 − 1)² = 1/4; the ends stay, the inner points leave it."""
    model, objective, ends = ring()
    curve, losses = train_curve(objective, *ends, kind=kind, bends=bends, steps=400, learning_rate=0.02)
    top = max(float((curve.at(t)["w"].square().sum() - 1) ** 2) for t in np.linspace(0, 1, 101))
    assert top < 0.02
    assert np.mean(losses[-50:]) < 0.01
    assert float((segment(*ends).at(0.5)["w"].square().sum() - 1) ** 2) == pytest.approx(0.25)
    assert torch.equal(curve.points[0]["w"], ends[0]["w"])
    assert torch.equal(curve.points[-1]["w"], ends[1]["w"])
    assert model.w.tolist() == [1.0, 0.0]
    assert model.w.grad is None
    if kind == "bezier":  # the minimiser of the expected loss, by a grid
        t = torch.linspace(0, 1, 201)[:, None]

        def expected(p):
            w = (1 - t) ** 2 * ends[0]["w"] + 2 * t * (1 - t) * torch.tensor([p, p]) + t**2 * ends[1]["w"]
            return float(((w.square().sum(1) - 1) ** 2).mean())

        best = min(np.linspace(0.5, 1.5, 201).tolist(), key=expected)
        assert curve.points[1]["w"].tolist() == pytest.approx([best, best], abs=0.02)


def test_the_same_again_and_a_rate_too_large():
    _, objective, ends = ring()
    options = {"kind": "bezier", "steps": 20, "learning_rate": 0.05}
    one, two = (train_curve(objective, *ends, **options)[0] for _ in range(2))
    assert torch.equal(one.points[1]["w"], two.points[1]["w"])
    with pytest.raises(NotApplicable, match="Take a smaller rate"):
        train_curve(objective, *ends, kind="bezier", steps=20, learning_rate=1e30)


def test_a_curve_through_batch_normalisation_leaves_it_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)).eval()
    x = torch.randn(32, 3)
    objective = Objective(model, lambda m, b: (m(b) - b.sum(1, keepdim=True)).square().mean(), [x[:16], x[16:]])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    other = {k: v + 0.1 if v.is_floating_point() else v for k, v in before.items()}
    curve, losses = train_curve(objective, before, other, kind="polygon", bends=2, steps=60, learning_rate=0.02)
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert len(curve.points) == 4
    assert not any(module.training for module in model.modules())
