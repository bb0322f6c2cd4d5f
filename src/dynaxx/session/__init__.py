"""Where the arrows are wired: a live loop's hooks, its signals, the log, the actuator and the checkpoints."""

from dynaxx.session.run import Run
from dynaxx.session.watch import watch

__all__ = ["Run", "watch"]
