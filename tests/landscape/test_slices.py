"""Loss slices against closed forms, direct evaluation and dense Hessians."""

import io
import json
import math

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from dynaxx.core.chart import Chart
from dynaxx.core.objective import Objective
from dynaxx.core.panels import Field, Lines
from dynaxx.core.progress import listening
from dynaxx.core.snapshot import Snapshot
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.landscape import slices
from dynaxx.landscape._directions import normalised
from dynaxx.landscape.slices import Slices
from dynaxx.numerics.hessian import Hessian
from dynaxx.numerics.space import Space


def entropy(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture(scope="module")
def trained():
    """A tanh net, which has no kinks: MLP 64-16-10 on digits, with every tenth of its steps kept."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
    optimizer, kept = torch.optim.SGD(net.parameters(), lr=0.3), []
    for step in range(100):
        if step % 10 == 0:
            weights = {name: p.detach().clone() for name, p in net.named_parameters()}
            kept.append(Snapshot(step=step, run="run", load=lambda weights=weights: weights))
        chosen = torch.randint(0, len(x), (128,))
        optimizer.zero_grad()
        entropy(net, (x[chosen], y[chosen])).backward()
        optimizer.step()
    return net, [(x[:256], y[:256]), (x[256:320], y[256:320])], kept


def quadratic(curvatures, at):
    """L = Σ hᵢ wᵢ²/2 of the weight of a linear layer; the batches only carry weights."""
    net = nn.Linear(len(at), 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([at]))
    h = torch.tensor([curvatures])
    return net, lambda m, b: (m.weight.square() * h).sum() / 2 + 0 * b.sum(), [torch.ones(4, 1), torch.ones(2, 1)]


def test_a_quadratic_along_eigenvectors_is_its_closed_form():
    net, loss, batches = quadratic([8.0, 2.0, 0.5], [0.5, -1.0, 2.0])
    found = slices(net, loss, batches, direction="eigenvectors", radius=1.0, adaptive=False, resolution=21)
    (field,) = found.panels
    w = np.array([0.5, -1.0])
    signs = [1, -1]
    truth = [
        4 * (w[0] + s * field.x[None]) ** 2 + (w[1] + t * field.y[:, None]) ** 2 + 1.0 for s in signs for t in signs
    ]
    assert min(np.abs(field.values - each).max() for each in truth) < 2e-5
    assert found["curvature_first"] == pytest.approx(8, rel=1e-4)
    assert found["curvature_second"] == pytest.approx(2, rel=1e-4)
    assert found["condition"] == pytest.approx(4, rel=1e-3)
    for name in ("first", "second"):
        seen = found.values[f"curvature_{name}_seen"]
        assert abs(seen.value - found[f"curvature_{name}"]) < seen.error
    assert (found["convexity"], found["canyons"], found["roughness"], found["walls"]) == (1, 0, 0, 0)
    assert found["loss"] == pytest.approx(3.0)
    # ‖∇L‖ is largest at a corner: (8 · 1.5, 2 · 2), taken half a cell within; times ‖w‖.
    assert found["cliff"] == pytest.approx(np.hypot(12, 4) * np.linalg.norm([0.5, 1, 2]), rel=0.05)
    # The best point of the grid: both coordinates at their minimum, which lies on it.
    assert found["lowest"] == pytest.approx(-2.0, abs=1e-4)


def test_a_saddle_is_not_convex_and_a_canyon_is_found():
    net, loss, batches = quadratic([4.0, -4.0], [0.0, 0.5])
    assert slices(net, loss, batches, radius=1.0, normalisation="raw")["convexity"] == 0
    net, loss, batches = quadratic([100.0, 1.0], [0.1, 0.5])
    found = slices(net, loss, batches, direction="eigenvectors", radius=0.5)
    assert found["canyons"] == pytest.approx(1, abs=0.02)
    assert found["condition"] == pytest.approx(100, rel=1e-3)


@pytest.mark.parametrize("how", ["filter", "layer", "raw"])
def test_directions_are_scaled_to_the_weights(how):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4))
    space = Space(list(net.parameters()), [name for name, _ in net.named_parameters()])
    origin = space.flatten(list(net.parameters()))
    rows = normalised(space.random(2, seed=0), space, origin, how, biases=False)
    for row in rows:
        parts = dict(zip(space.names, space.split(row), strict=True))
        if how == "raw":
            assert float(row.norm()) == pytest.approx(1, rel=1e-5)
            assert float(parts["0.bias"].norm()) > 0
            continue
        for name in ("0.bias", "1.weight", "1.bias", "3.bias"):
            assert float(parts[name].norm()) == 0
        for name in ("0.weight", "3.weight"):
            weight = dict(net.named_parameters())[name].detach()
            if how == "filter":
                torch.testing.assert_close(parts[name].flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1))
            else:
                torch.testing.assert_close(parts[name].norm(), weight.norm())
    with_biases = normalised(space.random(1, seed=0), space, origin, "filter", biases=True)
    parts = dict(zip(space.names, space.split(with_biases[0]), strict=True))
    torch.testing.assert_close(parts["3.bias"].norm(), net[3].bias.detach().norm())


def test_random_directions_are_isotropic():
    """Uniform [0, 1] entries, as loss-landscapes draws them, have a cosine of 0.87 with the vector of ones."""
    space = Space([torch.ones(40, 50)], ["w"])
    rows = normalised(space.random(20, seed=3), space, torch.ones(2000), "filter", biases=False)
    assert (rows.sum(1) / (rows.norm(dim=1) * math.sqrt(2000))).abs().max() < 0.1


def test_every_point_is_the_loss_there(trained):
    """Each loss of the chart against a copy of the net with its weights written."""
    net, batches, _ = trained
    found = slices(net, entropy, batches, points=81, seed=5)
    space = Space(list(net.parameters()), [name for name, _ in net.named_parameters()])
    origin = space.flatten(list(net.parameters()))
    rows = normalised(space.random(2, seed=5), space, origin, "filter", biases=False)
    copy = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).eval()
    whole = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    for _, a, b, loss in found.arrays["points"][::7]:
        with torch.no_grad():
            for p, part in zip(copy.parameters(), space.split(origin + a * rows[0] + b * rows[1]), strict=True):
                p.copy_(part)
            assert loss == pytest.approx(float(entropy(copy, whole)), rel=1e-5)


def test_the_same_error_as_a_full_grid_with_a_third_of_the_points(trained):
    """On a real surface: RMS distance from a grid of 81 × 81."""
    net, batches, _ = trained
    dense, full, few = (
        slices(net, entropy, batches[1:], radius=1.5, curvature=False, **options).panels[0]
        for options in ({"adaptive": False, "resolution": 81}, {"adaptive": False}, {"points": 560})
    )
    rows = np.stack([np.interp(dense.x, full.x, row) for row in full.values])
    linear = np.stack([np.interp(dense.y, full.y, column) for column in rows.T], 1)
    np.testing.assert_allclose(few.x, dense.x)
    errors = [float(np.sqrt(((each - dense.values) ** 2).mean())) for each in (few.values, linear)]
    assert errors[0] < 0.2 * errors[1]


def test_curvature_is_that_of_the_dense_hessian(trained):
    net, batches, _ = trained
    found = slices(net, entropy, batches, dimensions=1, direction="random", normalisation="raw", seed=2)
    objective = Objective(net, entropy, batches)
    space = Space(objective.parameters, objective.names)
    row = space.random(1, seed=2)
    row /= row.norm()
    matrix = Hessian(objective.in_float64()).dense()
    truth = float(row[0].double() @ matrix @ row[0].double())
    assert found["curvature_first"] == pytest.approx(truth, rel=1e-3)
    seen = found.values["curvature_first_seen"]
    assert abs(seen.value - truth) < seen.error + 1e-3 * abs(truth)
    assert seen.error < 0.1 * truth


def test_the_standard_errors_are_those_of_the_examples(trained):
    net, batches, _ = trained
    found = slices(net, entropy, batches, dimensions=1, curvature=False).values["loss"]
    with torch.no_grad():
        losses = torch.cat([functional.cross_entropy(net(x), y, reduction="none") for x, y in batches])
    assert found.value == pytest.approx(float(losses.mean()), rel=1e-5)
    assert found.error == pytest.approx(float(losses.std()) / math.sqrt(len(losses)), rel=0.5)  # known to 16 %


def test_the_error_of_a_difference_is_smaller_than_that_of_its_parts(trained):
    """Common examples: a small step changes all their losses alike."""
    net, batches, _ = trained
    found = slices(net, entropy, batches, dimensions=1, radius=0.02, curvature=False)
    assert found.values["rise"].error < 0.2 * found.values["loss"].error


def test_a_trajectory_is_seen_in_its_principal_plane(trained):
    net, batches, kept = trained
    found = slices(net, entropy, batches, direction="trajectory", trajectory=kept, points=200)
    (field,) = found.panels
    path = field.paths[0]
    assert len(path.x) == len(kept)
    apart = torch.stack([
        torch.cat([(each.load()[n] - p.detach()).flatten() for n, p in net.named_parameters()]) for each in kept
    ]).double()  # fmt: skip
    singular = torch.linalg.svdvals(apart)
    shares = (singular**2 / (singular**2).sum()).numpy()
    assert f"{shares[0]:.1%}" in field.x_label
    assert f"{shares[:2].sum():.1%}" in field.note
    np.testing.assert_allclose(np.hypot(path.x, path.y), apart.norm(dim=1), rtol=0.1)  # mostly in the plane
    assert field.x[0] < path.x.min()
    assert field.x[-1] > path.x.max()
    assert field.paths[-1].label == "here"


def test_another_model_is_reached_with_its_buffers_and_the_barrier_is_right():
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2)]
    x, y = torch.randn(64, 3), torch.randint(0, 2, (64,))
    for net in nets:
        for _ in range(3):
            net.train()(torch.randn(32, 3) * 2 + 1)
        net.eval()
    other = {**dict(nets[1].named_parameters()), **dict(nets[1].named_buffers())}
    line = slices(nets[0], entropy, [(x, y)], direction="model", other=other, dimensions=1, points=61)
    at, losses = line.panels[0].lines[0].x, line.panels[0].lines[0].y
    with torch.no_grad():
        ends = [float(entropy(net, (x, y))) for net in nets]
    assert losses[np.abs(at) < 1e-9] == pytest.approx(ends[0], rel=1e-5)
    assert losses[np.abs(at - 1) < 1e-9] == pytest.approx(ends[1], rel=1e-5)
    inside = (at > -1e-9) & (at < 1 + 1e-9)
    height = np.max(losses[inside] - np.interp(at[inside], [0, 1], ends))
    assert line["barrier"] == pytest.approx(height, abs=0.02 * abs(height) + 1e-4)
    plane = slices(nets[0], entropy, [(x, y)], direction="model", other=other, points=120, curvature=False)
    assert [path.label for path in plane.panels[0].paths] == ["here", "other model"]
    assert plane["barrier"] == line["barrier"]


def test_nothing_is_left_behind_and_the_same_is_said_again():
    """loss-landscapes leaves weights displaced; batch statistics and dropout must not drift from point to point."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 2)).train()
    batches = [(torch.randn(16, 3), torch.randint(0, 2, (16,))) for _ in range(2)]
    before = {name: t.clone() for name, t in net.state_dict().items()}
    stream = torch.get_rng_state()
    one = slices(net, entropy, batches, mode="training", points=100)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), stream)
    assert net.training
    two = slices(net, entropy, batches, mode="training", points=100)
    np.testing.assert_array_equal(one.arrays["points"], two.arrays["points"])


