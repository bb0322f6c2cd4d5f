"""Which checkpoints are kept: small pure policies, whose keep-sets are united."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from dynaxx.checkpoints.manifest import CheckpointInfo
from dynaxx.checkpoints.places import behind
from dynaxx.errors import BadInput


class Policy(ABC):
    """What is to be kept; pure: it sees what is known of the checkpoints, no clock and no disk.

    Policies are united by `|`.
    """

    @abstractmethod
    def keep(self, infos: Sequence[CheckpointInfo]) -> frozenset[str]:
        """The keep-set.

        Args:
            infos: The checkpoints of one run, in any order.

        Returns:
            Ids of those to keep.
        """

    def __or__(self, other: "Policy") -> "Policy":
        return Union((self, other))


@dataclass(frozen=True)
class Last(Policy):
    """The last ones of the line that the training is on; what it left behind by going back is none of them.

    Args:
        count: How many.
    """

    count: int

    def __post_init__(self) -> None:
        _at_least_one("last", self.count)

    def keep(self, infos: Sequence[CheckpointInfo]) -> frozenset[str]:
        """The keep-set."""
        return _ids(_line(infos)[-self.count :])

    def __str__(self) -> str:
        return f"last:{self.count}"


@dataclass(frozen=True)
class Newer(Policy):
    """Those of the line at most so many steps older than the newest: age is told in steps.

    Args:
        steps: The greatest age.
    """

    steps: int

    def __post_init__(self) -> None:
        _at_least_one("newer", self.steps)

    def keep(self, infos: Sequence[CheckpointInfo]) -> frozenset[str]:
        """The keep-set."""
        line = _line(infos)
        return _ids([info for info in line if line[-1].step - info.step <= self.steps])

    def __str__(self) -> str:
        return f"newer:{self.steps}"


@dataclass(frozen=True)
class Every(Policy):
    """Of the line the first one at or after each multiple of so many steps: it stays whatever is saved later.

    Args:
        steps: The distance.
    """

    steps: int

    def __post_init__(self) -> None:
        _at_least_one("every", self.steps)

    def keep(self, infos: Sequence[CheckpointInfo]) -> frozenset[str]:
        """The keep-set."""
        first: dict[int, CheckpointInfo] = {}
        for info in _line(infos):
            first.setdefault(info.step // self.steps, info)
        return _ids(first.values())

    def __str__(self) -> str:
        return f"every:{self.steps}"


@dataclass(frozen=True)
class Best(Policy):
    """The best by a number among their facts; those without it, or whose number is not finite, are not.

    Of equal ones the earlier is better. One that the training left behind may be the best.

    Args:
        count: How many.
        metric: The name of the number.
        mode: Whether the smallest or the largest is best.
    """

    count: int
    metric: str = "val_loss"
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        _at_least_one("best", self.count)
        if self.mode not in ("min", "max"):
            raise BadInput(f"best:{self.count}:{self.metric}:{self.mode}: the mode must be min or max.")

    def keep(self, infos: Sequence[CheckpointInfo]) -> frozenset[str]:
        """The keep-set."""
        sign = 1 if self.mode == "min" else -1
        scored = [(sign * value, info) for info in infos if (value := number(info, self.metric)) is not None]
        scored.sort(key=lambda pair: (pair[0], pair[1].step, pair[1].id))
        return _ids([info for _, info in scored[: self.count]])

    def __str__(self) -> str:
        return f"best:{self.count}:{self.metric}:{self.mode}"


@dataclass(frozen=True)
class Spread(Policy):
    """So many of the line, as evenly apart in steps as thinning out leaves them, whatever length the training gets.

    Where there are too many, the one whose two neighbours are closest goes, never the first or the last. Applied after
    every save, where these come evenly, it leaves no gap of more than twice that of an even spread.

    Args:
        count: How many at most.
        budget: Most bytes that they take, by the largest of them; None: no limit.

    Example:
        >>> str(Spread(16, 2e9))
        'spread:16:2000000000'
    """

    count: int
    budget: float | None = None

    def __post_init__(self) -> None:
        _at_least_one("spread", self.count)
        if self.budget is not None and not self.budget > 0:
            raise BadInput(f"spread:{self.count}:{self.budget}: the bytes must be more than 0.")

    def keep(self, infos: Sequence[CheckpointInfo]) -> frozenset[str]:
        """The keep-set."""
        line = _line(infos)
        count = self.count
        if self.budget is not None and line:
            count = min(count, int(self.budget // max(1, *(info.size for info in line))))
        while len(line) > max(2, count):
            gaps = [after.step - before.step for before, after in zip(line, line[2:], strict=False)]
            del line[1 + gaps.index(min(gaps))]
        return _ids(line[len(line) - count :] if count < 2 else line)

    def __str__(self) -> str:
        return f"spread:{self.count}" + ("" if self.budget is None else f":{self.budget:.0f}")


@dataclass(frozen=True)
class All(Policy):
    """Every one."""

    def keep(self, infos: Sequence[CheckpointInfo]) -> frozenset[str]:
        """The keep-set."""
        return _ids(infos)

    def __str__(self) -> str:
        return "all"


@dataclass(frozen=True)
class Union(Policy):
    """What any of several keeps.

    Args:
        parts: The policies.
    """

    parts: tuple[Policy, ...]

    def keep(self, infos: Sequence[CheckpointInfo]) -> frozenset[str]:
        """The keep-set."""
        return frozenset[str]().union(*(part.keep(infos) for part in self.parts))

    def __str__(self) -> str:
        return ",".join(map(str, self.parts))


def number(info: CheckpointInfo, metric: str) -> float | None:
    """A finite number among the facts of a checkpoint.

    Args:
        info: The checkpoint.
        metric: Its name.

    Returns:
        The number; None where there is none.
    """
    value = info.facts.get(metric)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _line(infos: Sequence[CheckpointInfo]) -> list[CheckpointInfo]:
    """Those that the training builds on, oldest first: by step, then by save, never by a clock."""
    past = behind(infos)
    return sorted((i for i in infos if i.path.name not in past), key=lambda info: (info.step, info.id))


def _ids(infos: Iterable[CheckpointInfo]) -> frozenset[str]:
    return frozenset(info.id for info in infos)


def _at_least_one(name: str, count: int) -> None:
    if count < 1:
        raise BadInput(f"{name}:{count}: the number must be at least 1.")
