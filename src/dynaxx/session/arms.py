"""What the arms of a trial train on, and how the winner stays in force."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

from dynaxx.core.records import Action
from dynaxx.errors import NotApplicable
from dynaxx.session.remedies import NotYet
from dynaxx.session.trial import HELD


def divided(
    batches: Sequence[Any], wanted: int, recent: Sequence[Any], length: int | None
) -> tuple[list[Any], list[Any]]:
    """The batches that every arm trains on, and those that all are judged on, disjoint.

    Where an epoch ends too soon its batches come around again, as they do from epoch to epoch.

    Args:
        batches: What is left of the epoch, as many as are of use.
        wanted: How many to train on.
        recent: The last ones that were trained on, to judge on where none are left.
        length: Batches of a whole epoch, where that is known.

    Returns:
        `wanted` batches, and at most `HELD`.

    Raises:
        NotYet: There are too few for both, and there will be enough in the next epoch.
        NotApplicable: There never will.
    """
    spare = max(0, len(batches) - HELD)
    train = batches[:wanted] if spare >= wanted or len(recent) >= HELD else batches[:spare]
    held = list(batches[len(train) :] or recent)[-HELD:]
    scarce = len(train) < min(wanted, HELD)
    if (scarce or len(held) < HELD) and length is not None and length >= 2 * HELD:
        raise NotYet  # on fewer batches no arm could be told from doing nothing
    if scarce or not held:
        raise NotApplicable(f"{len(batches)} batches are left in this epoch: too few for {wanted} steps of a trial")
    return list(islice(cycle(train), wanted)), held


def scaled(action: Action, scale: float) -> Action:
    """The winner as it is to stay: a rate that was the best of a few steps may be too high for the rest.

    Args:
        action: The action of the arm.
        scale: What its factor is multiplied by.

    Returns:
        The action, with its factor scaled where it is a learning rate's.
    """
    if action.name != "learning_rate" or scale == 1.0:
        return action
    factor = float(f"{float(action.arguments['factor']) * scale:.3g}")
    return replace(action, arguments={"factor": factor}, reason=f"{action.reason}, × {scale:.2g} for the long run")
