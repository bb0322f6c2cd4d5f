"""Sets cadences and the interval of diagnosing once, by what the first steps cost, and tells what is seen."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dynaxx.session.cadence import room
from dynaxx.session.instruments import Instruments
from dynaxx.session.live import Live
from dynaxx.session.selftest import seen
from dynaxx.session.steering import Steering
from dynaxx.session.training import Training

_NO_STEP = "no step was seen: the watched optimizer's step() was never called, or every update was left out"


class Calibration:
    """The calibration of one run, and its self-test.

    Args:
        folder: The run's own, for the self-test's line.
        training: What is trained; its ranks agree on what is set.
        live: The loop as its hooks see it.
        instruments: The signals.
        steering: What diagnoses and acts.
        event: Writes an event at the present step.
        quiet: Do not print the self-test's line.
    """

    def __init__(
        self,
        folder: Path,
        training: Training,
        live: Live,
        instruments: Instruments,
        steering: Steering,
        event: Callable[..., None],
        *,
        quiet: bool,
    ) -> None:
        self.tested = False
        """Whether the self-test was made, in this process or before the checkpoint that it goes on from."""
        self._folder, self._training, self._live, self._instruments = folder, training, live, instruments
        self._steering, self._event, self._quiet = steering, event, quiet

    def make(self) -> None:
        """Set everything, for the rest of the run."""
        instruments = self._instruments
        bare, fixed = instruments.step_seconds()
        # Looks take half of what measuring at every step leaves of the budget, the cadences the rest.
        half = room(fixed, bare, instruments.budget) / 2
        self._steering.settle(bare, half)
        diagnosing = self._training.agree(self._steering.seconds_per_step)
        # What a run that acts looks beyond that half is not taken from what it looks at.
        plan = self._training.agree(instruments.plan(min(diagnosing, half)))
        instruments.settle(plan)
        price = instruments.price()
        expected = instruments.expected() + (diagnosing / bare if bare > 0 else 0.0)
        self._event(
            "calibration",
            signals=[{"name": i.name, "cadence": i.cadence, "seconds": price[i.name]} for i in instruments.instruments],
            step_seconds=bare,
            overhead=expected,
            budget=instruments.budget,
            navigator=self._steering.as_dict(),
        )
        self._live.reset_overhead()
        self.test(expected, diagnosing / bare if bare > 0 and self._steering.navigator is not None else None)

    def test(self, overhead: float, diagnosing: float | None = None) -> None:
        """Say what is seen and what is not.

        Args:
            overhead: Share of the step time that measuring and diagnosing take.
            diagnosing: The part of it that diagnosing takes; None: there is none, or it is not known.
        """
        self.tested = True
        if self._training.rank != 0:
            return
        if self._live.step == 0:
            self._event("self_test", layers=len(self._live.layout.layers), missing=[_NO_STEP])
            self._print(_NO_STEP)
            return
        report = seen(self._live, self._instruments, overhead)
        if diagnosing is not None and self._steering.navigator is not None:
            report = replace(report, diagnosing=diagnosing, interval=self._steering.navigator.interval)
        self._event("self_test", **report.as_dict())
        self._print(str(report))

    def _print(self, text: str) -> None:
        if not self._quiet:
            print(f"dynaxx: {text}; log in {self._folder}", file=sys.stderr)
