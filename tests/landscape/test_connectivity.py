import io
import json

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from dynaxx.core.objective import Objective
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.landscape import connectivity
from dynaxx.landscape._path import Profile
from dynaxx.landscape.connectivity import Connectivity

LINE = {"matching": "none", "curves": "none"}


def entropy(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def wrong(model, batch):
    return (model(batch[0]).argmax(1) != batch[1]).float().mean()


def digits():
    """§7.2: pixels standardised; 1437 to train on, 360 held out."""
    x, y = load_digits(return_X_y=True)
    x = torch.tensor((x - x.mean(0)) / (x.std(0) + 1e-6), dtype=torch.float32)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order], torch.tensor(y)[order]


def mlp(width):
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def trained(seed, width, epochs, norm=False):
    """§7.2: 64-w-w-10 ReLU, AdamW 1e-3, batches of 64."""
    x, y = digits()
    torch.manual_seed(seed)
    net = mlp(width)
    if norm:
        net.insert(3, nn.BatchNorm1d(width))
        net.insert(1, nn.BatchNorm1d(width))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(epochs):
        for part in torch.randperm(1437).split(64):
            optimizer.zero_grad()
            entropy(net, (x[part], y[part])).backward()
            optimizer.step()
    return net.eval()


def batches(train=True, size=256):
    x, y = digits()
    x, y = (x[:1437], y[:1437]) if train else (x[1437:], y[1437:])
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.fixture(scope="module")
def pair():
    return trained(0, 64, 15), trained(1, 64, 15)


@pytest.fixture(scope="module")
def chart(pair):
    torch.manual_seed(0)
    start = mlp(64).state_dict()
    return connectivity(pair[0], entropy, batches(), other=pair[1].state_dict(), initial=start, error=wrong, steps=150)


def test_barriers_vanish_after_alignment_and_along_curves(chart):
    line = chart["linear_barrier"]
    assert line > 0.2
    assert chart["weights_barrier"] < line / 8
    assert chart["activations_barrier"] < line / 8
    assert chart["bezier_barrier"] < line / 4
    assert chart["polygon_barrier"] < line / 4
    assert chart["linear_error_barrier"] > 0.01 > chart["weights_error_barrier"]
    assert chart["weights_distance"] < chart["activations_distance"] < chart["linear_distance"]
    assert chart["initial_climb"] < 0.01  # Goodfellow et al. 2015: monotone
    for name in ("linear", "weights"):
        assert 0 < chart.values[f"{name}_barrier"].error < chart[f"{name}_barrier"] / 2


def test_the_line_is_what_a_loop_finds(pair, chart):
    """By hand: interpolate, load, evaluate on everything at once."""
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    one, two = (net.state_dict() for net in pair)
    losses, errors = [], []
    for t in np.linspace(0, 1, 11):
        net = mlp(64)
        net.load_state_dict({k: (1 - t) * one[k] + t * two[k] for k in one})
        with torch.no_grad():
            losses.append(float(entropy(net, (x, y))))
            errors.append(float(wrong(net, (x, y))))
    np.testing.assert_allclose(chart.arrays["linear_loss"], losses, rtol=1e-5)
    np.testing.assert_allclose(chart.arrays["linear_error"], errors, atol=1e-6)
    above = np.array(losses) - np.linspace(losses[0], losses[-1], 11)
    assert chart["linear_barrier"] == pytest.approx(above.max(), rel=1e-5)


def test_an_end_reordered_is_the_same_function(chart):
    """The loss at t = 1 is that of the other network, reordered or not."""
    for name in ("weights", "activations", "bezier", "polygon"):
        assert chart.arrays[f"{name}_loss"][[0, -1]] == pytest.approx(chart.arrays["linear_loss"][[0, -1]], rel=1e-4)


def test_the_standard_error_is_that_of_batches():
    """Against the spread of the barrier at t = 1/2 over many draws of the batches."""
    rng = np.random.default_rng(0)
    t, shares = np.array([0.0, 0.5, 1.0]), np.full(8, 1 / 8)

    def draw():
        shared = rng.normal(size=8)  # common to all t: cancels
        return Profile(t=t, batches=np.stack([shared, shared + 1 + 0.3 * rng.normal(size=8), shared]), shares=shares)

    found = [draw().barrier for _ in range(2000)]
    assert np.mean([f.value for f in found]) == pytest.approx(1, abs=0.02)
    assert np.mean([f.error for f in found]) == pytest.approx(np.std([f.value for f in found]), rel=0.06)


def test_profiles():
    def profile(*values):
        return Profile(t=np.linspace(0, 1, len(values)), batches=np.array(values)[:, None], shares=np.ones(1))

    assert profile(1.0, 5.0, 3.0).barrier.value == pytest.approx(3)
    assert profile(1.0, 0.0, 3.0).barrier.value == 0
    assert profile(1.0, 5.0, 3.0).barrier.error is None
    assert profile(4.0, 2.0, 3.0, 1.0).climb == pytest.approx(1)
    assert profile(1.0, np.nan, 3.0).barrier.value == np.inf


def test_it_is_drawn_and_written(chart):
    buffer = io.BytesIO()
    chart.plot().savefig(buffer, format="png", dpi=50)
    buffer.seek(0)
    assert imread(buffer)[..., :3].std() > 0.02
    json.dumps(chart.to_dict(), allow_nan=False)
    assert [panel.title for panel in chart.panels] == [
        "Loss between two solutions", "Error between two solutions", "Loss from the start to here",
        "Error from the start to here", "Barriers",
    ]  # fmt: skip


