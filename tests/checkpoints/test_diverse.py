"""The diverse buffer: distances against exact ones, and what is kept against what must be."""

import json
import math
import random
import time

import numpy as np
import pytest
import torch
from torch import nn

from dynaxx.checkpoints import CheckpointStore, capture
from dynaxx.checkpoints.archive import archive
from dynaxx.checkpoints.coordinates import ByOutputs, ByWeights
from dynaxx.checkpoints.diverse import Diverse
from dynaxx.checkpoints.model_state import capture_model
from dynaxx.checkpoints.places import LocalPlace
from dynaxx.checkpoints.retention import Last
from dynaxx.core.objective import Objective
from dynaxx.errors import BadInput, DynaxxWarning
from dynaxx.numerics.dispersion import nearest


def line(folder, values, losses=None):
    """Checkpoints of a model with one weight, at these places."""
    place = LocalPlace(folder / "checkpoints")
    model = nn.Linear(1, 1, bias=False)
    for i, value in enumerate(values):
        nn.init.constant_(model.weight, value)
        facts = {} if losses is None or losses[i] is None else {"val_loss": losses[i]}
        place.save(i + 1, capture(model, None), facts=facts)
    return place


def kept(policy, infos):
    return sorted(info.step for info in infos if info.id in policy.keep(infos))


def test_keeps_those_that_lie_farthest_apart(tmp_path):
    place = line(tmp_path, [0, 0.1, 0.2, 5.0, 5.1, 10.0, 2.5])
    infos = place.list()
    policy = Diverse(coordinates=ByWeights(place), count=4)
    assert kept(policy, infos) == [1, 4, 6, 7]  # 0, 2.5, 5 and 10
    assert kept(Diverse(coordinates=ByWeights(place), count=99), infos) == [1, 2, 3, 4, 5, 6, 7]
    shuffled = list(infos)
    for seed in range(5):
        random.Random(seed).shuffle(shuffled)
        assert kept(policy, shuffled) == [1, 4, 6, 7]
    assert policy.keep([]) == frozenset()
    assert str(policy) == "diverse:4"


def test_equal_distances_are_decided_by_step_and_id(tmp_path):
    place = line(tmp_path, [0.0, 1.0, 1.0, 1.0])
    again = place.save(2, place.load(2)[0])
    infos = place.list()
    assert kept(Diverse(coordinates=ByWeights(place), count=2), infos) == [1, 2]
    assert again.id not in Diverse(coordinates=ByWeights(place), count=2).keep(infos)


def test_what_is_bad_or_diverged_is_not_kept_for_being_different(tmp_path):
    place = line(tmp_path, [0.0, 100.0, 1.0, 3.0, 50.0], losses=[0.2, 9.0, 0.3, None, math.nan])
    infos = place.list()
    assert kept(Diverse(coordinates=ByWeights(place), count=4, floor=0.5), infos) == [1, 3, 4]
    assert kept(Diverse(coordinates=ByWeights(place), count=2), infos) == [1, 2]
    assert kept(Diverse(coordinates=ByWeights(place), count=2, mode="max", floor=0.0), infos) == [2, 4]


def test_pins_take_no_place_and_what_lies_near_them_adds_nothing(tmp_path):
    place = line(tmp_path, [0.0, 0.1, 10.0, 10.1, 5.0])
    infos = place.list()
    pinned = {infos[0].id, infos[2].id}
    policy = Diverse(coordinates=ByWeights(place), count=1, excluded=lambda _: pinned)
    assert kept(policy, infos) == [5]
    assert not policy.keep(infos) & pinned
    assert kept(policy | Last(1), infos) == [5]


def test_budget_of_disk(tmp_path):
    place = line(tmp_path, [0.0, 1.0, 2.0, 4.0])
    infos = place.list()
    policy = Diverse(coordinates=ByWeights(place), count=4, budget=2.5 * infos[0].size)
    assert len(policy.keep(infos)) == 2
    for bad in ({"count": 0}, {"budget": 0.0}, {"floor": -1.0}, {"mode": "best"}):
        with pytest.raises(BadInput, match=next(iter(bad))):
            Diverse(coordinates=ByWeights(place), **bad)


def test_a_buffer_that_is_pruned_after_every_save_stays_spread_out(tmp_path):
    """Forty points of a line come one by one; the five kept at last are nearly as far apart as five can be."""
    place = LocalPlace(tmp_path / "checkpoints")
    model = nn.Linear(1, 1, bias=False)
    policy = Diverse(coordinates=ByWeights(place), count=5)
    for step in range(40):
        nn.init.constant_(model.weight, float(step))
        place.save(step, capture(model, None))
        infos = place.list()
        keep = policy.keep(infos)
        for info in infos:
            if info.id not in keep:
                place.remove(info)
    infos = place.list()
    distances = policy.coordinates.distances(infos)
    assert len(infos) == 5
    assert nearest(distances, range(5)).min() >= 39 / 4 / 2


def test_points_are_noted_once_and_computed_again_where_damaged(tmp_path, monkeypatch):
    place = line(tmp_path, [1.0, 2.0, 4.0])
    infos = place.list()
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 4.0)
    ByWeights(place).remember(infos[2], capture_model(model))
    expected = np.abs(np.subtract.outer([1.0, 2.0, 4.0], [1.0, 2.0, 4.0]))
    assert ByWeights(place).distances(infos) == pytest.approx(expected)
    with monkeypatch.context() as patch:
        patch.setattr(place, "load", None)  # not read again
        assert ByWeights(place).distances(infos) == pytest.approx(expected)
    notes = place.folder / "notes" / "sketches"
    assert len(list(notes.iterdir())) == 3
    (notes / f"{infos[1].id}.json").write_text("{}")
    with pytest.warns(DynaxxWarning, match="damaged"):
        assert ByWeights(place).distances(infos) == pytest.approx(expected)