class Counter(nn.Module):
    """Its loss depends on how often it was called: a buffer that a forward changes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.calls += 1
        return (x @ self.weight).square().mean() + self.calls


def test_a_buffer_that_the_forward_changes_does_not_leak_from_point_to_point():
    net = Counter().train()
    found = slices(net, lambda m, b: m(b), [torch.ones(4, 2)], mode="training", points=100, curvature=False)
    space = Space([net.weight], ["weight"])
    rows = normalised(space.random(2, seed=0), space, torch.ones(4), "filter", biases=False)
    for _, a, b, value in found.arrays["points"]:
        weight = (torch.ones(4) + a * rows[0] + b * rows[1]).reshape(2, 2)
        assert value == pytest.approx(float((torch.ones(4, 2) @ weight).square().mean()) + 1, rel=1e-5)
    assert float(net.calls) == 0


def test_walls_are_shown_as_walls():
    """landscaper puts the mean in their place."""
    net, _, batches = quadratic([1.0, 1.0], [0.0, 0.0])

    def loss(model, batch):
        del batch
        return torch.log(1.0 - model.weight.square().sum()) * -1  # NaN outside of the unit ball

    found = slices(net, loss, batches, direction="eigenvectors", radius=1.5, curvature=False)
    (field,) = found.panels
    radius = np.hypot(field.x[None], field.y[:, None])
    assert np.isnan(field.values[radius > 1.25]).mean() > 0.98
    assert np.isfinite(field.values[radius < 0.75]).all()
    assert 0.5 < found["walls"] < 0.8
    assert np.isnan(found.arrays["points"][:, 3]).any()
    assert "not finite" in json.dumps([t.get_text() for t in found.plot().axes[0].get_legend().get_texts()])
    json.dumps(found.to_dict(), allow_nan=False)


def test_several_planes_with_their_spread(trained):
    net, batches, _ = trained
    found = slices(net, entropy, batches[1:], count=3, points=81)
    assert [type(panel).__name__ for panel in found.panels] == ["Field", "Field", "Field", "Table"]
    table = {row[0]: [float(cell) for cell in row[1:]] for row in found.panels[-1].rows}
    cliffs = np.array(table["cliff"])
    assert found["cliff"] == pytest.approx(cliffs.mean(), rel=1e-3)
    assert found.values["cliff"].error == pytest.approx(cliffs.std(ddof=1) / math.sqrt(3), rel=0.02)
    assert len(set(cliffs)) == 3


def test_a_partial_chart_is_gone_on_with(trained):
    net, batches, _ = trained
    small = slices(net, entropy, batches[1:], points=100, curvature=False)
    small = Chart.from_dict(json.loads(json.dumps(small.to_dict())))
    done = []
    with listening(lambda passes, products: done.append(passes)):
        more = slices(net, entropy, batches[1:], points=300, curvature=False, partial=small)
    whole = slices(net, entropy, batches[1:], points=300, curvature=False)
    assert sum(done) < 230
    assert more.cost.forwards < 230
    order = np.lexsort(more.arrays["points"].T), np.lexsort(whole.arrays["points"].T)
    shared = min(len(order[0]), len(order[1]))
    assert shared >= 295
    np.testing.assert_allclose(more["cliff"], whole["cliff"], rtol=0.02)
    with pytest.raises(BadInput, match="same slices"):
        slices(net, entropy, batches[1:], points=300, seed=1, partial=small)


def test_progress_is_reported_and_the_price_is_kept(trained):
    net, batches, _ = trained
    probe = Slices(dimensions=1, points=21, count=2)
    objective, done = Objective(net, entropy, batches), []
    price = probe.price(objective)
    with listening(lambda passes, products: done.append((passes, products))):
        chart = probe.run(objective)
    passes, products = np.sum(done, axis=0)
    assert chart.cost.forwards <= price.forwards
    assert products == chart.cost.products <= price.products
    assert passes / len(batches) >= 2 * 21


@pytest.mark.parametrize("options", [{}, {"dimensions": 1}, {"direction": "gradient"}, {"direction": "eigenvectors"}])
def test_it_is_drawn_as_contours_and_as_a_surface(trained, options):
    net, batches, _ = trained
    found = slices(net, entropy, batches[1:], **options, **({} if "dimensions" in options else {"points": 81}))
    for surface in (False, True):
        buffer = io.BytesIO()
        found.plot(surface=surface).savefig(buffer, format="png", dpi=50)
        buffer.seek(0)
        assert imread(buffer)[..., :3].std() > 0.02
    assert isinstance(found.panels[0], Lines if "dimensions" in options else Field)


def test_bad_input(trained):
    net, batches, kept = trained
    for options, words in (
        ({"dimensions": 3}, "dimensions"),
        ({"direction": "sideways"}, "direction"),
        ({"normalisation": "none"}, "normalisation"),
        ({"count": 0}, "count"),
        ({"radius": -1.0}, "radius"),
        ({"points": 80}, "points"),
        ({"resolution": 2}, "resolution"),
        ({"direction": "model"}, "--other"),
        ({"direction": "trajectory"}, "trajectory"),
        ({"direction": "trajectory", "trajectory": kept, "normalisation": "filter"}, "normalisation"),
        ({"direction": "gradient", "dimensions": 1, "count": 2}, "count=2"),
        ({"adaptive": False, "points": 100}, "resolution"),
    ):
        with pytest.raises(BadInput, match=words):
            Slices(**options)
    with pytest.raises(BadInput, match=r"lacks .*0\.weight"):
        slices(net, entropy, batches, direction="model", other={})
    with pytest.raises(BadInput, match="shape"):
        slices(net, entropy, batches, direction="model", other={n: p[:1] for n, p in net.named_parameters()})
    with pytest.raises(NotApplicable, match="same weights"):
        slices(net, entropy, batches, direction="model", other=dict(net.named_parameters()))
    with pytest.raises(NotApplicable, match="1 checkpoints"):
        slices(net, entropy, batches, direction="trajectory", trajectory=kept[:1])
    zero = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(zero.weight)
    with pytest.raises(NotApplicable, match="raw"):
        slices(zero, lambda m, b: m(b).mean(), [torch.ones(2, 2)])
    with torch.no_grad():
        zero.weight.fill_(math.nan)
    with pytest.raises(BadInput, match="weight"):
        slices(zero, lambda m, b: m(b).mean(), [torch.ones(2, 2)], normalisation="raw", curvature=False)


def test_a_constant_loss_is_flat():
    net = nn.Linear(3, 1)
    found = slices(net, lambda m, b: m(b).sum() * 0 + 2.0, [torch.ones(2, 3), torch.ones(2, 3)], points=81)
    assert (found["rise"], found["roughness"], found["cliff"]) == pytest.approx((0, 0, 0), abs=1e-9)
    assert found["convexity"] == 1
    found.plot()
    json.dumps(found.to_dict(), allow_nan=False)
