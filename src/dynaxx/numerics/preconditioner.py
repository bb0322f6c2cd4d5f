"""What an optimizer's state makes of curvature: the scaling in which its stability has one threshold."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import unwrap
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from dynaxx.core.parameters import local
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.numerics.operator import Congruent, Operator
from dynaxx.numerics.space import Space


@dataclass(frozen=True, slots=True, kw_only=True)
class Preconditioning:
    """An optimizer with preconditioner P and rate η is stable on a quadratic while λ₁(D (H + W) D) < threshold.

    Args:
        scale: D = (η P⁻¹)^(1/2) per entry, shape (n,); 0 where the optimizer moves nothing. Groups of another threshold
            than the highest are scaled by the root of the quotient, which is exact at the crossing z = −1.
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

    def operator(self, hessian: Operator) -> Operator:
        """D (H + W) D, whose largest eigenvalue is to be held against the threshold.

        Args:
            hessian: H. A hint g (gradient, update) in its space is D·g in that of the result.

        Returns:
            The operator; it does not follow the optimizer's state, so take a new one at each measurement.
        """
        inner = hessian if self.decay is None and self.sign > 0 else _Decayed(hessian, self.decay, self.sign)
        return Congruent(inner, self.scale)


class _Decayed(Operator):
    """±A + W with a diagonal W."""

    def __init__(self, inner: Operator, diagonal: Tensor | None, sign: float) -> None:
        super().__init__(inner.space)
        self.inner, self.diagonal, self.sign = inner, diagonal, sign

    def apply(self, rows: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """Multiply, and add the rows scaled."""
        found = self.sign * self.inner(rows)
        return found if self.diagonal is None else found + rows * self.diagonal


class _Rule(NamedTuple):
    """How a group of parameters is updated.

    The update in answer to gradients (−1)ᵗ g of alternating sign, the mode in which stability is lost, is
    η · response · P⁻¹ g; so λ η / P may be 2 / response.
    """

    response: float
    name: str
    formula: str
    divisor: Callable[[dict[str, Any]], Tensor | None] = lambda state: None
    """P of one parameter by its state; None: 1."""
    needs: str = ""
    """The state without which a parameter has not been updated yet."""
    decoupled: bool = False


def preconditioning(optimizer: Optimizer, space: Space) -> Preconditioning:
    """D, the threshold and the weight decay of an optimizer as it stands, quasi-statically: its state held fixed.

    Highest stable ηλ, with η and P in D: gradient descent 2; heavy ball (2 + 2μ)/(1 − dampening); Nesterov
    (2 + 2μ)/(1 + 2μ); Adam, AdamW (2 + 2β₁)/(1 − β₁) with P = (1 − β₁ᵗ)(√v̂ + ε) (Cohen et al. 2022); NAdam
    (2 + 2β₁)/((1 − β₁)(1 + 2β₁)); RMSprop as gradient descent or heavy ball with P = √v + ε; Adagrad 2 with
    P = (1 + (t − 1) decay)(√Σg² + ε). Decoupled weight decay w turns the 2 into 2 − ηw.

    Args:
        optimizer: One of torch's own of these names, or a subclass with the same `step`.
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
    # Subclasses that leave the step as it is count; torch wraps `step` once for each class.
    steps = {unwrap(kind.step): rule for kind, rule in _RULES.items()}
    make = steps.get(unwrap(type(optimizer).step))
    if make is None:
        raise NotApplicable(
            f"preconditioning(optimizer): {type(optimizer).__name__} has no known stability threshold. "
            f"Supported: {', '.join(kind.__name__ for kind in _RULES)} of torch.optim."
        )
    rules = [(group, make(group)) for group in optimizer.param_groups]
    held = {id(p): pair for pair in rules for p in pair[0]["params"]}
    moved = [(i, p, *held[id(p)]) for i, p in enumerate(space.parameters) if id(p) in held]
    if not moved:
        raise BadInput("preconditioning(optimizer, space): the optimizer holds none of the space's parameters.")
    thresholds = {id(group): _threshold(group, rule) for _, _, group, rule in moved}
    threshold = max(thresholds.values())
    squares = [torch.zeros(shape, dtype=space.dtype, device=space.device) for shape in space.shapes]
    decays = [torch.zeros_like(square) for square in squares]
    updated = False
    for i, parameter, group, rule in moved:
        state = {key: _wide(value, space) for key, value in optimizer.state.get(parameter, {}).items()}
        if rule.needs and rule.needs not in state:
            continue  # it has had no gradient yet: the optimizer has not moved it
        updated = True
        divisor = rule.divisor(state)
        rate = float(group["lr"]) * threshold / thresholds[id(group)]
        squares[i] += rate if divisor is None else rate / divisor
        decays[i] += 0.0 if rule.decoupled else float(group["weight_decay"])
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
    )


def _wide(value: Any, space: Space) -> Any:
    """This rank's part of a tensor, in the type of the space's vectors, so that 16 bits do not round twice."""
    return local(value).to(space.dtype) if isinstance(value, Tensor) else value


def _threshold(group: dict[str, Any], rule: _Rule) -> float:
    decay = float(group["lr"]) * float(group["weight_decay"]) if rule.decoupled else 0.0
    return (2.0 - decay) / rule.response


def _sign(optimizer: Optimizer, groups: list[dict[str, Any]]) -> float:
    climbing = {bool(group["maximize"]) for group in groups}
    if len(climbing) > 1:
        raise NotApplicable(
            f"preconditioning(optimizer): some groups of this {type(optimizer).__name__} climb and others descend, "
            "so that stability is not a matter of one symmetric matrix. Take a space of the ones or the others."
        )
    return -1.0 if climbing.pop() else 1.0


def _joined(words: Any) -> str:
    return "; ".join(dict.fromkeys(words))


def _sgd(group: dict[str, Any]) -> _Rule:
    momentum, dampening = float(group["momentum"]), float(group["dampening"])
    if momentum == 0:
        return _Rule(1.0, "gradient descent", "ηλ < 2")
    if group["nesterov"]:
        return _Rule((1 + 2 * momentum) / (1 + momentum), "Nesterov", "ηλ < (2 + 2μ)/(1 + 2μ)")
    return _Rule((1 - dampening) / (1 + momentum), "heavy ball", "ηλ < (2 + 2μ)/(1 − dampening)")


def _adam(group: dict[str, Any]) -> _Rule:
    beta1, beta2, epsilon = float(group["betas"][0]), float(group["betas"][1]), float(group["eps"])
    second = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
    decoupled = bool(group["decoupled_weight_decay"])

    def divisor(state: dict[str, Any]) -> Tensor:
        step = float(state["step"])
        return (1 - beta1**step) * ((state[second] / (1 - beta2**step)).sqrt() + epsilon)

    name = ("AdamW" if decoupled else "Adam") + (", amsgrad" if group["amsgrad"] else "")
    formula = "λ₁(ηP⁻¹H) < (2 + 2β₁)/(1 − β₁), P = (1 − β₁ᵗ)(√v̂ + ε)"
    return _Rule((1 - beta1) / (1 + beta1), name, formula, divisor, second, decoupled)


def _nadam(group: dict[str, Any]) -> _Rule:
    beta1, beta2, epsilon = float(group["betas"][0]), float(group["betas"][1]), float(group["eps"])
    average = (1 - beta1) / (1 + beta1)
    limit = (1 - beta1) * (1 + 2 * beta1) / (1 + beta1)

    def momentum(step: float) -> float:
        return beta1 * (1 - 0.5 * 0.96 ** (step * float(group["momentum_decay"])))

    def divisor(state: dict[str, Any]) -> Tensor:
        step, product = float(state["step"]), float(state["mu_product"])
        now, following = momentum(step), momentum(step + 1)
        response = (1 - now) / (1 - product) + following / (1 - product * following) * average
        return ((state["exp_avg_sq"] / (1 - beta2**step)).sqrt() + epsilon) * (limit / response)

    formula = "λ₁(ηP⁻¹H) < (2 + 2β₁)/((1 − β₁)(1 + 2β₁)), P = √v̂ + ε over the share of its final response"
    return _Rule(limit, "NAdam", formula, divisor, "exp_avg_sq", bool(group["decoupled_weight_decay"]))


def _rmsprop(group: dict[str, Any]) -> _Rule:
    momentum, epsilon = float(group["momentum"]), float(group["eps"])

    def divisor(state: dict[str, Any]) -> Tensor:
        square = state["square_avg"]
        if group["centered"]:
            square = square - state["grad_avg"].square()
        return square.sqrt() + epsilon

    name = "RMSprop" + (", centered" if group["centered"] else "") + (", momentum" if momentum else "")
    formula = "λ₁(ηP⁻¹H) < 2 + 2μ, P = √v + ε"
    return _Rule(1 / (1 + momentum), name, formula, divisor, "square_avg")


def _adagrad(group: dict[str, Any]) -> _Rule:
    def divisor(state: dict[str, Any]) -> Tensor:
        lag = 1 + max(0.0, float(state["step"]) - 1) * float(group["lr_decay"])
        return lag * (state["sum"].sqrt() + float(group["eps"]))

    return _Rule(1.0, "Adagrad", "λ₁(ηP⁻¹H) < 2, P = (1 + (t − 1) decay)(√Σg² + ε)", divisor, "sum")


_RULES: dict[type[Optimizer], Callable[[dict[str, Any]], _Rule]] = {
    SGD: _sgd,
    Adam: _adam,
    AdamW: _adam,
    NAdam: _nadam,
    RMSprop: _rmsprop,
    Adagrad: _adagrad,
}
