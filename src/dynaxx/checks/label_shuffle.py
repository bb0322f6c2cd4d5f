"""Permutes the labels within batches: where the loss is no worse by it, labels say nothing about their inputs."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from dynaxx.checks._looking import labels, size, value
from dynaxx.core.batches import mapped
from dynaxx.core.navigation import Check, LivePoint
from dynaxx.core.records import Cost
from dynaxx.errors import NotApplicable
from dynaxx.numerics.sign_flip import sign_flip

LEVEL = 0.05
"""Chance of calling labels informative that are not: one-sided sign-flip test over the kept batches."""


class LabelShuffle(Check):
    """The mean loss of the kept batches, against that with each batch's labels permuted among its examples.

    A model that has learned anything from the labels loses by it. One that has not, early in training, does not
    either: read it together with how far the loss has fallen.
    """

    cost = Cost(forwards=16)

    def look(self, point: LivePoint) -> Mapping[str, Any]:
        """Look.

        Args:
            point: The live run.

        Returns:
            loss · shuffled, the mean with permuted labels · p, of a difference so large were they exchangeable ·
            informative, whether p is at most 0.05 · batches. Raises `NotApplicable` with fewer than five batches, which
            cannot reach that level, or where no part of a batch looks like labels.
        """
        both = [(batch, _permuted(batch)) for batch in point.batches]
        pairs = [(value(point, a, "evaluation"), value(point, b, "evaluation")) for a, b in both]
        pairs = [(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
        if len(pairs) < 5:
            raise NotApplicable(f"{len(pairs)} batches with a finite loss: at least 5 are needed to tell")
        differences = [b - a for a, b in pairs]
        p = sign_flip(differences)
        n = len(pairs)
        return {
            "loss": math.fsum(a for a, _ in pairs) / n,
            "shuffled": math.fsum(b for _, b in pairs) / n,
            "p": p,
            "informative": p <= LEVEL,
            "batches": n,
        }


def _permuted(batch: Any) -> Any:
    """A batch with its labels permuted among the examples, by a permutation of their number alone."""
    n, (_, wanted) = size(batch), labels(batch)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    return mapped(batch, lambda t: t[order.to(t.device)] if t is wanted else t)
