"""The training batches of each epoch: the task's own, or the easy ones first where a curriculum is asked for."""

from collections.abc import Callable, Iterable
from typing import Any

from dynaxx.core.curriculum import Curriculum, Pacing
from dynaxx.core.loop import epoch_seed
from dynaxx.core.task import Task
from dynaxx.errors import BadInput

Lessons = Callable[[int], Iterable[Any]]
"""Epoch → its batches."""


def lessons(task: Task, words: str | None, batches: int, seed: int) -> Lessons:
    """What a training learns from, epoch by epoch.

    With a curriculum the first epoch is the whole planned training; batches that are taken beyond it (after a rollback
    that passed data over, or with more batches to a step than planned) are those of ordinary epochs, since by then all
    examples are in use.

    Args:
        task: The task.
        words: The curriculum's pacing (`Pacing.read`); None: there is none.
        batches: Batches of the planned training.
        seed: Of the order of the data.

    Returns:
        Epoch → batches.

    Raises:
        BadInput: The task has no difficulty, or the words or the difficulties break a rule.
    """

    def ordinary(epoch: int) -> Iterable[Any]:
        return task.batches("train", epoch_seed(seed, epoch))

    if words is None:
        return ordinary
    difficulty = task.difficulty()
    if difficulty is None:
        name = type(task).__name__
        raise BadInput(
            f"train(curriculum={words!r}): {name} does not say how hard its examples are. Define {name}.difficulty(), "
            "a number for each training example, and examples(rows), the batch of some; or leave the curriculum out."
        )
    pacing, size, first = Pacing.read(words), task.batch_size, epoch_seed(seed, 0)
    easy_first = Curriculum(difficulty, steps=batches, batch_size=size, pacing=pacing, seed=first).batches(
        task.examples
    )
    return lambda epoch: easy_first if epoch == 0 else ordinary(epoch)
