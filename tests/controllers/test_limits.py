"""The bounds of a run follow from its planned steps; the clock never goes back."""

import re
from pathlib import Path

import pytest

from dynaxx.controllers._clock import started, tick
from dynaxx.controllers._limits import limits
from dynaxx.core.navigation import Controller


@pytest.mark.parametrize(
    ("steps", "step", "expected"),
    [
        (300, 10, (300, 200, 10, 30, 20, 20, 75, 60, 90)),
        (10_000, 10, (10_000, 2_000, 200, 1_000, 200, 200, 2_500, 2_000, 3_000)),
        (1_000_000, 10, (1_000_000, 200_000, 200, 1_000, 20_000, 400, 250_000, 200_000, 300_000)),
        (None, 10, (1_000, 200, 20, 100, 20, 20, 250, 200, 300)),
        (None, 10_000, (10_000, 2_000, 200, 1_000, 200, 200, 2_500, 2_000, 3_000)),
    ],
)
def test_limits(nav, steps, step, expected):
    assert tuple(limits(nav.situation(step, steps=steps))) == expected


def test_the_clock_counts_updates_through_rollbacks():
    clock = started()
    for step in (50, 100, 60, 60, 80, 200):
        clock = tick(clock, step)
    assert clock == {"updates": 240, "step": 200}


def test_the_controller_of_the_documentation_works(nav):
    text = (Path(__file__).parents[2] / "docs" / "navigation.md").read_text()
    [source] = re.findall(r"```python\n(\"{3}.*?)```", text, re.DOTALL)
    space = {"__name__": "calm"}
    exec(compile(source, "docs/navigation.md", "exec"), space)
    calm = space["Calm"]()
    assert isinstance(calm, Controller)
    assert calm.decide(calm.init(), nav.situation(400))[1] == ()
    found = nav.finding("exploding_gradients", ("exploding_gradients", 0.9), last=400)
    [proposal] = calm.decide(calm.init(), nav.situation(400, found))[1]
    assert proposal.action.arguments == {"factor": 0.7}
    assert proposal.promise is not None
