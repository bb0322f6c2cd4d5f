"""How optimizers answer to a gradient that alternates in sign: what the threshold of their stability rests on."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from inspect import unwrap
from typing import Any, NamedTuple

from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from dynaxx.errors import NotApplicable


class Rotation(ABC):
    """An orthogonal change of the coordinates of one parameter."""

    @abstractmethod
    def into(self, entries: Tensor) -> Tensor:
        """Coordinates of entries.

        Args:
            entries: Of the parameter's shape.

        Returns:
            A new tensor of the same shape.
        """

    @abstractmethod
    def back(self, coordinates: Tensor) -> Tensor:
        """Entries of coordinates, the inverse of `into`.

        Args:
            coordinates: Of the parameter's shape.

        Returns:
            A new tensor of the same shape.
        """


class Scaling(NamedTuple):
    """P of one parameter, which is diagonal in some coordinates.

    Args:
        divisor: Its entries, of the parameter's shape; None: 1.
        rotation: Into the coordinates; None: they are the parameter's entries.
    """

    divisor: Tensor | None = None
    rotation: Rotation | None = None


class Rule(NamedTuple):
    """How a group of parameters is updated.

    The update in answer to gradients (−1)ᵗ g of alternating sign, the mode in which stability is lost, is
    η · response · P⁻¹ g; so λ η / P may be 2 / response.

    Args:
        response: Without unit.
        name: Of the optimizer and its variant.
        formula: The threshold and P.
        scaling: P of one parameter by its state, tensors of which are in the type that P is wanted in; None where it
            has not been updated yet.
        decoupled: Whether weight decay does not go through the gradient.
    """

    response: float
    name: str
    formula: str
    scaling: Callable[[dict[str, Any]], Scaling | None] = lambda state: Scaling()
    decoupled: bool = False


class Ruled(ABC):
    """An optimizer that knows its own rule."""

    @abstractmethod
    def stability_rule(self, group: dict[str, Any]) -> Rule:
        """How a group is updated.

        Args:
            group: One of the optimizer's.

        Returns:
            The rule.
        """


def rule_of(optimizer: Optimizer, group: dict[str, Any]) -> Rule:
    """How an optimizer updates a group.

    Args:
        optimizer: One that is `Ruled`, or of torch's own, or a subclass of these with the same `step`.
        group: One of its groups.

    Returns:
        The rule.

    Raises:
        NotApplicable: None is known.

    Example:
        >>> heavy = SGD([Tensor(2)], lr=0.1, momentum=0.5)
        >>> 2 / rule_of(heavy, heavy.param_groups[0]).response
        3.0
    """
    if isinstance(optimizer, Ruled):
        return optimizer.stability_rule(group)
    # Subclasses that leave the step as it is count; torch wraps `step` once for each class.
    steps = {unwrap(kind.step): rule for kind, rule in _RULES.items()}
    make = steps.get(unwrap(type(optimizer).step))
    if make is None:
        raise NotApplicable(
            f"preconditioning(optimizer): {type(optimizer).__name__} has no known stability threshold. "
            f"Supported: {', '.join(kind.__name__ for kind in _RULES)} of torch.optim; SOAP, Shampoo, KLShampoo."
        )
    return make(group)


def _sgd(group: dict[str, Any]) -> Rule:
    momentum, dampening = float(group["momentum"]), float(group["dampening"])
    if momentum == 0:
        return Rule(1.0, "gradient descent", "ηλ < 2")
    if group["nesterov"]:
        return Rule((1 + 2 * momentum) / (1 + momentum), "Nesterov", "ηλ < (2 + 2μ)/(1 + 2μ)")
    return Rule((1 - dampening) / (1 + momentum), "heavy ball", "ηλ < (2 + 2μ)/(1 − dampening)")


def _adam(group: dict[str, Any]) -> Rule:
    beta1, beta2, epsilon = float(group["betas"][0]), float(group["betas"][1]), float(group["eps"])
    second = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
    decoupled = bool(group["decoupled_weight_decay"])

    def divisor(state: dict[str, Any]) -> Tensor:
        step = float(state["step"])
        return (1 - beta1**step) * ((state[second] / (1 - beta2**step)).sqrt() + epsilon)

    name = ("AdamW" if decoupled else "Adam") + (", amsgrad" if group["amsgrad"] else "")
    formula = "λ₁(ηP⁻¹H) < (2 + 2β₁)/(1 − β₁), P = (1 − β₁ᵗ)(√v̂ + ε)"
    return Rule((1 - beta1) / (1 + beta1), name, formula, _once(second, divisor), decoupled)


def _nadam(group: dict[str, Any]) -> Rule:
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
    return Rule(limit, "NAdam", formula, _once("exp_avg_sq", divisor), bool(group["decoupled_weight_decay"]))


def _rmsprop(group: dict[str, Any]) -> Rule:
    momentum, epsilon = float(group["momentum"]), float(group["eps"])

    def divisor(state: dict[str, Any]) -> Tensor:
        square = state["square_avg"]
        if group["centered"]:
            square = square - state["grad_avg"].square()
        return square.sqrt() + epsilon

    name = "RMSprop" + (", centered" if group["centered"] else "") + (", momentum" if momentum else "")
    formula = "λ₁(ηP⁻¹H) < 2 + 2μ, P = √v + ε"
    return Rule(1 / (1 + momentum), name, formula, _once("square_avg", divisor))


def _adagrad(group: dict[str, Any]) -> Rule:
    def divisor(state: dict[str, Any]) -> Tensor:
        lag = 1 + max(0.0, float(state["step"]) - 1) * float(group["lr_decay"])
        return lag * (state["sum"].sqrt() + float(group["eps"]))

    return Rule(1.0, "Adagrad", "λ₁(ηP⁻¹H) < 2, P = (1 + (t − 1) decay)(√Σg² + ε)", _once("sum", divisor))


def _once(needs: str, divisor: Callable[[dict[str, Any]], Tensor]) -> Callable[[dict[str, Any]], Scaling | None]:
    """A diagonal P, once there is the state that it needs: the first step makes it."""
    return lambda state: Scaling(divisor(state)) if needs in state else None


_RULES: dict[type[Optimizer], Callable[[dict[str, Any]], Rule]] = {
    SGD: _sgd,
    Adam: _adam,
    AdamW: _adam,
    NAdam: _nadam,
    RMSprop: _rmsprop,
    Adagrad: _adagrad,
}
