"""How often each signal is measured, so that all together keep to the overhead budget."""

import math
from collections.abc import Mapping

CALIBRATION = 100
"""Steps measured in full before cadences are set, once and for good."""
SETTLED = 20
"""Steps left out of the calibration: allocators, caches and compilers settle in them."""
SLOWEST = 512
"""No signal is measured more rarely, whatever it costs: a run must not go blind."""


def cadences(costs: Mapping[str, float], fixed: float, step: float, budget: float) -> dict[str, int]:
    """The cadence of each signal: measured every k_i-th step, k_i a power of two.

    Minimising Σ k_i (the mean age of what is known) subject to Σ c_i / k_i ≤ room gives

        k_i = √c_i · Σ_j √c_j / room,   room = max(budget · step − fixed, ½ · budget · step),

    rounded up to a power of two, so that signals with common needs meet on common steps; at most `SLOWEST`. Half of the
    budget is theirs even where steps are so short that the fixed part alone exceeds it; the report says so then.

    Args:
        costs: Seconds of one measurement c_i, by signal, needs included.
        fixed: Seconds spent at every step in any case.
        step: Seconds of a step without measuring.
        budget: Share of the step time that measuring may take (0.02).

    Returns:
        Cadence in steps, by signal.

    Example:
        >>> cadences({"a": 0.004, "b": 0.001}, fixed=0.0, step=0.1, budget=0.02)
        {'a': 4, 'b': 2}
    """
    room = max(budget * step - fixed, budget * step / 2)
    if room <= 0:
        return dict.fromkeys(costs, SLOWEST)
    total = sum(math.sqrt(c) for c in costs.values())
    return {name: _power(math.sqrt(c) * total / room) for name, c in costs.items()}


def _power(k: float) -> int:
    return min(SLOWEST, 1 << max(0, math.ceil(math.log2(max(k, 1.0)))))
