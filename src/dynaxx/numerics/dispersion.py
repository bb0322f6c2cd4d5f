"""Points that lie far apart: max–min selection from a matrix of distances, under a budget."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def farthest_first(
    distances: Float[np.ndarray, "n n"],
    count: int,
    *,
    start: Sequence[int],
    candidates: Sequence[int],
    sizes: Sequence[float] | None = None,
    budget: float = np.inf,
) -> list[int]:
    """Add the point that is farthest from all that are there, again and again (Gonzalez 1985).

    Without a budget the smallest distance among the points is at least half of the largest that any choice of as many
    reaches (Ravi, Rosenkrantz and Tayi 1994), and no candidate is farther from its nearest point than twice the
    smallest radius that is possible. What does not fit into the budget is passed over.

    Args:
        distances: Symmetric, a metric.
        count: How many candidates to take at most.
        start: Points that are there from the beginning; they count neither towards `count` nor towards the budget.
            Empty: the first candidate is taken first.
        candidates: Points to choose from, in the order that decides between equal distances.
        sizes: Of each point, in the unit of the budget; None: nothing is limited.
        budget: Largest sum of the sizes that are taken.

    Returns:
        The candidates taken, in that order.

    Example:
        >>> x = np.array([0.0, 1.0, 2.0, 9.0, 10.0])
        >>> farthest_first(np.abs(x[:, None] - x), 3, start=[], candidates=[0, 1, 2, 3, 4])
        [0, 4, 2]
    """
    left, taken, held = [c for c in candidates if c not in start], list[int](), 0.0
    nearest = distances[:, list(start)].min(axis=1) if start else np.full(len(distances), np.inf)
    while left and len(taken) < count:
        best = left[int(np.argmax(nearest[left]))]  # the first of equals
        left.remove(best)
        size = 0.0 if sizes is None else sizes[best]
        if held + size > budget:
            continue
        held += size
        taken.append(best)
        nearest = np.minimum(nearest, distances[:, best])
    return taken


def nearest(distances: Float[np.ndarray, "n n"], points: Sequence[int]) -> Float[np.ndarray, " k"]:
    """The distance of each of some points to the nearest other of them; infinite where there is no other.

    Args:
        distances: Between all.
        points: Which.

    Returns:
        One a point.
    """
    chosen = distances[np.ix_(points, points)].copy()
    np.fill_diagonal(chosen, np.inf)
    return chosen.min(axis=1, initial=np.inf)
