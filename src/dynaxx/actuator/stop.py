"""End the run after the current step."""

from dynaxx.core.contracts import Actuation
from dynaxx.core.events import StepView


class Stop(Actuation):
    """`run.batches` ends and `run.stopping` says why; the step in progress is completed."""

    of_gradient = False

    def __str__(self) -> str:
        return "the run ends after this step"

    def before(self, step: StepView) -> None:
        """Nothing changes within the step."""
        del step

    @property
    def stops(self) -> bool:
        """Always."""
        return True
