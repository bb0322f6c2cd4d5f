"""What is said of warm-up and weight decay: the schedule's own rise, what diverged, and the kind of decay."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from dynaxx import catalog
from dynaxx.core.task import Task
from dynaxx.survey.conventions import rise, warm_up, weight_decay
from dynaxx.survey.member import Member
from dynaxx.survey.results import Result


class Small(Task):
    """Ten hidden units; optimizer and schedule as they are put in."""

    steps = 200

    def __init__(self, kind=torch.optim.AdamW, schedule=None, **options):
        super().__init__(None)
        self._kind, self._schedule, self._options = kind, schedule, options

    def model(self):
        return nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 1))

    def optimizer(self, model):
        return self._kind(model.parameters(), lr=0.1, **self._options)

    def scheduler(self, optimizer):
        return None if self._schedule is None else self._schedule(optimizer)

    def batches(self, split, seed):
        raise AssertionError("no data is needed for what is usual")

    def loss(self, model, batch):
        raise AssertionError("nor a loss")


def ended(rate: float, *, diverged: bool = False) -> Result:
    return Result(member=Member(task="digits", steps=20, rate=rate), folder="", steps=20, diverged=diverged)


def ramp(optimizer):
    """To the peak at the tenth of 200 steps, then down."""
    return LambdaLR(optimizer, lambda step: min((step + 1) / 10, 1 - step / 400))


def test_the_rise_of_the_built_in_language_model_is_that_of_its_docstring():
    assert rise(catalog.task("stdlib-lm")) == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("schedule", "share"),
    [(None, 0.0), (ReduceLROnPlateau, 0.0), (lambda o: LambdaLR(o, lambda t: 0.9**t), 0.0), (ramp, 0.05)],
)
def test_the_rise_is_read_off_the_schedule_without_a_trace(schedule, share: float):
    before = torch.get_rng_state()
    assert rise(Small(schedule=schedule)) == pytest.approx(share)
    assert torch.equal(torch.get_rng_state(), before)


def test_where_nothing_diverged_no_longer_warm_up_is_asked_for():
    said, sure = warm_up(Small(schedule=ramp), [ended(0.1), ended(10.0)], 1.0)
    assert "0.05 of the steps (10)" in said
    assert "peak after 1 of 20 steps and none diverged, up to 10 times this rate" in said
    assert sure.startswith("fair")


@pytest.mark.parametrize(
    ("rate", "word", "part"), [(2.0, "low", "a longer one may be needed"), (10.0, "fair", "beyond its neighbours")]
)
def test_a_divergence_beside_the_rate_asks_for_a_longer_one(rate: float, word: str, part: str):
    said, sure = warm_up(Small(schedule=ramp), [ended(1.0), ended(rate, diverged=True)], 1.0)
    assert f"diverged at {rate:g} times this rate" in said
    assert part in said
    assert sure.startswith(word)


def test_without_a_training_nothing_is_claimed():
    said, sure = warm_up(Small(), [], None)
    assert said.startswith("none, as the task")
    assert sure.startswith("low")


@pytest.mark.parametrize(
    ("task", "chosen", "parts"),
    [
        (Small(weight_decay=0.05), "task", ("0.05, the task's own, on 100%", "β₂ is 0.999; for language models 0.95")),
        (Small(weight_decay=0.05, betas=(0.9, 0.95)), "task", ("0.05, the task's own",)),
        (
            Small(kind=torch.optim.Adam, weight_decay=0.05),
            "task",
            ("added to the gradient", "Loshchilov & Hutter 2019"),
        ),
        (Small(kind=torch.optim.Adam, weight_decay=0.05, decoupled_weight_decay=True), "task", ("on 100% of the",)),
        (Small(kind=torch.optim.SGD), "task", ("none, the task's own",)),
        (Small(kind=torch.optim.SGD), "muon", ("0.1, muon's own, as it was compared, on 83%",)),
    ],
)
def test_the_kind_of_decay_is_said(task: Task, chosen: str, parts: tuple[str, ...]):
    """Muon decays matrices of which both sides exceed 1: 100 of 121 weights."""
    said, sure = weight_decay(task, chosen)
    assert all(part in said for part in parts), said
    assert ("β₂" in said) == ("0.999" in said)
    assert sure.startswith("low")
