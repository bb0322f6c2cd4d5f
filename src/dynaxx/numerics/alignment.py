"""Reorder one network's hidden units so that they lie on those of another: by its weights or by its activations."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from dynaxx.core.objective import Objective
from dynaxx.core.task import derive_seed
from dynaxx.numerics.axes import leaves
from dynaxx.numerics.axis_call import Axes, Call
from dynaxx.numerics.permutation import Part, Permutation, Symmetry
from dynaxx.numerics.symmetry import followed

SWEEPS = 100
"""Most rounds over all groups; coordinate ascent rarely takes more than ten."""
ROWS = 4096
"""Most rows (examples × positions) of an activation that are kept of a batch, evenly spaced."""
_MOVES = frozenset([
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "select", "slice", "split", "unbind",
    "detach", "clone", "unsqueeze", "squeeze", "alias", "_to_copy",
])  # fmt: skip
"""Operations whose output is their input again: their activations would count twice."""

Gain = Callable[[str, Permutation], Tensor]
"""`(group, permutation) -> (units, units)`: what it adds to put the other's unit j in the place of unit i."""
Value = Callable[[Permutation, str | None], float]
"""`(permutation, group) -> float`: what is maximised, or its terms with one group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """An order of the units of the second network.

    Args:
        permutation: Group → order.
        value: What was maximised, at this order.
        start: The same at the order as it was.
        spread: Lowest value over the restarts; equal to `value` where all end alike.
    """

    permutation: dict[str, Tensor]
    value: float
    start: float
    spread: float


def match_weights(
    symmetry: Symmetry, one: Mapping[str, Tensor], two: Mapping[str, Tensor], *, restarts: int = 3, seed: int = 0
) -> Alignment:
    """The order that brings the weights closest: argmax_P ⟨θ₁, Pθ₂⟩, which minimises ‖θ₁ − Pθ₂‖.

    Coordinate ascent over groups; each is a linear assignment problem, solved exactly with the others held (Ainsworth,
    Hayase and Srinivasa 2023). A group on both axes of a matrix (a residual stream) makes it a quadratic one: such a
    step is taken where it gains. Restarts begin at random orders, the first at the one there is.

    Args:
        symmetry: What may be reordered.
        one: The parameters that stay, by name.
        two: Those to be reordered.
        restarts: Starts of the ascent.
        seed: Of starts and of the order of the groups.

    Returns:
        The best order found; a local maximum.
    """
    names = [n for n in symmetry.axes if n in one and n in two and one[n].is_floating_point()]
    holding = {group: [n for n in names if any(p.group == group for p in symmetry.factors(n))]
               for group in symmetry.groups}  # fmt: skip

    def gain(group: str, permutation: Permutation) -> Tensor:
        size = symmetry.groups[group]
        total = torch.zeros(size, size, dtype=torch.float64)
        for place in symmetry.places(group):
            if place.name not in holding[group]:
                continue
            shape = [part.size for part in symmetry.factors(place.name)]
            moved = symmetry.moved(place.name, two[place.name], permutation, but=place.index)
            a, b = (
                t.detach().reshape(shape).movedim(place.index, 0).reshape(size, -1) for t in (one[place.name], moved)
            )
            total += (a @ b.T).double().cpu()
        return total

    def value(permutation: Permutation, group: str | None) -> float:
        chosen = names if group is None else holding[group]
        return math.fsum(
            float((one[n].double() * symmetry.moved(n, two[n], permutation).double()).sum()) for n in chosen
        )

    with torch.no_grad():
        return _best(symmetry, gain, value, restarts, seed)


def match_activations(
    symmetry: Symmetry,
    objective: Objective,
    one: Mapping[str, Tensor],
    two: Mapping[str, Tensor],
    *,
    restarts: int = 1,
    seed: int = 0,
) -> Alignment:
    """The order in which units do the same on the data: argmax_P of the summed correlations of paired units.

    Pearson's correlation of each pair, over examples and positions of the objective's batches, is summed over every
    operation that puts out the group's units (Li et al. 2015; Ainsworth, Hayase and Srinivasa 2023). One assignment
    problem a group, solved exactly; products (heads × head dimension) by coordinate ascent.

    Args:
        symmetry: What may be reordered.
        objective: Its model and its batches, in evaluation mode.
        one: The parameters and buffers that stay, by name.
        two: Those to be reordered.
        restarts: Starts of the ascent; one suffices where no axis is a product.
        seed: Of starts and of the order of the groups.

    Returns:
        The order.
    """
    tables = correlations(symmetry, objective, one, two)
    shapes = {key: [part.size for part in key] for key in tables}

    def gain(group: str, permutation: Permutation) -> Tensor:
        size = symmetry.groups[group]
        total = torch.zeros(size, size, dtype=torch.float64)
        for key, table in tables.items():
            for index in (i for i, part in enumerate(key) if part.group == group):
                total += _held(table.reshape(shapes[key] * 2), key, index, permutation)
        return total

    def value(permutation: Permutation, group: str | None) -> float:
        total = 0.0
        for key, table in tables.items():
            if group is None or any(part.group == group for part in key):
                order = _order(key, permutation, but=None)
                total += float(table[torch.arange(len(order)), order].sum())
        return total

    return _best(symmetry, gain, value, restarts, seed)


def correlations(
    symmetry: Symmetry, objective: Objective, one: Mapping[str, Tensor], two: Mapping[str, Tensor]
) -> dict[tuple[Part, ...], Tensor]:
    """Correlations of the units of two networks, summed over operations.

    Args:
        symmetry: What may be reordered.
        objective: Its model and its batches.
        one: Parameters and buffers of the first, by name.
        two: Of the second.

    Returns:
        Factors of an output → float64 of shape (units, units), the first network's along the rows.
    """
    sums: dict[int, _Moments] = {}
    for i in range(len(objective.batches)):
        pairs = zip(*(_activations(symmetry, objective, tensors, i) for tensors in (one, two)), strict=True)
        for place, ((key, a), (_, b)) in enumerate(pairs):
            sums.setdefault(place, _Moments(key, a.shape[1])).add(a, b)
    found: dict[tuple[Part, ...], Tensor] = {}
    for each in sums.values():
        found[each.key] = found.get(each.key, 0.0) + each.correlation()
    return found


class _Moments:
    """Sums from which the correlations of two sets of variables follow, about the means of the first batch."""

    def __init__(self, key: tuple[Part, ...], units: int) -> None:
        self.key, self.count = key, 0
        self._shift: tuple[Tensor, Tensor] | None = None
        self._sums = [torch.zeros(units, dtype=torch.float64) for _ in range(4)]
        self._cross = torch.zeros(units, units, dtype=torch.float64)

    def add(self, a: Tensor, b: Tensor) -> None:
        """Take in rows of both."""
        a, b = a.double().cpu(), b.double().cpu()
        if self._shift is None:
            self._shift = (a.mean(0), b.mean(0))
        a, b = a - self._shift[0], b - self._shift[1]
        for total, part in zip(self._sums, (a.sum(0), b.sum(0), (a * a).sum(0), (b * b).sum(0)), strict=True):
            total += part
        self._cross += a.T @ b
        self.count += len(a)

    def correlation(self) -> Tensor:
        """Pearson's; 0 with a unit that is constant."""
        n = max(self.count, 1)
        a, b, aa, bb = (s / n for s in self._sums)
        scale = ((aa - a * a).clamp_min(0)[:, None] * (bb - b * b).clamp_min(0)).sqrt()
        cov = self._cross / n - a[:, None] * b
        return torch.where(scale > 1e-12 * scale.max().clamp_min(1e-300), cov / scale, 0.0)


