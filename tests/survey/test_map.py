"""Maps of small tasks: what they find, what they cost, and what they say where there is nothing to find."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from dynaxx.errors import BadInput
from dynaxx.report import write_map
from dynaxx.survey.advice import Approach, Circumstances, choose, composed
from dynaxx.survey.comparison import RATES
from dynaxx.survey.engines import Engine, Job
from dynaxx.survey.engines._engine import work
from dynaxx.survey.map import map_task
from dynaxx.survey.plan import Plan, PlannedOptimizer, PlannedTask
from dynaxx.survey.terrain import PLATEAU, RAVINE, RUGGED, Terrain

TASKS = Path(__file__).with_name("fleet_tasks.py")


class Here(Engine):
    """Trains in this process, and counts."""

    def __init__(self) -> None:
        self.trained = 0

    def run(self, jobs: Sequence[Job]):
        for job in jobs:
            self.trained += 1
            yield work(job)


def mapped(task: str, dir: Path, **options):
    engine = Here()
    return map_task(f"{TASKS}:{task}", dir, engine=engine, **options), engine


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    return mapped("Noisy", tmp_path_factory.mktemp("map"), steps=400)


def test_the_budget_is_kept_and_shown(noisy):
    found, _ = noisy
    assert found.granted == 300
    assert found.spent <= 300
    assert f"{found.spent:.0f} of 300 passes" in found.budget
    assert {"lr_range", "sensitivity", "gradient_noise", "spectrum", "slices"} <= set(found.charts)


def test_a_proxy_is_searched_first_at_its_own_price(tmp_path):
    pytest.importorskip("optuna")
    found, engine = mapped("Wide", tmp_path, steps=400, budget=1.0, proxy=True)
    chart = found.charts["proxies"]
    assert "width 8" in chart.title
    # 8 to 24 trials of 60 steps on a model of 121 of the 4545 parameters.
    trials = sum(1 for _ in (tmp_path / "proxies").glob("*/run.json"))
    assert 8 <= trials <= 24
    assert chart.cost.backwards == pytest.approx(trials * 60 * 121 / 4545, rel=1e-6)
    assert engine.trained > trials  # the task itself is scanned all the same
    assert "sensitivity" in found.charts


def test_other_optimizers_are_measured_against_the_scans_own_trainings(tmp_path: Path):
    """A network under Adam: the scan's training at its best rate is one of the two that Muon is held against."""
    found, engine = mapped("Wide", tmp_path, steps=400)
    scan, fleet = found.charts["sensitivity"], found.charts["fleet"]
    rates, seeds = len(scan.arrays["learning_rates"]), len(scan.arrays["initial_loss"])
    tried = [name for name in fleet.values if name.startswith("final.") and name != "final.task"]
    assert tried[0] == "final.muon"
    assert "spectrum" in found.charts, found.left_out  # of a part of a batch, where the fleet has had its share
    assert engine.trained == rates * seeds + 2 * len(tried) + max(0, 2 - seeds)
    chosen = found.plan.optimizer.name
    assert (chosen == "task") == ("ahead" not in fleet.values or fleet["chance"] > 0.1)
    factor = 1.0 if chosen == "task" else RATES[chosen]
    assert found.plan.learning_rate.peak == pytest.approx(factor * scan["learning_rate"], rel=1e-3)  # four digits


def test_the_short_trainings_have_the_maps_own_seeds(tmp_path: Path):
    found, _ = mapped("Noisy", tmp_path, steps=400, budget=0.3, seed=7)
    settings = [json.loads(file.read_text()) for file in (found.folder / "fleet").glob("*/run.json")]
    assert {each["facts"]["seed"] for each in settings} == {7}


def test_a_small_budget_has_a_rate_from_three_trainings(tmp_path: Path):
    """Five trainings of twenty steps and their evaluations are more than 0.3 × 400 passes less those of the sweep."""
    found, engine = mapped("Noisy", tmp_path, steps=400, budget=0.3)
    assert found.spent <= 120
    assert (engine.trained, len(found.charts["sensitivity"].arrays["learning_rates"])) == (3, 3)
    assert found.plan.learning_rate.peak is not None


def test_a_batch_without_the_keys_of_the_others_is_named(tmp_path: Path):
    with pytest.raises(BadInput, match="train batch 1 has keys inputs, y"):
        mapped("Mixed", tmp_path)


def test_the_curvature_is_that_of_the_regression(noisy):
    """H = 2 E[x xᵀ] of four Gaussian inputs and a bias: eigenvalues near 2."""
    found, _ = noisy
    assert 1.0 < found.charts["spectrum"]["largest_eigenvalue"] < 5.0
    assert found.charts["slices"]["convexity"] == 1


