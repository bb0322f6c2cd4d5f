"""Trains a copy of the model on one batch: where nothing can be learned even so, the wiring is wrong."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dynaxx.checks._looking import chosen, plain, size
from dynaxx.core.batches import split
from dynaxx.core.isolation import seed_streams
from dynaxx.core.navigation import Check, LivePoint
from dynaxx.core.records import Cost
from dynaxx.errors import NotApplicable

STEPS = 60
"""Steps at most. Karpathy's recipe (2019) overfits a handful of examples first of all; TheDeepChecker (2022) gives 16
examples 1000 steps from the start, which is too many beside a live run."""
EXAMPLES = 16
"""Examples, TheDeepChecker's number."""
SOLVED = 0.5
"""Share of the first loss below which the batch counts as being learned, within the steps."""
RATE = 3e-3
"""Adam's rate: three times its default, which suits layers of tens to thousands of units in 60 steps."""


class OverfitOneBatch(Check):
    """A copy of the model at the live weights, with an Adam of its own, on the first examples of one batch.

    In evaluation mode, so that dropout and batch statistics do not stand in the way. Where the loss does not fall even
    so, the fault is in the wiring (loss, labels, frozen or disconnected parameters), not in rates or data volume.

    Args:
        steps: Optimizer steps, at most 60.
        step: Which step's batch; None: the last one's.
    """

    cost = Cost(forwards=STEPS + 1, backwards=STEPS)

    def __init__(self, steps: int = STEPS, step: int | None = None) -> None:
        self.steps, self.step = max(1, min(STEPS, steps)), step

    def look(self, point: LivePoint) -> Mapping[str, Any]:
        """Look.

        Args:
            point: The live run.

        Returns:
            first · last, the losses before and after · share, their quotient · solved, whether it fell below half ·
            steps · moved, how many of the parameters that require a gradient got one.
        """
        batch = chosen(point, self.step)
        size(batch)
        batch = split(batch, EXAMPLES)[0]
        model = _copied(point.model)
        learning = [p for p in model.parameters() if p.requires_grad]
        if not learning:
            raise NotApplicable("no parameter requires a gradient")
        optimizer = torch.optim.Adam(learning, lr=RATE)
        losses: list[float] = []
        moved = 0
        with torch.enable_grad():
            for step in range(self.steps + 1):
                seed_streams(0)
                loss = point.loss(model, batch)
                losses.append(float(loss.detach()))
                if not math.isfinite(losses[-1]) or step == self.steps or not loss.requires_grad:
                    break
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                moved = max(moved, sum(p.grad is not None and bool(p.grad.any()) for p in learning))
                optimizer.step()
        first, last = losses[0], losses[-1]
        if not math.isfinite(first):
            raise NotApplicable("the loss is not finite at the live weights")
        share = last / first if first > 0 and math.isfinite(last) else None
        solved = last < SOLVED * first if first > 0 else last < first
        return {
            "first": first,
            "last": plain(last),
            "share": share,
            "solved": bool(solved and math.isfinite(last)),
            "steps": len(losses) - 1,
            "moved": moved,
        }


def _copied(model: nn.Module) -> nn.Module:
    try:
        copied = copy.deepcopy(model)
    except Exception as error:
        raise NotApplicable(f"the model cannot be copied: {error}") from error
    for parameter in copied.parameters():
        parameter.grad = None
    return copied.eval()
