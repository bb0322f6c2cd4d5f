"""What became of a fleet's members: read from their run logs, kept beside them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dynaxx.core.records import Cost
from dynaxx.errors import CorruptData
from dynaxx.runlog import RunView, open_run
from dynaxx.runlog.disk import replace_file
from dynaxx.runlog.sealed import seal, unseal
from dynaxx.survey.member import Member

NAME = "result.json"
_LOSSES = ("initial", "final", "best", "first_loss", "loss")
TAIL = 0.1
"""Share of the steps, at the end, whose mean is the final training loss: one batch's loss is mostly noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How one member ended.

    Args:
        member: Its specification.
        folder: Its run folder.
        status: "finished", or "failed" when its retries were used up.
        initial: Validation loss before the first step.
        final: Validation loss after the last; NaN where it failed.
        best: The smallest validation loss, that before the first step left out.
        first_loss: Training loss of the first batch.
        loss: Training loss, mean over the last tenth of the steps.
        diverged: Not finite at the end, or training and validation loss both above where they began.
        steps: Optimizer steps taken.
        seconds: Wall time of the attempt that finished it.
        cost: What it took, evaluations included as forwards in units of training batches.
        attempts: How often it was begun.
        why: Why it failed.
    """

    member: Member
    folder: str
    status: Literal["finished", "failed"] = "finished"
    initial: float = math.nan
    final: float = math.nan
    best: float = math.nan
    first_loss: float = math.nan
    loss: float = math.nan
    diverged: bool = False
    steps: int = 0
    seconds: float = 0.0
    cost: Cost = field(default_factory=Cost)
    attempts: int = 0
    why: str = ""

    @property
    def finished(self) -> bool:
        """Whether it ran to its end, diverged or not."""
        return self.status == "finished"

    def run(self) -> RunView:
        """Its run log."""
        return open_run(self.folder)


def measure(member: Member, folder: Path, *, initial: float, evaluation: float, seconds: float) -> Result:
    """The result of a finished member, from its run log.

    Args:
        member: Its specification.
        folder: Its run folder.
        initial: Validation loss before the first step.
        evaluation: Price of one evaluation, in forwards of a training batch.
        seconds: Wall time.

    Returns:
        The result.
    """
    view = open_run(folder)
    losses = np.asarray(view["loss"], dtype=float)
    validation = np.asarray(view["val_loss"], dtype=float)
    loss, final = float(losses[-max(1, round(TAIL * len(losses))) :].mean()), float(validation[-1])
    return Result(
        member=member,
        folder=str(folder),
        initial=initial,
        final=final,
        best=float(np.nanmin(validation)) if np.isfinite(validation).any() else math.nan,
        first_loss=float(losses[0]),
        loss=loss,
        diverged=has_diverged(start=(float(losses[0]), initial), end=(loss, final)),
        steps=member.steps,
        seconds=seconds,
        cost=Cost(forwards=member.steps + (1 + len(validation)) * evaluation, backwards=member.steps, seconds=seconds),
        attempts=len(view.attempts),
    )


def has_diverged(*, start: Sequence[float], end: Sequence[float]) -> bool:
    """Whether a training ended worse than it began: not finite, or every loss above its start.

    One loss alone does not decide: the first training loss is that of one batch, and a validation loss may rise by
    overfitting while the training loss falls.

    Args:
        start: Training and validation loss at the start.
        end: Training and validation loss at the end.

    Returns:
        True where it diverged.

    Example:
        >>> has_diverged(start=(2.3, 2.3), end=(0.1, 2.9)), has_diverged(start=(2.3, 2.3), end=(2.4, 2.9))
        (False, True)
    """
    return not all(map(math.isfinite, end)) or all(e > s for s, e in zip(start, end, strict=True))


def write_result(result: Result) -> None:
    """Keep a result in its run folder; whole or not at all.

    Args:
        result: The result.
    """
    plain = {part.name: getattr(result, part.name) for part in fields(result)}
    replace_file(Path(result.folder) / NAME, seal(plain, indent=1))


def read_result(folder: Path) -> Result | None:
    """The result kept in a run folder.

    Args:
        folder: The run folder.

    Returns:
        The result; None where there is none or it is not whole.
    """
    try:
        plain, intact = unseal((folder / NAME).read_bytes())
    except (FileNotFoundError, CorruptData):
        return None
    if not intact:
        return None
    values: dict[str, Any] = {**plain, **{name: float(plain[name]) for name in _LOSSES}}  # NaN is kept as a word
    values |= {"member": Member.from_dict(plain["member"]), "cost": Cost(**plain["cost"])}
    values["folder"] = str(folder)  # where it is now, should the fleet have been moved
    return Result(**values)
