"""Whether parts lie in one basin: the loss half-way between two, their distance without a loss, and reordered units."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from dynaxx.checkpoints._mean import between
from dynaxx.checkpoints._parts import Part
from dynaxx.checkpoints.judge import Judge
from dynaxx.errors import NotApplicable
from dynaxx.numerics.alignment import match_weights
from dynaxx.numerics.paired import Paired, paired
from dynaxx.numerics.permutation import Symmetry
from dynaxx.numerics.symmetry import checked, state

BARRIER = 0.1
"""Highest barrier that is allowed, as a share of the loss at its ends. Measured on the built-in tasks: within a run,
from the first twentieth of the steps to the last, at most 0.001; between two seeds 0.36 (stdlib-lm), 0.46 (diabetes)
and 135 (digits)."""
APART = 0.7
"""Largest ‖θ₁ − θ₂‖² / (‖θ₁‖² + ‖θ₂‖²) over the matrices that is allowed without a loss: 0 for equal weights, 1 for
unrelated ones. Measured on the built-in tasks: within a run at most 0.48, between two seeds 0.99 to 1.01."""
_FEW = 6
"""Fewer pairs have no interval at 95 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Barrier:
    """What stands half-way between a part and the anchor.

    Args:
        height: Loss there above the mean of the two ends', paired group by group.
        ends: The mean of the ends' losses.
    """

    height: Paired
    ends: float

    @property
    def share(self) -> float:
        """Height as a share of the ends' loss."""
        return self.height.mean / max(abs(self.ends), 1e-12)

    def blocks(self, limit: float) -> bool:
        """Whether it is above the limit and not within the noise of the examples.

        Args:
            limit: Allowed share.
        """
        return self.share > limit and (self.height.low > 0 or self.height.pairs < _FEW)


def barriers(
    parts: Sequence[Part], losses: np.ndarray, anchor: int, judge: Judge, wanted: Sequence[int]
) -> dict[int, Barrier]:
    """Barriers half-way to the anchor, on the choosing split: the average of the two is what a blend begins with.

    Args:
        parts: All.
        losses: Theirs, shape (parts, groups).
        anchor: Which part.
        judge: Measures.
        wanted: Of which parts.

    Returns:
        Part → barrier; the anchor has none.
    """
    others = [i for i in wanted if i != anchor]
    if not others:
        return {}
    here = {name: tensor.clone() for name, tensor in parts[anchor].tensors()}
    found: dict[int, Barrier] = {}
    for i in others:
        judge.put(between(here, parts[i].tensors(), 0.5), f"the middle of {parts[anchor]} and {parts[i]}")
        ends = (losses[anchor] + losses[i]) / 2
        height = paired(judge.losses("choose") - ends, judge.shares("choose"))
        found[i] = Barrier(height=height, ends=judge.score(ends, "choose"))
    return found


def refuse_barriers(parts: Sequence[Part], found: dict[int, Barrier], anchor: int, limit: float) -> None:
    """Let no part through that a barrier stands before.

    Args:
        parts: All.
        found: Barriers by part.
        anchor: What they are measured from.
        limit: Allowed share.

    Raises:
        NotApplicable: There is one; the message names the highest and the remedies.
    """
    blocked = [i for i, each in found.items() if each.blocks(limit)]
    if not blocked:
        return
    worst = max(blocked, key=lambda i: found[i].share)
    each = found[worst]
    raise NotApplicable(
        f"blend: {len(blocked)} of {len(parts)} parts are not in the basin of {parts[anchor]}. Half-way to "
        f"{parts[worst]} the loss is {each.ends + each.height.mean:.4g}, above the mean {each.ends:.4g} of both by "
        f"{each.share:.3g} of it; at most {limit:g} is allowed. {_remedy(parts, blocked, anchor)}"
    )


def refuse_distant(parts: Sequence[Part], limit: float = APART) -> np.ndarray:
    """Without a loss: refuse parts whose matrices have little in common with the newest part's.

    Args:
        parts: Two or more.
        limit: Largest relative squared distance that is allowed.

    Returns:
        Relative squared distance of each to the newest.

    Raises:
        NotApplicable: One is beyond the limit; the message names the remedies.
    """
    newest = len(parts) - 1
    here = {name: tensor.clone() for name, tensor in parts[newest].tensors() if _is_matrix(tensor)}
    found = np.zeros(len(parts))
    for i, part in enumerate(parts[:-1]):
        apart = size = 0.0
        for name, tensor in part.tensors():
            if name in here and tensor.shape == here[name].shape:
                one, other = here[name].float(), tensor.to(here[name].device).float()
                apart += float((one - other).square().sum())
                size += float(one.square().sum()) + float(other.square().sum())
        found[i] = apart / size if size else 0.0
    if blocked := [i for i in range(len(parts)) if not found[i] <= limit]:
        worst = max(blocked, key=lambda i: found[i])
        raise NotApplicable(
            f"blend: {len(blocked)} of {len(parts)} parts are far from {parts[newest]}. {parts[worst]} has "
            f"‖θ₁ − θ₂‖² = {found[worst]:.2f}·(‖θ₁‖² + ‖θ₂‖²) over the matrices, where unrelated weights have 1; at "
            f"most {limit:g} is allowed without a loss. {_remedy(parts, blocked, newest)} Or give a task, so that the "
            "loss decides."
        )
    return found


def aligned(parts: Sequence[Part], anchor: int, chosen: Sequence[int], judge: Judge, seed: int) -> list[Part]:
    """Parts with their hidden units reordered to lie on the anchor's, which changes no output.

    Weight matching (Ainsworth, Hayase and Srinivasa 2023). Memory: two states beside the judge's.

    Args:
        parts: All.
        anchor: Which part stays.
        chosen: Which are reordered.
        judge: Whose model and loss show the symmetry.
        seed: Of the matching's starts.

    Returns:
        All parts, the chosen ones reordered. Raises `NotApplicable` where no units can be.
    """
    judge.put(parts[anchor].tensors(), str(parts[anchor]))
    symmetry = checked(judge.objective, None, seed=seed)
    here = {name: tensor.clone() for name, tensor in state(judge.objective).items()}
    found = list(parts)
    for i in chosen:
        there = {name: tensor.clone() for name, tensor in parts[i].tensors()}
        order = match_weights(symmetry, here, there, seed=seed).permutation
        del there
        found[i] = replace(parts[i], tensors=lambda part=parts[i], order=order: _reordered(part, symmetry, order))
    return found


def _reordered(part: Part, symmetry: Symmetry, order: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in part.tensors():
        yield name, symmetry.moved(name, tensor, order)


def _is_matrix(tensor: Tensor) -> bool:
    """Vectors are mostly gains near 1 and offsets near 0, which any two networks have in common."""
    return tensor.is_floating_point() and tensor.dim() > 1


def _remedy(parts: Sequence[Part], blocked: Sequence[int], anchor: int) -> str:
    if len({part.line for part in parts}) > 1:
        return "Branch the runs from a common checkpoint, leave such parts out, or try align=True (--align)."
    first = max((i for i in blocked if i < anchor), default=-1) + 1
    later = f"steps=({parts[first].step}, {parts[-1].step})" if len(parts) - first > 1 else "steps=(first, last)"
    return f"Take a range that lies in the basin, {later}."
