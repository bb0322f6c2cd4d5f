import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from dynaxx.core.objective import Objective
from dynaxx.errors import BadInput
from dynaxx.landscape import critical_points
from dynaxx.landscape.critical_points import CriticalPoints
from dynaxx.numerics.critical_point import critical_point
from dynaxx.numerics.hessian import Hessian

EIGENVALUES = torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
D, K = 5, 2
AXES = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
SUBSETS = [subset for size in range(K + 1) for subset in itertools.combinations(range(D), size)]


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(D, K, bias=False, dtype=torch.float64)
        self.decode = nn.Linear(K, D, bias=False, dtype=torch.float64)

    def forward(self, x):
        return self.decode(self.encode(x))


def examples():
    """40 examples whose covariance has exactly these eigenvalues and axes."""
    white = torch.linalg.qr(torch.randn(40, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    return math.sqrt(40) * white @ torch.diag(EIGENVALUES.sqrt()) @ AXES.T


def reconstruction(model, x):
    return (model(x) - x).square().sum(1).mean() / 2


def loss_of(subset):
    """Half the sum of the eigenvalues that are dropped (Baldi and Hornik 1989)."""
    return float(EIGENVALUES.sum() - EIGENVALUES[list(subset)].sum()) / 2


def index_of(subset):
    """One direction down for each exchange of a kept axis for a larger one, and for each axis an idle unit can take."""
    swaps = sum(EIGENVALUES[j] > EIGENVALUES[i] for i in subset for j in range(D) if j not in subset)
    return int(swaps) + (K - len(subset)) * (D - len(subset))


def placed(subset, noise=0.0, seed=0):
    model = Autoencoder()
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(K, K, generator=generator, dtype=torch.float64))[0]
    units = torch.zeros(K, D, dtype=torch.float64)
    units[: len(subset)] = AXES[:, list(subset)].T
    with torch.no_grad():
        for weight, value in ((model.encode.weight, turn @ units), (model.decode.weight, (turn @ units).T)):
            weight.copy_(value + noise * torch.randn(value.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.mark.parametrize("subset", SUBSETS, ids=str)
def test_every_critical_point_of_the_autoencoder_is_recognised(subset):
    objective = Objective(placed(subset), reconstruction, [examples()])
    found = critical_point(objective, Hessian(objective))
    assert found.loss == pytest.approx(loss_of(subset), abs=1e-12)
    assert found.spectrum.index == index_of(subset)
    assert found.kind == ("local minimum" if subset == (0, 1) else "saddle")  # no other has no way down


@pytest.mark.parametrize("subset", SUBSETS[::3], ids=str)
def test_a_search_that_starts_close_by_returns_to_it(subset):
    chart = critical_points(placed(subset, noise=0.02), reconstruction, [examples()], starts=1)
    assert chart["found_critical"] == 1
    assert chart.arrays["loss"][0] == pytest.approx(loss_of(subset), abs=1e-9)
    assert chart.arrays["index"][0] == index_of(subset)


def test_searches_from_anywhere_end_at_known_losses_with_the_known_index():
    torch.manual_seed(0)
    chart = critical_points(Autoencoder(), reconstruction, [examples()], starts=5, spread=0.7)
    assert chart["found_critical"] >= 4
    known = {(round(loss_of(s), 6), index_of(s)) for s in SUBSETS}
    ends = zip(chart.arrays["loss"], chart.arrays["index"], chart.arrays["flatness"], strict=True)
    assert sum((round(loss, 6), int(index)) in known for loss, index, _ in ends) == chart["found_critical"]
    assert any("local minimum" in row or "saddle" in row for row in chart.panels[0].rows)


def test_saddle_free_ends_in_the_global_minimum():
    torch.manual_seed(1)
    chart = critical_points(Autoencoder(), reconstruction, [examples()], starts=3, method="saddle_free", spread=0.5)
    assert chart["found_minima"] == 3
    assert chart.arrays["loss"] == pytest.approx(np.full(3, loss_of((0, 1))), abs=1e-9)
    assert any("higher orders decide" in note for note in chart.notes)  # the turns of the hidden units are flat


def test_the_weights_themselves_are_judged_first():
    chart = critical_points(placed((1, 3)), reconstruction, [examples()], starts=1)
    assert "saddle" in chart.values["loss"].about
    assert chart["negative"] == index_of((1, 3)) / 20
    chart = critical_points(placed((1, 3), noise=0.3), reconstruction, [examples()], starts=1)
    assert "not critical" in chart.values["loss"].about


def test_a_float32_model_is_searched_in_float64():
    model = placed((0, 2), noise=0.02).float()
    chart = critical_points(model, reconstruction, [examples().float()], starts=1)
    assert chart.arrays["loss"][0] == pytest.approx(loss_of((0, 2)), abs=1e-5)  # of the rounded examples
    assert chart.arrays["gradient_norm"][0] < 1e-6
    as_it_is = critical_points(model, reconstruction, [examples().float()], starts=1, precision="as is")
    assert as_it_is["found_saddles"] == 1


def test_a_loss_of_a_fixed_type_is_searched_as_it_is():
    def fixed(m, x):
        return (m(x) @ torch.eye(D) - x).square().sum(1).mean() / 2

    chart = critical_points(placed((0, 1), noise=0.02).float(), fixed, [examples().float()], starts=1)
    assert any("own type" in note for note in chart.notes)
    assert chart["found_critical"] == 1


def test_it_leaves_no_trace_stays_within_its_price_and_repeats():
    model = placed((0, 2), noise=0.1)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    objective = Objective(model, reconstruction, [examples()])
    probe = CriticalPoints(starts=2, iterations=4)
    price, stream = probe.price(objective), torch.get_rng_state()
    first = probe.run(objective)
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert 0 < first.cost.products <= price.products
    assert 0 < first.cost.forwards <= price.forwards
    assert 0 < first.cost.backwards <= price.backwards
    assert np.array_equal(probe.run(objective).arrays["loss"], first.arrays["loss"])


def test_displacements_have_the_asked_length():
    lengths = []

    model = placed((0, 1))
    centre = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def watched(m, x):
        here = torch.cat([p.detach().reshape(-1) for p in m.parameters()])
        lengths.append(float((here - centre).norm() / centre.norm()))
        return reconstruction(m, x)

    CriticalPoints(starts=2, spread=0.25, iterations=1).run(Objective(model, watched, [examples()]))
    assert any(abs(length - 0.25) < 1e-9 for length in lengths)


def test_it_is_drawn_and_written():
    chart = critical_points(placed((0, 1), noise=0.05), reconstruction, [examples()], starts=2)
    json.dumps(chart.to_dict(), allow_nan=False)
    chart.plot().savefig("/dev/null", format="png")


def test_bad_options():
    with pytest.raises(BadInput, match="must be positive"):
        CriticalPoints(starts=0)
    with pytest.raises(BadInput, match="'newton_mr' or 'saddle_free'"):
        CriticalPoints(method="newton")
    with pytest.raises(BadInput, match="must be positive"):
        CriticalPoints(tolerance=-1.0)
