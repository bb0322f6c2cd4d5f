"""How evidence becomes confidence: causes are weighed by likelihood ratios and ranked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from dynaxx.core.findings import Cause, Remedy

LEAST = 0.05
"""A cause below this confidence is not worth a reader's time."""
MOST = 0.97
"""No log makes a cause certain."""


@dataclass(slots=True)
class Suspect:
    """A cause while evidence is weighed, as odds.

    Observations are taken as independent given the cause (naive Bayes), so ratios are kept modest: 2 a hint, 4 a
    reason, 10 what hardly happens otherwise.

    Args:
        name: A key of `CAUSES`.
        prior: Confidence before any evidence.
        remedies: What would help if it is the cause, best first.

    Example:
        >>> suspect = Suspect("label_noise", 0.5).weigh(True, 4, "a third of the examples never fit")
        >>> suspect.confidence, suspect.why
        (0.8, ['a third of the examples never fit'])
    """

    name: str
    prior: float
    remedies: tuple[Remedy, ...] = ()
    odds: float = field(init=False)
    why: list[str] = field(init=False, default_factory=list[str])

    def __post_init__(self) -> None:
        self.odds = self.prior / (1 - self.prior)

    def weigh(self, holds: bool | None, ratio: float, why: str, *, against: float = 1.0) -> "Suspect":
        """Take in one observation.

        Args:
            holds: Whether it was observed; None: the log cannot tell, and nothing changes.
            ratio: How many times likelier it is under this cause than under others.
            why: The observation with its figures; kept where it speaks for the cause.
            against: What the odds are multiplied by where it was looked for and is not so.

        Returns:
            The suspect itself.
        """
        if holds is None:
            return self
        self.odds *= ratio if holds else against
        if holds and ratio > 1:
            self.why.append(why)
        return self

    @property
    def confidence(self) -> float:
        """Odds / (1 + odds), between 0 and `MOST`."""
        return min(MOST, self.odds / (1 + self.odds)) if math.isfinite(self.odds) else MOST


def suspect(name: str, prior: float, *ratios: float, why: str = "", remedies: Sequence[Remedy] = ()) -> Suspect:
    """A cause whose evidence is weighed at once.

    Args:
        name: A key of `CAUSES`.
        prior: Confidence before the evidence: how often the symptom has this cause.
        *ratios: Of each piece of evidence, how much likelier it is under the cause than without it; 1 where unknown.
        why: What was observed.
        remedies: What would help, best first.

    Returns:
        The suspect.

    Example:
        >>> suspect("label_noise", 0.5, 3.0).confidence
        0.75
    """
    made = Suspect(name, prior, tuple(remedies))
    made.odds *= math.prod(ratios)
    made.why.extend([why] if why else [])
    return made


def ranked(*suspects: Suspect | None) -> tuple[Cause, ...]:
    """The causes that remain, most likely first.

    Args:
        *suspects: Weighed ones, in any order; None is passed over.

    Returns:
        Those of at least `LEAST`; the likeliest one in any case.
    """
    order = sorted((s for s in suspects if s is not None), key=lambda s: -s.odds)
    return tuple(
        Cause(name=s.name, confidence=round(s.confidence, 3), why="; ".join(s.why), remedies=s.remedies)
        for place, s in enumerate(order)
        if place == 0 or s.confidence >= LEAST
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """One sign among several that are added up before anything is said.

    Args:
        weight: What it adds.
        text: What was seen, with its figure.
        column: Where.
        value: The figure.
        threshold: What it was compared with.
    """

    weight: float
    text: str
    column: str
    value: float
    threshold: float
