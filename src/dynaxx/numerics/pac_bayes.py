"""PAC-Bayes bounds on the error of a network with Gaussian noise on its weights, and what they assume.

The setting of both: the loss lies in [0, 1], such as the 0–1 error; m examples are drawn independently; the prior P is
fixed before they are seen. With probability 1 − δ over the examples the bound holds for all posteriors Q at once.
"""

import math

from dynaxx.errors import BadInput


def gaussian_divergence(distance: float, sigma: float) -> float:
    """KL(N(w, σ²I) ‖ N(w₀, σ²I)) = ‖w − w₀‖²/(2σ²).

    Args:
        distance: ‖w − w₀‖, in units of the weights.
        sigma: Standard deviation of both, in units of the weights.

    Returns:
        Nats.

    Example:
        >>> gaussian_divergence(3.0, 0.5)
        18.0
    """
    return distance**2 / (2 * sigma**2)


def mcallester(error: float, divergence: float, examples: float, delta: float) -> float:
    """L(Q) ≤ L̂(Q) + √((KL + ln(1/δ) + ln m + 2)/(2m − 1)) (McAllester 2003).

    Args:
        error: L̂(Q), the mean loss of Q on the examples, in [0, 1].
        divergence: KL(Q ‖ P), in nats.
        examples: m.
        delta: δ, the probability with which the bound may fail.

    Returns:
        The bound; above 1 it says nothing.

    Example:
        >>> round(mcallester(0.1, 10.0, 1000.0, 0.05), 5)
        0.20468
    """
    _check("mcallester", error, divergence, examples, delta)
    return error + math.sqrt((divergence + math.log(examples / delta) + 2) / (2 * examples - 1))


def maurer(error: float, divergence: float, examples: float, delta: float) -> float:
    """The largest L with kl(L̂(Q) ‖ L) ≤ (KL + ln(2√m/δ))/m (Maurer 2004, m ≥ 8); the tightest of this family.

    Args:
        error: L̂(Q), the mean loss of Q on the examples, in [0, 1].
        divergence: KL(Q ‖ P), in nats.
        examples: m.
        delta: δ, the probability with which the bound may fail.

    Returns:
        The bound, at most 1.

    Example:
        >>> round(maurer(0.1, 10.0, 1000.0, 0.05), 5)
        0.16448
    """
    _check("maurer", error, divergence, examples, delta)
    return inverse_kl(error, (divergence + math.log(2 * math.sqrt(examples) / delta)) / examples)


def inverse_kl(mean: float, budget: float) -> float:
    """The largest p ≥ q with kl(q ‖ p) = q ln(q/p) + (1−q) ln((1−q)/(1−p)) ≤ c, by bisection.

    It also bounds the expectation of values in [0, 1] by the mean of N independent ones: with probability 1 − δ it is
    at most that of c = ln(1/δ)/N (Chernoff's bound; Langford and Caruana 2001).

    Args:
        mean: q, in [0, 1].
        budget: c ≥ 0, in nats.

    Returns:
        p, in [q, 1].

    Example:
        >>> round(inverse_kl(0.0, 0.5), 6)  # 1 − exp(−c)
        0.393469
    """
    low, high = mean, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _binary_kl(mean, middle) <= budget else (low, middle)
    return high


def _binary_kl(q: float, p: float) -> float:
    if p >= 1.0:
        return 0.0 if q == 1.0 else math.inf
    if p <= 0.0:
        return 0.0 if q == 0.0 else math.inf
    first = 0.0 if q == 0.0 else q * math.log(q / p)
    return first + (0.0 if q == 1.0 else (1 - q) * math.log((1 - q) / (1 - p)))


def _check(call: str, error: float, divergence: float, examples: float, delta: float) -> None:
    if not 0 <= error <= 1:
        raise BadInput(f"{call}(error=...) needs a loss in [0, 1], such as the 0–1 error. Got {error:g}.")
    if not (divergence >= 0 and examples >= 8 and 0 < delta < 1):
        raise BadInput(
            f"{call}(divergence, examples, delta) needs a divergence of 0 or more, at least 8 examples and a "
            f"probability between 0 and 1. Got {divergence:g}, {examples:g} and {delta:g}."
        )
