"""The search for a learning rate by short paired trials, and what a run can pay for it."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from dynaxx.controllers._limits import LEAST_RATE, MOST_RATE, Limits, limits
from dynaxx.controllers._past import acts
from dynaxx.controllers._rates import LARGE, planned
from dynaxx.controllers._reading import round_figure, rows
from dynaxx.core.navigation import Situation
from dynaxx.core.records import Action

FIRST = 5
"""First updates that say how far one unit of the rate moves the weights: later ones move ruined weights."""
ARMS = (1.0, 3.0, 10.0)
"""What is tried, in half decades from the rate whose first updates are 1 % of the weights."""
MARGIN = 3.0
"""How far below the winner the rate is set: the best of the first steps is the highest that has not yet come to harm.
Of nine rates in half decades on four nets (rescue suite, 15 steps against 400) the winner was two to three times the
best in the end, and the next one below it within 20 % of the best; range tests advise the same (Smith 2015)."""
SHARE, LEAST, MOST = 0.15, 8, 50
"""Share of the planned steps that a search may take, and the steps of an arm: in fewer a momentum of 0.9 has not begun
to work."""
TRIES = 2
"""How often a run begins anew: where two settings did not do, it was not the setting."""
WARM = 1.5
"""Peak over the mean rate of the first steps from which on they are a warm-up."""


class Start(NamedTuple):
    """What to begin with.

    Args:
        factor: The guess, of the loop's own rate: its first updates would be 0.3 % of the weights.
        why: What it follows from.
        trial: The search around it, to be carried out at once; None where there is nothing left to pay for it.
    """

    factor: float
    why: str
    trial: Action | None


def can_begin(situation: Situation) -> bool:
    """Whether the run may still begin anew: the beginning is kept, and near enough to be paid for.

    Args:
        situation: Where the run is.

    Returns:
        True where `begin_anew` may act.
    """
    near = situation.step <= limits(situation).rollback
    tried = len(acts(situation, "begin_anew"))
    return near and tried < TRIES and "rollback" in situation.able and situation.healthy[:1] == (0,)


def start(situation: Situation, bounds: Limits, left: int, *, anew: bool = True) -> Start | None:
    """A rate to begin anew with, or to go on with.

    Args:
        situation: Where the run is.
        bounds: Its bounds.
        left: Updates that trials may still spend.
        anew: Whether it is to hold from step 0 on; else from here on.

    Returns:
        Guess and search; None where neither rates nor updates are logged.
    """
    plan = planned(situation)
    per_rate = _per_rate(situation)
    if plan is None or per_rate is None:
        return None
    peak = float(plan.rate.max() if anew else plan.rate[-1])
    if not peak > 0:
        return None
    middle = LARGE / (per_rate * peak)
    factor = round_figure(min(MOST_RATE, max(LEAST_RATE, middle / MARGIN)))
    why = f"the learning rate × {factor:g}, as one update was {per_rate * peak:.2g} of the weights at the planned one"
    steps = min(MOST, int(min(SHARE * bounds.steps, left)) // (len(ARMS) + 1))
    tried = [each * middle for each in ARMS if LEAST_RATE <= each * middle <= MOST_RATE]
    if steps < LEAST or not tried or "trial" not in situation.able:
        return Start(factor, why, None)
    # A warm-up lowers the trial's rates: its arms make up for that, and the winner is taken back to the peak.
    head = plan.rate[plan.steps <= steps]
    warm = float(np.mean(head)) / peak if anew and len(head) else 1.0
    warm = warm if 0 < warm < 1 / WARM else 1.0
    arms = {f"× {f:.3g}": _rate(f / warm) for f in tried}
    reason = f"which rate? {len(arms) + 1} of them, each for {steps} steps from the same start on the same batches"
    trial = Action(name="trial", arguments={"arms": arms, "steps": steps, "scale": warm / MARGIN}, reason=reason)
    return Start(factor, why, trial)


def _rate(factor: float) -> list[Mapping[str, Any]]:
    reason = "the best of a search over the learning rate"
    return [asdict(Action(name="learning_rate", arguments={"factor": round_figure(factor)}, reason=reason))]


def _per_rate(situation: Situation) -> float | None:
    """Size of the first updates relative to the weights, per unit of the learning rate."""
    run = situation.run
    plan = planned(situation)
    if plan is None or "update_ratio.total" not in run.columns:
        return None
    at, ratio = rows(run, "update_ratio.total", 0, situation.step)
    _, mine, theirs = np.intersect1d(at, plan.steps, return_indices=True)
    ratio, rate = ratio[mine][:FIRST], plan.rate[theirs][:FIRST]
    good = np.isfinite(ratio) & (ratio > 0) & (rate > 0)
    return float(np.median(ratio[good] / rate[good])) if good.any() else None
