"""Who acts on a run: nobody, Dynaxx's navigator, and the two baselines that any navigator must beat."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, ClassVar

from dynaxx.core.navigation import Mode
from dynaxx.core.task import derive_seed
from dynaxx.errors import UnknownName
from dynaxx.session import Run


class Policy(ABC):
    """What is done to a run while it trains.

    Args:
        seed: Of what it draws.
        steps: Planned steps.
    """

    mode: ClassVar[Mode] = "off"
    """How `dynaxx.watch` navigates; off where it does not act: observers replay the log afterwards."""
    saves: ClassVar[bool] = False
    """Whether it needs checkpoints on the way."""

    def __init__(self, seed: int, steps: int) -> None:
        self.random, self.steps = Random(derive_seed(seed, "policy")), steps

    @abstractmethod
    def act(self, run: Run, validation: float | None) -> None:
        """Called after every step.

        Args:
            run: The run.
            validation: The validation loss where this step was evaluated.
        """


class Nothing(Policy):
    """Leaves the run alone."""

    def act(self, run: Run, validation: float | None) -> None:
        """Nothing."""


class Navigator(Policy):
    """Dynaxx itself: `watch(..., navigate="act")`."""

    mode = "act"
    saves = True

    def act(self, run: Run, validation: float | None) -> None:
        """Nothing here: the run acts by itself."""


class Halve(Policy):
    """Halves the rate when the validation loss has not improved by 1e-4 for more than three evaluations.

    That is `ReduceLROnPlateau(factor=0.5, patience=3)`.
    """

    def __init__(self, seed: int, steps: int) -> None:
        super().__init__(seed, steps)
        self._best, self._bad, self._factor = float("inf"), 0, 1.0

    def act(self, run: Run, validation: float | None) -> None:
        """Compare, count, halve."""
        if validation is None:
            return
        if validation < self._best * (1 - 1e-4):
            self._best, self._bad = validation, 0
            return
        self._bad += 1
        if self._bad > 3:
            self._bad, self._factor = 0, self._factor / 2
            run.apply("learning_rate", factor=self._factor, reason="baseline: halve")


class Chance(Policy):
    """Acts three times at random moments, at random: an independent study found random repair hard to beat."""

    ACTIONS: ClassVar[tuple[tuple[str, str, float], ...]] = (
        ("learning_rate", "factor", 0.5),
        ("learning_rate", "factor", 0.1),
        ("learning_rate", "factor", 3.0),
        ("gradient_clip", "max_norm", 1.0),
        ("gradient_clip", "max_norm", 0.1),
    )

    def __init__(self, seed: int, steps: int) -> None:
        super().__init__(seed, steps)
        self._moments = {self.random.randint(1, steps) for _ in range(3)}

    def act(self, run: Run, validation: float | None) -> None:
        """Draw."""
        if run.step in self._moments:
            self._moments.discard(run.step)
            name, argument, value = self.random.choice(self.ACTIONS)
            given: dict[str, Any] = {argument: value}
            run.apply(name, reason="baseline: chance", **given)


POLICIES: Mapping[str, Callable[[int, int], Policy]] = {
    "nothing": Nothing,
    "navigator": Navigator,
    "halve": Halve,
    "chance": Chance,
}
"""Policies by name."""


def policy(name: str, seed: int, steps: int) -> Policy:
    """A policy.

    Args:
        name: Its name.
        seed: Of what it draws.
        steps: Planned steps.

    Returns:
        The policy. Raises `UnknownName` where there is none.
    """
    if name not in POLICIES:
        raise UnknownName("policy", name, POLICIES)
    return POLICIES[name](seed, steps)
