"""Looks at what the last batches hold: scale, constant columns, batches that repeat, labels and their counts."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from xxhash import xxh3_64_hexdigest

from dynaxx.checks._looking import labels, plain, tensors
from dynaxx.core.navigation import Check, LivePoint
from dynaxx.core.records import Cost
from dynaxx.errors import NotApplicable

COUNTED = 16
"""Label values that are counted, the most frequent ones."""


class InputStatistics(Check):
    """Of the first floating tensor of each kept batch, and of its labels where they are whole numbers."""

    cost = Cost()

    def look(self, point: LivePoint) -> Mapping[str, Any]:
        """Look.

        Args:
            point: The live run.

        Returns:
            batches, how many were looked at · repeated, how many of them are equal bit for bit to another one before ·
            mean, std, rms, largest, nonfinite (share) · constant, how many columns are the same in all examples ·
            columns · labels, value → count · sorted, how many batches hold a single label.
        """
        seen = [xxh3_64_hexdigest(_bytes(batch)) for batch in point.batches]
        found: dict[str, Any] = {"batches": len(seen), "repeated": len(seen) - len(set(seen))}
        inputs = [t for batch in point.batches for t in [_floating(batch)] if t is not None]
        if inputs and all(t.shape[1:] == inputs[0].shape[1:] for t in inputs):
            found |= _numbers(torch.cat([t.reshape(t.shape[0], -1) for t in inputs]).double())
        return {**found, **_labels(point)}


def _bytes(batch: Any) -> bytes:
    parts = (t.detach().cpu().contiguous().flatten().view(torch.uint8) for _, t in tensors(batch))
    return b"".join(part.numpy().tobytes() for part in parts)


def _floating(batch: Any) -> Tensor | None:
    return next((t.detach() for _, t in tensors(batch) if t.is_floating_point() and t.dim()), None)


def _numbers(rows: Tensor) -> dict[str, Any]:
    """Of rows of shape (examples, columns), in float64."""
    finite = torch.isfinite(rows)
    values = rows[finite]
    spread = torch.where(finite, rows, torch.nan)
    constant = spread.shape[0] > 1 and int((spread == spread[:1]).all(0).sum())
    if not values.numel():
        return {"nonfinite": 1.0, "columns": rows.shape[1]}
    return {
        "mean": plain(values.mean()),
        "std": plain(values.std(correction=0)),
        "rms": plain(values.square().mean().sqrt()),
        "largest": plain(values.abs().amax()),
        "nonfinite": 1.0 - float(finite.double().mean()),
        "constant": int(constant),
        "columns": rows.shape[1],
    }


def _labels(point: LivePoint) -> dict[str, Any]:
    try:
        parts = [labels(batch)[1].detach().flatten().tolist() for batch in point.batches]
    except NotApplicable:
        return {}
    if any(isinstance(value, float) for part in parts for value in part):
        return {}
    counts = Counter(value for part in parts for value in part)
    alone = sum(len(set(part)) == 1 and len(part) > 1 for part in parts)
    return {"labels": {str(value): count for value, count in counts.most_common(COUNTED)}, "sorted": alone}
