"""Terrains that are planted, and found again from what real probes say of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dynaxx import catalog, landscape
from dynaxx.core.chart import Chart, Estimate
from dynaxx.survey._ground import Found, Ground
from dynaxx.survey.readings import estimated, readings
from dynaxx.survey.terrain import FLAT_VALLEY, PLATEAU, RAVINE, RUGGED, SMOOTH_BOWL, Reading, Rule, terrain

SIZE = 200


class Place(nn.Module):
    """A point of a landscape that is given by a formula."""

    def __init__(self, at: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.full((SIZE, 1), at, dtype=torch.float64))


def charted(tmp_path: Path, formula: Callable[[Tensor], Tensor], at: float = 1.0) -> Ground:
    """A map of spectrum and slices alone."""
    place, batches = Place(at), [torch.zeros(4, 1)]

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return formula(model.theta[:, 0])

    charts = {
        "spectrum": landscape.spectrum(place, loss, batches, eigenvalues=1, probes=2, steps=30, samples=20),
        "slices": landscape.slices(
            place, loss, batches, dimensions=1, count=3, points=41, normalisation="raw", radius=1.0, curvature=False
        ),
    }
    return Ground(
        folder=tmp_path,
        spec="digits",
        task=catalog.task("digits"),
        seed=0,
        engine=None,
        progress=lambda _: None,
        found={name: Found(chart=chart) for name, chart in charts.items()},
    )


STEEP = torch.tensor([1000.0] + [1.0] * (SIZE - 1), dtype=torch.float64)


@pytest.mark.parametrize(
    ("formula", "name"),
    [
        (lambda t: (t * t).sum() / 2, SMOOTH_BOWL),
        (lambda t: (STEEP * t * t).sum() / 2, RAVINE),
        # Hills of height 1 every 0.06 along each coordinate, on a bowl that rises by 1/2 over the line.
        (lambda t: (t * t).sum() / 2 / SIZE + torch.cos(100 * t).mean(), RUGGED),
    ],
)
def test_planted_terrains_are_found(tmp_path: Path, formula: Callable[[Tensor], Tensor], name: str):
    assert terrain(readings(charted(tmp_path, formula))).name == name


def test_readings_are_those_of_the_charts(tmp_path: Path):
    found = readings(charted(tmp_path, lambda t: (STEEP * t * t).sum() / 2))
    assert found["anisotropy"].value == pytest.approx(SIZE * 1000 / (1000 + SIZE - 1), rel=0.02)
    assert found["negative_share"].value == 0
    assert found["convexity"].value == 1
    assert found["roughness"].value == pytest.approx(0, abs=1e-6)


def test_saddles_have_their_share_of_negative_curvature(tmp_path: Path):
    signs = torch.cat([torch.ones(SIZE // 2), -torch.full((SIZE // 2,), 0.5)]).double()
    found = readings(charted(tmp_path, lambda t: (signs * t * t).sum() / 2))
    assert found["negative_share"].value == pytest.approx(0.5, rel=1e-3)
    assert terrain(found).name != SMOOTH_BOWL


def test_a_plateau_and_a_valley_ruled_by_noise_are_told_apart():
    flat = {"progress": Reading(value=0.0), "descending_rates": Reading(value=0.0)}
    assert terrain(flat).name == PLATEAU
    slow = {"progress": Reading(value=0.05), "noise_ratio": Reading(value=80.0), "descending_rates": Reading(value=1.0)}
    assert terrain(slow).name == FLAT_VALLEY
    assert terrain({"progress": Reading(value=0.5)}).name is None  # a loss that falls is no valley yet


def test_an_interval_across_the_threshold_counts_in_proportion():
    rule = Rule(reading="x", words="", above=10.0, origin="")
    assert rule.score(Reading(value=11.0)) == 1
    assert rule.score(Reading(value=11.0, low=9.0, high=13.0)) == pytest.approx(0.5)
    assert rule.score(Reading(value=5.0, low=4.0, high=6.0)) == -1
    assert rule.score(Reading(value=8.0, low=4.0, high=34.0)) == pytest.approx(-2 / 26)
    below = Rule(reading="x", words="", below=10.0, origin="")
    assert below.score(Reading(value=11.0, low=9.0, high=13.0)) == pytest.approx(-0.5)


def test_confidence_is_said_in_words_and_a_tie_names_both():
    ravine = {"anisotropy": Reading(value=900.0), "roughness": Reading(value=0.01)}
    assert terrain(ravine).sure == "high: 2 of 2 rules that were read fit"
    valley = {"noise_ratio": Reading(value=80.0), "progress": Reading(value=0.5)}
    tied = terrain(ravine | valley)
    assert tied.confidence == 0
    assert tied.sure.startswith("low: 2 of 2 rules that were read fit; ")
    assert tied.sure.endswith("scores +1.00 beside +1.00")
    assert terrain({}).sure == "low: no class fits what was measured"


def test_a_class_is_not_named_without_what_it_needs():
    """A trace that is not positive has no anisotropy: smooth lines alone make no ravine."""
    assert terrain({"roughness": Reading(value=0.0), "negative_share": Reading(value=0.9)}).name is None


def test_nothing_measured_is_no_class():
    found = terrain({"anisotropy": Reading(value=float("nan"))})
    assert (found.name, found.confidence) == (None, 0.0)
    assert "anisotropy" in found.missing


def test_a_standard_error_widens_by_two_and_a_bound_by_one():
    assert estimated(Estimate(value=1.0, error=0.1), "").interval == pytest.approx((0.8, 1.2))
    assert estimated(Estimate(value=1.0, error=0.1, bound=True), "").interval == pytest.approx((0.9, 1.1))
    assert Chart(probe="", title="", values={}).values == {}
