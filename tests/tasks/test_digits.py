import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from dynaxx.core.loop import epoch_seed, evaluate, train_steps
from dynaxx.errors import BadInput
from dynaxx.tasks import _sklearn
from dynaxx.tasks.digits import Digits


def everything(split):
    return tuple(torch.cat(parts) for parts in zip(*Digits().batches(split, seed=1), strict=True))


def test_the_split_keeps_a_fifth_of_each_class():
    _, labels = everything("validation")
    _, target = load_digits(return_X_y=True)
    assert labels.bincount().tolist() == [count // 5 for count in np.bincount(target)]


def test_each_image_is_in_one_split():
    pixels, target = load_digits(return_X_y=True)
    known = sorted((*row.tolist(), label) for row, label in zip(pixels, target, strict=True))
    found = [
        (*(image * 16).flatten().tolist(), int(label))
        for split in ("train", "validation")
        for image, label in zip(*everything(split), strict=True)
    ]
    assert sorted(found) == known
    images, _ = everything("train")
    assert images.shape[1:] == (1, 8, 8)
    assert (images.min(), images.max()) == (0, 1)


def test_accuracy_is_the_share_of_hits():
    _, labels = everything("validation")
    always_three = lambda images: torch.eye(10)[torch.full((len(images),), 3)]  # noqa: E731
    accuracy = Digits().metrics(always_three, (torch.zeros(len(labels), 1, 8, 8), labels))["accuracy"]
    assert float(accuracy) == pytest.approx(36 / 355)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(BadInput, match=r"The task 'digits' needs scikit-learn.*pip install 'dynaxx\[tasks\]'"):
        _sklearn.bundled("digits", "load_digits")


@pytest.mark.slow
def test_tiny_recognises_more_than_97_percent():
    torch.manual_seed(3)
    task = Digits()
    model = task.model()
    optimizer = task.optimizer(model)
    scheduler = task.scheduler(optimizer)
    taken = 0
    while taken < task.steps:
        batches = task.batches("train", epoch_seed(3, taken))[: task.steps - taken]
        taken += len(list(train_steps(task, model, optimizer, batches, scheduler=scheduler)))
    assert taken == task.steps
    assert evaluate(task, model, task.batches("validation", 0))["accuracy"] > 0.97