def _activations(
    symmetry: Symmetry, objective: Objective, tensors: Mapping[str, Tensor], batch: int
) -> list[tuple[tuple[Part, ...], Tensor]]:
    """Every output with reorderable units: their factors, and shape (rows, units); the rest of its axes are rows."""
    seen: list[tuple[Tensor, Axes]] = []

    def watch(call: Call, out: Tensor, axes: Axes) -> None:
        if call.name not in _MOVES and out.is_floating_point() and out.dim() > 1:
            seen.append((out.clone(), axes))  # it may be overwritten in place

    with followed(objective, tensors, watch) as trace:
        objective.loss_fn(objective.model, objective.batches[batch])
    groups = {
        factor.root: part.group
        for name, axes in symmetry.axes.items()
        for axis, parts in zip(trace.axes[name], axes, strict=True)
        for factor, part in zip(leaves(axis), [p for p in parts if p.size > 1], strict=False)
        if part.group is not None and factor.size == part.size
    }
    found: list[tuple[tuple[Part, ...], Tensor]] = []
    for out, axes in seen:
        factors = [leaf for axis in axes for leaf in leaves(axis)]
        free = [i for i, factor in enumerate(factors) if factor in groups]
        if free:
            key = tuple(Part(group=groups[factors[i]], size=factors[i].size) for i in free)
            split = out.reshape([factor.size for factor in factors]).movedim(free, list(range(-len(free), 0)))
            rows = split.reshape(-1, math.prod(part.size for part in key))
            found.append((key, rows[:: -(-len(rows) // ROWS)]))
    return found


def _order(key: Sequence[Part], permutation: Permutation, but: int | None) -> Tensor:
    """The order of a product axis, flattened; factor `but` is left out of it."""
    kept = [part for i, part in enumerate(key) if i != but]
    order = torch.arange(math.prod(part.size for part in kept)).reshape([part.size for part in kept])
    for i, part in enumerate(kept):
        if part.group is not None:
            order = order.index_select(i, permutation[part.group])
    return order.reshape(-1)


def _held(table: Tensor, key: Sequence[Part], index: int, permutation: Permutation) -> Tensor:
    """Gains of one factor of a product, the others paired as they are."""
    size, many = key[index].size, len(key)
    rest = _order(key, permutation, but=index)
    table = table.movedim((index, many + index), (0, many)).reshape(size, len(rest), size, len(rest))
    return table[:, torch.arange(len(rest)), :, rest].sum(0)


def _best(symmetry: Symmetry, gain: Gain, value: Value, restarts: int, seed: int) -> Alignment:
    start = symmetry.identity()
    found: list[tuple[float, dict[str, Tensor]]] = []
    for k in range(restarts):
        first = start if k == 0 else symmetry.random(derive_seed(seed, "restart", k))
        permutation = _ascend(symmetry, gain, value, first, derive_seed(seed, "groups", k))
        found.append((value(permutation, None), permutation))
    best = max(found, key=lambda each: each[0])
    return Alignment(
        permutation=best[1], value=best[0], start=value(start, None), spread=min(each for each, _ in found)
    )


def _ascend(symmetry: Symmetry, gain: Gain, value: Value, start: Permutation, seed: int) -> dict[str, Tensor]:
    permutation, groups = dict(start), list(symmetry.groups)
    generator = np.random.default_rng(seed)
    for _ in range(SWEEPS):
        moved = False
        for group in generator.permutation(np.array(groups, dtype=object)):
            _, columns = linear_sum_assignment(gain(group, permutation).numpy(), maximize=True)
            trial = permutation | {group: torch.as_tensor(columns)}
            before, after = value(permutation, group), value(trial, group)
            if after > before + 1e-9 * abs(before):
                permutation, moved = trial, True
        if not moved:
            break
    return permutation
