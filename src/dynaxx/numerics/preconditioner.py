"""What an optimizer's state makes of curvature: the scaling in which its stability has one threshold."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from dynaxx.core.parameters import local
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.numerics.operator import Congruent, Operator
from dynaxx.numerics.space import Space
from dynaxx.numerics.stability_rules import Rotation, Rule, rule_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Preconditioning:
    """An optimizer with preconditioner P and rate η is stable on a quadratic while λ₁(D (H + W) D) < threshold.

    Args:
        scale: D = (η P⁻¹)^(1/2) by entry or, where there is a rotation, by coordinate, shape (n,); 0 where the
            optimizer moves nothing. Groups of another threshold than the highest are scaled by the root of the
            quotient, which is exact at the crossing z = −1.
        threshold: Highest stable λ₁, without unit: rates are within D.
        rule: The optimizer and its variant ("Adam, amsgrad").
        about: The formulas, and what was assumed.
        decay: W, the weight decay that goes through the gradient, per entry; None: there is none.
        sign: −1 where the optimizer climbs, and −H is what matters.
    """

    scale: Float[Tensor, " n"]
    threshold: float
    rule: str
    about: str
    decay: Float[Tensor, " n"] | None = None
    sign: float = 1.0
    rotations: Sequence[tuple[slice, torch.Size, Rotation]] = ()
    """Parameters whose D is not diagonal: where their entries are, their shape, and into which coordinates."""

    def root(self, rows: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """D times each row: D g is the hint for a search of eigenvectors that g is for the Hessian's.

        Args:
            rows: Shape (k, n).

        Returns:
            Shape (k, n).
        """
        return self._turned(self._turned(rows, lambda each: each.into) * self.scale, lambda each: each.back)

    def _turned(self, rows: Tensor, way: Callable[[Rotation], Callable[[Tensor], Tensor]]) -> Tensor:
        if not self.rotations:
            return rows
        rows = rows.clone()
        for at, shape, rotation in self.rotations:
            for row in rows[:, at]:
                row.copy_(way(rotation)(row.view(shape)).flatten())
        return rows

    def operator(self, hessian: Operator) -> Operator:
        """D (H + W) D, whose largest eigenvalue is to be held against the threshold.

        Args:
            hessian: H. A hint in its space is `root` of it in that of the result.

        Returns:
            The operator; it does not follow the optimizer's state, so take a new one at each measurement.
        """
        inner = hessian if self.decay is None and self.sign > 0 else _Decayed(hessian, self.decay, self.sign)
        return Congruent(inner, self.root)


class _Decayed(Operator):
    """±A + W with a diagonal W."""

    def __init__(self, inner: Operator, diagonal: Tensor | None, sign: float) -> None:
        super().__init__(inner.space)
        self.inner, self.diagonal, self.sign = inner, diagonal, sign

    def apply(self, rows: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """Multiply, and add the rows scaled."""
        found = self.sign * self.inner(rows)
        return found if self.diagonal is None else found + rows * self.diagonal

    @contextmanager
    def opened(self) -> Generator[None]:
        """As the inner one."""
        with self.inner.opened():
            yield


def preconditioning(optimizer: Optimizer, space: Space) -> Preconditioning:
    """D, the threshold and the weight decay of an optimizer as it stands, quasi-statically: its state held fixed.

    Highest stable ηλ, with η and P in D: gradient descent 2; heavy ball (2 + 2μ)/(1 − dampening); Nesterov
    (2 + 2μ)/(1 + 2μ); Adam, AdamW (2 + 2β₁)/(1 − β₁) with P = (1 − β₁ᵗ)(√v̂ + ε) (Cohen et al. 2022); NAdam
    (2 + 2β₁)/((1 − β₁)(1 + 2β₁)); RMSprop as gradient descent or heavy ball with P = √v + ε; Adagrad 2 with
    P = (1 + (t − 1) decay)(√Σg² + ε); SOAP, Shampoo, KL-Shampoo as Adam, with a P that is diagonal in the eigenbases of
    their factors. Decoupled weight decay w turns the 2 into 2 − ηw.

    Args:
        optimizer: One of torch's own of these names, or a subclass with the same `step`; or one `Ruled`.
        space: The parameters that curvature is taken over; those that the optimizer does not move have D = 0.

    Returns:
        The scaling and its threshold.

    Raises:
        NotApplicable: The optimizer has no known threshold, or no state yet, or some groups climb and others descend.
        BadInput: The optimizer holds none of the parameters.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> found = preconditioning(torch.optim.SGD([weight], lr=0.25, momentum=0.5), Space([weight]))
        >>> found.threshold, found.scale
        (3.0, tensor([0.5000, 0.5000]))
    """
    rules = [(group, rule_of(optimizer, group)) for group in optimizer.param_groups]
    held = {id(p): pair for pair in rules for p in pair[0]["params"]}
    moved = [(i, p, *held[id(p)]) for i, p in enumerate(space.parameters) if id(p) in held]
    if not moved:
        raise BadInput("preconditioning(optimizer, space): the optimizer holds none of the space's parameters.")
    thresholds = {id(group): _threshold(group, rule) for _, _, group, rule in moved}
    threshold = max(thresholds.values())
    squares = [torch.zeros(shape, dtype=space.dtype, device=space.device) for shape in space.shapes]
    decays = [torch.zeros_like(square) for square in squares]
    rotations: list[tuple[slice, torch.Size, Rotation]] = []
    places = list(space.slices().values())
    updated = False
    for i, parameter, group, rule in moved:
        scaling = rule.scaling({k: _wide(value, space) for k, value in optimizer.state.get(parameter, {}).items()})
        if scaling is None:
            continue  # the optimizer has not moved it yet
        updated = True
        rate = float(group["lr"]) * threshold / thresholds[id(group)]
        squares[i] += rate if scaling.divisor is None else rate / scaling.divisor
        decays[i] += 0.0 if rule.decoupled else float(group["weight_decay"])
        if scaling.rotation is not None:
            rotations.append((places[i], space.shapes[i], scaling.rotation))
    if not updated:
        raise NotApplicable(
            f"preconditioning(optimizer): {type(optimizer).__name__} has no state before its first step. "
            "Measure after a step."
        )
    decay = torch.cat([d.reshape(-1) for d in decays])
    coupled = any(not r.decoupled and float(g["weight_decay"]) != 0 for _, _, g, r in moved)
    return Preconditioning(
        scale=torch.cat([s.reshape(-1) for s in squares]).sqrt(),
        threshold=threshold,
        rule=_joined(rule.name for _, _, _, rule in moved),
        about=_joined(rule.formula for _, _, _, rule in moved),
        decay=decay if coupled else None,
        sign=_sign(optimizer, [group for _, _, group, _ in moved]),
        rotations=tuple(rotations),
    )


def _wide(value: Any, space: Space) -> Any:
    """This rank's part of a tensor, in the type of the space's vectors, so that 16 bits do not round twice."""
    return local(value).to(space.dtype) if isinstance(value, Tensor) else value


def _threshold(group: dict[str, Any], rule: Rule) -> float:
    decay = float(group["lr"]) * float(group["weight_decay"]) if rule.decoupled else 0.0
    return (2.0 - decay) / rule.response


def _sign(optimizer: Optimizer, groups: list[dict[str, Any]]) -> float:
    climbing = {bool(group.get("maximize", False)) for group in groups}
    if len(climbing) > 1:
        raise NotApplicable(
            f"preconditioning(optimizer): some groups of this {type(optimizer).__name__} climb and others descend, "
            "so that stability is not a matter of one symmetric matrix. Take a space of the ones or the others."
        )
    return -1.0 if climbing.pop() else 1.0


def _joined(words: Any) -> str:
    return "; ".join(dict.fromkeys(words))
