"""When to save: densely while training is young, then at plateaus and for safety, within a share of the time.

1. early: 50 saves in the first 10 % of the training, where most is decided (spec C2).
2. plateau: the validation loss has not improved by a relative threshold over a stated number of steps.
3. safety: so much wall-clock time, or so many steps, have passed that losing them would cost more than a save.
4. last: the training is over.

Never only the best: nothing here looks at whether a checkpoint is good.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dynaxx.errors import BadInput

Reason = Literal["early", "plateau", "safety", "last"]
EARLY_SHARE, EARLY_SAVES = 0.1, 50
"""The first tenth of the training gets 50 saves (spec C2)."""
THRESHOLD = 1e-4
"""Relative improvement that counts: the default of torch's ReduceLROnPlateau (`threshold_mode="rel"`)."""
PATIENCE_SHARE = 0.04
"""Of the training, without improvement: two of the 50 evaluations that `run.due("evaluation")` grants; one may be
noise."""
GAP_SHARE = 0.05
"""Of the training, between saves at most: `run.due("checkpoint")` grants 20. A rollback loses no more."""
UNKNOWN_LENGTH = 100
"""Steps between saves where the planned number of steps is unknown, as for `run.due`."""
FAILURES = 24 * 3600.0
"""Mean seconds between interruptions. Llama 3 405B (2024): 466 in 54 days on 16 384 GPUs, hence one in 237 days on a
machine of eight; a shared or borrowed machine is taken away about once a day, which is assumed here."""
SHARE = 0.01
"""Share of the time that saving may take; the best found enforce 3.5 % (CheckFreq 2021)."""
UNTIMED = 600.0
"""Seconds between safety saves until one save was timed."""


