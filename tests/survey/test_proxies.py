"""A search by proxy: what is trained instead, what is found there, and what it costs to ask again."""

from pathlib import Path

import pytest

from dynaxx.errors import BadInput, NotApplicable
from dynaxx.survey.engines import Engine
from dynaxx.survey.engines._engine import work
from dynaxx.survey.proxies import scale_down, search

TASKS = Path(__file__).with_name("fleet_tasks.py")
pytest.importorskip("optuna", reason="the extra `optuna` is not installed")


class Here(Engine):
    def run(self, jobs):
        for job in jobs:
            yield work(job)


def test_what_is_trained_instead():
    wide = scale_down(f"{TASKS}:Wide", share=0.1)
    # Parameters of width w: w² + 7 w + 1, of 64: 4545; the widest with at most a tenth of them has 18: 451.
    assert wide.width == 18
    assert scale_down(f"{TASKS}:Wide").width == 8  # a hundredth would be three wide
    assert scale_down("diabetes", "small").size == "tiny"
    itself = scale_down("diabetes", "tiny")
    assert (itself.size, itself.width) == ("tiny", None)
    assert "itself" in itself.about
    with pytest.raises(BadInput, match="share"):
        scale_down("diabetes", share=0)


def test_the_best_rate_of_the_proxy_centres_the_grid(tmp_path):
    options = {"trials": 12, "steps": 20, "engine": Here(), "optimizers": (None, "sgd:lr=0.01")}
    prior = search(f"{TASKS}:Wide", tmp_path, **options)
    assert prior.optimizer is None  # Adam: gradient descent at these rates is far behind in 20 steps
    assert prior.transfer.rate == pytest.approx(8 / 64)
    assert prior.centre == pytest.approx(prior.chart["proxy_rate"] / 8)
    assert prior.chart.cost.backwards == 12 * 20
    again = search(f"{TASKS}:Wide", tmp_path, **options)
    assert again.centre == prior.centre
    assert again.chart.cost.backwards == 0
    assert prior.chart.plot().axes


def test_a_task_that_scales_by_itself_keeps_its_factor(tmp_path):
    prior = search(f"{TASKS}:WideByItself", tmp_path, trials=4, steps=10, engine=Here())
    assert prior.transfer.rate == pytest.approx(1.0)
    assert prior.centre == pytest.approx(prior.chart["proxy_rate"])


def test_nothing_found(tmp_path):
    with pytest.raises(NotApplicable, match="lowered the loss"):
        search(f"{TASKS}:Constant", tmp_path, trials=2, steps=3, engine=Here())


@pytest.mark.parametrize(
    "change", [{"trials": 0}, {"optimizers": ()}, {"rates": (1.0, 1.0)}, {"rates": (0.0, 1.0)}]
)  # fmt: skip
def test_bad_input(tmp_path, change):
    with pytest.raises(BadInput):
        search("diabetes", tmp_path, **change)


def test_the_language_model_is_scaled_by_width():
    """Heads stay 32 wide, so their number follows; of width w the model has 3 (12 w² + 2 w) + w (513) parameters."""
    from dynaxx import catalog

    task = catalog.task("stdlib-lm")
    for width, heads in ((96, 3), (64, 2), (16, 1)):
        narrow = task.scaled(width)
        model = narrow.model()
        assert sum(p.numel() for p in model.parameters()) == 3 * (12 * width**2 + 2 * width) + 513 * width
        assert model.blocks[0].attention.heads == heads
    assert task.scaled(97).width == 96
    proxy = scale_down("stdlib-lm", share=0.1)
    assert proxy.width is not None
    assert proxy.width < 96
