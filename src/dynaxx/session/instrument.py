"""One signal at work in a run: its state, its cadence and what it has cost."""

from dataclasses import dataclass, field
from typing import Any

from dynaxx.core.contracts import Signal


@dataclass(slots=True)
class Instrument:
    """One signal at work.

    Args:
        name: Its file's name.
        signal: The signal.
        state: What its last call returned.
        cadence: Measured at every so many steps.
        seconds: Times of its measurements until the calibration.
        stream: Where its measurements go in the log: one stream per cadence.
        looks: Whether it looks into the forward.
        dear: Whether a measurement costs forwards and backwards.
        spoke: Whether a dear one has measured anything yet.
    """

    name: str
    signal: Signal[Any]
    state: Any
    cadence: int = 1
    seconds: list[float] = field(default_factory=list[float])
    stream: str = "every_1"
    looks: bool = False
    dear: bool = False
    spoke: bool = False