def mlp():
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def test_the_order_of_hidden_units_counts_for_weights_and_not_for_outputs(tmp_path):
    place = LocalPlace(tmp_path / "checkpoints")
    model, batch = mlp(), torch.randn(32, 6)
    place.save(1, capture(model, None))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias, model[1].weight, model[1].bias):
            tensor.copy_(tensor[order])
        model[3].weight.copy_(model[3].weight[:, order])
    place.save(2, capture(model, None))
    with torch.no_grad():
        model[3].weight.mul_(2)
        model[3].bias.mul_(2)
    place.save(3, capture(model, None))
    infos = place.list()
    objective = Objective(mlp(), lambda m, x: m(x).mean(), [batch])
    before = {name: t.clone() for name, t in objective.model.state_dict().items()}
    outputs = ByOutputs(place, objective).distances(infos)
    similarity = ByOutputs(place, objective, "similarity").distances(infos)
    assert ByWeights(place).distances(infos)[0, 1] > 1
    assert outputs[0, 1] == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        expected = model.eval()(batch).double().square().sum(1).mean().sqrt() / 2
    assert outputs[1, 2] == pytest.approx(float(expected), rel=1e-5)
    assert similarity == pytest.approx(np.zeros((3, 3)), abs=1e-3)  # a scale is none
    assert all(torch.equal(before[name], t) for name, t in objective.model.state_dict().items())


def test_statistics_of_batch_normalisation_do_not_count(tmp_path):
    place = LocalPlace(tmp_path / "checkpoints")
    model = mlp()
    place.save(1, capture(model, None))
    model[1].running_mean.fill_(50.0)
    place.save(2, capture(model, None))
    assert ByWeights(place).distances(place.list())[0, 1] == 0


def test_archived_weights_lie_where_the_full_ones_do(tmp_path):
    place = LocalPlace(tmp_path / "checkpoints")
    model = nn.Linear(60, 60)
    full = place.save(1, capture(model, None))
    point = ByWeights(place).of([full])[0]
    rounded = archive(place, full)
    assert ByWeights(place.archive).of([rounded])[0] == pytest.approx(point, abs=0.01)


def test_sketched_distances_are_exact_within_three_per_cent(tmp_path):
    torch.manual_seed(0)  # one distance is known to 1.1 %, so that of 28 the worst may be beyond 3 % by chance
    place = LocalPlace(tmp_path / "checkpoints")
    model, flat = nn.Sequential(nn.Linear(500, 500), nn.Linear(500, 300)), []
    for step in range(8):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.2**step * torch.randn_like(p))  # the last move is 10⁻⁵ of the weights
        place.save(step, capture(model, None))
        flat.append(torch.cat([p.detach().double().flatten() for p in model.parameters()]))
    exact = torch.cdist(torch.stack(flat), torch.stack(flat), compute_mode="donot_use_mm_for_euclid_dist").numpy()
    found = ByWeights(place).distances(place.list())
    apart = ~np.eye(8, dtype=bool)
    assert np.abs(found[apart] / exact[apart] - 1).max() < 0.03


@pytest.mark.slow
def test_a_sketch_of_32_million_parameters(tmp_path):
    """At most 0.25 s of CPU, distances within 3 %."""
    place = LocalPlace(tmp_path / "checkpoints")
    sizes, generator = [1024 * 1024] * 30 + [1000] * 30, torch.Generator().manual_seed(0)
    one = {f"w{i}": torch.randn(n, generator=generator) for i, n in enumerate(sizes)}
    points, seconds, states = [], [], []
    for share in (0.0, 0.01, 0.1, 1.0):
        states.append({name: t + share * torch.randn(t.shape, generator=generator) for name, t in one.items()})
        begun = time.process_time()
        points.append(ByWeights(place).compute({"state": states[-1]}))
        seconds.append(time.process_time() - begun)
    for i in range(4):
        for j in range(i):
            exact = math.sqrt(sum(float((states[i][n] - states[j][n]).double().square().sum()) for n in one))
            assert float((points[i].double() - points[j].double()).norm()) == pytest.approx(exact, rel=0.03)
    assert min(seconds) <= 0.25


def test_chart_shows_distances_and_what_is_kept(tmp_path):
    place = line(tmp_path, [0.0, 0.1, 5.0, 9.0])
    infos = place.list()
    chart = Diverse(coordinates=ByWeights(place), count=2, excluded=lambda _: {infos[3].id}).chart(infos)
    assert chart.panels[0].rows == ("1 · kept", "2", "3 · kept", "4 · excluded")
    assert chart["smallest_distance"] == pytest.approx(4.0)
    assert chart["bytes"] == 2 * infos[0].size
    chart.plot().savefig(tmp_path / "chart.png")
    json.dumps(chart.to_dict())


def test_a_store_of_a_run_serves_as_a_place(tmp_path):
    place = line(tmp_path, [1.0, 3.0])
    store = CheckpointStore(tmp_path / "checkpoints")
    assert ByWeights(LocalPlace(store)).distances(store.list())[0, 1] == pytest.approx(2.0)
    assert place.list() == store.list()