def test_batch_normalisation_is_repaired():
    one, two = trained(0, 32, 6, norm=True), trained(1, 32, 6, norm=True)
    before = {k: v.clone() for k, v in one.state_dict().items()}
    options = {"other": two.state_dict(), "curves": "none", "matching": "weights"}
    kept = connectivity(one, entropy, batches(), repair="none", **options)
    renewed = connectivity(one, entropy, batches(), repair="statistics", **options)
    assert renewed["weights_barrier"] < 0.7 * kept["weights_barrier"]
    assert any("interpolated as saved" in note for note in kept.notes)
    assert all(torch.equal(before[k], v) for k, v in one.state_dict().items())


def test_rescaling_repairs_a_network_without_normalisation(pair):
    options = {"other": pair[1].state_dict(), "curves": "none", "matching": "activations"}
    plain = connectivity(pair[0], entropy, batches(), **options)
    repaired = connectivity(pair[0], entropy, batches(), repair="rescale", **options)
    assert repaired["activations_barrier"] < plain["activations_barrier"]
    ends = [0, -1]  # nothing is to be corrected there
    assert np.array_equal(repaired.arrays["activations_loss"][ends], plain.arrays["activations_loss"][ends])


def test_where_nothing_can_be_reordered_the_rest_is_told():
    class Ordered(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 8), nn.Linear(8, 10)

        def forward(self, x):
            return self.b(self.a(x).cumsum(-1))

    torch.manual_seed(0)
    objective = Objective(Ordered(), entropy, batches())
    found = Connectivity(other=Ordered().state_dict(), curves="none").run(objective)
    assert "weights_barrier" not in found.values
    assert any("not applicable" in note and "cumsum" in note for note in found.notes)
    assert found["linear_barrier"] >= 0


def test_another_architecture_is_refused_by_name():
    net = mlp(8)
    here = net.state_dict()
    cases = [
        ({**here, "0.weight": torch.zeros(9, 64)}, r"1 tensors differ: 0.weight \(8, 64\) here, \(9, 64\) there"),
        ({k: v for k, v in here.items() if k != "4.bias"}, r"4.bias \(10,\) here, missing there"),
        ({**here, "6.bias": torch.zeros(3)}, r"6.bias missing here, \(3,\) there"),
        (mlp(16).state_dict(), r"5 tensors differ: .*0.weight \(8, 64\) here, \(16, 64\) there"),
        ({**here, "2.bias": torch.full((8,), float("nan"))}, "'2.bias' is not finite"),
    ]
    for given, message in cases:
        with pytest.raises(BadInput, match=message):
            connectivity(net, entropy, batches(), other=given)
    assert connectivity(net, entropy, batches(), other={f"module.{k}": v for k, v in here.items()}, **LINE)


def test_bad_input():
    net = mlp(4)
    with pytest.raises(NotApplicable, match="other="):
        connectivity(net, entropy, batches())
    for option in (
        {"points": 2}, {"steps": 0}, {"bends": 0}, {"restarts": 0}, {"learning_rate": 0.0}, {"matching": "best"},
        {"curves": "spline"}, {"repair": "all"},
    ):  # fmt: skip
        with pytest.raises(BadInput, match=next(iter(option))):
            Connectivity(**option)
    with pytest.raises(BadInput, match="scalar"):
        connectivity(net, entropy, batches(), other=net.state_dict(), error=lambda m, b: m(b[0]), **LINE)


def test_a_path_over_an_infinite_wall():
    line = nn.Linear(1, 1, bias=False)
    nn.init.constant_(line.weight, -1.0)
    found = connectivity(
        line, lambda m, x: (m.weight.abs() + 1e-30).log().mean().exp().reciprocal() * x.mean(), [torch.ones(2, 1)],
        other={"weight": torch.ones(1, 1)}, **LINE,
    )  # fmt: skip
    assert found["linear_barrier"] > 1e20
    json.dumps(found.to_dict(), allow_nan=False)
    found.plot()


def test_a_mask_of_minus_infinity_is_no_unsound_checkpoint():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.head = nn.Linear(64, 6), nn.Linear(6, 10)
            self.register_buffer("mask", torch.triu(torch.full((64, 64), -torch.inf), 1))

        def forward(self, x):
            return self.head(self.up(x + self.mask[-1]).tanh())

    torch.manual_seed(0)
    found = connectivity(Masked(), entropy, batches(), other=Masked().state_dict(), steps=5, points=3)
    assert np.isfinite(found["weights_barrier"])


def test_a_curve_that_cannot_be_trained_is_said(pair):
    found = connectivity(
        pair[0], entropy, batches(), other=pair[1].state_dict(), matching="none", curves="bezier", learning_rate=1e30,
        steps=5, points=3,
    )  # fmt: skip
    assert "bezier_barrier" not in found.values
    assert any("Bézier curve: not applicable" in note for note in found.notes)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "train", "test"), [(32, 5, 3), (128, 25, 10), (512, 100, 20)])
def test_digits_barriers_of_the_reference(width, train, test):
    """§7.2, train/test: w = 32 .674/.499 → .028/.080; 128 .314/.149 → .005/.004; 512 .202/.035 → .001/.000."""
    one, two = trained(0, width, 60), trained(1, width, 60)
    for held_out, factor in ((False, train), (True, test)):
        found = connectivity(
            one, entropy, batches(train=not held_out), other=two.state_dict(), matching="weights", curves="none"
        )
        print(width, "test" if held_out else "train", found["linear_barrier"], found["weights_barrier"])
        assert found["linear_barrier"] > factor * found["weights_barrier"]
