"""Methods by their words: all together, resumed bit for bit, and refused where they cannot be."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dynaxx import catalog, open_run
from dynaxx.cli import run as command
from dynaxx.errors import BadInput, UnknownName
from dynaxx.phases.phase import read_phases
from dynaxx.session.optimizers import in_words
from dynaxx.session.recipe import Recipe
from dynaxx.session.train import AVERAGED, train
from dynaxx.survey.plan import Plan, PlannedOptimizer, PlannedRate, PlannedTask

TASKS = Path(__file__).parents[1] / "survey" / "fleet_tasks.py"
EVERYTHING = Recipe(
    optimizer="soap:every=3,lr=0.01",
    rate=0.5,
    schedule="wsd:warmup=0.2",
    averaging="ema:half_life=5,warmup=False",
    perturb="sam:rho=0.05,every=2",
    micro="period=7,amplitude=0.3",
    meso=3.0,
    clip=1.0,
)


def run(folder: Path, recipe: Recipe, **options):
    options = {"steps": 40, "quiet": True, **options}
    outcome = train(catalog.task(f"{TASKS}:Noisy"), folder, name="noisy", recipe=recipe, **options)
    return outcome, open_run(folder)


def column(view, name: str) -> np.ndarray:
    return np.asarray(view[name], dtype=float)


class Cut(Exception):
    """Ends a training in its middle."""


@pytest.mark.parametrize("at", [11, 24])
def test_everything_at_once_resumes_bit_for_bit(tmp_path: Path, at: int):
    whole, reference = run(tmp_path / "whole", EVERYTHING)

    def cut(progress):
        if progress.step == at:
            raise Cut

    with pytest.raises(Cut):
        run(tmp_path / "cut", EVERYTHING, progress=cut)
    outcome, view = run(tmp_path / "cut", EVERYTHING, resume=True)
    assert outcome.loss == whole.loss
    assert outcome.validation == whole.validation
    for name in ("loss", "val_loss", "averaged_val_loss", "lr.micro"):
        np.testing.assert_array_equal(column(view, name), column(reference, name))
    one, two = (load_file(tmp_path / folder / AVERAGED) for folder in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_rate_is_the_product_of_its_factors(tmp_path: Path):
    _, view = run(
        tmp_path / "a", Recipe(rate=0.5, schedule="constant", micro="period=4,amplitude=0.2,shape=triangular")
    )
    wave = np.resize([1.0, 1.2, 1.0, 0.8], 40)
    np.testing.assert_allclose(column(view, "lr.max"), 0.05 * 0.5 * wave, rtol=1e-12)


def test_a_peak_scales_all_groups_and_the_schedule_in_proportion(tmp_path: Path):
    _, plain = run(tmp_path / "a", Recipe())
    _, peaked = run(tmp_path / "b", Recipe(peak=0.02))
    own = 0.05 / 25  # what OneCycleLR leaves in the group before the first step
    ratio = column(peaked, "lr.max") / column(plain, "lr.max")
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-12)
    assert ratio[0] in (pytest.approx(0.02 / 0.05), pytest.approx(0.02 / own))


def test_the_average_is_evaluated_beside_the_model_and_kept(tmp_path: Path):
    outcome, view = run(tmp_path / "a", Recipe(averaging="swa"))
    assert outcome.validation["averaged_val_loss"] == pytest.approx(column(view, "averaged_val_loss")[-1])
    assert outcome.validation["averaged_val_loss"] != outcome.validation["val_loss"]
    assert set(load_file(tmp_path / "a" / AVERAGED)) == {"weight", "bias"}


def test_another_recipe_does_not_go_on_with_a_run(tmp_path: Path):
    run(tmp_path / "a", Recipe(averaging="ema"), steps=10)
    with pytest.raises(BadInput, match="recipe = "):
        run(tmp_path / "a", Recipe(), steps=10, resume=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rate": 0.0}, "rate"),
        ({"rate": float("inf")}, "rate"),
        ({"peak": -1.0}, "peak"),
        ({"clip": 0.0}, "clip"),
        ({"meso": -2.0}, "meso"),
        ({"micro": "period"}, "period=100"),
        ({"micro": "period=1"}, "at least 2"),
        ({"micro": "speed=3"}, "period=100"),
        ({"averaging": "em"}, "ema"),
        ({"perturb": "sam:rh=1"}, "rho"),
        ({"schedule": "cosin"}, "cosine"),
    ],
)
def test_what_cannot_be_is_refused_at_once(options: dict, said: str):
    with pytest.raises((BadInput, UnknownName), match=said):
        Recipe(**options)


def test_a_plan_trains_and_options_override_it(tmp_path: Path):
    plan = Plan(
        task=PlannedTask(name=f"{TASKS}:Noisy", steps=12),
        optimizer=PlannedOptimizer(averaging="ema"),
        learning_rate=PlannedRate(peak=0.01, schedule="constant"),
    )
    plan.write(tmp_path / "plan.toml")
    common = ["train", f"{TASKS}:Noisy", "--plan", str(tmp_path / "plan.toml"), "--quiet"]
    assert command([*common, "--out", str(tmp_path / "a")]) == 0
    view = open_run(tmp_path / "a")
    assert (view.steps[-1], column(view, "lr.max")[0]) == (12, pytest.approx(0.01))
    assert "averaged_val_loss" in view.columns
    assert command([*common, "--peak", "0.02", "--steps", "5", "--out", str(tmp_path / "b")]) == 0
    assert column(open_run(tmp_path / "b"), "lr.max").tolist() == pytest.approx([0.02] * 5)


def test_a_plan_of_another_task_is_refused(tmp_path: Path, capsys):
    Plan(task=PlannedTask(name="digits", steps=12)).write(tmp_path / "plan.toml")
    assert command(["train", "diabetes", "--plan", str(tmp_path / "plan.toml"), "--out", str(tmp_path / "a")]) == 2
    assert "it is for 'digits'" in capsys.readouterr().err


PHASED = Recipe(
    optimizer="adamw:lr=0.02,weight_decay=0.0",
    phases=read_phases("descend until=0.4; sculpt until=0.7 optimizer=soap:every=2 averaging=ema; flatten perturb=sam"),
)


@pytest.mark.parametrize("at", [9, 22, 33])
def test_phases_resume_bit_for_bit(tmp_path: Path, at: int):
    whole, reference = run(tmp_path / "whole", PHASED)

    def cut(progress):
        if progress.step == at:
            raise Cut

    with pytest.raises(Cut):
        run(tmp_path / "cut", PHASED, progress=cut)
    outcome, view = run(tmp_path / "cut", PHASED, resume=True)
    assert (outcome.loss, outcome.validation) == (whole.loss, whole.validation)
    for name in ("loss", "val_loss", "phase"):
        np.testing.assert_array_equal(column(view, name), column(reference, name))
    assert set(column(reference, "phase")) == {0.0, 1.0, 2.0}


def test_a_live_optimizer_in_words_makes_its_equal():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    own = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    assert in_words(own, model) == "sgd:lr=0.1,momentum=0.5,nesterov=False,weight_decay=0.0"


def test_an_optimizer_that_words_cannot_say_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="Name one in the first phase"):
        in_words(torch.optim.Adagrad(torch.nn.Linear(2, 2).parameters()), torch.nn.Linear(2, 2))
    work = catalog.task("digits")  # its weight decay is on all parameters, that of the words on matrices only
    with pytest.raises(BadInput, match="has groups that"):
        Recipe(phases=read_phases("descend until=0.5; stabilise averaging=ema")).method(work, work.model(), 100)


@pytest.mark.parametrize(
    ("text", "said"),
    [("descend unti=1", "until"), ("descend until=half", "share of the steps"), ("until=1", "no name"),
     ("descend averaging", "averaging=value"), (";", "no name")],
)  # fmt: skip
def test_phases_that_cannot_be_read(text: str, said: str):
    with pytest.raises(BadInput, match=said):
        read_phases(text)


def test_the_logged_rate_is_the_one_in_force_in_every_phase(tmp_path: Path):
    phases = read_phases("descend until=0.5 optimizer=adamw:lr=0.02; settle optimizer=sgd:lr=0.001")
    _, view = run(tmp_path / "a", Recipe(schedule="constant", phases=phases))
    np.testing.assert_allclose(column(view, "lr.max"), [0.02] * 20 + [0.001] * 20, rtol=1e-12)
