"""What options and parameters of an optimizer must be; the errors name the option, the rule and the value."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from dynaxx.core.parameters import is_sharded
from dynaxx.errors import BadInput

Rule = tuple[str, Callable[[Any], bool]]


def _number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


POSITIVE: Rule = ("a finite number above 0", lambda v: _number(v) and float(v) > 0)
NOT_NEGATIVE: Rule = ("a finite number of at least 0", lambda v: _number(v) and float(v) >= 0)
SHARE: Rule = ("a number in [0, 1)", lambda v: _number(v) and 0 <= float(v) < 1)
SHARES: Rule = (
    "two numbers in [0, 1)",
    lambda v: isinstance(v, tuple | list) and len(v) == 2 and all(SHARE[1](each) for each in v),
)
COUNT: Rule = ("a whole number of at least 1", lambda v: _whole(v) and v >= 1)
COUNTS: Rule = (
    "a dict of names ↦ whole numbers of at least 1",
    lambda v: isinstance(v, dict) and all(isinstance(key, str) and COUNT[1](each) for key, each in v.items()),
)
FLAG: Rule = ("True or False", lambda v: isinstance(v, bool))


def one_of(*words: str) -> Rule:
    """A rule: one of these words.

    Args:
        words: What is allowed.

    Returns:
        The rule.
    """
    return f"one of {', '.join(words)}", lambda v: v in words


def optional(rule: Rule) -> Rule:
    """A rule: None, or what another rule says.

    Args:
        rule: The other rule.

    Returns:
        The rule.
    """
    return f"None or {rule[0]}", lambda v: v is None or rule[1](v)


def check_options(owner: str, given: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Check options, those of the constructor or of one group.

    Args:
        owner: Name of the optimizer's class.
        given: Option → value.
        rules: Option → rule.

    Raises:
        BadInput: A value breaks its rule.
    """
    for name, (words, holds) in rules.items():
        if not holds(given[name]):
            raise BadInput(f"{owner}({name}=...) must be {words}. Got {given[name]!r}.")


def parameter_name(group: Mapping[str, Any], index: int) -> str:
    """What to call a parameter in a message.

    Args:
        group: A parameter group.
        index: Its place in the group.

    Returns:
        Its name where the optimizer was given names; else its place and shape.
    """
    if "param_names" in group:
        return repr(group["param_names"][index])
    return f"number {index} of its group (shape {tuple(group['params'][index].shape)})"


def check_real(owner: str, group: Mapping[str, Any]) -> None:
    """Refuse complex parameters.

    Args:
        owner: Name of the optimizer's class.
        group: A parameter group.

    Raises:
        BadInput: A parameter is complex or not floating point.
    """
    for index, parameter in enumerate(group["params"]):
        if not parameter.dtype.is_floating_point:
            raise BadInput(
                f"{owner}(params=...): {parameter_name(group, index)} is {parameter.dtype}, and must be real floating "
                "point. Give it to an optimizer of torch, in a second one beside this."
            )


def check_whole(owner: str, group: Mapping[str, Any], *, why: str) -> None:
    """Refuse what a method that mixes the entries of a tensor cannot treat.

    Args:
        owner: Name of the optimizer's class.
        group: A parameter group.
        why: What the method does that needs whole real tensors.

    Raises:
        BadInput: A parameter is complex, not floating point, or sharded over ranks.
    """
    check_real(owner, group)
    for index, parameter in enumerate(group["params"]):
        if is_sharded(parameter):
            raise BadInput(
                f"{owner}(params=...): {parameter_name(group, index)} is sharded over ranks (a DTensor), and {why} "
                "needs whole tensors. Use data parallelism without sharding, or adamw."
            )


def dense_gradients(owner: str, group: Mapping[str, Any]) -> Iterable[tuple[str, Tensor, Tensor]]:
    """The parameters of a group that have a gradient.

    Args:
        owner: Name of the optimizer's class.
        group: A parameter group.

    Yields:
        Name, parameter and gradient.

    Raises:
        BadInput: A gradient is sparse.
    """
    for index, parameter in enumerate(group["params"]):
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.layout != torch.strided:
            raise BadInput(
                f"{owner}.step(): the gradient of {parameter_name(group, index)} is sparse, and must be dense. "
                "Make the embedding with sparse=False, or give it to torch.optim.SparseAdam."
            )
        yield parameter_name(group, index), parameter, gradient
