"""Weights of checkpoints in an average: by score, by age, and those that stand for a decay of the learning rate."""

import math
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

Decay = Callable[[float], float]
"""A factor of the learning rate over u, the share of the decay that has passed: from 1 at u = 0 to 0, never rising."""

DECAYS: Mapping[str, Decay] = {
    "linear": lambda u: 1 - u,
    "cosine": lambda u: (1 + math.cos(math.pi * u)) / 2,
    "1-sqrt": lambda u: 1 - math.sqrt(u),
}
"""Decays by name; "1-sqrt" is that of warm-up–stable–decay schedules (Hägele et al. 2024)."""


def exponential(scores: Float[np.ndarray, " n"], temperature: float) -> Float[np.ndarray, " n"]:
    """wⱼ ∝ exp(−scoreⱼ / T): the lower the score, the more it counts.

    Differences of scores well below T leave the average uniform; a small T leaves the best one alone.

    Args:
        scores: Finite, lower is better, in the unit of the loss.
        temperature: T > 0, in the same unit.

    Returns:
        Weights that sum to 1.

    Example:
        >>> exponential(np.array([0.0, math.log(3)]), 1.0).round(6).tolist()
        [0.75, 0.25]
    """
    found = np.exp(-(scores - scores.min()) / temperature)
    return found / found.sum()


def half_life(steps: Float[np.ndarray, " n"], half_life: float) -> Float[np.ndarray, " n"]:
    """The weights of an exponential moving average that saw the weights at these steps alone.

    aⱼ = aⱼ₋₁ + (1 − 2^(−Δⱼ/h))·(θⱼ − aⱼ₋₁) with Δⱼ = sⱼ − sⱼ₋₁ and a₁ = θ₁; so uneven gaps are allowed for.

    Args:
        steps: Increasing.
        half_life: h > 0, steps after which a checkpoint counts half.

    Returns:
        Weights that sum to 1.

    Example:
        >>> half_life(np.array([0.0, 10.0, 20.0]), 10.0).tolist()
        [0.25, 0.25, 0.5]
    """
    left = np.exp2(-(steps[-1] - steps) / half_life)  # of each once the last has entered
    entered = -np.expm1(-math.log(2) * np.diff(steps) / half_life)
    return left * np.concatenate([[1.0], entered])


def decayed(steps: Float[np.ndarray, " n"], decay: Decay) -> Float[np.ndarray, " n"]:
    """The weights with which checkpoints at a constant rate stand for a decay of the rate over the same steps.

    θ_k = θ₀ + Σ gᵢ with gᵢ what interval i added; a decay would scale gᵢ by wᵢ, and Σ wᵢ gᵢ is Σ cⱼ θⱼ with
    cⱼ = wⱼ − wⱼ₊₁ (Tian et al. 2025, "WSM"). Each checkpoint stands for the steps nearest to it, from edge eⱼ to eⱼ₊₁,
    so that cⱼ = D(eⱼ) − D(eⱼ₊₁), with D from 1 before the first to 0 behind the last. Evenly spaced checkpoints and a
    linear decay are the uniform average.

    Args:
        steps: Increasing, where there are several.
        decay: D.

    Returns:
        Weights that sum to 1.

    Example:
        >>> decayed(np.array([100.0, 200.0, 300.0, 400.0]), DECAYS["linear"]).tolist()
        [0.25, 0.25, 0.25, 0.25]
    """
    if len(steps) == 1:
        return np.ones(1)
    inner = (steps[1:] + steps[:-1]) / 2
    first, last = steps[0] - (inner[0] - steps[0]), steps[-1] + (steps[-1] - inner[-1])
    edges = (np.concatenate([[first], inner, [last]]) - first) / (last - first)
    return -np.diff([decay(float(u)) for u in edges])
