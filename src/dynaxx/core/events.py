"""The training loop with its events, and the read-only view of a step that signals are given.

```
run_start                                       watch(model, optimizer, dir)
for batch in run.batches(loader):
    batch_ready                                 the model's training forward begins
    loss = loss_fn(model, batch)
    loss.backward()                             (forward and backward several times: gradient accumulation)
    scaler.unscale_(optimizer)                  (mixed precision)
    grads_ready                                 just before clipping, or else just before the update:
    clip_grad_norm_(parameters, 1.0)            accumulated, unscaled, unclipped, reduced over ranks
    optimizer.step()                            the actuator acts at its beginning and undoes at its end
    step_end                                    step n is complete: n counts optimizer updates
    scheduler.step(); optimizer.zero_grad()
    run.log(loss=loss)                          belongs to step n until the next training forward
    if run.due("evaluation"):
        run.log(val_loss=evaluate(model))
        eval_end
run_end                                         run.close(), or the interpreter's exit
```

A loop that does not take its batches from the run has the same events: they come from the model's and the optimizer's
own hooks, not from the loop.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

import torch
from torch.optim import Optimizer

from dynaxx.core.objective import Objective
from dynaxx.core.parameters import Layout
from dynaxx.core.rates import NEUTRAL, RateFactors
from dynaxx.core.records import Cost

T = TypeVar("T")


class Event(StrEnum):
    """The points of a run at which something can be measured."""

    RUN_START = "run_start"
    BATCH_READY = "batch_ready"
    GRADS_READY = "grads_ready"
    STEP_END = "step_end"
    EVAL_END = "eval_end"
    RUN_END = "run_end"


class Need(StrEnum):
    """What the session must prepare before a signal can be measured."""

    UPDATE = "update"
    """A copy of the parameters from just before the update.

    Memory: one copy of the parameters. Price: `UPDATE_COST`, shared by all that need it.
    """
    FORWARD = "forward"
    """The signal's taps on the modules' outputs (`ForwardSignal`)."""
    CURVATURE = "curvature"
    """The mean loss on a fixed small batch at the current weights (`StepView.objective`).

    Such a signal may wait for the device. It is measured twice before the budget sets its cadence.
    """
    MICROBATCHES = "microbatches"
    """Squared norms of the gradients of an accumulation's microbatches (`StepView.microbatches`), or of this rank's own
    (`StepView.own_square`).

    Memory: one copy of the gradient. Price: 4 sweeps a microbatch.
    """


UPDATE_COST = Cost(sweeps=4.0)
"""Price of `Need.UPDATE`: the copy reads one sweep, its norm one, the difference two."""


@dataclass(slots=True)
class StepTimes:
    """Host seconds spent in the parts of one step; on an accelerator they are the times of launching.

    Args:
        data: From the end of the last step to the first training forward: loading, logging, evaluation excluded.
        forward: Within the model's training forwards.
        backward: From the end of a forward to the gradients being ready, loss and clipping included.
        optimizer: Within the optimizer's step.
        measuring: Within Dynaxx.
        total: From the end of the last step to the end of this one, `measuring` included, evaluation excluded.
    """

    data: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    optimizer: float = 0.0
    measuring: float = 0.0
    total: float = 0.0


@dataclass(slots=True)
class StepBatch:
    """What went through the model's training forwards of one step on this rank.

    Args:
        forwards: How many training forwards (accumulation).
        samples: Sum of the leading dimensions of their first tensor; 0 where there is none.
        tokens: Sum of batch times length where the first tensor holds integers of shape (batch, length); else 0.
        epoch: Passes over the data, with the done share of the current one, where batches come from `run.batches`.
        flops_per_sample: Operations of one training forward per sample; 0 where they were not counted.
        compute_dtype: The dtype of autocast during the forward, or that of the parameters.
        extent: Largest magnitude in the first tensor of the forwards, a scalar on its device, NaN where an entry is;
            None where that tensor holds no real numbers, or the action `skip` is not in force.
    """

    forwards: int = 0
    samples: int = 0
    tokens: int = 0
    epoch: float | None = None
    flops_per_sample: float = 0.0
    compute_dtype: torch.dtype = torch.float32
    extent: torch.Tensor | None = None


@dataclass(slots=True, kw_only=True)
class StepView:
    """One optimizer step, to read.

    Signals must leave every tensor in here as it is. Tensors of sharded parameters are this rank's shards.

    Args:
        step: Number of the update in progress (at `grads_ready`) or just completed (at `step_end`); the first is 1.
        layout: The model's parameters by layer.
        optimizer: The innermost `torch.optim.Optimizer`.
        gradient_factor: Multiply gradients by it to unscale them (a fused optimizer under a gradient scaler); None: 1.
        clip: Total gradient norm and threshold of the loop's own clipping in this step; None where it did not clip.
        skipped: How many updates have been left out so far (gradients not finite, or asked for), since the run began
            or was resumed.
        loss_scale: The gradient scaler's scale of this step, as a scalar tensor; None without a scaler.
        before: Parameters before the update, in the order of `layout.parameters`; None unless `Need.UPDATE` was met.
            At `step_end` the session has subtracted the parameters from them: read the difference by `undo`.
        times: Seconds by part of the step.
        batch: What went through the model.
        rates: What the actuator multiplied the learning rates of this step by.
        world_size: Ranks that train together.
        objective: The mean loss of the probe batch, at the current weights; None unless `Need.CURVATURE` was met.
        microbatches: ‖gᵢ‖² of each microbatch's part gᵢ of the gradient, which they sum up to; None unless
            `Need.MICROBATCHES` was met and the step accumulates over at least two batches of equal size.
        own_square: ‖gᵣ‖² of this rank's gradient before the ranks averaged it; None unless `Need.MICROBATCHES` was met
            and several ranks train together by one backward a step.
    """

    step: int
    layout: Layout
    optimizer: Optimizer
    gradient_factor: torch.Tensor | None = None
    clip: tuple[torch.Tensor, torch.Tensor | float] | None = None
    skipped: int = 0
    loss_scale: torch.Tensor | None = None
    before: list[torch.Tensor] | None = None
    times: StepTimes = field(default_factory=StepTimes)
    batch: StepBatch = field(default_factory=StepBatch)
    rates: RateFactors = NEUTRAL
    world_size: int = 1
    objective: Objective | None = None
    microbatches: list[torch.Tensor] | None = None
    own_square: torch.Tensor | None = None
    _memo: dict[str, Any] = field(default_factory=dict, repr=False)  # calling `dict[str, Any]` takes 2 µs

    @property
    def parameters(self) -> list[torch.Tensor]:
        """Every parameter once, this rank's shards, in the order of the layout."""
        return self.layout.local_parameters()

    @property
    def gradients(self) -> list[torch.Tensor | None]:
        """Gradient of every parameter, this rank's shards, as it stands now; None where there is none."""
        return self.layout.local_gradients()

    @property
    def undo(self) -> list[torch.Tensor]:
        """What would undo the update, before − after; only at `step_end` under `Need.UPDATE`."""
        assert self.before is not None, "the signal did not declare Need.UPDATE"
        return self.before

    def memo(self, key: str, compute: Callable[[], T]) -> T:
        """The value of `compute()`, computed once a step however many signals ask for it.

        Args:
            key: Its name within the step.
            compute: Makes the value on the first call.

        Returns:
            The value.
        """
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]
