"""The running statistics of batch normalisation, computed anew for weights that no forward has seen."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from dynaxx.averaging._weights import norms
from dynaxx.core.isolation import evaluation
from dynaxx.core.task import leading
from dynaxx.errors import BadInput


def recompute_batch_norm(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any] | None = None
) -> None:
    """Replace running means and variances by their averages over batches: Σ nᵢ sᵢ / Σ nᵢ with sᵢ of the i-th batch.

    Everything else runs as in evaluation, dropout off, since that is what the statistics are for; modes, momenta and
    random streams are put back. A model without batch normalisation is left alone, and no batch is drawn. Under
    several ranks each computes from its own batches; give all of them the same.

    Args:
        model: The model, its weights in place: within `swapped()`.
        batches: What to compute from; some hundred examples a channel suffice.
        forward: `forward(model, batch)`; None: `model(batch)`, or `model(batch[0])` of a tuple or list.

    Raises:
        BadInput: There is no batch.

    Example:
        ```python
        with ema.swapped():
            recompute_batch_norm(model, train_batches)
            evaluate(model)
        ```

    Reference: Izmailov et al. 2018, section 3.2.
    """
    modules = [m for _, m in norms(model)]
    if not modules:
        return
    momenta = [m.momentum for m in modules]
    total = 0
    with evaluation(model):
        for m in modules:
            m.train()
        try:
            for batch in batches:
                size = leading(batch) or 1
                total += size
                for m in modules:
                    m.momentum = size / total  # 1 at the first batch: nothing of the old statistics stays
                (_forward if forward is None else forward)(model, batch)
        finally:
            for m, momentum in zip(modules, momenta, strict=True):
                m.momentum = momentum
    if total == 0:
        raise BadInput("recompute_batch_norm(batches=...): there is no batch. Give at least one.")


def _forward(model: nn.Module, batch: Any) -> torch.Tensor:
    return model(batch[0] if isinstance(batch, list | tuple) else batch)
