"""What an engine must be, and the work that it carries to where it is done."""

import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from dynaxx.core.isolation import isolated_random
from dynaxx.core.loop import epoch_seed, evaluate, validation_seed
from dynaxx.core.task import Task, derive_seed
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.session.beginning import begin_from
from dynaxx.session.recipe import Recipe
from dynaxx.session.train import Progress, train
from dynaxx.survey.member import Member
from dynaxx.survey.results import measure, write_result

TICK = 1.0
"""Seconds: how often an engine gives control back, and how often a member says how far it is."""
POSITION = "position"
"""Name of the file in which a member says how many steps it has completed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A member, and where it is trained.

    Args:
        member: Its specification.
        folder: Its run folder, on a file system that the engine's machines share.
    """

    member: Member
    folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a job ended.

    Args:
        job: The job.
        status: "done": its result is in its folder. "refused": it breaks a rule, and would again. "failed": it raised
            an error. "interrupted": it was told to end and wrote a checkpoint. "lost": its process is gone.
        why: The error, in words.
    """

    job: Job
    status: Literal["done", "refused", "failed", "interrupted", "lost"]
    why: str = ""


class Engine(ABC):
    """Carries jobs to processes and machines. It retries nothing: the fleet does, and members resume by themselves."""

    @abstractmethod
    def run(self, jobs: Sequence[Job]) -> Generator[Ended | None]:
        """Do the jobs, as many at once as the engine has places for.

        Args:
            jobs: What to do.

        Yields:
            Each job once, as it ends; None at least every few seconds in between. Closing the iterator ends what is
            under way.
        """


def work(job: Job) -> Ended:
    """Train a member, or go on with it, and keep its result; called in the process that an engine chose.

    Args:
        job: The job.

    Returns:
        How it ended; no error leaves this function.
    """
    try:
        return _train(job)
    except (BadInput, NotApplicable) as error:
        return Ended(job=job, status="refused", why=str(error))
    except Exception as error:
        return Ended(job=job, status="failed", why=f"{type(error).__name__}: {error}")


def position(job: Job) -> int:
    """How many steps a member has completed, as far as it said.

    Args:
        job: The job.

    Returns:
        Steps; 0 where nothing is known.
    """
    try:
        return int((Path(job.folder) / POSITION).read_text())
    except (OSError, ValueError):
        return 0


def _train(job: Job) -> Ended:
    member, folder = job.member, Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    task = member.build()
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    initial, evaluation = _before(task, member)
    outcome = train(
        task,
        folder,
        name=Path(member.task.partition(":")[0]).stem,
        spec=member.task,
        seed=member.seed,
        steps=member.steps,
        navigate="off",
        resume=True,
        quiet=True,
        recipe=Recipe(rate=member.rate, optimizer=member.optimizer),
        order_seed=member.order_seed,
        horizon=member.horizon,
        start=member.start,
        signals=member.signals,
        evaluations=member.evaluations,
        checkpoints=member.checkpoints,
        keep=f"last:{member.checkpoints + 1}",
        progress=_Position(folder),
    )
    if outcome.status not in ("finished", "already finished"):
        return Ended(job=job, status="interrupted", why=f"{outcome.status} at step {outcome.step}")
    write_result(measure(member, folder, initial=initial, evaluation=evaluation, seconds=outcome.seconds))
    return Ended(job=job, status="done")


def _before(task: Task, member: Member) -> tuple[float, float]:
    """Validation loss of the model that the training will begin with, and the price of an evaluation in forwards."""
    validation = list(task.batches("validation", validation_seed(member.seed)))
    with isolated_random():
        torch.manual_seed(derive_seed(member.seed, "global"))
        model = task.model()
        if member.start is not None:
            begin_from(Path(member.start), model)
        initial = evaluate(task, model, validation)["loss"]
    order = member.seed if member.order_seed is None else member.order_seed
    first = next(iter(task.batches("train", epoch_seed(order, 0))), None)
    if first is None:
        raise BadInput(f"{type(task).__name__}.batches('train', seed) gave no batch. Give at least one.")
    return initial, sum(map(task.weight, validation)) / task.weight(first)


class _Position:
    """Says where the member is, at most once a tick; whoever shows the fleet's progress reads it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / POSITION
        self._said = 0.0

    def __call__(self, at: Progress) -> None:
        now = time.monotonic()
        if now - self._said >= TICK or at.step == at.steps:
            self._said = now
            self._path.write_text(str(at.step))
