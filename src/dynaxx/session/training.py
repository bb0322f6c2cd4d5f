"""What is being trained: model, optimizer and all that steers them, with its ranks; taken and put back as one."""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from dynaxx.checkpoints import ResumeLevel, capture, restore
from dynaxx.core.parameters import Layout

T = TypeVar("T")


class Training:
    """The registered parts of a training.

    All ranks of an initialised process group are taken to train one model, whether it is wrapped or the loop wraps it
    elsewhere: rank 0 writes the log.

    Args:
        model: The watched model.
        layout: Its parameters.
        optimizer: The innermost optimizer.
        scheduler: The scheduler, or None.
        scaler: The gradient scaler, or None.
        extra: What else belongs to the state, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        optimizer: Optimizer,
        scheduler: Any,
        scaler: Any,
        extra: Mapping[str, Any],
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.level: ResumeLevel = "exact"
        self.reasons: tuple[str, ...] = ()
        self.scheduler = scheduler
        self.scaler = scaler
        self._parts: dict[str, Any] = {"scheduler": scheduler, "scaler": scaler, "extra": extra}
        self.sharded = layout.sharded
        self.distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.rank = dist.get_rank() if self.distributed else 0
        self.world_size = dist.get_world_size() if self.distributed else 1

    def capture(self) -> dict[str, Any]:
        """The full state; under data parallelism a collective that gathers every rank's random streams."""
        state = capture(self.model, self.optimizer, **self._parts)
        if self.distributed:
            streams: list[Any] = [None] * self.world_size
            dist.all_gather_object(streams, state["random"])
            state["random"] = {rank: stream for part in streams for rank, stream in part.items()}
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put a state back; `level` and `reasons` then say how exact the continuation is.

        Args:
            state: What `capture` returned.
        """
        self.level, self.reasons = restore(state, self.model, self.optimizer, **self._parts)

    def agree(self, plan: T) -> T:
        """Rank 0's plan on every rank; signals of sharded parameters are collectives and must meet.

        Of replicas rank 0 measures alone, so there is nothing to agree on, and a rank that stops early hangs nobody.

        Args:
            plan: This rank's.

        Returns:
            Rank 0's.
        """
        return self.from_first(plan) if self.sharded else plan

    def from_first(self, value: T) -> T:
        """Rank 0's value on every rank: a collective.

        Args:
            value: This rank's, plain data.

        Returns:
            Rank 0's.
        """
        if not self.distributed:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu") if dist.get_backend() == "gloo" else None)
        return box[0]
