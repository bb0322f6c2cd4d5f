"""JSON that carries its own checksum: one object, whose last member is the xxh3 of all that stands before it."""

import dataclasses
import json
import math
from collections.abc import Mapping, Set
from typing import Any, cast

import numpy as np
import xxhash

from dynaxx.errors import CorruptData

_MEMBER = b', "xxh3": "'


def seal(record: Mapping[str, Any], indent: int | None = None) -> bytes:
    """A record as JSON with its checksum.

    Args:
        record: Not empty; values are converted by `plain`.
        indent: Spaces per level for a person's eyes; None: one line.

    Returns:
        ASCII bytes without a final newline.

    Example:
        >>> seal({"step": 1, "loss": float("nan")})
        b'{"step": 1, "loss": "NaN", "xxh3": "38a14ae6f1187c5f"}'
    """
    head = json.dumps(plain(record), indent=indent, allow_nan=False).encode().removesuffix(b"}").rstrip()
    return head + _MEMBER + xxhash.xxh3_64_hexdigest(head).encode() + b'"}'


def unseal(data: bytes) -> tuple[dict[str, Any], bool]:
    """Read what `seal` wrote.

    Args:
        data: The bytes, with or without surrounding white space.

    Returns:
        The record without its checksum, and whether the checksum holds.

    Raises:
        CorruptData: The bytes are no JSON object.
    """
    head, _, tail = data.strip().rpartition(_MEMBER)
    intact = bool(head) and tail == xxhash.xxh3_64_hexdigest(head).encode() + b'"}'
    try:
        record: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptData(f"no JSON: {error}") from None
    if not isinstance(record, dict):
        raise CorruptData(f"a JSON object was expected, not {type(record).__name__}")
    known = cast(dict[str, Any], record)
    known.pop("xxh3", None)
    return known, intact


def plain(value: Any) -> Any:
    """A value as JSON knows it; what JSON does not know becomes text.

    Args:
        value: Anything. Numbers that are not finite become "NaN", "Infinity" and "-Infinity", which `float` reads.

    Returns:
        None, bool, int, float, str, list or dict of these.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float):
        return (
            value if math.isfinite(value) else "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        )
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, Set):
        return sorted(str(part) for part in cast(Set[Any], value))
    if isinstance(value, list | tuple):
        return [plain(part) for part in cast(list[Any], value)]
    return str(value)
