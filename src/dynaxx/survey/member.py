"""One short training of a fleet: what determines it, and its content address."""

import hashlib
import inspect
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from dynaxx import catalog
from dynaxx._version import __version__
from dynaxx.core.task import Task
from dynaxx.errors import BadInput
from dynaxx.runlog.sealed import plain

SAVE_EVERY = 100
"""Steps between checkpoints of a member (the survey's specification, M5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """The specification of one training; equal ones are trained once.

    Args:
        task: A built-in task, or "file.py:Class".
        steps: Optimizer steps.
        size: One of the task's sizes; None: its default.
        width: The width of its hidden layers, where the task declares one; None: its own.
        seed: Determines initialisation, data order and every other random draw.
        order_seed: Determines the data order instead of `seed`; None: `seed`.
        rate: Multiplies the learning rate of every group and its schedule.
        optimizer: "name:option=value,…"; None: the task's own.
        batch_size: Examples in a training batch; None: the task's own.
        horizon: Steps that the task's schedule is made for; None: `steps`, the whole schedule compressed.
        start: Folder of a checkpoint whose weights it begins from; None: a fresh model.
        signals: What is measured and logged; the sketches of `trajectory` are what a map of trajectories is made of.
        evaluations: About how many evaluations on the validation batches, the last step's included.

    Raises:
        BadInput: A number is out of its range, or the optimizer cannot be read.
    """

    task: str
    steps: int
    size: str | None = None
    width: int | None = None
    seed: int = 0
    order_seed: int | None = None
    rate: float = 1.0
    optimizer: str | None = None
    batch_size: int | None = None
    horizon: int | None = None
    start: str | None = None
    signals: tuple[str, ...] = ("trajectory",)
    evaluations: int = 5

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("evaluations", self.evaluations), ("batch_size", self.batch_size)):
            if value is not None and value < 1:
                raise BadInput(f"Member({name}=...) must be at least 1. Got {value}.")
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise BadInput(f"Member(rate=...) must be positive and finite. Got {self.rate}.")
        if self.horizon is not None and self.horizon < self.steps:
            raise BadInput(f"Member(horizon=...) must be at least its steps, {self.steps}. Got {self.horizon}.")
        if self.optimizer is not None:
            catalog.read_words("optimizer", self.optimizer)
        object.__setattr__(self, "rate", float(self.rate))  # 1 and 1.0 are one address

    def __str__(self) -> str:
        """What tells it apart, in a few words: "adamw:lr=0.001 · rate × 2 · seed 1"."""
        words = [self.optimizer] if self.optimizer else []
        words += [f"rate × {self.rate:.3g}"] if self.rate != 1.0 else []
        words += [f"width {self.width}"] if self.width is not None else []
        words += [f"seed {self.seed}"]
        words += [f"order {self.order_seed}"] if self.order_seed is not None else []
        return " · ".join(words)

    @property
    def checkpoints(self) -> int:
        """How many it writes and keeps, for its path: one every `SAVE_EVERY` steps, and of a short one eight."""
        return max(1, min(8, self.steps // 4), self.steps // SAVE_EVERY)

    def build(self) -> Task:
        """The task, in the size, width and batch size that are asked for."""
        task = catalog.task(self.task, self.size)
        if self.width is not None:
            task = task.scaled(self.width)
        if self.batch_size is not None:
            task.batch_size = self.batch_size
        return task

    def found(self) -> "Member":
        """The same with whole paths, so that another process finds its files."""
        place, colon, kind = self.task.rpartition(":") if ".py:" in self.task else (self.task, "", "")
        task = f"{Path(place).resolve()}{colon}{kind}" if place.endswith(".py") else self.task
        return replace(self, task=task, start=None if self.start is None else str(Path(self.start).resolve()))

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Member":
        """A member from what `to_dict` gave.

        Args:
            values: Its plain data, through JSON or not.

        Returns:
            The member.
        """
        known = {field.name for field in fields(cls)}
        kept: dict[str, Any] = {name: value for name, value in values.items() if name in known}
        kept["signals"] = tuple(values["signals"])
        return cls(**kept)


def product(
    task: str,
    *,
    steps: int,
    seeds: Sequence[int] = (0,),
    rates: Sequence[float] = (1.0,),
    optimizers: Sequence[str | None] = (None,),
    order_seeds: Sequence[int | None] = (None,),
    **common: Any,
) -> tuple[Member, ...]:
    """Every combination of seeds, rates, optimizers and data orders.

    Args:
        task: A built-in task, or "file.py:Class".
        steps: Optimizer steps of each.
        seeds: Seeds.
        rates: Factors on the learning rate.
        optimizers: Optimizers; None: the task's own.
        order_seeds: Seeds of the data order; None: the seed itself.
        common: Further arguments of every `Member`.

    Returns:
        The members; the last axis varies fastest.

    Raises:
        BadInput: An axis is empty, or a value breaks a rule.

    Example:
        >>> [str(m) for m in product("digits", steps=50, seeds=(0, 1), rates=(1.0, 2.0))]
        ['seed 0', 'rate × 2 · seed 0', 'seed 1', 'rate × 2 · seed 1']
    """
    axes = {"seeds": seeds, "rates": rates, "optimizers": optimizers, "order_seeds": order_seeds}
    for name, axis in axes.items():
        if not axis:
            raise BadInput(f"product({name}=...) must hold at least one value. Got none.")
    return tuple(
        Member(task=task, steps=steps, seed=seed, rate=rate, optimizer=optimizer, order_seed=order, **common)
        for seed, optimizer, order, rate in itertools.product(seeds, optimizers, order_seeds, rates)
    )


class Addresses:
    """Content addresses of members: each task is looked at once.

    The address covers the specification, the source file of the task's class, the facts of its data, the checkpoint it
    begins from, and the versions of Dynaxx and torch. Other files that a task imports are not looked at.
    """

    def __init__(self) -> None:
        self._tasks: dict[tuple[str, str | None], dict[str, Any]] = {}

    def __call__(self, member: Member) -> str:
        """The address of a member.

        Args:
            member: The member.

        Returns:
            16 hexadecimal digits.

        Raises:
            BadInput: There is no such task or checkpoint.
        """
        key = (member.task, member.size)
        if key not in self._tasks:
            self._tasks[key] = _identity(catalog.task(*key))
        spec = {name: value for name, value in member.to_dict().items() if name not in ("task", "start")}
        content = {
            "member": spec,
            "task": self._tasks[key],
            "start": None if member.start is None else _digest(_manifest(Path(member.start)).read_bytes()),
            "dynaxx": __version__,
            "torch": torch.__version__,
        }
        return _digest(json.dumps(plain(content), sort_keys=True).encode())


def _identity(task: Task) -> dict[str, Any]:
    kind = type(task)
    source = inspect.getsourcefile(kind)
    return {
        "class": kind.__qualname__,
        "source": None if source is None else _digest(Path(source).read_bytes()),
        "facts": dict(task.facts()),
    }


def _manifest(checkpoint: Path) -> Path:
    """The checkpoint's manifest, which holds the digests of all its files."""
    manifest = checkpoint / "manifest.json"
    if not manifest.is_file():
        raise BadInput(f"Member(start=...) must be the folder of a committed checkpoint. Got {str(checkpoint)!r}.")
    return manifest


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
