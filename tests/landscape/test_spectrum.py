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

from dynaxx.core.objective import Objective
from dynaxx.errors import BadInput
from dynaxx.landscape import spectrum
from dynaxx.landscape.spectrum import Spectrum
from dynaxx.numerics.gauss_newton import GaussNewton
from dynaxx.numerics.hessian import Hessian


def entropy(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def digits(classes=10, count=800, standardised=False):
    x, y = load_digits(return_X_y=True)
    x = (x - x.mean(0)) / (x.std(0) + 1e-6) if standardised else x / 16
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    return x[y < classes][:count], y[y < classes][:count]


def half_square(model, batch):
    return (model(batch[0]) - functional.one_hot(batch[1], model[-1].out_features)).square().sum(1).mean() / 2


def trained(classes, steps=100, standardised=False, activation=nn.ReLU, loss=entropy):
    """§7.2: MLP 64-12-C, plain SGD 0.2, batch 128, seed 0."""
    x, y = digits(classes, standardised=standardised)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 12), activation(), nn.Linear(12, classes))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    for _ in range(steps):
        chosen = torch.randint(0, len(x), (128,))
        optimizer.zero_grad()
        loss(net, (x[chosen], y[chosen])).backward()
        optimizer.step()
    return net, [(x, y)]


@pytest.fixture(scope="module")
def net_and_truth():
    net, batches = trained(10)
    matrix = Hessian(Objective(net, entropy, batches).in_float64()).dense()
    return net, batches, matrix, torch.linalg.eigvalsh(matrix).numpy()


@pytest.fixture(scope="module")
def chart(net_and_truth):
    net, batches, _, _ = net_and_truth
    return spectrum(net, entropy, batches, by_layer=True)


def test_every_value_is_within_its_error_of_the_dense_spectrum(chart, net_and_truth):
    """910 parameters: 240 products show what 910 would."""
    net, _, matrix, truth = net_and_truth
    assert len(truth) == 910
    n = len(truth)
    expected = {
        "largest_eigenvalue": truth[-1],
        "smallest_eigenvalue": truth[0],
        "trace": truth.sum(),
        "trace_per_parameter": truth.mean(),
        "squared_norm": (truth**2).sum(),
        "effective_rank": np.abs(truth).sum() ** 2 / (truth**2).sum(),
        "negative_mass": (truth < -1e-5 * truth[-1]).mean(),
    }
    for name, value in expected.items():
        found = chart.values[name]
        rounding = 3e-5 * abs(value) + (1e-5 if found.bound else 0.0)
        assert abs(found.value - value) < (1 if found.bound else 4) * found.error + rounding, name
    assert chart.values["trace"].error < 0.01 * truth.sum()
    assert chart.arrays["eigenvalues"] == pytest.approx(np.r_[truth[:-6:-1], truth[4::-1]], abs=1e-3 * truth[-1])
    assert chart.values["condition"].value <= 1e6
    gradient = torch.autograd.grad(entropy(net, net_and_truth[1][0]), list(net.parameters()))
    assert chart["gradient_norm"] == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in gradient)), rel=1e-5)
    diagonal = matrix.diagonal().numpy()
    layers = [diagonal[: 65 * 12].sum(), diagonal[65 * 12 :].sum()]
    assert chart.arrays["layer_traces"] == pytest.approx(layers, rel=0.03)
    assert n == sum(p.numel() for p in net.parameters())


def test_the_density_is_that_of_the_dense_spectrum(chart, net_and_truth):
    truth = net_and_truth[3]
    grid = chart.arrays["density_grid"]
    width = (truth[-1] - truth[0]) / 150
    curve = np.exp(-((truth[:, None] - grid) ** 2) / (2 * width**2)).mean(0) / (math.sqrt(2 * math.pi) * width)
    area = np.abs(chart.arrays["density"] - curve).sum() * (grid[1] - grid[0])
    assert area < 0.08
    outliers = grid > 0.6 * truth[-1]  # each a single eigenvalue, at its true height
    assert chart.arrays["density"][outliers] == pytest.approx(curve[outliers], rel=0.02, abs=1e-4)


def test_layers_are_their_diagonal_blocks(chart, net_and_truth):
    matrix = net_and_truth[2]
    table = chart.panels[-1]
    assert [row[:2] for row in table.rows] == [("0", "780"), ("2", "130")]
    for row, part in zip(table.rows, (slice(0, 780), slice(780, 910)), strict=True):
        ends = torch.linalg.eigvalsh(matrix[part, part])
        assert float(row[4]) == pytest.approx(float(ends[-1]), rel=1e-3)
        assert float(row[5]) == pytest.approx(float(ends[0]), abs=1e-3 * float(ends[-1]))


