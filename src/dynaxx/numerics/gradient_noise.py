"""How noisy gradients are: noise scale from two batch sizes, agreement of gradients, cancellation between layers."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from dynaxx.core.chart import Estimate
from dynaxx.core.parameters import widest
from dynaxx.errors import BadInput

Number = TypeVar("Number", float, Tensor, np.ndarray)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseScale:
    """Gradient noise at a point.

    Args:
        trace: tr Σ, Σ the covariance of one example's gradient, in (loss/parameter)².
        gradient: ‖G‖², G the mean gradient, in the same unit.
        scale: B_simple = tr Σ / ‖G‖², in examples: below it a larger batch saves steps, above it hardly.
        low: Lower end of the confidence interval of `scale`.
        high: Upper end; infinite where ‖G‖² cannot be told from 0.
        confidence: Probability that the interval covers the truth.
    """

    trace: Estimate
    gradient: Estimate
    scale: float
    low: float
    high: float
    confidence: float


def unbiased(small: Number, big: Number, small_batch: int, big_batch: int) -> tuple[Number, Number]:
    """Solve E‖g_b‖² = ‖G‖² + tr Σ / b for both unknowns, from two batch sizes (McCandlish 2018, appendix A).

        tr Σ = (‖g_b‖² − ‖g_B‖²) / (1/b − 1/B),   ‖G‖² = (B‖g_B‖² − b‖g_b‖²) / (B − b)

    Both are unbiased; their ratio is not, so average them first.

    Args:
        small: ‖g_b‖², or its mean over several small batches.
        big: ‖g_B‖².
        small_batch: b, in examples.
        big_batch: B, in examples, more than b.

    Returns:
        tr Σ and ‖G‖²; single ones may be negative.

    Raises:
        BadInput: The batch sizes are not 0 < b < B.

    Example:
        >>> unbiased(3.0, 1.5, 1, 4)
        (2.0, 1.0)
    """
    if not 0 < small_batch < big_batch:
        raise BadInput(f"unbiased(small_batch=b, big_batch=B) needs 0 < b < B. Got {small_batch} and {big_batch}.")
    trace = (small - big) * (1 / (1 / small_batch - 1 / big_batch))
    gradient = (big * big_batch - small * small_batch) * (1 / (big_batch - small_batch))
    return trace, gradient


def noise_scale(
    small: Float[np.ndarray, " draws"],
    big: Float[np.ndarray, " draws"],
    small_batch: int,
    big_batch: int,
    *,
    confidence: float = 0.95,
) -> NoiseScale:
    """B_simple = tr Σ / ‖G‖² from independent pairs of squared norms: averaged first, divided after.

    The interval is Fieller's (1954): all ρ for which mean(tr Σ − ρ ‖G‖²) cannot be told from 0. It has the stated
    coverage where ‖G‖² is noisy too, and has no upper end where ‖G‖² itself cannot be told from 0.

    Args:
        small: ‖g_b‖² of each draw, shape (draws,); where several small batches make a draw, their mean.
        big: ‖g_B‖² of each draw, shape (draws,).
        small_batch: b, in examples.
        big_batch: B, in examples.
        confidence: Coverage of the interval.

    Returns:
        The estimates; with one draw the interval is [0, ∞).

    Raises:
        BadInput: There is no draw, their numbers differ, or the batch sizes are not 0 < b < B.
    """
    if not 0 < len(small) == len(big):
        raise BadInput(f"noise_scale(small, big) needs as many of both, at least 1. Got {len(small)} and {len(big)}.")
    trace, gradient = unbiased(small, big, small_batch, big_batch)
    draws = len(trace)
    mean_trace, mean_gradient = float(trace.mean()), float(gradient.mean())
    low, high = 0.0, math.inf
    errors: tuple[float | None, float | None] = (None, None)
    if draws > 1:
        covariance = np.cov(trace, gradient) / draws
        errors = math.sqrt(covariance[0, 0]), math.sqrt(covariance[1, 1])
        low, high = _fieller(mean_trace, mean_gradient, covariance, float(stats.t.ppf((1 + confidence) / 2, draws - 1)))
    unit = "(loss/parameter)²"
    return NoiseScale(
        trace=Estimate(
            value=mean_trace, error=errors[0], unit=unit, about="trace of one example's gradient covariance"
        ),
        gradient=Estimate(value=mean_gradient, error=errors[1], unit=unit, about="squared norm of the mean gradient"),
        scale=mean_trace / mean_gradient if mean_gradient > 0 else math.inf,
        low=low,
        high=high,
        confidence=confidence,
    )


def averaged(state: Mapping[str, Tensor] | None, trace: Tensor, gradient: Tensor, memory: int) -> dict[str, Tensor]:
    """Exponential means of tr Σ and ‖G‖², of their squares and their product, over a run's measurements.

    Args:
        state: What the last call returned; None at the first.
        trace: This measurement's tr Σ, a scalar.
        gradient: This measurement's ‖G‖², a scalar.
        memory: Measurements that the mean reaches back, more than 1; the first so many are averaged plainly.

    Returns:
        The next state: plain tensors, to be stored in checkpoints.
    """
    now = {"trace": trace, "gradient": gradient, "tt": trace**2, "gg": gradient**2, "tg": trace * gradient}
    now = {key: value.to(widest(value.device)) for key, value in now.items()}
    if state is None:
        return {**now, "count": torch.ones_like(now["trace"]), "share": torch.ones_like(now["trace"])}
    count = state["count"] + 1
    rate = (1 / count).clamp(min=1 / memory)
    share = (1 - rate) ** 2 * state["share"] + rate**2  # Σ of squared weights: 1 / the effective number
    return {key: torch.lerp(state[key], value, rate) for key, value in now.items()} | {"count": count, "share": share}


def scale_of(state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """B_simple of the averages, and its relative standard error by propagation of errors.

    Args:
        state: What `averaged` returned.

    Returns:
        The ratio of the means, in examples, infinite where that of ‖G‖² is not positive; its relative standard error,
        NaN after a single measurement.
    """
    trace, gradient, share = state["trace"], state["gradient"], state["share"]
    spread = (
        (state["tt"] - trace**2) / trace**2
        + (state["gg"] - gradient**2) / gradient**2
        - 2 * (state["tg"] - trace * gradient) / (trace * gradient)
    )
    # share / (1 − share) is 1/(n − 1) for n equal weights: the variance of a mean from the biased second moments.
    return (trace / gradient).where(gradient > 0, torch.inf), (spread.clamp(min=0) * share / (1 - share)).sqrt().where(
        share < 1, torch.nan
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What several gradients of one point have in common, as scalars.

    Args:
        mean_square: Mean of ‖gᵢ‖².
        square_of_mean: ‖mean of gᵢ‖².
        cosine: Mean cosine over all pairs.
        diversity: Σ‖gᵢ‖² / ‖Σ gᵢ‖² (Yin 2018): 1/k where all are equal, 1 where all are orthogonal.
    """

    mean_square: Tensor
    square_of_mean: Tensor
    cosine: Tensor
    diversity: Tensor


