"""Steps held short by layer and released linearly, against the closed form."""

import pytest
import torch
from torch import nn

from dynaxx.core.parameters import Layout
from dynaxx.phases._release import Release


def test_each_layer_moves_by_its_factor_and_comes_to_its_own_length():
    """f(s) = f + (1 − f) s / S of a step of −1; a factor of 1 keeps every bit, and so does the time behind S."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)).double()
    release = Release(Layout(model))
    assert release.factors == [1.0, 1.0]
    release.begin((0.25, 1.0), 3)
    moved = []
    for _ in range(5):
        before = [p.detach().clone() for p in model.parameters()]
        with release.slowed(), torch.no_grad():
            for p in model.parameters():
                p.sub_(1)
        release.tick()
        moved.append([float(b - p.detach()) for p, b in zip(model.parameters(), before, strict=True)])
        assert torch.equal(model[1].weight.detach(), before[2] - 1)
    assert [row[0] for row in moved] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert [row[1] for row in moved] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_it_goes_on_from_its_state():
    model = nn.Linear(1, 1)
    one, other = Release(Layout(model)), Release(Layout(model))
    one.begin((0.5,), 4)
    one.tick()
    other.load_state_dict(one.state_dict())
    assert other.factors == one.factors == [0.625]


def test_an_error_within_the_step_is_passed_on():
    release = Release(Layout(nn.Linear(1, 1)))
    release.begin((0.5,), 4)
    with pytest.raises(ZeroDivisionError), release.slowed():
        raise ZeroDivisionError
