"""What a map may cost: a share of the planned training, split over its probes, counted while it runs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from dynaxx.core.records import Cost
from dynaxx.errors import BadInput, NotApplicable

FORWARD = 1 / 3
"""Price of a forward, in passes: a backward takes the time of two forwards, and a pass is one of each."""
BACKWARD = 2 / 3
PRODUCT = 2.0
"""Price of a curvature product, in passes: the double backward without a kept graph (with one, 1.2 to 1.7)."""
SHARE = 0.10
"""Of the planned training (the survey's specification, M12)."""
FLOOR = 300.0
"""Passes that a map of any training may take: below them the map of a short run would say nothing."""
SHARES: Mapping[str, float] = MappingProxyType({
    "lr_range": 0.10,
    "sensitivity": 0.40,
    "fleet": 0.25,
    "gradient_noise": 0.08,
    "spectrum": 0.10,
    "slices": 0.04,
    "connectivity": 0.03,
})  # fmt: skip
"""A first split by what a probe tells: a judgement, not a measurement. The learning rate decides most of what a plan
can win, so the two probes of it have half; the fleet's runs give paths and spread; noise and curvature say which batch
and which method; slices illustrate what the spectrum has said. What a probe leaves is free for the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The account of one probe, in passes.

    Args:
        granted: What it was told that it may take.
        spent: What it took.
        open: Whether it may still take what is left of its grant.
    """

    granted: float = 0.0
    spent: float = 0.0
    open: bool = True

    @property
    def held(self) -> float:
        """What nobody else may have: all of an open grant, and what was taken."""
        return max(self.granted, self.spent) if self.open else self.spent


class Budget:
    """Passes for a whole map. The unit is the training pass: a forward and a backward over one training batch.

    Args:
        passes: How many there are.

    Raises:
        BadInput: It is not positive and finite.

    Example:
        >>> budget = Budget(300)
        >>> budget.grant("sensitivity", 0.5)
        150.0
        >>> budget.spend("sensitivity", Cost(forwards=30, backwards=30))
        30.0
        >>> budget.close("sensitivity"), budget.left
        (120.0, 270.0)
    """

    def __init__(self, passes: float) -> None:
        if not (math.isfinite(passes) and passes > 0):
            raise BadInput(
                f"Budget(passes=...) must be positive and finite. Got {passes}. "
                "Leave it out for a tenth of the planned training, or give a share such as 10%."
            )
        self.passes = float(passes)
        self._entries: dict[str, Entry] = {}

    @classmethod
    def of_training(cls, steps: int, *, share: float = SHARE, accumulate: int = 1, floor: float = FLOOR) -> "Budget":
        """A share of a planned training, but no less than a floor.

        Args:
            steps: Planned optimizer steps.
            share: Of its passes, above 0.
            accumulate: Batches per optimizer step.
            floor: Least number of passes; 0: none.

        Returns:
            max(share · steps · accumulate, floor) passes.

        Raises:
            BadInput: A number is out of its range.

        Example:
            >>> Budget.of_training(10_000).passes, Budget.of_training(1000).passes
            (1000.0, 300.0)
        """
        if not (math.isfinite(share) and share > 0):
            raise BadInput(f"The budget of a map must be a share above 0 of the planned training. Got {share:g}.")
        if steps < 1 or accumulate < 1:
            raise BadInput(
                f"Budget.of_training(steps=..., accumulate=...) must be at least 1. Got {steps}, {accumulate}."
            )
        if not (math.isfinite(floor) and floor >= 0):
            raise BadInput(f"Budget.of_training(floor=...) must be at least 0 passes. Got {floor}.")
        return cls(max(share * steps * accumulate, floor))

    @property
    def spent(self) -> float:
        """Passes taken by all."""
        return math.fsum(entry.spent for entry in self._entries.values())

    @property
    def left(self) -> float:
        """Passes not taken yet; below 0 where a probe took more than there was."""
        return self.passes - self.spent

    @property
    def free(self) -> float:
        """Passes neither taken nor promised."""
        return self.passes - math.fsum(entry.held for entry in self._entries.values())

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The accounts, in the order in which they were opened."""
        return MappingProxyType(self._entries)

    def grant(self, name: str, share: float) -> float:
        """Promise a probe a share of the whole budget, as far as that is free.

        Args:
            name: The probe; a second grant adds to its first.
            share: Of the whole budget, in (0, 1].

        Returns:
            The passes that it may take in all.

        Raises:
            BadInput: The share is out of its range.
            NotApplicable: Nothing is free.
        """
        if not 0 < share <= 1:
            raise BadInput(f"Budget.grant({name!r}, share=...) must be in (0, 1]. Got {share}.")
        passes = min(share * self.passes, self.free)
        if passes <= 0:
            raise NotApplicable(
                f"{name}: nothing is left of the map's {self.passes:.0f} passes. Raise the budget, or leave probes out."
            )
        before = self._entries.get(name, Entry())
        held = before.granted if before.open else before.spent  # what a closed grant left has been free since
        self._entries[name] = Entry(granted=held + passes, spent=before.spent)
        return self._entries[name].granted

    def spend(self, name: str, cost: Cost, batches: float = 1.0) -> float:
        """Count what a probe took; more than its grant is counted too, and shown.

        Args:
            name: The probe.
            cost: What it took.
            batches: Training batches that a forward (backward, product) of the cost stands for: 1 for a fleet, the
                number of batches of the objective for a probe of a point.

        Returns:
            The passes it took, in this call.

        Raises:
            BadInput: There are fewer than 0 batches.
        """
        taken = passes(cost, batches)
        entry = self._entries.get(name, Entry())
        self._entries[name] = Entry(granted=entry.granted, spent=entry.spent + taken, open=entry.open)
        return taken

    def close(self, name: str) -> float:
        """A probe is done: what it leaves is free again.

        Args:
            name: The probe.

        Returns:
            What it leaves, at least 0.
        """
        entry = self._entries.get(name, Entry())
        self._entries[name] = Entry(granted=entry.granted, spent=entry.spent, open=False)
        return max(0.0, entry.granted - entry.spent)

    def summary(self) -> str:
        """The accounts as lines, with the unit."""
        share = self.spent / self.passes
        lines = [
            f"budget: {self.spent:.0f} of {self.passes:.0f} passes spent ({share:.0%}); "
            "a pass is a forward and a backward over one training batch"
        ]
        width = max(map(len, self._entries), default=0)
        for name, entry in self._entries.items():
            over = "  over its grant" if entry.spent > entry.granted * (1 + 1e-9) else ""
            lines.append(f"  {name:<{width}}  {entry.spent:6.0f} of {entry.granted:.0f}{over}")
        return "\n".join(lines)

    __str__ = summary


def passes(cost: Cost, batches: float = 1.0) -> float:
    """A cost in training passes: (forwards / 3 + 2 · backwards / 3 + 2 · products) · batches.

    Args:
        cost: Forwards, backwards and products.
        batches: Training batches that each of them stands for.

    Returns:
        Training passes.

    Raises:
        BadInput: There are fewer than 0 batches.

    Example:
        >>> passes(Cost(forwards=3)), passes(Cost(forwards=1, backwards=1), batches=4), passes(Cost(products=1))
        (1.0, 4.0, 2.0)
    """
    if batches < 0:
        raise BadInput(f"passes(batches=...) must be at least 0. Got {batches}.")
    return (FORWARD * cost.forwards + BACKWARD * cost.backwards + PRODUCT * cost.products) * batches
