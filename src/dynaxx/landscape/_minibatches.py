"""Gradients of many mini-batches at one point, kept whole where they fit, else as sketches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynaxx.core.batches import mapped
from dynaxx.core.objective import Objective
from dynaxx.core.parameters import Layout
from dynaxx.core.progress import report
from dynaxx.core.task import derive_seed, leading
from dynaxx.errors import BadInput
from dynaxx.numerics.sketch import Sketch
from dynaxx.numerics.space import Space

KEPT_BYTES = 1 << 28
"""Memory that whole gradients may take, 256 MB; beyond it, each is kept as a sketch of 4096 numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniBatch:
    """A part of an objective's batches.

    Args:
        batch: The examples.
        size: How many examples (or tokens) it stands for.
        seed: Of random numbers in its forward.
        share: Of a whole batch of the objective, for what counts passes.
    """

    batch: Any
    size: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradients:
    """What is kept of the gradients of mini-batches at a point.

    Args:
        rows: One gradient, or its sketch, in each row, shape (k, n).
        sizes: Examples of each, shape (k,).
        mean: Their mean weighted by examples, whole, shape (parameters,).
        sketched: Whether the rows are sketches.
    """

    rows: Tensor
    sizes: np.ndarray
    mean: Tensor
    sketched: bool

    def deviations(self) -> np.ndarray:
        """√nᵢ (gᵢ − ḡ) in an orthonormal basis of their span, shape (k, k): of one covariance, that of an example."""
        sizes = torch.tensor(self.sizes, dtype=self.rows.dtype, device=self.rows.device)
        apart = (self.rows - sizes @ self.rows / sizes.sum()) * sizes.sqrt()[:, None]
        values, vectors = np.linalg.eigh((apart @ apart.T).double().cpu().numpy())
        return vectors * np.sqrt(np.maximum(values, 0.0))

    def gram(self) -> np.ndarray:
        """All ⟨gᵢ, gⱼ⟩ in float64, shape (k, k)."""
        return (self.rows @ self.rows.T).double().cpu().numpy()


def minibatches(objective: Objective, size: int) -> list[MiniBatch]:
    """The objective's batches, each split as evenly as it divides into parts of at least `size` entries.

    Args:
        objective: Whose batches.
        size: Entries along the leading dimension.

    Returns:
        The mini-batches, in order.
    """
    found: list[MiniBatch] = []
    for batch, share in zip(objective.batches, objective.shares, strict=True):
        n = leading(batch) or 1
        parts = max(1, n // size)
        for j in range(parts):
            start, end = j * n // parts, (j + 1) * n // parts
            part = batch if parts == 1 else _cut(batch, n, start, end)
            seed = derive_seed("minibatch", len(found), objective.ranks.rank)
            found.append(MiniBatch(batch=part, size=share * objective.weight * (end - start) / n, seed=seed))
    return [each for each in found if each.size > 0]


def gradients(objective: Objective, parts: Sequence[MiniBatch]) -> Gradients:
    """One pass over the mini-batches.

    Args:
        objective: The loss and the point.
        parts: Its mini-batches.

    Returns:
        Their gradients.

    Raises:
        BadInput: A gradient is not finite.
    """
    space = Space(objective.parameters, objective.names)
    sketched = len(parts) * space.n * 4 > KEPT_BYTES
    layout = Layout(nn.ParameterList(objective.parameters)) if sketched else None
    rows: list[Tensor] = []
    mean, total = torch.zeros(space.n, dtype=space.dtype, device=space.device), 0.0
    for found, part in zip(each_gradient(objective, parts), parts, strict=True):
        vector, total = space.flatten(found), total + part.size
        mean += (vector - mean) * (part.size / total)
        rows.append(vector if layout is None else Sketch()(found, layout))
    kept = torch.stack(rows)
    if not torch.isfinite(kept).all():
        objective.explain_not_finite()
    return Gradients(rows=kept, sizes=np.array([part.size for part in parts]), mean=mean, sketched=sketched)


def each_gradient(objective: Objective, parts: Sequence[MiniBatch]) -> Iterator[list[Tensor]]:
    """The gradient of each mini-batch's mean loss, one at a time.

    Args:
        objective: The loss and the point.
        parts: Mini-batches of it.

    Yields:
        One tensor per parameter.

    Raises:
        BadInput: The loss is not a scalar with a gradient.
    """
    per_batch = len(objective.batches) / objective.weight  # a pass over all examples counts as all batches
    with objective.prepared(), torch.enable_grad():
        for part in parts:
            torch.manual_seed(part.seed)
            report(passes=part.size * per_batch)
            loss = objective.loss_fn(objective.model, part.batch)
            if not isinstance(loss, Tensor) or loss.dim() != 0 or not loss.requires_grad:
                raise BadInput("loss_fn(model, batch) must return a scalar tensor with a gradient. Take its mean.")
            yield list(torch.autograd.grad(loss, objective.parameters, materialize_grads=True))


def _cut(batch: Any, n: int, start: int, end: int) -> Any:
    return mapped(batch, lambda t: t[start:end] if t.dim() and t.shape[0] == n else t)
