import functools
import importlib.util
import io
import json

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import nn

from dynaxx.core.objective import Objective
from dynaxx.core.snapshot import Snapshot
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.landscape import trajectory_map
from dynaxx.landscape.trajectory_map import TrajectoryMap


class Point(nn.Module):
    """A point of d dimensions; the loss is Σ aᵢ wᵢ² / 2."""

    def __init__(self, d):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(d))
        self.register_buffer("a", torch.linspace(1, 2, d))

    def forward(self, x):
        return (self.a * self.w.square()).sum() / 2 * x.mean()


def loss(model, batch):
    return model(batch)


def snapshots(points, run="a", every=10):
    """Rows of an array as checkpoints that are read when asked for."""
    a = torch.linspace(1, 2, points.shape[1])

    def load(row):
        return {"w": torch.tensor(row, dtype=torch.float32), "a": a}

    return [Snapshot(step=every * i, run=run, load=functools.partial(load, row)) for i, row in enumerate(points)]


def quadratic(points):
    return (np.linspace(1, 2, points.shape[1]) * points**2).sum(1) / 2


BATCHES = [torch.ones(3), torch.ones(2)]


@pytest.fixture(scope="module")
def spiral():
    """Ten points in a plane of forty dimensions, and a little beyond it."""
    rng = np.random.default_rng(0)
    t = np.linspace(0, 3, 10)
    basis = np.linalg.qr(rng.normal(size=(40, 2)))[0]
    return np.stack([3 * np.cos(t), np.sin(t)], 1) @ basis.T + 0.01 * rng.normal(size=(10, 40)) + 0.5


