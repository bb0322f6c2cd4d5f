"""How much the navigator may do: every bound on acts in one place, each with where it comes from."""

from typing import NamedTuple

from dynaxx.core.navigation import Situation

MOST_RATE = 1e4
"""Highest total factor of the learning rate: the worst that the rescue suite plants is 10 000 too low. Long before it a
raise is bounded by the size of its updates, by the stability margin and by its promise."""
LEAST_RATE = 1e-3
"""Lowest one: a factor of 300 too high, the worst that the rescue suite plants, and a margin of three."""
LAYER_SPREAD = 10.0
"""Highest factor of a layer's rate over the lowest (specification N6)."""
ACTS = 8
"""Acts in one window. A ladder takes at most 6 and a rate 30 × too low needs 4 raises: one incident at a time fits."""
WINDOW_SHARE, WINDOW_LEAST = 0.2, 200
"""Updates of that window, as a share of the planned ones, and at least; one fifth of a run may hold one incident."""
ACTS_IN_ALL = 24
"""Acts in one run: what needs more than three incidents' worth needs a person."""
CHECKS = 12
"""Live checks in one run; at the most expensive (60 passes) they are a thousandth of a run of a million updates."""
ROLLBACK_SHARE = 0.25
"""Updates that rollbacks may repeat, as a share of the planned ones: of checkpoints every twentieth, five apart."""
TRIAL_SHARE = 0.2
"""Updates that branch trials may spend, likewise: one search for a rate over five arms, and one comparison."""
REPAIR_SHARE = 0.3
"""Updates that both may take together: the 1.3 × passes of a clean twin that a repair may cost (issue "Diagnosis and
the navigator")."""
ROLLBACKS = 3
"""Rollbacks in one window, each further back than the last: retries of the same thing have run out of news by then
(Soup's spike recovery stops at 3 as well)."""
UNKNOWN_STEPS = 1_000
"""Updates that a run without a plan is taken to have at least, where a bound is a share of them."""
WARMUP_SHARE, WARMUP_LEAST, WARMUP_MOST = 0.02, 10, 200
"""Until then only what is critical is answered: optimizer statistics and detectors' baselines are still filling."""
CATAPULT_SHARE, CATAPULT_MOST = 0.1, 1_000
"""Early rises of the loss recover by themselves within the first 5–10 % of training: rates are not lowered there unless
the run is in danger. A catapult takes tens to hundreds of updates (Lewkowycz et al. 2020), so long runs wait no more
than a thousand."""
COOLDOWN_SHARE, COOLDOWN_LEAST = 0.02, 20
"""Rest after an act before the same is done for the same cause: one interval of evaluation (`run.due`)."""
BACKOFF = 4
"""By how much each broken promise lengthens that rest; after `BROKEN` of them the act is not tried again."""
BROKEN = 3
"""Broken promises of one act for one cause after which it is given up: as many as rollbacks."""
SURE = 0.5
"""Least confidence of a cause that is acted on: below it the act would more often be wrong than right."""
CLOSE = 0.2
"""Causes whose confidences differ by less are not told apart; a calibrated detector errs by about as much."""


class Limits(NamedTuple):
    """The bounds of one run in updates.

    Args:
        steps: Planned updates, or what stands for them.
        window: In which acts are counted.
        warmup: Before which only critical matters are answered.
        catapult: Before which rises of the loss are given time.
        cooldown: Rest after an act.
        horizon: After which an act is judged.
        rollback: That rollbacks may repeat altogether.
        trial: That trials may spend altogether.
        repair: That both may take together.
    """

    steps: int
    window: int
    warmup: int
    catapult: int
    cooldown: int
    horizon: int
    rollback: int
    trial: int
    repair: int


def limits(situation: Situation) -> Limits:
    """The bounds of a run.

    Args:
        situation: Where it is.

    Returns:
        The bounds.

    Example:
        See tests/controllers/test_limits.py.
    """
    steps = situation.steps or max(UNKNOWN_STEPS, situation.step)
    return Limits(
        steps=steps,
        window=max(WINDOW_LEAST, round(WINDOW_SHARE * steps)),
        warmup=min(WARMUP_MOST, max(WARMUP_LEAST, round(WARMUP_SHARE * steps))),
        catapult=min(CATAPULT_MOST, round(CATAPULT_SHARE * steps)),
        cooldown=max(COOLDOWN_LEAST, round(COOLDOWN_SHARE * steps)),
        # As long as the rest: an act is judged once before the next. At most what a run may spend on waiting.
        horizon=min(400, max(COOLDOWN_LEAST, round(COOLDOWN_SHARE * steps))),
        rollback=round(ROLLBACK_SHARE * steps),
        trial=round(TRIAL_SHARE * steps),
        repair=round(REPAIR_SHARE * steps),
    )