def test_it_is_drawn_and_written(chart):
    buffer = io.BytesIO()
    chart.plot().savefig(buffer, format="png", dpi=60)
    buffer.seek(0)
    assert imread(buffer)[..., :3].std() > 0.02
    assert json.loads(json.dumps(chart.to_dict()))["values"]["trace"]["value"] == chart["trace"]
    assert "Hessian" in str(chart)
    assert [panel.title for panel in chart.panels] == [
        "Spectral density of the Hessian", "Eigenvalues", "Spectral density by layer", "Diagonal blocks by layer"
    ]  # fmt: skip


@pytest.mark.parametrize("of", ["gauss_newton", "fisher", "empirical_fisher"])
def test_other_curvatures_are_positive(of, net_and_truth):
    net, batches, _, _ = net_and_truth
    found = spectrum(net, entropy, batches, of=of, steps=20, eigenvalues=3)
    assert found.values["negative_mass"].value == 0
    assert found["smallest_eigenvalue"] > -1e-4 * found["largest_eigenvalue"]
    if of != "empirical_fisher":  # the Fisher information of a categorical likelihood is the Gauss–Newton matrix
        truth = torch.linalg.eigvalsh(GaussNewton(Objective(net, entropy, batches)).dense().double())
        assert found["largest_eigenvalue"] == pytest.approx(float(truth[-1]), rel=1e-3)
        assert abs(found["trace"] - float(truth.sum())) < 4 * found.values["trace"].error + 1e-4


def gap(values):
    """How many eigenvalues stand before the largest ratio of neighbours, and that ratio."""
    top = np.sort(values)[::-1][:20]
    ratios = top[:-1] / top[1:]
    return int(ratios.argmax()) + 1, float(ratios.max())


@pytest.mark.parametrize("classes", [3, 5, 10])
def test_outliers_are_one_less_than_classes(classes):
    """§7.2, raw digits: largest ratio at C − 1."""
    net, batches = trained(classes)
    found = spectrum(net, entropy, batches, steps=30, eigenvalues=12)
    place, ratio = gap(found.arrays["eigenvalues"][:12])
    assert place == classes - 1
    assert ratio > 2


@pytest.mark.parametrize(("classes", "published"), [(3, 3.48), (5, 2.95), (10, 2.38)])
def test_outliers_of_the_squared_error_are_as_many_as_classes(classes, published):
    """§7.2, tanh and one-hot targets: nothing ties the outputs of the classes together, as softmax does."""
    net, batches = trained(classes, activation=nn.Tanh, loss=half_square)
    found = spectrum(net, half_square, batches, steps=30, eigenvalues=12)
    place, ratio = gap(found.arrays["eigenvalues"][:12])
    assert place == classes
    assert ratio == pytest.approx(published, rel=0.02)


def test_there_is_no_such_gap_with_pixels_standardised():
    """§7.2: the claim is not unconditional."""
    net, batches = trained(10, steps=400, standardised=True)
    values = spectrum(net, entropy, batches, steps=30, eigenvalues=12).arrays["eigenvalues"][:12]
    assert values[8] / values[9] < 1.6


def test_a_quadratic_is_exact():
    net = nn.Linear(3, 1, bias=False)
    scale = torch.tensor([[4.0, 1.0, -2.0]])
    found = spectrum(net, lambda m, b: (m.weight.square() * b).sum() / 2, [scale], eigenvalues=1)
    assert found["largest_eigenvalue"] == pytest.approx(4.0)
    assert found["smallest_eigenvalue"] == pytest.approx(-2.0)
    assert (found["trace"], found.values["trace"].error) == (pytest.approx(3.0), None)
    assert found.values["negative_mass"].value == pytest.approx(1 / 3)
    assert found["effective_rank"] == pytest.approx(49 / 21)
    assert found["condition"] == pytest.approx(4.0)


def test_no_curvature_at_all():
    net = nn.Linear(3, 1)
    found = spectrum(net, lambda m, b: m(b).mean(), [torch.ones(2, 3)], eigenvalues=2)
    assert found["largest_eigenvalue"] == found["trace"] == found["negative_mass"] == 0.0
    json.dumps(found.to_dict(), allow_nan=False)
    found.plot()


def test_bad_input():
    net, batches = nn.Linear(2, 1, bias=False), [torch.ones(2, 2)]

    def loss(model, batch):
        return model(batch).square().mean()

    with pytest.raises(BadInput, match="number of parameters, 2"):
        spectrum(net, loss, batches, eigenvalues=3)
    for option in ({"eigenvalues": 0}, {"probes": 1}, {"steps": 0}, {"samples": 1}, {"of": "kfac"}):
        with pytest.raises(BadInput, match=next(iter(option))):
            Spectrum(**option)
    with torch.no_grad():
        net.weight.fill_(math.nan)
    with pytest.raises(BadInput, match="weight"):
        spectrum(net, loss, batches, eigenvalues=1)
