"""What a diagnosis is made of: evidence, ranked causes, remedies; and the contract of the detectors that find it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from dynaxx.core.causes import CAUSES
from dynaxx.core.records import Action, Column
from dynaxx.errors import BadInput

Severity = Literal["note", "warning", "critical"]
"""note: worth knowing, nothing is wrong. warning: the outcome suffers. critical: the run is lost unless something is
done. Alarms are warnings and worse."""
SEVERITIES: tuple[Severity, ...] = ("note", "warning", "critical")
"""In rising order."""


class Series(Protocol):
    """One column of a log: `np.asarray(series)` are the numbers, of shape (steps,) or (steps, entries)."""

    steps: np.ndarray

    @property
    def column(self) -> Column:
        """Name, unit, axis."""
        ...

    @property
    def values(self) -> np.ndarray:
        """The numbers."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the entries; empty for one number a step."""
        ...


class Log(Protocol):
    """All that a detector sees: the log of a run, live, finished, clipped to some steps, or another tool's."""

    @property
    def columns(self) -> Mapping[str, Column]:
        """The stored columns by name."""
        ...

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What was known when the run began: model, layers, optimizer, planned steps, facts."""
        ...

    @property
    def steps(self) -> np.ndarray:
        """Every step that has a row, increasing."""
        ...

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Events in the order they were written; each has kind and step."""
        ...

    def __getitem__(self, name: str) -> Series: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A number that a detector decides by, with where it comes from.

    Args:
        value: The number.
        origin: The paper, tool or measurement that it comes from.
        false_alarms: What was measured on healthy runs at this value, in words and figures.
    """

    value: float
    origin: str
    false_alarms: str

    def __float__(self) -> float:
        return float(self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One observation that speaks for a finding or a cause.

    Args:
        text: The sentence, with the figures in it.
        columns: The columns that it was read from.
        steps: First and last step that it speaks of; None: all.
        value: The figure that was compared.
        threshold: What it was compared with.
    """

    text: str
    columns: tuple[str, ...] = ()
    steps: tuple[int, int] | None = None
    value: float | None = None
    threshold: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """Something that would help.

    Args:
        text: What to do, as an imperative sentence.
        action: The same for the actuator, where a run can do it to itself.
    """

    text: str
    action: Action | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Why it may be so.

    Args:
        name: A key of `CAUSES`.
        confidence: Between 0 and 1: how sure the evidence makes it, not a share of the causes.
        why: What in the evidence speaks for it.
        remedies: What would help if it is the cause, best first.
    """

    name: str
    confidence: float
    why: str = ""
    remedies: tuple[Remedy, ...] = ()

    def __post_init__(self) -> None:
        if self.name not in CAUSES:
            raise BadInput(f"Cause(name=...) must be a key of dynaxx.core.causes.CAUSES. Got {self.name!r}.")
        if not (math.isfinite(self.confidence) and 0 <= self.confidence <= 1):
            raise BadInput(f"Cause({self.name!r}, confidence=...) must be between 0 and 1. Got {self.confidence}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """The cheapest thing that would tell the first two causes apart.

    Args:
        text: What to do and how to read the result.
        check: The live check of `dynaxx.checks` that does it, by name; None: only a person can.
        arguments: What the check takes.
    """

    __test__: ClassVar[bool] = False  # no test class of pytest's

    text: str
    check: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a detector found.

    Args:
        code: The detector's code ("D6").
        name: The detector's file name ("loss_spike").
        title: The matter in a line, with the headline figure.
        severity: How bad it is.
        spans: First and last step of each stretch where it held, in order; the last is open if it reaches the log's
            last step.
        layers: The layers that it concerns, most affected first; empty: the whole model.
        evidence: What was seen, strongest first.
        causes: Most likely first.
        test: What would tell the first two causes apart.
    """

    code: str
    name: str
    title: str
    severity: Severity
    spans: tuple[tuple[int, int], ...]
    layers: tuple[str, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    causes: tuple[Cause, ...] = ()
    test: Test | None = None

    def __post_init__(self) -> None:
        if not self.spans or any(first > last for first, last in self.spans):
            raise BadInput(f"Finding({self.name!r}, spans=...) must hold (first, last) pairs. Got {self.spans}.")

    @property
    def onset(self) -> int:
        """The first step of the latest stretch."""
        return self.spans[-1][0]

    @property
    def last(self) -> int:
        """The last step at which it held."""
        return self.spans[-1][1]

    @property
    def alarms(self) -> bool:
        """Whether it is a warning or worse."""
        return self.severity != "note"

    def as_dict(self) -> dict[str, Any]:
        """The finding as plain data, for the log and for machines."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Finding":
        """Read what `as_dict` gave, also after a way through JSON.

        Args:
            data: The dictionary.

        Returns:
            The finding.
        """
        test = data.get("test")
        return cls(
            code=data["code"],
            name=data["name"],
            title=data["title"],
            severity=data["severity"],
            spans=tuple((int(first), int(last)) for first, last in data["spans"]),
            layers=tuple(data.get("layers", ())),
            evidence=tuple(_evidence(item) for item in data.get("evidence", ())),
            causes=tuple(_cause(item) for item in data.get("causes", ())),
            test=None if test is None else Test(**test),
        )


class Detector(ABC):
    """Finds one thing in a log, and in the log alone: live and years later alike.

    It is pure: one log, one answer. It draws no conclusion from columns that are absent: it raises `NotApplicable`
    with the reason. Its thresholds are module constants of type `Threshold`.
    """

    code: ClassVar[str]
    """Its number in the specification ("D6")."""
    title: ClassVar[str]
    """What it finds, in a few words."""
    reads: ClassVar[tuple[str, ...]]
    """Columns without which it cannot speak; "a|b": one of them suffices. The engine checks them before it asks."""

    @abstractmethod
    def detect(self, run: Log) -> Finding | None:
        """Look for it.

        Args:
            run: The log, to read.

        Returns:
            The finding over all steps of the log; None where there is nothing. Raises `NotApplicable`, with the reason,
            where the log cannot tell.
        """


def by_urgency(findings: Sequence[Finding]) -> list[Finding]:
    """Findings as a reader wants them: the worst first, then the earliest.

    Args:
        findings: In any order.

    Returns:
        Sorted ones.
    """
    return sorted(findings, key=lambda f: (-SEVERITIES.index(f.severity), f.spans[0][0], f.code))


def _evidence(data: Mapping[str, Any]) -> Evidence:
    steps = data.get("steps")
    return Evidence(
        text=data["text"],
        columns=tuple(data.get("columns", ())),
        steps=None if steps is None else (int(steps[0]), int(steps[1])),
        value=data.get("value"),
        threshold=data.get("threshold"),
    )


def _cause(data: Mapping[str, Any]) -> Cause:
    remedies = tuple(
        Remedy(text=r["text"], action=None if r.get("action") is None else Action(**r["action"]))
        for r in data.get("remedies", ())
    )
    return Cause(name=data["name"], confidence=data["confidence"], why=data.get("why", ""), remedies=remedies)
