"""What a run went through and left: rows of attempts that a resumption or a rollback has overtaken."""

from dataclasses import dataclass

import numpy as np

from dynaxx.core.records import Column
from dynaxx.runlog.gather import Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class Excursion:
    """The rows of one number a step that an attempt logged and a later one overtook.

    Args:
        attempt: Which one logged them.
        steps: int64 of shape (steps,), increasing.
        values: Shape (steps,).
    """

    attempt: int
    steps: np.ndarray
    values: np.ndarray


def excursions(column: Column, standing: Standing) -> list[Excursion]:
    """What was overtaken of a column.

    Args:
        column: One number a step.
        standing: Which rows stand.

    Returns:
        One excursion per attempt, in order; rows that cannot be read are left out.
    """
    found: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for batch in standing.batches:
        stands = standing.rows(batch)
        field, kept = batch.segment.fields.get(column.name, (None, column))
        if stands is None or field is None or kept.axis is not None:
            continue
        read = batch.read(field)
        if read is None:
            continue
        values, valid = read
        lost = ~stands if valid is None else ~stands & valid
        assert batch.steps is not None
        if lost.any():
            found.setdefault(batch.segment.attempt, []).append((batch.steps[lost], values[lost]))
    made: list[Excursion] = []
    for attempt, parts in sorted(found.items()):
        steps = np.concatenate([part for part, _ in parts])
        values = np.concatenate([part for _, part in parts])
        order = np.argsort(steps, kind="stable")
        made.append(Excursion(attempt=attempt, steps=steps[order], values=values[order]))
    return made
