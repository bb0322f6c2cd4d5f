"""An entry of a family with its options, as it is written on the command line and in plans: "sam:rho=0.5,every=5"."""

import ast
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from dynaxx.catalog._families import FAMILIES, get
from dynaxx.errors import BadInput, UnknownName


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An entry and the options that it is to be constructed with.

    Args:
        family: A key of `FAMILIES`.
        name: The entry's name.
        options: Options by name; those left out keep the entry's defaults.
    """

    family: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def kind(self) -> type[Any]:
        """The entry's class."""
        return get(self.family, self.name)

    def build(self, *subjects: Any, **named: Any) -> Any:
        """Construct the entry.

        Args:
            subjects: What the caller supplies: the model.
            named: The same by name: the planned steps.

        Returns:
            The entry; an optimizer is made by `for_model`.

        Raises:
            BadInput: An option breaks one of the entry's rules.
        """
        make = self.kind.for_model if self.family == "optim" else self.kind
        return make(*subjects, **named, **self.options)

    def __str__(self) -> str:
        words = ",".join(f"{key}={value!r}" for key, value in self.options.items())
        return f"{self.name}:{words}" if words else self.name


def choice(family: str, text: str) -> Choice:
    """Read a choice.

    Args:
        family: A key of `FAMILIES`.
        text: "name" or "name:option=value,option=value"; values are Python literals, or bare words.

    Returns:
        The choice, its options known to the entry and of the right kind.

    Raises:
        UnknownName: There is no such entry or option.
        BadInput: The text cannot be read, or a value is of the wrong kind.

    Example:
        >>> choice("schedules", "cosine:warmup=0.1,final=0.05").options
        {'warmup': 0.1, 'final': 0.05}
    """
    name, given = read_words(FAMILIES[family].singular, text)
    known = options(get(family, name))
    for key, value in given.items():
        if key not in known:
            raise UnknownName(f"option of {FAMILIES[family].singular} {name!r}", key, known)
        given[key] = _fitting(f"{text!r}: {key}", value, known[key])
    return Choice(family=family, name=name.replace("-", "_"), options=given)


def options(kind: type[Any]) -> dict[str, Any]:
    """What an entry can be told: the arguments of its constructor that have a default.

    Args:
        kind: The entry's class.

    Returns:
        Name → its type, `Any` where none is stated.
    """
    hints = get_type_hints(kind.__init__)
    found = inspect.signature(kind).parameters.values()
    return {p.name: hints.get(p.name, Any) for p in found if p.default is not inspect.Parameter.empty}


def read_words(what: str, text: str) -> tuple[str, dict[str, Any]]:
    """Name and options as they are written; whether they exist is not asked.

    Args:
        what: What is written, for messages ("optimizer").
        text: "name:option=value,option=value".

    Returns:
        The name and the options.

    Raises:
        BadInput: The text cannot be read.

    Example:
        >>> read_words("optimizer", "adamw:lr=3e-4,betas=(0.9, 0.95)")
        ('adamw', {'lr': 0.0003, 'betas': (0.9, 0.95)})
    """
    name, _, words = text.strip().partition(":")
    unreadable = BadInput(f"{what} {text!r} cannot be read. Write it name:option=value,option=value.")
    try:
        call = ast.parse(f"f({words})", mode="eval").body
    except SyntaxError:
        raise unreadable from None
    if not name or not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
        raise unreadable
    found: dict[str, Any] = {}
    for keyword in call.keywords:
        assert keyword.arg is not None
        value = keyword.value
        try:
            found[keyword.arg] = value.id if isinstance(value, ast.Name) else ast.literal_eval(value)
        except ValueError:
            raise BadInput(
                f"{what} {text!r}: {keyword.arg} must be a number, a word or a tuple. Write it "
                "name:option=value,option=value."
            ) from None
    return name.strip(), found


def _fitting(where: str, value: Any, hint: Any) -> Any:
    """The value, an integer widened where a float is asked for; refused where it is of another kind."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if not all(isinstance(part, type) for part in parts):
        return value
    kinds = set(parts)
    plain = {part for part in kinds if part in (bool, int, float, str, type(None))}
    if not plain or plain != kinds:  # unions with literals, tuples, callables: the entry checks them itself
        return value
    if type(value) in plain:
        return value
    if type(value) is int and float in plain:
        return float(value)
    wanted = " or ".join(sorted("nothing" if k is type(None) else k.__name__ for k in plain))
    raise BadInput(f"{where} must be {wanted}. Got {value!r}.")
