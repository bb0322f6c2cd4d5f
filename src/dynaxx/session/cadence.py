"""How often each signal is measured and the log diagnosed, so that all together keep to the overhead budget."""

import math
from collections.abc import Collection, Mapping

CALIBRATION = 100
"""Steps measured in full before cadences are set, once and for good."""
SETTLED = 20
"""Steps left out of the calibration: allocators, caches and compilers settle in them."""
SLOWEST = 512
"""No signal is measured more rarely, whatever it costs: a run must not go blind. Dear ones are."""
PRICING = 32
"""Cadence of dear signals before cadences are set: the second and the third measurement, which start from the one
before, tell the price; the cheaper of them, as one that was disturbed (2.5 times as dear beside two other trainings)
would make them rare for the rest of the run."""
_UNBOUNDED = 1 << 40


def room(fixed: float, step: float, budget: float) -> float:
    """Seconds per step that are left for what need not be done at every step: max(b·t − f, ¼·b·t).

    Args:
        fixed: Seconds spent at every step in any case, f.
        step: Seconds of a step without measuring, t.
        budget: Share of the step time that measuring may take, b.

    Returns:
        Seconds; a quarter of the budget at least, so that a run whose steps are short does not go blind.

    Example:
        >>> round(room(0.3, 10.0, 0.02), 6), room(0.3, 1.0, 0.02)
        (0.05, 0.005)
    """
    return max(budget * step - fixed, budget * step / 4)


def cadences(
    costs: Mapping[str, float], fixed: float, step: float, budget: float, dear: Collection[str] = ()
) -> dict[str, int]:
    """The cadence of each signal: measured every k_i-th step, k_i a power of two.

    Minimising Σ k_i (the mean age of what is known) subject to Σ c_i / k_i ≤ room gives

        k_i = √c_i · Σ_j √c_j / room(fixed, step, budget),

    rounded up to a power of two, so that signals with common needs meet on common steps; at most `SLOWEST`. The
    fixed part counts first. Where it leaves less than a quarter of the budget, as in steps of a few milliseconds, a
    quarter is theirs all the same, so that the total is at most fixed + ¼ · budget · step: with 4 % fixed and a budget
    of 2 %, 4.5 %. The report says then that it is above the budget.

    Dear signals, whose prices are those of forwards and backwards, would make all others rare under that rule. They
    have a room of their own: half of it, and what the others leave of the rest. They have no slowest cadence, and what
    rounding up leaves of their room, up to half of it, halves the cadences that gain most by it.

    Args:
        costs: Seconds of one measurement c_i, by signal, needs included.
        fixed: Seconds spent at every step in any case.
        step: Seconds of a step without measuring.
        budget: Share of the step time that measuring may take (0.02).
        dear: Names of the dear signals among them.

    Returns:
        Cadence in steps, by signal.

    Example:
        >>> cadences({"a": 0.004, "b": 0.001}, fixed=0.0, step=0.1, budget=0.02)
        {'a': 4, 'b': 2}
    """
    left = room(fixed, step, budget)
    cheap = {name: cost for name, cost in costs.items() if name not in dear}
    rest = {name: cost for name, cost in costs.items() if name in dear}
    plan = _shared(cheap, left / 2 if rest else left, SLOWEST)
    if rest:
        spent = sum(cost / plan[name] for name, cost in cheap.items())
        theirs = max(left - spent, left / 2)
        plan |= _filled(_shared(rest, theirs, _UNBOUNDED), rest, theirs)
    return plan


def _shared(costs: Mapping[str, float], room: float, slowest: int) -> dict[str, int]:
    if room <= 0:
        return dict.fromkeys(costs, slowest)
    total = sum(math.sqrt(c) for c in costs.values())
    return {name: _power(math.sqrt(c) * total / room, slowest) for name, c in costs.items()}


def _filled(plan: dict[str, int], costs: Mapping[str, float], room: float) -> dict[str, int]:
    """Halve cadences while the room allows, that first which lowers Σ k_i most for its price: k_i/2 for c_i/k_i."""
    left = room - sum(cost / plan[name] for name, cost in costs.items())
    while fits := [name for name, cost in costs.items() if plan[name] > 1 and cost / plan[name] <= left]:
        best = max(fits, key=lambda name: plan[name] ** 2 / max(costs[name], 1e-12))
        left -= costs[best] / plan[best]
        plan[best] //= 2
    return plan


def _power(k: float, slowest: int) -> int:
    return min(slowest, 1 << max(0, math.ceil(math.log2(max(k, 1.0)))))
