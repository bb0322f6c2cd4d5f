"""Takes the loss of each example of a batch alone, and names the rows whose loss is extreme."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

import torch

from dynaxx.checks._looking import chosen, objective, size
from dynaxx.core.batches import split
from dynaxx.core.navigation import Check, LivePoint
from dynaxx.core.records import Cost
from dynaxx.errors import NotApplicable

EXAMPLES = 256
"""Examples that are looked at, at most."""
FAR = 6.0
"""Robust standard deviations above the median that make a row extreme: the 6 of OLMo's skip rule (2024), by median and
MAD, which a few extreme rows do not move. Of normal losses 1e-9 lie above."""
HEAVY = 4.0
"""Times the batch's mean loss that an extreme row loses besides: losses of a model that has learned are skewed over
decades, and most lie far above their median. Of exponential losses 2 % are so heavy."""
NAMED = 8
"""Rows that are named."""


class ExampleLosses(Check):
    """Row by row in evaluation mode, since batch statistics would make one row's loss that of all.

    A loss that adds something to the mean over the examples (a penalty) adds it to every row.

    Args:
        step: Which step's batch; None: the last one's.
    """

    cost = Cost(forwards=EXAMPLES)

    def __init__(self, step: int | None = None) -> None:
        self.step = step

    def look(self, point: LivePoint) -> Mapping[str, Any]:
        """Look.

        Args:
            point: The live run.

        Returns:
            median · highest · rows, the extreme ones, worst first · losses, theirs, None where not finite ·
            outlier_share, the share of extreme rows · share_of_loss, how much of the batch's loss they hold · examples.
        """
        batch = chosen(point, self.step)
        size(batch)
        rows = split(batch, 1)[:EXAMPLES]
        looked = objective(point, rows, "evaluation")
        with torch.no_grad(), looked.prepared():
            losses = [float(looked.loss(i)) / looked.shares[i] for i in range(len(rows))]
        finite = [loss for loss in losses if math.isfinite(loss)]
        if not finite:
            raise NotApplicable("no example's loss is finite; non_finite_origin says where that comes from")
        middle = statistics.median(finite)
        spread = 1.4826 * statistics.median(abs(loss - middle) for loss in finite)  # of a normal distribution, σ
        limit = max(middle + FAR * spread, HEAVY * math.fsum(finite) / len(finite))
        worst = sorted(range(len(losses)), key=lambda i: (math.isfinite(losses[i]), -losses[i]))
        extreme = [i for i in worst if not math.isfinite(losses[i]) or losses[i] > limit]
        total = math.fsum(finite)
        held = math.fsum(losses[i] for i in extreme if math.isfinite(losses[i]))
        return {
            "median": middle,
            "highest": max(finite),
            "rows": extreme[:NAMED],
            "losses": [losses[i] if math.isfinite(losses[i]) else None for i in extreme[:NAMED]],
            "outlier_share": len(extreme) / len(losses),
            "share_of_loss": held / total if total > 0 else None,
            "examples": len(losses),
        }
