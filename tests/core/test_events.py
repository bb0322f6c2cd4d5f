import re

import pytest
import torch
from torch import nn

from dynaxx.core import events
from dynaxx.core.events import Event, StepView
from dynaxx.core.parameters import Layout


@pytest.fixture
def view():
    model = nn.Linear(2, 1)
    return StepView(step=1, layout=Layout(model), optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


def test_the_loop_that_the_docstring_draws_has_every_event_in_order():
    drawn = re.findall(r"^ *(\w+)\b", events.__doc__.split("```")[1], flags=re.M)
    order = [event.value for event in Event]
    assert [word for word in drawn if word in order] == order


def test_a_value_is_computed_once_a_step(view):
    asked = []

    def compute():
        asked.append(1)
        return len(asked)

    assert [view.memo("x", compute), view.memo("x", compute), view.memo("y", compute)] == [1, 1, 2]


def test_a_value_that_is_none_is_computed_once_too(view):
    asked = []
    view.memo("x", lambda: asked.append(1))
    view.memo("x", lambda: asked.append(1))
    assert asked == [1]


def test_parameters_and_gradients_are_those_of_the_layout(view):
    assert [p.shape for p in view.parameters] == [(1, 2), (1,)]
    assert view.gradients == [None, None]
    (layer,) = view.layout.layers
    view.layout.parameters[1].grad = torch.tensor([3.0])
    assert layer.parameters == ("weight", "bias")
    assert view.gradients[0] is None
    assert view.gradients[1].tolist() == [3.0]


def test_the_update_is_there_only_for_those_who_asked_for_it(view):
    with pytest.raises(AssertionError, match=r"did not declare Need\.UPDATE"):
        _ = view.undo
    view.before = [torch.ones(1)]
    assert view.undo is view.before
