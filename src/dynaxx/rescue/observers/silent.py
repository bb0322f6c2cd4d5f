"""Nobody: the observer that never speaks."""

from dynaxx.core.findings import Log
from dynaxx.rescue.observer import Observation, Observer


class Silent(Observer):
    """What doing nothing scores."""

    about = "no observer"

    def observe(self, log: Log) -> Observation:
        """Nothing."""
        return Observation(missing={})
