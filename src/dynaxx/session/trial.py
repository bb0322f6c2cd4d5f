"""Branch trials: several remedies tried from one state on the same batches, judged by a paired test, and taken back."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from dynaxx.actuator import Actuator, RatesInForce
from dynaxx.core.events import StepView
from dynaxx.core.isolation import evaluation
from dynaxx.core.objective import LossFunction
from dynaxx.core.parameters import Layout
from dynaxx.core.records import Action
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.numerics.sign_flip import sign_flip
from dynaxx.session.hooks import Hooks
from dynaxx.session.training import Training

HELD = 8
"""Batches that arms are judged on: the sign-flip test over 8 pairs can reach p = 1/256, enough for 12 arms at 5 %."""
LEVEL = 0.05
"""Chance of preferring an arm that is no better, over all arms of a trial (Bonferroni)."""
SHARE = 0.2
"""Share of the run's batches that all its trials may take."""
NOTHING = "do nothing"
Steps = Callable[[Sequence[Any]], Iterable[Any]]
"""Trains on batches, one optimizer step per item."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """What one arm came to.

    Args:
        name: Of the arm.
        losses: On each held batch, after its steps.
        p: Chance of so large an advantage over doing nothing, were there none; 1 for doing nothing itself.
    """

    name: str
    losses: tuple[float, ...]
    p: float = 1.0

    @property
    def mean(self) -> float:
        """Over the held batches; infinite where one is not finite."""
        return math.fsum(self.losses) / len(self.losses) if all(map(math.isfinite, self.losses)) else math.inf


class _Silent:
    """Stands where the run listens to its hooks: actions act on a trial's steps, nothing is counted or measured."""

    def __init__(self, layout: Layout, optimizer: Optimizer, actuator: Actuator, step: int) -> None:
        self._layout, self._optimizer, self._actuator, self._step = layout, optimizer, actuator, step
        self._view = self._new()

    def forward_begins(self, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        del inputs, keywords

    def forward_ends(self, inputs: tuple[Any, ...], output: Any, *, failed: bool) -> None:
        del inputs, output, failed

    def backward_seen(self) -> None: ...

    def repeat_begins(self) -> None: ...

    def clipping(self, threshold: float, total: torch.Tensor | None) -> None:
        del threshold, total

    def step_begins(self, closure: Callable[[], Any] | None) -> Callable[[], Any] | None:
        self._view = self._new()
        with torch.no_grad():
            self._actuator.before(self._view)
            if closure is None:
                self._actuator.reshape(self._view)
        return closure

    def step_ends(self) -> None:
        with torch.no_grad():
            if not self._actuator.after(self._view):
                self._step += 1

    def step_left_out(self) -> None: ...

    def step_of_another(self, optimizer: Optimizer) -> None:
        del optimizer

    def _new(self) -> StepView:
        return StepView(step=self._step + 1, layout=self._layout, optimizer=self._optimizer)


class Trials:
    """Branch trials of one run, and what they have cost.

    Every arm starts from the present state and the present random streams, which are put back bit for bit after; the
    test says whether an arm is better on these batches after these few steps, not in the long run.

    Args:
        training: What is trained; one process, without a gradient scaler.
        layout: Its parameters.
        hooks: The run's hooks, silenced meanwhile.
        rates: The rates of the user's configuration, which act in every arm.
        loss: The loss that arms are judged by; None: there is none.
        steps: Planned optimizer steps, or None.
    """

    def __init__(
        self,
        training: Training,
        layout: Layout,
        hooks: Hooks,
        rates: RatesInForce | None,
        loss: LossFunction | None,
        steps: int | None,
    ) -> None:
        self._training, self._layout, self._hooks, self._rates = training, layout, hooks, rates
        self._loss, self._steps = loss, steps
        self.spent = 0.0
        """Batches passed forward and backward so far; a forward alone counts as a third of one."""
        self.train: Steps = self._plain
        """How the loop takes its steps; a Task's loop puts its own here."""
        self.acting: Actuator | None = None
        """The actuator of the arm that is being tried, by whose accumulation the loop goes; None between trials."""

    @property
    def why_not(self) -> str | None:
        """Why there can be no trial; None where there can."""
        if self._loss is None:
            return "no loss is known: give watch(..., loss=loss_fn)"
        if self._training.distributed or self._training.sharded:
            return "several ranks train together: a trial is of one process"
        if self._training.scaler is not None:
            return "a gradient scaler is in use, whose skipped steps a trial cannot take"
        return None

    def affordable(self, arms: int, steps: int, done: int, accumulate: int = 1) -> bool:
        """Whether a trial keeps within the share of the run that trials may take.

        Args:
            arms: How many, doing nothing included.
            steps: Optimizer steps of each.
            done: Completed optimizer steps, where the planned ones are unknown.
            accumulate: Batches per step.
        """
        return self.spent + arms * (steps * accumulate + HELD / 3) <= SHARE * (self._steps or done) * accumulate

    def compare(
        self,
        arms: Mapping[str, Sequence[Action]],
        batches: Sequence[Any],
        held: Sequence[Any],
        actions: Mapping[str, Any],
        step: int,
    ) -> tuple[str, list[Arm], float]:
        """Try every arm and doing nothing.

        Args:
            arms: Name → actions that are put into force beside those in force.
            batches: What every arm trains on, in order.
            held: What all are judged on.
            actions: The state of the run's actuator.
            step: Completed optimizer steps.

        Returns:
            The winner's name, all arms, and the seconds it took. The winner is the arm of the smallest mean loss among
            those that the test prefers to doing nothing; where there is none, doing nothing.

        Raises:
            NotApplicable: There can be no trial here.
            BadInput: An arm's action breaks its rule.
        """
        if self.why_not is not None:
            raise NotApplicable(f"a branch trial is not possible: {self.why_not}")
        start = time.perf_counter()
        names = [NOTHING, *(name for name in arms if name != NOTHING)]
        kept = copy.deepcopy(self._training.capture())
        level, reasons = self._training.level, self._training.reasons
        losses: dict[str, tuple[float, ...]] = {}
        try:
            for name in names:
                losses[name] = self._arm(arms.get(name, ()), batches, held, actions, step)
                self._put_back(kept)
        finally:
            self._put_back(kept)
            self._training.level, self._training.reasons = level, reasons
        self.spent += len(names) * (len(batches) + len(held) / 3)
        nothing = losses[NOTHING]
        tried = [Arm(name=n, losses=losses[n], p=1.0 if n == NOTHING else advantage(nothing, losses[n])) for n in names]
        better = [arm for arm in tried if arm.p <= LEVEL / max(1, len(names) - 1) and math.isfinite(arm.mean)]
        winner = min(better, key=lambda arm: arm.mean).name if better else NOTHING
        return winner, tried, time.perf_counter() - start

    def _arm(
        self,
        wanted: Sequence[Action],
        batches: Sequence[Any],
        held: Sequence[Any],
        actions: Mapping[str, Any],
        step: int,
    ) -> tuple[float, ...]:
        optimizer = self._training.optimizer
        actuator = Actuator(lambda _: None, self._layout, optimizer, self._rates)
        actuator.load_state_dict(copy.deepcopy(dict(actions)))
        for action in wanted:
            actuator.begin(action, step)
        self.acting = actuator
        try:
            with self._hooks.heard_by(_Silent(self._layout, optimizer, actuator, step)):
                for _ in self.train(batches):
                    pass
                return self._judged(held)
        finally:
            self.acting = None

    def _judged(self, held: Sequence[Any]) -> tuple[float, ...]:
        assert self._loss is not None
        with evaluation(self._training.model):
            return tuple(float(self._loss(self._training.model, batch)) for batch in held)

    def _put_back(self, kept: Mapping[str, Any]) -> None:
        self._training.restore(kept)
        for parameter in self._layout.parameters:
            parameter.grad = None

    def _plain(self, batches: Sequence[Any]) -> Iterable[Any]:
        """The steps of a plain loop: one batch each, no clipping of its own."""
        assert self._loss is not None
        for batch in batches:
            self._loss(self._training.model, batch).backward()
            self._training.optimizer.step()
            if self._training.scheduler is not None:
                self._training.scheduler.step()
            self._training.optimizer.zero_grad(set_to_none=True)
            yield


def advantage(nothing: Sequence[float], arm: Sequence[float]) -> float:
    """How likely so large a mean advantage is where signs are arbitrary: the exact one-sided sign-flip test.

    Args:
        nothing: Losses without the remedy, by batch.
        arm: Losses with it, on the same batches; at most 16.

    Returns:
        The share of all 2ⁿ sign patterns whose mean difference is at least that found; 1 where the arm's loss is not
        finite, 2⁻ⁿ where only the other one is not.

    Raises:
        BadInput: The numbers do not pair, or there are more than 16.

    Example:
        >>> advantage([3.0, 3.0, 3.0, 3.0], [1.0, 2.0, 2.5, 1.5])
        0.0625
    """
    n = len(arm)
    if len(nothing) != n or not 1 <= n <= 16:
        raise BadInput(f"advantage(nothing, arm) must pair 1 to 16 losses. Got {len(nothing)} and {n}.")
    if not all(map(math.isfinite, arm)):
        return 1.0
    if not all(map(math.isfinite, nothing)):
        return 0.5**n
    return sign_flip([a - b for a, b in zip(nothing, arm, strict=True)])