def test_components_distances_and_losses_are_those_of_the_whole_vectors(spiral):
    found = trajectory_map(Point(40), loss, BATCHES, trajectory=snapshots(spiral), grid=5)
    _, values, right = np.linalg.svd(spiral - spiral.mean(0), full_matrices=False)
    np.testing.assert_allclose(found.arrays["explained"][:2], (values**2 / (values**2).sum())[:2], rtol=1e-4)
    assert found["plane_variance"] == pytest.approx((values[:2] ** 2).sum() / (values**2).sum(), rel=1e-5)
    assert found["effective_dimension"] == pytest.approx((values**2).sum() ** 2 / (values**4).sum(), rel=1e-4)
    np.testing.assert_allclose(found.arrays["distance"], np.linalg.norm(spiral, axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.arrays["loss"], quadratic(spiral), rtol=1e-5)
    plane = (spiral - spiral.mean(0)) @ right[:2].T @ right[:2] + spiral.mean(0)
    np.testing.assert_allclose(found.arrays["projected_loss"], quadratic(plane), rtol=1e-4)
    assert found["plane_gap"] == pytest.approx(np.abs(quadratic(plane) - quadratic(spiral)).mean(), rel=1e-2)
    coordinates = found.arrays["coordinates"][:, :2]
    np.testing.assert_allclose(np.abs(coordinates), np.abs((spiral - spiral.mean(0)) @ right[:2].T), atol=1e-4)


def test_the_contour_is_the_loss_in_the_plane(spiral):
    found = trajectory_map(Point(40), loss, BATCHES, trajectory=snapshots(spiral), grid=5)
    field = found.panels[0]
    coordinates = found.arrays["coordinates"][:, :2]
    centre = spiral.mean(0)
    basis = np.linalg.lstsq(coordinates, spiral - centre, rcond=None)[0]  # from the map's coordinates to the weights
    for i, y in enumerate(field.y):
        row = np.array([quadratic((centre + x * basis[0] + y * basis[1])[None])[0] for x in field.x])
        np.testing.assert_allclose(field.values[i], row, rtol=1e-3)
    assert f"captures {found['plane_variance']:.1%}" in field.note
    for axis, column in ((field.x, 0), (field.y, 1)):
        assert axis[0] < coordinates[:, column].min() < coordinates[:, column].max() < axis[-1]
    np.testing.assert_allclose(field.paths[0].x, coordinates[:, 0])


def test_a_random_walk_is_not_called_structure():
    rng = np.random.default_rng(3)
    walk = rng.normal(size=(30, 3000)).cumsum(0)
    found = trajectory_map(Point(3000), loss, BATCHES, trajectory=snapshots(walk), grid=0)
    assert found["plane_variance"] > 0.7  # what would look like structure
    assert found["plane_variance"] == pytest.approx(found["plane_variance_of_random_walk"], abs=0.03)
    assert abs(found["straightness"]) < 0.02
    line = np.arange(12.0)[:, None] * rng.normal(size=3000)
    straight = trajectory_map(Point(3000), loss, BATCHES, trajectory=snapshots(line), grid=5)
    assert straight["straightness"] == pytest.approx(1, abs=1e-5)
    assert straight["plane_variance"] == pytest.approx(1)


def funnel(seed, width, d=300, n=12):
    """Runs that drift along one axis, each off it in a direction of its own, by `width(t)`."""
    rng = np.random.default_rng(seed)
    off = rng.normal(size=d) / np.sqrt(d)
    t = np.linspace(0, 1, n)
    return np.outer(10 * t, np.eye(d)[0]) + np.outer(width(t), off) + 0.01 * rng.normal(size=(n, d)) / np.sqrt(d)


def runs(width):
    return [s for seed in range(3) for s in snapshots(funnel(seed, width), run=f"run {seed}")]


def test_a_channel_is_told_from_runs_that_part():
    together = trajectory_map(Point(300), loss, BATCHES, trajectory=runs(lambda t: 3 * np.exp(-3 * t)), grid=0)
    apart = trajectory_map(Point(300), loss, BATCHES, trajectory=runs(lambda t: 3 * t), grid=0)
    assert together["contraction"] < 0.5
    assert together["contraction"] < together["random_contraction"]
    assert apart["contraction"] > 1
    assert together["drift"] == pytest.approx(10 * 5 / 11, rel=0.02)  # from the middle of twelve steps to the last
    assert any("Reading: a channel" in note for note in together.notes)
    assert any("Reading: no channel" in note for note in apart.notes)
    walks = [np.random.default_rng(seed).normal(size=(12, 300)).cumsum(0) for seed in range(3)]
    walks = [s for i, walk in enumerate(walks) for s in snapshots(walk, run=str(i))]
    lost = trajectory_map(Point(300), loss, BATCHES, trajectory=walks, grid=0)
    assert any("Reading: no channel" in note for note in lost.notes)


def test_sketches_give_the_same_within_their_error():
    trajectory = runs(lambda t: 3 * np.exp(-3 * t))
    exact = trajectory_map(Point(300), loss, BATCHES, trajectory=trajectory, grid=0)
    sketched = trajectory_map(Point(300), loss, BATCHES, trajectory=trajectory, grid=0, sketch=128)
    assert any("0.062" in note for note in sketched.notes)  # 1/√256
    np.testing.assert_allclose(sketched.arrays["distance"], exact.arrays["distance"], rtol=0.25)
    assert not np.array_equal(sketched.arrays["distance"], exact.arrays["distance"])
    assert sketched["plane_variance"] == pytest.approx(exact["plane_variance"], abs=0.05)


def test_two_checkpoints_are_held_at_a_time():
    import gc

    class Held:
        now = most = 0

    def load(row):
        tensor = torch.tensor(row, dtype=torch.float32)
        Held.now += 1
        Held.most = max(Held.most, Held.now)
        import weakref

        weakref.finalize(tensor, lambda: setattr(Held, "now", Held.now - 1))
        return {"w": tensor, "a": torch.linspace(1, 2, 50)}

    rows = np.random.default_rng(0).normal(size=(9, 50)).cumsum(0)
    trajectory = [Snapshot(step=i, run="a", load=functools.partial(load, row)) for i, row in enumerate(rows)]
    found = trajectory_map(Point(50), loss, BATCHES, trajectory=trajectory, grid=3, memory=1e-9)
    gc.collect()
    assert Held.now == 0
    assert Held.most <= 2
    full = trajectory_map(Point(50), loss, BATCHES, trajectory=snapshots(rows), grid=3)
    np.testing.assert_allclose(found.arrays["coordinates"], full.arrays["coordinates"], atol=1e-4)


def test_it_is_drawn_and_written():
    trajectory = runs(lambda t: 3 * np.exp(-3 * t))
    found = trajectory_map(Point(300), loss, BATCHES, trajectory=trajectory, grid=5, embedding="tsne")
    buffer = io.BytesIO()
    found.plot().savefig(buffer, format="png", dpi=40)
    buffer.seek(0)
    assert imread(buffer)[..., :3].std() > 0.02
    json.dumps(found.to_dict(), allow_nan=False)
    assert [type(panel).__name__ for panel in found.panels] == ["Field", "Lines", "Lines", "Lines", "Table", "Field"]
    points = found.arrays["tsne"]
    assert points.shape == (36, 2)
    steps = found.arrays["step"]  # neighbours stay neighbours: late points of all runs lie together
    late = points[steps >= 90].mean(0)
    assert np.linalg.norm(points[steps >= 90] - late, axis=1).mean() < np.linalg.norm(points - late, axis=1).mean()


@pytest.mark.skipif(importlib.util.find_spec("umap") is not None, reason="umap-learn is installed")
def test_an_embedding_that_is_not_installed_is_said(spiral):
    found = trajectory_map(Point(40), loss, BATCHES, trajectory=snapshots(spiral), grid=0, embedding="umap")
    assert any("umap-learn" in note for note in found.notes)


def test_runs_that_share_no_steps():
    trajectory = [*snapshots(np.random.default_rng(0).normal(size=(4, 9)), every=10),
                  *snapshots(np.random.default_rng(1).normal(size=(4, 9)), run="b", every=7)]  # fmt: skip
    found = trajectory_map(Point(9), loss, BATCHES, trajectory=trajectory, grid=0)
    assert "drift" not in found.values
    assert any("share 1 steps" in note for note in found.notes)
    assert any("9 parameters for 8 checkpoints" in note for note in found.notes)


def test_bad_input(spiral):
    model, good = Point(40), snapshots(spiral)
    with pytest.raises(NotApplicable, match="three checkpoints"):
        trajectory_map(model, loss, BATCHES)
    with pytest.raises(NotApplicable, match="Got 2"):
        trajectory_map(model, loss, BATCHES, trajectory=good[:2])
    with pytest.raises(NotApplicable, match="one point"):
        trajectory_map(model, loss, BATCHES, trajectory=snapshots(np.ones((4, 40))))
    with pytest.raises(BadInput, match="two checkpoints of step 0"):
        trajectory_map(model, loss, BATCHES, trajectory=[*good, good[0]])
    with pytest.raises(BadInput, match=r"step 0.*another architecture.*w \(40,\) here, \(39,\) there"):
        trajectory_map(model, loss, BATCHES, trajectory=snapshots(spiral[:, :39]))
    for option in ({"grid": 2}, {"sketch": 100}, {"memory": 0.0}, {"embedding": "pca"}):
        with pytest.raises(BadInput, match=next(iter(option))):
            TrajectoryMap(**option)


def test_a_loss_that_is_not_finite_off_the_path():
    points = np.array([[1.0, 1.0], [2.0, 1.0], [3.0, 2.0], [4.0, 4.0]])
    a = torch.linspace(1, 2, 2)
    trajectory = [
        Snapshot(step=i, run="a", load=functools.partial(dict, w=torch.tensor(p, dtype=torch.float32), a=a))
        for i, p in enumerate(points)
    ]

    def rooted(model, batch):
        return (model.w[1] - model.w[0] / 3).sqrt() * batch.mean()

    found = trajectory_map(Point(2), rooted, BATCHES, trajectory=trajectory, grid=7)
    assert np.isnan(found.panels[0].values).any()
    assert np.isfinite(found.panels[0].values).any()
    json.dumps(found.to_dict(), allow_nan=False)
    found.plot()


def test_it_stands_where_a_moved_objective_stands(spiral):
    from dynaxx.core.displaced import Displaced

    moved = Displaced(Objective(Point(40), loss, BATCHES))
    moved.move([torch.tensor(spiral[3], dtype=torch.float32)])
    found = TrajectoryMap(trajectory=snapshots(spiral), grid=0).run(moved)
    assert found.arrays["distance"][3] == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(found.arrays["loss"], quadratic(spiral), rtol=1e-5)