def agreement(gradients: Iterable[Float[Tensor, " n"]]) -> Agreement:
    """One pass over k gradients, of which two sums are kept however many there are.

    The mean cosine over pairs i ≠ j is (‖Σ gᵢ/‖gᵢ‖‖² − k) / (k(k − 1)).

    Args:
        gradients: At least two vectors of shape (n,), equally weighted.

    Returns:
        The agreement.

    Raises:
        BadInput: There are fewer than two.

    Example:
        >>> found = agreement([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])])
        >>> [round(abs(float(value)), 5) for value in (found.cosine, found.diversity, found.square_of_mean)]
        [0.0, 1.0, 0.5]
    """
    total = units = squares = None
    count = 0
    for gradient in gradients:
        norm = torch.linalg.vector_norm(gradient)
        unit = gradient / norm
        if total is None or units is None or squares is None:
            total, units, squares = gradient.clone(), unit, norm**2
        else:
            total, units, squares = total.add_(gradient), units.add_(unit), squares + norm**2
        count += 1
    if total is None or units is None or squares is None or count < 2:
        raise BadInput(f"agreement(gradients) needs at least two gradients. Got {count}.")
    square = torch.linalg.vector_norm(total) ** 2
    return Agreement(
        mean_square=squares / count,
        square_of_mean=square / count**2,
        cosine=(torch.linalg.vector_norm(units) ** 2 - count) / (count * (count - 1)),
        diversity=squares / square,
    )


def cancellation(changes: Float[Tensor, " parts"]) -> Tensor:
    """1 − |Σ cᵢ| / Σ |cᵢ| of the first-order loss changes cᵢ = ⟨∇ᵢL, Δθᵢ⟩ of the parts (layers) of an update.

    Args:
        changes: Shape (parts,), in units of the loss.

    Returns:
        A scalar: 0 where all parts pull the loss the same way, 1 where they undo each other; NaN where nothing changes.

    Example:
        >>> float(cancellation(torch.tensor([-3.0, 1.0])))
        0.5
    """
    return 1 - changes.sum().abs() / changes.abs().sum()


def _fieller(top: float, bottom: float, covariance: np.ndarray, quantile: float) -> tuple[float, float]:
    """The ρ with (top − ρ bottom)² ≤ q² Var(top − ρ bottom), a quadratic; the scale is not negative."""
    q2 = quantile**2
    a = bottom**2 - q2 * covariance[1, 1]
    b = top * bottom - q2 * covariance[0, 1]
    c = top**2 - q2 * covariance[0, 0]
    root = math.sqrt(max(0.0, b**2 - a * c))
    if a <= 0 or bottom <= 0:  # ‖G‖² may be 0
        ends = [float((b + s * root) / a) for s in (-1, 1)] if a < 0 else []
        above = [e for e in ends if e > 0]
        return (max(above) if above and c > 0 and bottom > 0 else 0.0), math.inf
    return max(0.0, float((b - root) / a)), max(0.0, float((b + root) / a))
