"""Who looks at a recorded run: the contract of observers, Dynaxx's own and the peers' rules alike."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dynaxx.core.findings import Log


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """An observer speaks up.

    Args:
        step: When it would have, live.
        rule: What fired.
        code: The detector's code, where it has one.
    """

    step: int
    rule: str
    code: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What an observer made of a run.

    Args:
        alarms: In order.
        causes: Those it names, most likely first; keys of `CAUSES`.
        missing: Rules that could not look: name → reason.
    """

    alarms: tuple[Alarm, ...] = ()
    causes: tuple[str, ...] = ()
    missing: Mapping[str, str]


class Observer(ABC):
    """Reads a log, in order, and does not act."""

    about: ClassVar[str]
    """Whose rules these are, and which version."""

    @abstractmethod
    def observe(self, log: Log) -> Observation:
        """Look at a run.

        Args:
            log: Its log.

        Returns:
            The alarms it would have raised, and the causes it would have named.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Fired:
    """Where a rule fires.

    Args:
        steps: Steps at which it was asked, rising.
        mask: Whether it fired there.
        cause: The cause that its name states, or "".
    """

    steps: np.ndarray
    mask: np.ndarray
    cause: str = ""


class Rules(Observer):
    """An observer made of rules; an alarm is a rule that fires and did not the last time it was asked."""

    @abstractmethod
    def fired(self, log: Log) -> Mapping[str, Fired | str]:
        """Ask all rules.

        Args:
            log: The log.

        Returns:
            Rule → where it fires, or why it cannot tell.
        """

    def observe(self, log: Log) -> Observation:
        """The alarms at their first steps; causes in the order in which they were first named."""
        found = self.fired(log)
        alarms = [
            Alarm(step=int(step), rule=rule)
            for rule, at in found.items()
            if isinstance(at, Fired)
            for step in at.steps[at.mask & ~np.concatenate(([False], at.mask[:-1]))]
        ]
        alarms.sort(key=lambda alarm: alarm.step)
        causes = [at.cause for a in alarms if isinstance(at := found[a.rule], Fired) and at.cause]
        missing = {rule: why for rule, why in found.items() if isinstance(why, str)}
        return Observation(alarms=tuple(alarms), causes=tuple(dict.fromkeys(causes)), missing=missing)
