"""Whether a run has gained nothing more since its first eighth: what is easy was learned, and nothing beyond it."""

from typing import NamedTuple

import numpy as np

from dynaxx.core.findings import Log, Threshold
from dynaxx.detectors._facts import planned
from dynaxx.detectors._progress import opening
from dynaxx.detectors._read import VALIDATION, Track, optional
from dynaxx.detectors._start import trained

GAINED = Threshold(
    value=0.02,
    origin="share of the best early loss gained since, of training and of validation; a byte-level language model that "
    "cannot read its inputs learns the bytes' frequencies in 20 steps and then gains 1 to 2 % in 380",
    false_alarms="0 of 800 healthy rescue runs, asked at 13 moments each, besides fine-tunings, which `trained` tells; "
    "0 with 0.05, too",
)
EARLY = 0.125
"""Share of the plan that counts as its beginning."""
SHOWN = 0.4
"""Share of the plan, 150 steps at least, after which it is judged."""
LEFT = 0.25
"""Share of the first loss that must be left: what has learned nearly all of it may well be done."""
LEARNED = 0.06
"""Share of the first loss that must have been gained: where less was, `plateau.GAINED` judges."""
DECAYED = 0.3
"""Share of the highest rate below which standing still is what a schedule is for."""
BLOCK = 16
"""Rows behind one median."""


class Standstill(NamedTuple):
    """Since when nothing was gained.

    Args:
        since: The last step of the beginning.
        training: Share of the best early training loss gained since.
        validation: The same of validation.
    """

    since: int
    training: float
    validation: float


def standstill(run: Log, loss: Track) -> Standstill | None:
    """Look for a run that stands where its first eighth left it, at its full rate, far above zero.

    Args:
        run: The log.
        loss: Its training loss.

    Returns:
        How little was gained since; None where it was more, or where the log cannot tell.
    """
    last, held, rates = int(loss.steps[-1]), optional(run, VALIDATION), optional(run, "lr")
    steps = max(planned(run) or 0, last)
    since = int(EARLY * steps)
    early, late = loss.between(0, since).values, loss.values[-(len(loss) // 4) :]
    if last < max(150, SHOWN * steps) or held is None or len(early) < 2 * BLOCK or trained(run):
        return None
    held = held.finite
    first, then = held.between(0, since).values, held.between(since + 1, last).values
    level, begin = float(np.median(late)), opening(loss)
    if len(first) == 0 or len(then) < 4 or not 0 < LEFT * begin < level < (1 - LEARNED) * begin or _decayed(rates):
        return None
    whole = len(early) // BLOCK
    best = float(np.median(early[-BLOCK * whole :].reshape(whole, BLOCK), axis=1).min())
    found = Standstill(since, (best - level) / best, float((first.min() - then.min()) / abs(first.min())))
    return found if max(found.training, found.validation) < float(GAINED) else None


def _decayed(rates: Track | None) -> bool:
    if rates is None:
        return False
    values = rates.largest().finite.values
    return bool(len(values) and values[-1] < DECAYED * values.max())
