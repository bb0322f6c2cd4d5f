"""Evens out how fast layers turn, slowly and within 10 ×, once their update ratios have been found apart."""

import re
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from dynaxx.controllers._limits import LAYER_SPREAD
from dynaxx.controllers._past import waiting
from dynaxx.controllers._promise import unharmed
from dynaxx.controllers._reading import Vector, round_figure
from dynaxx.controllers._suspects import standing
from dynaxx.core.navigation import Controller, Proposal, Situation
from dynaxx.core.records import Action

Plain = dict[str, Any]
FINDINGS = frozenset({"update_mismatch"})
"""What says that layers turn at too different speeds."""
STRENGTH = 0.5
"""How far of the way to equal ratios: the half, as the meso scale of the schedules; equal ratios are LARS' (2017)."""
MOST_STEP = 1.5
"""Largest change of a factor in one act: the way to the bound √10 takes three, each judged."""
ROWS = 20
"""Rows of the update ratio that are averaged: twice what TheDeepChecker's rule takes."""
LEAST_CHANGE = 1.1
"""Changes of all factors below this are not worth an act."""


class LayerBalance(Controller[Plain]):
    """m_l ← m_l · (r̄ / r_l)^½ with r_l the layer's mean logarithmic update ratio, at most × 1.5 either way in one act.

    Factors keep within √10 either way of each other's geometric mean, which stays 1 by parameters, so that the model as
    a whole keeps its rate. Off until the update ratios are found apart; it promises an unharmed loss.
    """

    about: ClassVar[str] = "evens out the layers' update ratios within 10 ×"

    def init(self) -> Plain:
        """Nothing to remember: decisions and outcomes say it."""
        return {}

    def decide(self, state: Plain, situation: Situation) -> tuple[Plain, Sequence[Proposal]]:
        """One small step at a time."""
        finding = next((f for f in standing(situation) if f.name in FINDINGS), None)
        if finding is None or waiting(situation, "layer_balance") or "update_ratio" not in situation.run.columns:
            return state, ()
        factors = _factors(situation)
        promise = unharmed(situation)
        if not factors or promise is None:
            return state, ()
        low, high = min(factors.values()), max(factors.values())
        reason = f"{finding.title}: layers' rates between × {low:g} and × {high:g}"
        proposal = Proposal(
            controller="layer_balance",
            action=Action(name="layer_rates", arguments={"factors": factors}, reason=reason),
            finding=finding,
            cause=finding.causes[0].name if finding.causes else "",
            promise=promise,
            level=3,
        )
        return state, (proposal,)


def _factors(situation: Situation) -> dict[str, float]:
    """Pattern of each layer → factor; empty where nothing is to be changed."""
    series = situation.run["update_ratio"]
    last = int(np.searchsorted(series.steps, situation.step, side="right"))
    ratios = np.asarray(series.values[max(0, last - ROWS) : last], dtype=np.float64)
    moved = np.isfinite(ratios) & (ratios > 0)
    turning = moved.sum(axis=0) * 2 > len(ratios)  # frozen layers keep their rate
    if len(ratios) < ROWS // 2 or turning.sum() < 2:
        return {}
    logs = np.log(np.where(moved, ratios, 1.0)).sum(axis=0) / np.maximum(1, moved.sum(axis=0))
    axis = series.column.axis
    weights = np.asarray(axis.weights if axis is not None and axis.weights else np.ones(len(logs)), dtype=np.float64)
    present = _present(situation, series.labels)
    wanted = balanced(np.log(present), logs, np.where(turning, weights, 0.0))
    if np.abs(wanted - np.log(present)).max() < np.log(LEAST_CHANGE):
        return {}
    names = zip(series.labels, np.exp(wanted), turning, strict=True)
    return {re.escape(name): round_figure(float(factor)) for name, factor, turns in names if turns}


def balanced(present: Vector, ratios: Vector, weights: Vector) -> Vector:
    """The logarithms of the next factors.

    Args:
        present: Those of the factors in force, shape (layers,).
        ratios: Mean logarithms of the update ratios under them.
        weights: Parameters of each layer, 0 for those that are left alone.

    Returns:
        The next ones, of weighted mean 0 and within ± ½ log 10 of their middle; 0 for layers of weight 0.

    Example:
        >>> import numpy as np
        >>> ratios = np.log([1e-3, 1.44e-3])
        >>> np.exp(balanced(np.zeros(2), ratios, np.ones(2))).round(4).tolist()
        [1.0954, 0.9129]
    """
    share = weights / weights.sum()
    step = STRENGTH * (share @ ratios - ratios)
    wanted = present + np.clip(step, -np.log(MOST_STEP), np.log(MOST_STEP))
    half = 0.5 * np.log(0.98 * LAYER_SPREAD)  # what rounding to three figures may add
    middle = share @ wanted
    limited = np.clip(wanted, middle - half, middle + half)
    return np.where(weights > 0, limited - share @ limited, 0.0)


def _present(situation: Situation, labels: Sequence[str]) -> Vector:
    """The factors in force, one per layer."""
    action = situation.in_force.get("layer_rates")
    factors = {} if action is None else action.arguments["factors"]
    found = [next((f for pattern, f in factors.items() if re.fullmatch(pattern, name)), 1.0) for name in labels]
    return np.maximum(np.asarray(found, dtype=np.float64), 1e-12)
