"""What mini-batch gradients say of their noise: scales with intervals, normality, change from place to place."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr

from dynaxx.landscape._minibatches import Gradients
from dynaxx.numerics.gradient_noise import NoiseScale, noise_scale

PROJECTIONS = 32
"""Random directions of the test of normality: they share their samples, so that more tell little more."""
DRAWS = 120
"""Gaussian samples that a statistic is compared with: p-values down to 0.8 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Normality:
    """How far noise is from Gaussian noise of its covariance.

    Args:
        statistic: Anderson–Darling's A², its mean over random projections.
        null: The same of Gaussian noise.
        p_value: Share of Gaussian samples with a statistic as large.
    """

    statistic: float
    null: float
    p_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The noise at another point, from the same mini-batches.

    Args:
        ratio: tr Σ there over tr Σ here.
        error: Its standard error.
        z: The difference of the two traces over its standard error, mini-batch by mini-batch.
        alignment: Cosine between the two matrices of inner products of deviations: 1 where the noise is the same but
            for a rotation and a factor.
    """

    ratio: float
    error: float
    z: float
    alignment: float


def simple_scale(found: Gradients) -> NoiseScale:
    """B_simple = tr Σ / ‖G‖² with an interval by the jackknife over mini-batches of any sizes.

    With eᵢ = gᵢ − ḡ and N = Σ nᵢ, both of these are unbiased (McCandlish 2018, by analysis of variance):

        tr Σ = Σ nᵢ ‖eᵢ‖² / (k − 1),   ‖G‖² = ‖ḡ‖² − tr Σ / N

    Args:
        found: k gradients, at least 3.

    Returns:
        The scale in examples, with Fieller's interval from the pseudo-values.
    """
    sizes, k = found.sizes, len(found.sizes)
    total = float(sizes.sum())
    rows = found.rows.double().cpu().numpy()
    mean = sizes @ rows / total
    apart = rows - mean
    squares, along, level = np.square(apart).sum(1), apart @ mean, float(mean @ mean)
    trace = float(sizes @ squares) / (k - 1)
    gradient = level - trace / total
    share = sizes / (total - sizes)
    traces = (sizes @ squares - sizes * squares * (1 + share)) / (k - 2)
    gradients = level - 2 * share * along + share**2 * squares - traces / (total - sizes)
    return _scale(k * trace - (k - 1) * traces, k * gradient - (k - 1) * gradients)


def critical_scale(own: np.ndarray, along: np.ndarray, sizes: np.ndarray, total: float, k: int) -> NoiseScale:
    """B_crit = tr(HΣ) / GᵀHG (McCandlish 2018, equation 2.8) from the products with m of k mini-batch gradients.

    With ḡ₋ᵢ the mean of the other gradients, gᵢᵀHḡ₋ᵢ is unbiased for GᵀHG, and nᵢ(gᵢᵀHgᵢ − gᵢᵀHḡ₋ᵢ) for tr(HΣ).

    Args:
        own: gᵢᵀHgᵢ, shape (m,).
        along: gᵢᵀHḡ, shape (m,).
        sizes: nᵢ, shape (m,).
        total: Examples of all k mini-batches.
        k: How many mini-batches there are.

    Returns:
        The scale in examples, with Fieller's interval.
    """
    cross = (total * along - sizes * own) / (total - sizes)
    # The m values share ḡ, so their spread understates that of their mean: its variance is 1/m + 3/k, not 1/m.
    wide = np.sqrt(1 + 3 * len(own) / k)
    noise = sizes * (own - cross)
    return _scale(noise.mean() + wide * (noise - noise.mean()), cross.mean() + wide * (cross - cross.mean()))


def normality(noise: np.ndarray, seed: int) -> Normality:
    """Anderson–Darling's test along random directions, judged against Gaussian noise of the same covariance.

    One projection of Gaussian noise is normal whatever the covariance; the null says how several of one sample go
    together, so the p-value is right for any number of directions. Tails that are heavy in many independent coordinates
    average out along a random direction (Diaconis and Freedman 1984): it sees what whole gradients have in common.

    Args:
        noise: Centred, one in each row, shape (samples, n).
        seed: Of directions and Gaussian samples.

    Returns:
        The statistic and its p-value.
    """
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((noise.shape[1], PROJECTIONS))
    seen = _anderson_darling(noise @ directions)
    spread = noise @ directions / np.sqrt(len(noise))
    null = np.array([
        _anderson_darling(rng.standard_normal((len(noise), len(noise))) @ spread) for _ in range(DRAWS)
    ])  # fmt: skip
    p_value = float((1 + np.sum(null >= seen)) / (DRAWS + 1))
    return Normality(statistic=seen, null=float(null.mean()), p_value=p_value)


def change(here: Gradients, there: Gradients) -> Change:
    """Compare the noise of the same mini-batches at two points.

    Args:
        here: At the point.
        there: At the other.

    Returns:
        The comparison.
    """
    rows = [found.deviations() for found in (here, there)]
    own, other = (np.square(each).sum(1) for each in rows)
    ratio = float(other.sum() / own.sum())
    root = np.sqrt(len(own))
    grams = [each @ each.T for each in rows]
    alignment = float((grams[0] * grams[1]).sum() / np.prod([np.linalg.norm(gram) for gram in grams]))
    return Change(
        ratio=ratio,
        error=float((other - ratio * own).std(ddof=1) / own.mean() / root),
        z=float((other - own).mean() / ((other - own).std(ddof=1) / root)),
        alignment=alignment,
    )


def observed(found: Gradients) -> tuple[Sequence[float], Sequence[float]]:
    """Variance of the gradient of 1, 2, 4, … mini-batches taken together, for the comparison with tr Σ / B.

    Args:
        found: Gradients of k mini-batches.

    Returns:
        Examples in a group, and the mean squared distance of the group's gradient from the mean, unbiased.
    """
    rows, sizes = found.deviations(), found.sizes
    batches, variances = list[float](), list[float]()
    group = 1
    while len(rows) // group >= 4:
        count = len(rows) // group
        parts = rows[: count * group].reshape(count, group, -1).sum(1)  # √nᵢ eᵢ add up to √n of the group for equal nᵢ
        batch = float(sizes[: count * group].sum() / count)
        variances.append(float(np.square(parts).sum() / group / (count - 1)) / batch)
        batches.append(batch)
        group *= 2
    return batches, variances


def _scale(trace: np.ndarray, gradient: np.ndarray) -> NoiseScale:
    return noise_scale(gradient + trace, gradient + trace / 2, 1, 2)


def _anderson_darling(samples: np.ndarray) -> float:
    """A² of each column against a normal distribution of its own mean and variance, averaged."""
    n = len(samples)
    z = np.sort((samples - samples.mean(0)) / samples.std(0, ddof=1), axis=0)
    weights = (2 * np.arange(n) + 1)[:, None] / n
    return float(np.mean(-n - np.sum(weights * (log_ndtr(z) + log_ndtr(-z[::-1])), axis=0)))