def test_what_is_left_out_is_said(noisy):
    found, _ = noisy
    said = "\n".join(found.plan.not_established)
    for name, reason in found.left_out.items():
        assert f"{name}: {reason}" in said
    assert "whose rates do not carry over" in found.left_out["fleet"]


def test_every_decision_has_its_evidence_and_a_confidence(noisy):
    found, _ = noisy
    plan = found.plan
    assert set(plan.confidence) == set(plan.evidence)
    assert {"terrain", "learning_rate", "warm_up", "weight_decay", "meso"} <= set(plan.evidence)
    assert {sure.partition(":")[0] for sure in plan.confidence.values()} <= {"high", "fair", "low"}


def test_drawing_it_again_costs_nothing_and_says_the_same(noisy):
    found, engine = noisy
    before = engine.trained
    again, other = mapped("Noisy", found.folder, steps=400)
    assert (engine.trained, other.trained) == (before, 0)
    assert set(again.reused) == set(found.charts)
    assert again.plan == found.plan
    assert again.spent == found.spent


def test_another_length_of_training_is_another_map(tmp_path: Path):
    other, engine = mapped("Noisy", tmp_path, steps=420)
    assert engine.trained > 0
    assert other.plan.task.steps == 420


def test_plan_and_page_are_written(noisy, tmp_path: Path):
    found, _ = noisy
    assert Plan.read(found.folder / "plan.toml") == found.plan
    text = write_map(found, tmp_path / "map.html").read_text()
    assert "Verdict and plan" in text
    assert json.loads((found.folder / "map.json").read_text())["terrain"] == found.terrain.name


def test_the_recommended_rate_trains(noisy):
    """The regression is solved best near 1/λ₁ = 0.5 without momentum, less with it; its own rate is 0.05."""
    found, _ = noisy
    assert 0.01 < found.plan.learning_rate.peak < 1.0


def test_a_loss_that_does_not_move_is_a_plateau(tmp_path: Path):
    found, _ = mapped("Constant", tmp_path)
    assert found.terrain.name == PLATEAU
    assert found.plan.learning_rate.peak is None
    assert any(line.startswith("learning_rate") for line in found.plan.not_established)


def test_divergence_everywhere_is_said_and_nothing_is_guessed(tmp_path: Path):
    found, _ = mapped("Explodes", tmp_path)
    peak = found.plan.learning_rate.peak
    assert peak is None or peak < 2.0  # gradient descent on the bowl is stable below 2/4


@pytest.mark.parametrize("budget", [0, -0.1, float("nan"), float("inf")])
def test_a_budget_that_is_none_is_refused(tmp_path: Path, budget: float):
    with pytest.raises(BadInput, match="share above 0"):
        mapped("Noisy", tmp_path, budget=budget)


def test_a_small_budget_is_kept_to_without_a_floor(tmp_path: Path):
    found, _ = mapped("Noisy", tmp_path, steps=400, budget=0.1)
    assert found.granted == 40
    assert found.spent <= 40


def test_the_approach_follows_terrain_and_circumstances():
    ravine, rugged = Terrain(name=RAVINE, confidence=0.5), Terrain(name=RUGGED, confidence=0.5)
    small = 10**6

    def name(terrain: Terrain, parameters: int = small, **options) -> str:
        return choose(terrain, Circumstances(**options), parameters=parameters).name

    assert name(ravine) == "Sculptor, then Explorer"
    assert name(ravine, production=True) == "Explorer"
    assert name(ravine, memory=0.01) == "Explorer"  # ten copies of a million parameters are 0.04 GB
    assert name(ravine, parameters=10**11) == "Explorer"
    assert name(ravine, fine_tuning=True) == "Perturber"
    assert name(rugged) == "Perturber"
    assert choose(ravine, Circumstances(), parameters=small, ahead=False).name == "Explorer"
    assert choose(ravine, Circumstances(), parameters=small, ahead=True).name == "Sculptor, then Explorer"
    assert name(Terrain(name=None, confidence=0.0)) == "Explorer"


def test_every_approach_is_composed_of_methods_that_exist():
    for name in ("Perturber", "Explorer", "Sculptor, then Explorer"):
        for optimizer in ("task", "soap"):
            methods, phases = composed(
                Approach(name=name, why=()), Circumstances(), PlannedOptimizer(name=optimizer), 100
            )
            plan = Plan(task=PlannedTask(name="digits", steps=100), optimizer=methods, phase=phases)
            assert plan.recipe().settings()
    assert "every=5" in str(composed(Approach(name="Perturber", why=()), Circumstances(), PlannedOptimizer(), 100))
    assert "every" not in str(
        composed(Approach(name="Perturber", why=()), Circumstances(passes=2), PlannedOptimizer(), 9)
    )
