"""A run with a NaN batch and a hundredfold one that is left alone: it passes over them and ends where its twin does."""

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from dynaxx.figures.story import Story
from dynaxx.runlog import open_run
from left_alone import places, run_once


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "seed", "steps", "within"),
    [
        ("stdlib-lm", 0, 120, 1.01),  # seeds 0 to 4 with the benchmark: see benchmarks/README.md
        ("digits", 0, 300, 1.5),  # runs of equal worth differ by tens of per cent here; untouched it is NaN
    ],
)
def test_it_ends_where_its_clean_twin_does(tmp_path: Path, task: str, seed: int, steps: int, within: float) -> None:
    assert min(places(task, seed, steps)) >= 4, "before that a hundredfold batch is not told from a usual one"
    clean = run_once(task, seed, steps, "clean", "act", tmp_path / "clean")
    acting = run_once(task, seed, steps, "spoilt", "act", tmp_path / "acting")
    assert clean["left out"] == []
    assert len(acting["left out"]) == 2
    assert acting["status"] == "finished"
    assert acting["loss"] <= within * clean["loss"]
    table = Story().panels(open_run(tmp_path / "acting"))[-1]
    assert sum(row[1] == "left out" for row in table.rows) == 2


@pytest.mark.slow
def test_untouched_it_is_lost(tmp_path: Path) -> None:
    watched = run_once("digits", 0, 300, "spoilt", "off", tmp_path / "run")
    assert math.isnan(watched["loss"])
