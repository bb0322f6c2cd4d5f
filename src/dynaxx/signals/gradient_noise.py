"""Gradient noise: how many examples a gradient must average over before its signal outweighs its noise."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dynaxx.core.batches import split
from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, Need, StepView
from dynaxx.core.objective import Objective
from dynaxx.core.parameters import Layout
from dynaxx.core.records import Column, Cost, Measurement
from dynaxx.core.task import leading
from dynaxx.errors import NotApplicable
from dynaxx.numerics.gradient_noise import agreement, averaged, scale_of, unbiased
from dynaxx.numerics.reductions import accumulated_square
from dynaxx.numerics.space import Space

PARTS = 4
"""Parts that the probe batch is cut into; each is a forward and a backward, which small ones feel."""
MEMORY = 20
"""Measurements that the ratio's numerator and denominator are averaged over: a single ratio is biased and wild."""

Source = Literal["accumulation", "ranks", "probe batch"]
_DATA: dict[Source, str] = {
    "accumulation": "from the microbatches that the step accumulated",
    "ranks": "from this rank's gradient and the mean over the ranks",
    "probe batch": f"from the probe batch in {PARTS} parts",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    scale: Column
    error: Column
    trace: Column
    gradient: Column
    diversity: Column
    cosine: Column


def _columns(source: Source) -> _Columns:
    def column(suffix: str, about: str, unit: str = "1") -> Column:
        return Column(name=f"gradient_noise{suffix}", unit=unit, about=f"{about}, {_DATA[source]}")

    squared = "(loss/parameter)²"
    return _Columns(
        scale=column("", f"noise scale tr Σ / ‖G‖² over {MEMORY} measurements", "examples"),
        error=column(".error", "relative standard error of the noise scale"),
        trace=column(".trace", "trace of the covariance of one example's gradient", squared),
        gradient=column(".gradient", "squared norm of the mean gradient without the noise", squared),
        diversity=column(".diversity", "Σ‖gᵢ‖² / ‖Σ gᵢ‖² over the parts: 1 where they are orthogonal"),
        cosine=column(".cosine", "mean cosine between the gradients of the parts"),
    )


_ALL: dict[Source, _Columns] = {source: _columns(source) for source in _DATA}


class GradientNoise(Signal[dict[str, Any]]):
    """B_simple = tr Σ / ‖G‖² by the unbiased estimator from two batch sizes (McCandlish 2018), and what it is made of.

    Where steps accumulate, from the norms of the microbatches' gradients, at no further backward; the loop's loss must
    weigh them equally. Where ranks average their gradients (DistributedDataParallel), from that of this rank and the
    mean of all: nothing is communicated, as one rank's square is an unbiased, if noisier, estimate of all ranks'.
    Elsewhere from parts of the probe batch, at the price of one gradient on it.
    """

    at = Event.GRADS_READY
    needs = frozenset({Need.CURVATURE, Need.MICROBATCHES})
    cost = Cost(forwards=1.0, backwards=1.0)
    unit = "examples"

    def init(self, model: nn.Module, layout: Layout) -> dict[str, Any]:
        """Nothing to begin with."""
        del model, layout
        return {}

    def measure(self, state: dict[str, Any], step: StepView) -> tuple[dict[str, Any], Sequence[Measurement]]:
        """One pass over the gradients of the parts."""
        cosine: Tensor | None = None
        if step.microbatches is not None:
            source: Source = "accumulation"
            small, big, parts = *_accumulated(step.microbatches, step), len(step.microbatches)
            size = step.batch.samples // parts
        elif step.own_square is not None:
            source, parts, size = "ranks", step.world_size, step.batch.samples
            small, big = _over_ranks(step.own_square, step)
        else:
            source = "probe batch"
            found, parts, size = _probed(step.objective)
            small, big, cosine = found.mean_square, found.square_of_mean, found.cosine
        trace, gradient = unbiased(small, big, size, size * parts)
        same = state.get("source") == source
        means = averaged(state["means"] if same else None, trace, gradient, MEMORY)
        scale, error = scale_of(means)
        columns = _ALL[source]
        values = [
            Measurement(column=columns.scale, value=scale),
            Measurement(column=columns.error, value=error),
            Measurement(column=columns.trace, value=trace),
            Measurement(column=columns.gradient, value=gradient),
            Measurement(column=columns.diversity, value=small / big / parts),
        ]
        if cosine is not None:
            values.append(Measurement(column=columns.cosine, value=cosine))
        return {"source": source, "means": means}, values


def _accumulated(squares: list[Tensor], step: StepView) -> tuple[Tensor, Tensor]:
    """Mean ‖K·dᵢ‖² and ‖Σ dᵢ‖² of the K parts dᵢ that add up to the step's gradient."""
    return torch.stack(squares).mean() * len(squares) ** 2, accumulated_square(step)


def _over_ranks(own: Tensor, step: StepView) -> tuple[Tensor, Tensor]:
    """‖gᵣ‖² of this rank and ‖Σ gᵣ / R‖² of all."""
    whole = accumulated_square(step)
    if bool(own == whole):  # waits for the device, as dear signals may
        raise NotApplicable("this rank's gradient is that of all: ranks do not average, or train on the same data")
    return own, whole


def _probed(objective: Objective | None) -> tuple[Any, int, int]:
    """Agreement of the gradients of equal parts of the probe batch, their number and their size."""
    assert objective is not None, "the session shows an objective or microbatches"
    n = leading(objective.batches[0]) or 0
    parts = min(PARTS, n)
    if parts < 2:
        raise NotApplicable(
            "the probe batch has fewer than 2 examples along its leading dimension, so it cannot be cut into parts"
        )
    size = n // parts
    batches = split(objective.batches[0], size)[:parts]
    cut = Objective(objective.model, objective.loss_fn, batches, weight=lambda _: 1.0, mode=objective.mode)
    return agreement(_gradients(cut)), parts, size


def _gradients(objective: Objective) -> Iterator[Tensor]:
    """The gradient of each batch by itself, as a vector."""
    space = Space(objective.parameters, objective.names)
    with objective.prepared(), torch.enable_grad():
        for part, share in zip(objective.parts(), objective.shares, strict=True):
            yield space.flatten(torch.autograd.grad(part / share, objective.parameters, materialize_grads=True))
