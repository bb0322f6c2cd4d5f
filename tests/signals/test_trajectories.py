"""The sketched trajectory against the exact one, and both against distances computed by hand."""

import math

import pytest
import torch
from torch import nn

from dynaxx.core.events import Event
from dynaxx.numerics.sketch import Sketch
from dynaxx.signals import trajectory

NAMES = ("trajectory", "exact_trajectory")


class Walk:
    """A model of n parameters that is put at any place, measured there, and remembers where it has been."""

    def __init__(self, bench, n, *names, seed=0):
        torch.manual_seed(seed)
        self.model = nn.ParameterList([torch.randn(n // 3), torch.randn(n - n // 3)])
        self.found = bench(self.model, torch.optim.SGD(self.model.parameters(), lr=0.1), *(names or NAMES))
        self.path = [self.place()]

    def place(self):
        return torch.cat([p.detach().double() for p in self.model])

    def go(self, displacement):
        with torch.no_grad():
            for p, move in zip(self.model, displacement.split([len(p) for p in self.model]), strict=True):
                p.add_(move)
        self.path.append(self.place())
        return {k: v for k, v in self.found.measure(Event.STEP_END, self.found.begin()).items() if "sketch" not in k}

    @property
    def truth(self):
        moves = [b - a for a, b in zip(self.path, self.path[1:], strict=False)]
        values = {"distance": (self.path[-1] - self.path[0]).norm(), "path_length": sum(m.norm() for m in moves)}
        if len(moves) > 1:
            values["cosine"] = torch.nn.functional.cosine_similarity(moves[-1], moves[-2], dim=0)
        return {k: float(v) for k, v in values.items()}


def normal(n, seed):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def test_small_models_are_measured_exactly_by_both(bench):
    walk = Walk(bench, 4096)
    for i in range(5):
        values = walk.go(0.1 * normal(4096, i))
        for name, truth in walk.truth.items():
            assert float(values[f"trajectory.{name}"]) == pytest.approx(truth, rel=1e-4, abs=1e-5)
            if name != "cosine":
                assert float(values[f"exact_trajectory.{name}"]) == pytest.approx(truth, rel=1e-5)


def test_the_exact_one_is_exact_for_large_models_too(bench):
    walk = Walk(bench, 100_000, "exact_trajectory")
    for i in range(3):
        values = walk.go(1e-3 * normal(100_000, i))
    assert values.keys() == {"exact_trajectory.distance", "exact_trajectory.path_length"}
    for name, truth in walk.truth.items():
        if name != "cosine":
            assert float(values[f"exact_trajectory.{name}"]) == pytest.approx(truth, rel=1e-5)


def test_the_sketched_distance_is_off_by_what_is_stated(bench, monkeypatch):
    """Random walks in 1e5 dimensions: relative error of standard deviation 1/√(2·4096) over seeds, no bias."""
    errors = []
    n, steps = 100_000, 4
    for seed in range(80):
        monkeypatch.setattr(trajectory, "SKETCH", Sketch(seed=seed))
        walk = Walk(bench, n, "trajectory", seed=0)
        for i in range(steps):
            values = walk.go(1e-2 * normal(n, i))
        errors.append(float(values["trajectory.distance"]) / walk.truth["distance"] - 1)
    spread = torch.tensor(errors).std()
    stated = 1 / math.sqrt(2 * 4096)
    assert Sketch().relative_error == pytest.approx(stated)
    assert 0.75 * stated < float(spread) < 1.3 * stated  # over 80 seeds, itself known to 8 %
    assert abs(sum(errors) / 80) < 4 * stated / math.sqrt(80)


def test_the_sketched_path_and_cosine_are_near(bench):
    n = 100_000
    walk = Walk(bench, n)
    for i in range(6):
        values = walk.go(1e-2 * (normal(n, 0) + normal(n, i + 1)))  # a common direction: cosine about 1/2
    truth = walk.truth
    stated = Sketch().relative_error
    assert float(values["trajectory.path_length"]) == pytest.approx(truth["path_length"], rel=3 * stated)
    assert float(values["trajectory.cosine"]) == pytest.approx(truth["cosine"], abs=0.05)
    assert 0.4 < truth["cosine"] < 0.6


@pytest.mark.parametrize(("turn", "cosine"), [(1, 1), (-1, -1), (0, 0)])
def test_straight_on_and_back(bench, turn, cosine):
    walk = Walk(bench, 300)
    first = walk.go(torch.ones(300))
    assert "trajectory.cosine" not in first
    values = walk.go(turn * torch.ones(300))
    assert float(values["trajectory.cosine"]) == pytest.approx(cosine, abs=1e-5)
    for name in NAMES:
        assert float(values[f"{name}.distance"]) == pytest.approx((1 + turn) * 300**0.5, abs=1e-4)
        assert float(values[f"{name}.path_length"]) == pytest.approx((1 + abs(turn)) * 300**0.5, abs=1e-4)


def test_a_long_path_keeps_growing_by_short_steps(bench):
    """1e5 steps of 1e-3 behind a path of 1e4: a sum in float32 would stay where it is."""
    walk = Walk(bench, 10)
    for name in NAMES:
        walk.found.states[name]["length"] = walk.found.states[name]["length"] + 1e5
    move = torch.zeros(10)
    move[3] = 1e-3
    for sign in (1, -1) * 20:
        values = walk.go(sign * move)
    for name in NAMES:
        assert float(values[f"{name}.path_length"]) - 1e5 == pytest.approx(0.04, rel=1e-3)


def test_sketches_of_two_runs_of_one_model_tell_their_distance(bench):
    n = 50_000
    sketches, places = [], []
    for seed in (1, 2):
        walk = Walk(bench, n, "trajectory", seed=0)
        walk.go(normal(n, seed))
        sketches.append(walk.found.measure(Event.STEP_END, walk.found.begin())["trajectory.sketch"])
        places.append(walk.place())
    distance = float((sketches[0] - sketches[1]).norm())
    assert distance == pytest.approx(float((places[0] - places[1]).norm()), rel=4 * Sketch().relative_error)


def test_measuring_does_not_change_what_was_measured_before(bench):
    walk = Walk(bench, 20)
    signals, states = walk.found.signals, walk.found.states
    kept = []
    for i in range(2):
        walk.go(normal(20, i))
        view = walk.found.begin()
        for name in NAMES:
            states[name], values = signals[name].measure(states[name], view)
            kept += [(m.value, m.value.clone()) for m in values]
    walk.go(normal(20, 9))
    assert all(value.equal(copy) for value, copy in kept)
