"""The loss that live curvature is of: the user's, on a small batch that stays the same for the whole run."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dynaxx.core.batches import mapped, split
from dynaxx.core.objective import LossFunction, Objective
from dynaxx.core.task import leading
from dynaxx.errors import NotApplicable

EXAMPLES = 128
"""Examples of the probe batch at most: a gradient on it is then cheaper than one of most training steps. Fewer would be
another loss: on the digits task, after 80 steps, λ₁ on 128 is 1.7 ± 0.4 times that on 512, on 64 2.3 ± 1.4 times, on 32
4.7 ± 0.9 times (4 batches each)."""
BYTES = 2**24
"""Its size at most, since it goes into every checkpoint: a resumed run must go on with the same one."""

_NO_LOSS = (
    "no loss is known: give watch(..., loss=loss_fn), where loss_fn(model, batch) returns the mean loss of a batch"
)
_NO_BATCH = "no batch is known: take batches from run.batches(loader), or give watch(..., probe_batch=batch)"
_SHARDED = (
    "parameters are split over ranks: live curvature is measured by one rank alone. "
    "Probe a checkpoint of the run instead (dynaxx probe)"
)


class ProbeLoss:
    """The loss of the probe batch as an `Objective`, each module in the mode in which it trains.

    Dropout draws the same numbers each time, batch normalisation takes the statistics of the batch. Random streams,
    buffers, modes and gradients are as before afterwards; what else the user's loss changes is not known.

    Args:
        model: The watched model, wrapped or bare.
        loss: `loss_fn(model, batch)` → mean loss; None: there is none.
        batch: The probe batch; None: the first one that is offered.
        sharded: Whether parameters are split over ranks.
        ranks: How many ranks train together; one measures.
    """

    def __init__(
        self, model: nn.Module, loss: LossFunction | None, batch: Any = None, *, sharded: bool = False, ranks: int = 1
    ) -> None:
        self._model = model
        self._loss = loss
        self._batch = None if batch is None else _cut(batch)
        self._offered = False
        self._unfit: str | None = None
        self._alone = ranks == 1
        self._sharded = sharded

    @property
    def reason(self) -> str | None:
        """Why nothing can be measured; None where something can."""
        if self._loss is None:
            return _NO_LOSS
        if self._sharded:
            return _SHARDED
        return None if self._batch is not None else self._unfit or _NO_BATCH

    @property
    def never(self) -> str | None:
        """The reason, where no batch that is offered later can change it."""
        return None if self.reason is _NO_BATCH else self.reason

    def offer(self, batch: Any) -> None:
        """The first batch of the training becomes the probe batch, a copy of its first examples.

        Args:
            batch: What the loop is about to train on.
        """
        if self.reason is not _NO_BATCH:
            return
        try:
            self._batch, self._offered = _cut(batch), True
        except (TypeError, ValueError, RuntimeError) as error:  # it must not stop the training
            kind = type(batch).__name__
            self._unfit = f"a {kind} batch cannot be copied ({error}): give watch(..., probe_batch=batch)"

    def objective(self) -> Objective | None:
        """The loss at the current weights, made anew: the loop may have frozen or replaced parameters.

        Returns:
            The objective; None where there is a `reason` for there being none.

        Raises:
            NotApplicable: The loss communicates between ranks.
        """
        if self.reason is not None or self._loss is None:
            return None
        objective = Objective(self._model, self._loss, [self._batch], weight=lambda _: 1.0, mode="as is")
        if not self._alone:
            with _Alone():
                objective.value()
            self._alone = True
        return objective

    def finite(self) -> bool:
        """Whether weights and loss are finite."""
        objective = self.objective()
        if objective is None or not all(bool(torch.isfinite(p).all()) for p in objective.parameters):
            return False
        return bool(torch.isfinite(torch.tensor(objective.value())))

    def state_dict(self) -> dict[str, Any]:
        """The batch, if it came out of the training and can be stored."""
        return {"batch": self._batch} if self._offered and _plain(self._batch) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the batch of the checkpoint, unless one was given.

        Args:
            state: What `state_dict` returned.
        """
        if self._batch is None and "batch" in state:
            self._batch, self._offered = state["batch"], True


class _Alone(TorchDispatchMode):
    """Refuses communication: one rank measures, and the others would never answer."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func.namespace in ("c10d", "_c10d_functional"):
            raise NotApplicable(
                f"the loss communicates between ranks ({func.__name__}), while one rank measures curvature alone. "
                "Give watch(..., loss=) a loss that does not (SyncBatchNorm does in training mode)"
            )
        return func(*args, **(kwargs or {}))


def _cut(batch: Any) -> Any:
    """A copy of the first examples."""
    n = leading(batch)
    if n is not None:
        held: list[int] = []
        mapped(batch, lambda t: (held.append(t.numel() * t.element_size()), t)[1])
        fitting = max(1, int(n * BYTES / max(1, sum(held))))
        batch = split(batch, min(EXAMPLES, fitting))[0]
    return mapped(batch, lambda t: t.detach().clone())


def _plain(value: Any) -> bool:
    """Whether a checkpoint can hold it and give back the same."""
    if isinstance(value, dict):
        held = cast(dict[Any, Any], value)
        return all(isinstance(key, str) and _plain(part) for key, part in held.items())
    if type(value) in (list, tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, torch.Tensor | bool | int | float | str)
