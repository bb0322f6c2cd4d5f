"""How heavy the tails of gradient noise are: a stable tail index, judged against Gaussian noise of equal covariance."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dynaxx.core.chart import Estimate
from dynaxx.errors import BadInput

By = Literal["vector", "coordinate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TailIndex:
    """A tail index and what Gaussian noise would have given.

    Args:
        alpha: The index: 2 for any finite variance, less for heavy tails. Estimates may exceed 2.
        null: Mean index of Gaussian noise of the same covariance and number, its standard deviation as error.
        p_value: Share of such Gaussian samples whose index is as small as the one found: small says heavy-tailed.
    """

    alpha: Estimate
    null: Estimate
    p_value: float


def tail_index(noise: Float[np.ndarray, "samples n"], *, by: By = "vector", block: int | None = None) -> Estimate:
    """The index α of symmetric α-stable noise (Mohammadi 2015, corollary 2.4).

    With K₂ blocks of K₁ samples X and Y_j the sum of block j,

        1/α = (mean_j log‖Y_j‖ − mean_i log‖X_i‖) / log K₁

    for vectors as wholes or, `by="coordinate"`, for each coordinate by itself, 1/α averaged over them. Scales cancel
    either way. Flattening all coordinates into one sample does not have that property: Gaussian noise of unequal
    scales then looks heavy-tailed.

    Args:
        noise: Deviations from the mean gradient, one in each row, shape (samples, n), exchangeable.
        by: What is a sample.
        block: K₁; None: the largest integer whose square is no more than the number of samples.

    Returns:
        α with its standard error from the spread over blocks.

    Raises:
        BadInput: There are fewer than 2 blocks of 2, or nothing but zeros.
    """
    _check(noise, block)
    inverse, error = _inverse(noise, by, _block(noise, block))
    return Estimate(value=1 / inverse, error=error / inverse**2, about="stable tail index")


def judged(
    noise: Float[np.ndarray, "samples n"],
    *,
    by: By = "vector",
    block: int | None = None,
    draws: int = 200,
    seed: int = 0,
) -> TailIndex:
    """A tail index with its Gaussian null: the same estimate on Gaussian samples of the sample's own covariance.

    So neither unequal scales nor few samples make Gaussian noise look heavy-tailed. `p_value` has a false-alarm rate
    of its own size.

    Args:
        noise: Shape (samples, n).
        by: What is a sample.
        block: K₁, as in `tail_index`.
        draws: Gaussian samples; the smallest p-value is 1 / (draws + 1).
        seed: Of the draws.

    Returns:
        The index, the null and the p-value.

    Raises:
        BadInput: As `tail_index`.
    """
    alpha = tail_index(noise, by=by, block=block)
    size, rng = _block(noise, block), np.random.default_rng(seed)
    factor = _factor(noise)
    centred = bool(np.linalg.norm(noise.mean(0)) < 1e-6 * np.sqrt(np.mean(np.square(noise)) * noise.shape[1]))
    null = np.empty(draws)
    for i in range(draws):
        sample = rng.standard_normal((noise.shape[0], factor.shape[0])) @ factor
        null[i] = 1 / _inverse(sample - sample.mean(0) if centred else sample, by, size)[0]
    return TailIndex(
        alpha=alpha,
        null=Estimate(value=float(null.mean()), error=float(null.std(ddof=1)), about="the same of Gaussian noise"),
        p_value=float((1 + np.sum(null <= alpha.value)) / (draws + 1)),
    )


def judged_pairs(
    gram: Float[Tensor, "samples samples"], *, draws: int = 200, seed: int = 0
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """The index of `judged` for whole vectors, by their inner products alone and on their device, without waiting.

    It is meant for differences of two gradients each, whose mean is not quite zero as weights move on: signs are drawn
    at random, as a common part would add up like a heavy tail, and noise is none the heavier for it. A scale that
    changes slowly cancels, as samples are compared with their neighbours. The price is 2 · draws · samples³ operations.

    Args:
        gram: Inner products of the samples in their order.
        draws: Gaussian samples; the smallest p-value is 1 / (draws + 1).
        seed: Of the signs and the draws.

    Returns:
        α, the mean of α over Gaussian noise of the sample's own covariance, and the share of it that is as small. NaN
        where a sample is zero or not finite.

    Raises:
        BadInput: There are fewer than 2 blocks of 2 samples.

    Example:
        >>> alpha, null, p = judged_pairs(torch.eye(16))
        >>> round(float(alpha), 6)
        2.0
    """
    samples = gram.shape[0]
    size = math.isqrt(samples)
    if size < 2:
        raise BadInput(f"judged_pairs(gram) needs at least 2 blocks of at least 2 samples. Got {samples} samples.")
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (samples,), generator=generator).mul_(2).sub_(1).to(gram)
    normal = torch.randn(draws, samples, samples, generator=generator).to(gram)

    def inverse(rows: Tensor) -> Tensor:
        """1/α of samples that are these mixtures of the given ones."""
        blocks = rows[..., : samples // size * size, :].unflatten(-2, (-1, size))
        one, many = ((part @ gram * part).sum(-1).log() / 2 for part in (blocks, blocks.sum(-2)))
        return (many - one.mean(-1)).mean(-1) / math.log(size)

    found, null = inverse(signs.diag()), inverse(normal)
    p_value = (((1 / null <= 1 / found).sum() + 1) / (draws + 1)).where(found.isfinite(), torch.nan)
    return (1 / found).where(found.isfinite(), torch.nan), (1 / null).mean(), p_value


def _check(noise: np.ndarray, block: int | None) -> None:
    size = _block(noise, block)
    if size < 2 or noise.shape[0] // size < 2:
        raise BadInput(
            f"tail_index(noise) needs at least 2 blocks of at least 2 samples. Got {noise.shape[0]} samples "
            f"and blocks of {size}."
        )
    if not np.isfinite(noise).all() or not noise.any():
        raise BadInput("tail_index(noise) needs finite samples that are not all zero. Leave out bad batches.")


def _block(noise: np.ndarray, block: int | None) -> int:
    return math.isqrt(noise.shape[0]) if block is None else block


def _inverse(noise: np.ndarray, by: By, size: int) -> tuple[float, float]:
    """1/α and its standard error."""
    blocks = noise[: noise.shape[0] // size * size].reshape(-1, size, noise.shape[1])
    sums = blocks.sum(1)
    if by == "vector":
        one, many = np.linalg.norm(blocks, axis=2)[..., None], np.linalg.norm(sums, axis=1)[:, None]
    else:
        one, many = np.abs(blocks), np.abs(sums)
    alive = (one > 0).all((0, 1)) & (many > 0).all(0)
    if not alive.any():
        raise BadInput("tail_index(noise): every coordinate is exactly zero somewhere. Take by='vector'.")
    logs = np.log(many[:, alive]) - np.log(one[:, :, alive]).mean(1)
    each = logs.mean(1) / math.log(size)
    return float(each.mean()), float(each.std(ddof=1) / math.sqrt(len(each)))


def _factor(noise: np.ndarray) -> np.ndarray:
    """F with FᵀF the sample's second moments, of as few rows as there are samples or coordinates."""
    samples, n = noise.shape
    if n >= samples:
        return noise / math.sqrt(samples)
    values, vectors = np.linalg.eigh(noise.T @ noise / samples)
    return np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