class SavePolicy:
    """When a checkpoint is due. It decides from what it is given; only `saved` changes it.

    Let c be the seconds that a save holds up the training (the mean so far). Safety saves are due √(2·c·M) seconds
    after the last save, with M the mean time between interruptions, which minimises what is lost plus what is spent
    (Young 1974). Half of the permitted share goes to the early saves, which may spend it in advance where the length
    of the training can be foreseen; every other save waits 2·c/share seconds after the one before. So all saves but
    the last together take at most `share` of the training.

    Args:
        steps: Planned optimizer steps; None: unknown, and saves are due every 100 steps instead of at shares.
        early_saves: How many saves the first tenth gets; 0: none.
        threshold: Relative improvement of the validation loss that counts.
        patience: Steps without improvement that make a plateau; None: 4 % of the training.
        gap: Steps between saves at most, as far as the share permits; None: 5 % of the training.
        failures: Mean seconds between interruptions.
        share: Share of the time that saving may take.

    Raises:
        BadInput: An argument is out of its range.

    Example:
        >>> policy = SavePolicy(10_000)
        >>> policy.begin(now=0.0)
        >>> policy.due(20, now=2.0)
        'early'
        >>> policy.saved(20, now=2.0, seconds=0.01)
        >>> policy.due(30, now=3.0), policy.due(40, now=4.0)
        (None, 'early')
    """

    def __init__(
        self,
        steps: int | None,
        *,
        early_saves: int = EARLY_SAVES,
        threshold: float = THRESHOLD,
        patience: int | None = None,
        gap: int | None = None,
        failures: float = FAILURES,
        share: float = SHARE,
    ) -> None:
        rules = {
            "steps": (steps, steps is None or steps >= 1, "at least 1, or None"),
            "early_saves": (early_saves, early_saves >= 0, "at least 0"),
            "threshold": (threshold, 0 <= threshold < 1, "at least 0 and below 1"),
            "patience": (patience, patience is None or patience >= 1, "at least 1, or None"),
            "gap": (gap, gap is None or gap >= 1, "at least 1, or None"),
            "failures": (failures, failures > 0, "above 0 seconds"),
            "share": (share, 0 < share < 1, "between 0 and 1"),
        }
        for name, (value, right, rule) in rules.items():
            if not right:
                raise BadInput(f"SavePolicy({name}=...) must be {rule}. Got {value!r}.")
        self.steps, self.threshold, self.failures, self.share = steps, threshold, failures, share
        self.patience = patience or _portion(steps, PATIENCE_SHARE)
        self.gap = gap or _portion(steps, GAP_SHARE)
        self.dense = 0 if steps is None or early_saves == 0 else math.floor(EARLY_SHARE * steps)
        self.every = max(1, math.ceil(self.dense / max(1, early_saves)))
        self._step, self._when = 0, 0.0  # of the last save
        self._seconds, self._early, self._count = 0.0, 0.0, 0  # spent in all, of that on early saves, on how many
        self._began: float | None = None
        self._before = 0.0  # seconds of training in earlier processes

    @property
    def cost(self) -> float:
        """Mean seconds that a save has held up the training; 0 before the first."""
        return self._seconds / self._count if self._count else 0.0

    def due(self, step: int, now: float, validation: Sequence[tuple[int, float]] = ()) -> Reason | None:
        """Whether to save now; nothing changes. Under several ranks the first decides and tells the others.

        Args:
            step: Completed optimizer steps.
            now: Seconds on a clock that only goes forward, such as `time.monotonic`.
            validation: Step and validation loss of the evaluations so far, in order.

        Returns:
            Why; None: not now.
        """
        if step <= self._step:
            return None
        if step == self.steps:
            return "last"
        elapsed = self._elapsed(now)
        if step <= self.dense:
            return "early" if step % self.every == 0 and self._affordable_early(step, elapsed) else None
        paused = elapsed - self._when
        if paused < 2 * self.cost / self.share:
            return None
        if step - self._step >= self.patience and self._plateau(step, validation):
            return "plateau"
        wait = math.sqrt(2 * self.cost * self.failures) if self._count else UNTIMED
        return "safety" if paused >= wait or step - self._step >= self.gap else None

    def begin(self, now: float) -> None:
        """Start the clock: the first step is about to be taken, or the first after a resumption.

        Args:
            now: Seconds on the clock of `due`.
        """
        self._began = now

    def saved(self, step: int, now: float, seconds: float) -> None:
        """Take note of a save, whoever asked for it.

        Args:
            step: Completed optimizer steps.
            now: Seconds on the clock of `due`, when training went on.
            seconds: For how many of them it had stood still.
        """
        self._step, self._when = step, self._elapsed(now)
        self._seconds += seconds
        self._early += seconds if step <= self.dense else 0.0
        self._count += 1

    def state_dict(self, now: float) -> dict[str, Any]:
        """What a resumed training must know.

        Args:
            now: Seconds on the clock of `due`.

        Returns:
            Plain numbers.
        """
        return {
            "step": self._step,
            "when": self._when,
            "seconds": self._seconds,
            "early": self._early,
            "count": self._count,
            "elapsed": self._elapsed(now),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; `begin` starts the clock again.

        Args:
            state: What `state_dict` returned.
        """
        self._step, self._when = int(state["step"]), float(state["when"])
        self._seconds, self._early, self._count = state["seconds"], state["early"], int(state["count"])
        self._before, self._began = float(state["elapsed"]), None

    def _elapsed(self, now: float) -> float:
        """Seconds of training, those of earlier processes included."""
        return self._before + (0.0 if self._began is None else now - self._began)

    def _affordable_early(self, step: int, elapsed: float) -> bool:
        assert self.steps is not None, "without a length there is no early phase"
        foreseen = (elapsed - self._seconds) * self.steps / step
        return self._early + self.cost <= self.share / 2 * foreseen

    def _plateau(self, step: int, validation: Sequence[tuple[int, float]]) -> bool:
        """Whether the best of the last `patience` steps is no better than the best before; a loss of NaN is no better.

        Without an evaluation in one of the two there is nothing to compare.
        """
        recent = [value for at, value in validation if at > step - self.patience]
        before = [value for at, value in validation if at <= step - self.patience and math.isfinite(value)]
        if not recent or not before:
            return False
        best = min(before)
        return not any(value < best - self.threshold * abs(best) for value in recent)


def _portion(steps: int | None, share: float) -> int:
    return UNKNOWN_LENGTH if steps is None else max(1, round(share * steps))
