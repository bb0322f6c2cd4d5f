"""Splits a batch in two and compares the gradients of its halves, which tells how much of the gradient is noise."""

import math
from collections.abc import Mapping
from typing import Any

from dynaxx.checks._looking import chosen, dot, gradient, plain, size
from dynaxx.core.batches import split
from dynaxx.core.navigation import Check, LivePoint
from dynaxx.core.records import Cost
from dynaxx.numerics.gradient_noise import unbiased


class HalfBatchNoise(Check):
    """The noise scale tr Σ / ‖G‖² from half-batch gradients and their mean (McCandlish et al. 2018), and their cosine.

    Each from one batch alone: noisy, but it takes no more than the batch's own gradient. It is averaged over the kept
    batches that are asked for.

    Args:
        batches: How many of the last batches.
    """

    cost = Cost(forwards=8, backwards=8)

    def __init__(self, batches: int = 4) -> None:
        self.batches = max(1, min(8, batches))

    def look(self, point: LivePoint) -> Mapping[str, Any]:
        """Look.

        Args:
            point: The live run.

        Returns:
            trace, tr Σ · gradient, ‖G‖² · scale, their quotient in examples, None where ‖G‖² cannot be told from 0 ·
            cosine between the halves · batch, its examples · batches, how many were looked at.
        """
        traces, squares, cosines = list[float](), list[float](), list[float]()
        examples = 0
        for back in range(min(self.batches, len(point.batches))):
            batch = chosen(point, point.step - back)
            half = size(batch) // 2
            parts = split(batch, half)[:2]
            one, other = (gradient(point, part) for part in parts)
            product, first, second = dot(one, other), dot(one, one), dot(other, other)
            whole = (first + second + 2 * product) / 4
            trace, square = unbiased((first + second) / 2, whole, half, 2 * half)
            traces.append(trace)
            squares.append(square)
            if first > 0 and second > 0:
                cosines.append(product / math.sqrt(first * second))
            examples = 2 * half
        trace, square = (math.fsum(found) / len(found) for found in (traces, squares))
        return {
            "trace": plain(trace),
            "gradient": plain(square),
            "scale": plain(trace / square) if square > 0 else None,
            "cosine": math.fsum(cosines) / len(cosines) if cosines else None,
            "batch": examples,
            "batches": len(traces),
        }
