"""A curriculum by words: the batches a training takes, a resume in the middle, what follows it, and what is refused."""

from pathlib import Path

import pytest
import torch
from torch import nn

from dynaxx import Task, catalog
from dynaxx.cli import BAD_INPUT, DONE
from dynaxx.cli import run as command
from dynaxx.core.curriculum import Curriculum, Pacing
from dynaxx.core.loop import epoch_seed
from dynaxx.errors import BadInput
from dynaxx.runlog import open_run
from dynaxx.session.lessons import lessons
from dynaxx.session.recipe import Recipe
from dynaxx.session.train import train

HARD = torch.tensor([5, 3, 1, 4, 2, 0, 7, 6, 9, 8])  # how hard each of the ten examples is
SEEN: list[list[int]] = []


class Graded(Task):
    """Example i is the number i, so that what was trained on can be told."""

    steps, batch_size, threads = 12, 2, 1

    def model(self):
        return nn.Linear(1, 1)

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=1e-3)

    def batches(self, split, seed):
        return list(torch.arange(10.0).split(2))

    def difficulty(self):
        return HARD

    def examples(self, rows):
        return rows.float()

    def loss(self, model, batch):
        if model.training:
            SEEN.append([int(x) for x in batch])
        return model(batch[:, None] / 10).square().mean()


class Ungraded(Graded):
    """As most tasks are."""

    def difficulty(self):
        return None


def run(folder: Path, **options):
    SEEN.clear()
    options = {"recipe": Recipe(curriculum="linear:start=0.2,until=1"), "signals": ("lr",), **options}
    train(Graded(), folder, name="graded", quiet=True, navigate="off", **options)
    return list(SEEN)


def test_a_training_takes_the_batches_of_the_curriculum(tmp_path):
    seen = run(tmp_path / "run")
    pacing = Pacing(shape="linear", start=0.2, until=1.0)
    truth = Curriculum(HARD, steps=12, batch_size=2, pacing=pacing, seed=epoch_seed(0, 0))
    assert seen == list(truth)
    for step, batch in enumerate(seen):
        assert max(int(HARD[i]) for i in batch) < max(2, -(-10 * (0.2 + 0.8 * step / 12) // 1))
    assert run(tmp_path / "other", order_seed=1) != seen
    assert open_run(tmp_path / "run").manifest["facts"]["recipe"] == {"curriculum": "linear:start=0.2,until=1"}


def test_batches_of_a_step_count(tmp_path):
    assert run(tmp_path / "run", accumulate=2, steps=6) == run(tmp_path / "same", steps=12)


def test_resumed_in_the_middle_it_goes_on(tmp_path):
    class Cut(Exception):
        pass

    def cut(at):
        if at.step == 8:
            raise Cut

    whole = run(tmp_path / "whole")
    with pytest.raises(Cut):
        run(tmp_path / "cut", checkpoints=2, progress=cut)
    assert run(tmp_path / "cut", checkpoints=2, resume=True) == whole[6:]
    with pytest.raises(BadInput, match="recipe"):
        run(tmp_path / "cut", resume=True, recipe=Recipe(curriculum="root"))


def test_beyond_the_plan_epochs_are_ordinary():
    epochs = lessons(Graded(), "step:stages=2", 4, seed=0)
    assert len(epochs(0)) == 4
    assert [list(batch) for batch in epochs(1)] == [list(batch) for batch in Graded().batches("train", 0)]


def test_without_words_nothing_is_asked_of_the_task():
    assert len(lessons(Ungraded(), None, 4, seed=0)(0)) == 5


@pytest.mark.parametrize(
    ("task", "words", "said"),
    [
        (Ungraded(), "root", r"Ungraded does not say how hard.*Ungraded\.difficulty\(\).*leave the curriculum out"),
        (Graded(), "steep", "shape=.*'root', 'linear' or 'step'.*steep"),
        (Graded(), "root:begin=0.1", "root:begin=0.1"),
        (Graded(), "step:stages=many", "stages=many"),
        (Graded(), "root:start=2", r"start=.*\(0, 1\].*2"),
    ],
)
def test_bad_input_says_what_to_do(task, words, said):
    with pytest.raises(BadInput, match=said):
        lessons(task, words, 4, seed=0)


def test_a_difficulty_without_examples_is_refused():
    class Half(Graded):
        examples = Task.examples

    with pytest.raises(BadInput, match=r"Half\.examples\(rows\)"):
        lessons(Half(), "root", 4, seed=0)(0)[0]


def test_digits_from_the_command_line(tmp_path, capsys):
    """Easy images lie near the mean of their class: early batches are nearer than late ones."""
    words = ["train", "digits", "--steps", "6", "--curriculum", "linear:start=0.1,until=1", "--quiet"]
    assert command([*words, "--navigate", "off", "--out", str(tmp_path / "run")]) == DONE
    assert command(["train", "diabetes", "--curriculum", "root", "--out", str(tmp_path / "none")]) == BAD_INPUT
    assert "Diabetes does not say how hard its examples are" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    digits = catalog.task("digits", None)
    batches = lessons(digits, "linear:start=0.1,until=1", 6, seed=0)(0)
    hard = digits.difficulty()
    images, labels = digits.examples(torch.arange(len(hard)))
    assert images.shape == (len(hard), 1, 8, 8)
    place = {image.numpy().tobytes(): float(value) for image, value in zip(images, hard, strict=True)}
    means = [torch.tensor([place[image.numpy().tobytes()] for image in batch]).mean() for batch, _ in batches]
    assert means == sorted(means)
    zeros = images[labels == 0]
    assert hard[labels == 0][3] == pytest.approx(float((zeros[3] - zeros.mean(dim=0)).norm()), rel=1e-5)
