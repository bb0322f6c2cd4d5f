"""A plan: what a map recommends, as a TOML file that people read and `dynaxx train --plan` runs."""

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import tomli_w

from dynaxx.errors import BadInput, UnknownName
from dynaxx.phases import Phase
from dynaxx.session.recipe import Recipe

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTask:
    """What is to be trained.

    Args:
        name: A built-in task, or file.py:Class.
        size: One of its sizes; None: its default.
        steps: Optimizer steps.
    """

    name: str
    size: str | None = None
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedOptimizer:
    """The optimizer and what is composed into it.

    Args:
        name: "task" for the task's own, or an entry of `dynaxx list optim` with its options.
        averaging: An entry of `dynaxx list averaging` with its options; None: none.
        perturb: An entry of `dynaxx list perturb` with its options; None: none.
        clip: Clip the total gradient norm at this value; None: do not.
    """

    name: str = "task"
    averaging: str | None = None
    perturb: str | None = None
    clip: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRate:
    """The learning rate; it scales all parameter groups in proportion.

    Args:
        peak: Largest rate of the largest group; None: the task's own.
        low: Lower end of the interval within which the map could not tell rates apart.
        high: Its upper end.
        schedule: "task" for the task's own, or an entry of `dynaxx list schedules` with its options.
    """

    peak: float | None = None
    low: float | None = None
    high: float | None = None
    schedule: str = "task"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedBatch:
    """The batch.

    Args:
        size: Examples in a batch; None: the task's own.
        accumulate: Batches per step.
        low: Smallest batch that is not ruled by noise.
        high: Largest that is not wasteful.
    """

    size: int | None = None
    accumulate: int = 1
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPhase:
    """A stretch of the training with methods of its own.

    Args:
        name: What it is for: "descend", "flatten", "stabilise".
        until: Its end, as a share of all steps; the last one ends at 1.
        optimizer: As in `PlannedOptimizer`; None: that of the plan.
        averaging: Likewise.
        perturb: Likewise.
    """

    name: str
    until: float
    optimizer: str | None = None
    averaging: str | None = None
    perturb: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMeso:
    """Learning rates by layer.

    Args:
        on: Whether they are used.
        spread: Largest ratio between the rates of two layers.
    """

    on: bool = False
    spread: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a map recommends.

    Args:
        task: What is to be trained.
        optimizer: The optimizer and what is composed into it.
        learning_rate: The learning rate.
        batch: The batch.
        phase: Phases in order; empty: one, the whole training.
        meso: Learning rates by layer.
        evidence: Decision → what speaks for it, with figures.
        confidence: Decision → "high", "fair" or "low", and why.
        not_established: What the map could not tell, and why.

    Raises:
        BadInput: A value is out of its range.
    """

    task: PlannedTask
    optimizer: PlannedOptimizer = field(default_factory=PlannedOptimizer)
    learning_rate: PlannedRate = field(default_factory=PlannedRate)
    batch: PlannedBatch = field(default_factory=PlannedBatch)
    phase: tuple[PlannedPhase, ...] = ()
    meso: PlannedMeso = field(default_factory=PlannedMeso)
    evidence: Mapping[str, str] = field(default_factory=dict[str, str])
    confidence: Mapping[str, str] = field(default_factory=dict[str, str])
    not_established: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (
            ("task.steps", self.task.steps), ("learning_rate.peak", self.learning_rate.peak),
            ("batch.size", self.batch.size), ("batch.accumulate", self.batch.accumulate),
            ("optimizer.clip", self.optimizer.clip), ("meso.spread", self.meso.spread),
        ):  # fmt: skip
            if value is not None and not 0 < value < float("inf"):
                raise BadInput(f"plan: {name} must be positive and finite. Got {value}.")
        ends = [phase.until for phase in self.phase]
        if ends and (ends[-1] != 1 or any(b <= a for a, b in zip([0.0, *ends], ends, strict=False))):
            raise BadInput(f"plan: the phases' until must rise from above 0 to 1. Got {', '.join(map(str, ends))}.")

    def for_task(self, task: str) -> "Plan":
        """This plan, if it is one for that task.

        Args:
            task: A built-in task, or file.py:Class.

        Returns:
            The plan.

        Raises:
            BadInput: It is for another task.
        """
        own, other = (name.rpartition("/")[2] for name in (self.task.name, task))
        if own.replace("_", "-") != other.replace("_", "-"):
            raise BadInput(f"plan: it is for {self.task.name!r}, not for {task!r}. Map that task, or edit [task] name.")
        return self

    def recipe(self, **instead: Any) -> Recipe:
        """The methods of a training by this plan.

        Args:
            instead: Arguments of `Recipe` that override the plan's.

        Returns:
            The recipe.

        Raises:
            BadInput: A method's words cannot be read. UnknownName: there is no such method.
        """
        planned: dict[str, Any] = {
            "optimizer": None if self.optimizer.name == "task" else self.optimizer.name,
            "peak": self.learning_rate.peak,
            "schedule": None if self.learning_rate.schedule == "task" else self.learning_rate.schedule,
            "averaging": self.optimizer.averaging,
            "perturb": self.optimizer.perturb,
            "meso": self.meso.spread if self.meso.on else None,
            "clip": self.optimizer.clip,
            "phases": tuple(Phase(**asdict(phase)) for phase in self.phase),
        }
        return Recipe(**{**planned, **instead})

    def write(self, path: str | Path) -> None:
        """Write the plan as TOML; what is None is left out.

        Args:
            path: The file.
        """
        Path(path).write_text(self.to_toml())

    def to_toml(self) -> str:
        """The plan as TOML."""
        plain: dict[str, Any] = {"format": FORMAT, **_without_none(asdict(self))}
        plain["not_established"] = {"items": list(self.not_established)}
        phases = plain.pop("phase")
        # One table a phase, where the writer would put short ones on a line each.
        text = "\n".join(f"[[phase]]\n{tomli_w.dumps(each)}" for each in phases)
        rest = tomli_w.dumps({key: value for key, value in plain.items() if value not in ({}, [], ())})
        return f"{rest}\n{text}" if text else rest

    @classmethod
    def read(cls, path: str | Path) -> "Plan":
        """Read a plan.

        Args:
            path: The file.

        Returns:
            The plan.

        Raises:
            BadInput: There is no such file, it is not TOML, or a value breaks a rule. UnknownName: a key is not known.
        """
        path = Path(path)
        if not path.is_file():
            raise BadInput(f"plan: there is no file {str(path)!r}. `dynaxx map TASK` writes one.")
        try:
            plain = tomllib.loads(path.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadInput(f"plan {str(path)!r} is not TOML: {error}.") from None
        return cls.from_dict(plain)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Plan":
        """The plan from the tables of its TOML.

        Args:
            plain: What `tomllib` gives.

        Returns:
            The plan.

        Raises:
            BadInput: The format is another, or a value is of the wrong kind. UnknownName: a key is not known.
        """
        rest = dict(plain)
        if rest.pop("format", None) != FORMAT:
            raise BadInput(f"plan: format must be {FORMAT}. Got {plain.get('format')!r}.")
        unknown = rest.get("not_established", {})
        if not isinstance(unknown, Mapping) or set(unknown) - {"items"}:
            raise BadInput("plan: [not_established] holds items, a list of sentences, and nothing else.")
        rest["not_established"] = unknown.get("items", [])
        return _read(cls, rest, "plan")


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(part) for key, part in value.items() if part is not None}
    return [_without_none(part) for part in value] if isinstance(value, list | tuple) else value


def _read(hint: Any, value: Any, where: str) -> Any:
    """A value of that type from plain data; every unknown key and every value of another kind is named."""
    if is_dataclass(hint):
        return _read_table(hint, value, where)
    inner = [part for part in get_args(hint) if part is not type(None)]
    if get_origin(hint) in (Union, UnionType):
        return _read(inner[0], value, where)
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise BadInput(f"{where} must be a list. Got {value!r}.")
        return tuple(_read(inner[0], part, f"{where}[{i}]") for i, part in enumerate(value))
    if get_origin(hint) is Mapping:
        return {key: _read(inner[1], part, f"{where}.{key}") for key, part in _table(value, where).items()}
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise BadInput(f"{where} must be of type {hint.__name__}. Got {value!r}.")
    return value


def _read_table(kind: Any, value: Any, where: str) -> Any:
    table, hints = _table(value, where), get_type_hints(kind)
    for key in table:
        if key not in hints:
            raise UnknownName(f"key of [{where}]", key, hints)
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    for key in needed:
        if key not in table:
            raise BadInput(f"{where}: {key} is missing.")
    return kind(**{key: _read(hints[key], part, f"{where}.{key}") for key, part in table.items()})


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadInput(f"{where} must be a table. Got {value!r}.")
    return value
