"""Takes the loss of the same batches in training and in evaluation mode: the model may compute something else."""

import math
from collections.abc import Mapping
from typing import Any

from dynaxx.checks._looking import value
from dynaxx.core.navigation import Check, LivePoint
from dynaxx.core.records import Cost
from dynaxx.errors import NotApplicable

FAR = 1.5
"""Quotient beyond which the modes are said to differ: dropout of one half on small nets raises the training loss by
about that much; stale running statistics raise the other far beyond."""


class EvalTrainGap(Check):
    """A higher loss in evaluation mode points at running statistics, one in training mode at dropout and noise.

    The data are the same, batches just trained on, so they explain nothing.
    """

    cost = Cost(forwards=16)

    def look(self, point: LivePoint) -> Mapping[str, Any]:
        """Look.

        Args:
            point: The live run.

        Returns:
            train · eval, the mean losses over the kept batches · ratio, eval / train · differs, whether that is beyond
            1.5 either way · batches.
        """
        pairs = [(value(point, batch, "training"), value(point, batch, "evaluation")) for batch in point.batches]
        pairs = [(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
        if not pairs:
            raise NotApplicable("no batch has a finite loss in both modes")
        train, evaluation = (math.fsum(column) / len(pairs) for column in zip(*pairs, strict=True))
        ratio = evaluation / train if train > 0 else None
        differs = ratio is not None and not 1 / FAR <= ratio <= FAR
        return {"train": train, "eval": evaluation, "ratio": ratio, "differs": differs, "batches": len(pairs)}
