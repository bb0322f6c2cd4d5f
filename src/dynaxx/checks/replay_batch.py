"""Replays a batch from the present state, and says whether its loss is still unlike that of the other batches."""

import statistics
from collections.abc import Mapping
from typing import Any

from dynaxx.checks._looking import chosen, plain, value
from dynaxx.core.navigation import Check, LivePoint
from dynaxx.core.records import Cost
from dynaxx.errors import NotApplicable

FAR = 3.0
"""A loss beyond so many times the median of the others is the batch's own: Lightning's spike rule takes rtol = 2, so 3
times, and it misses smaller ones by design."""


class ReplayBatch(Check):
    """The loss of a batch now, and its place among those of the other kept batches.

    A spike that reproduces on its batch while others are as ever is in the data; one that does not was in the state;
    where all are high, the state still is.

    Args:
        step: Which step's batch; None: the last one's.
    """

    cost = Cost(forwards=8)

    def __init__(self, step: int | None = None) -> None:
        self.step = step

    def look(self, point: LivePoint) -> Mapping[str, Any]:
        """Look.

        Args:
            point: The live run.

        Returns:
            loss · others, the median loss of the other kept batches · ratio · percentile, the share of the others that
            lie below · reproduced, whether the ratio is beyond 3 or the loss alone is not finite.
        """
        batch = chosen(point, self.step)
        others = [value(point, other) for other in point.batches if other is not batch]
        if not others:
            raise NotApplicable("no other batch is kept to compare with")
        loss = value(point, batch)
        finite = [other for other in others if plain(other) is not None]
        if plain(loss) is None or not finite:
            reproduced = plain(loss) is None and len(finite) == len(others)
            return {"loss": plain(loss), "others": None, "finite_others": len(finite), "reproduced": reproduced}
        middle = statistics.median(finite)
        return {
            "loss": loss,
            "others": middle,
            "ratio": loss / middle if middle > 0 else None,
            "percentile": sum(other < loss for other in finite) / len(finite),
            "reproduced": loss > FAR * middle,
        }
