"""Runs as one JSON text and one block of bytes, from which the front end draws them."""

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dynaxx import figures
from dynaxx.report._diagnosis import diagnosed
from dynaxx.report._summary import Fact, summary
from dynaxx.runlog import RunView

FORMAT = 1
"""Version of what the front end is given."""
_ALIGN = 8
"""Every array starts at a multiple of its element's size, as typed arrays over one buffer demand."""


class Block:
    """Arrays one after the other; equal ones (the steps of many columns) are stored once."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._known: dict[tuple[str, bytes], dict[str, Any]] = {}

    def add(self, array: np.ndarray) -> dict[str, Any]:
        """Append an array.

        Args:
            array: float64, float32, uint32 or uint16, of any shape.

        Returns:
            Where it lies: type, offset in bytes, number of elements.
        """
        kind = array.dtype.newbyteorder("<").str[1:]
        content = np.ascontiguousarray(array, dtype="<" + kind).tobytes()
        if (kind, content) not in self._known:
            self._known[kind, content] = {"type": kind, "offset": self._size, "length": array.size}
            padding = -len(content) % _ALIGN
            self._parts += [content, bytes(padding)]
            self._size += len(content) + padding
        return self._known[kind, content]

    def compressed(self) -> bytes:
        """Everything, in zlib's format, which browsers unpack by themselves."""
        return zlib.compress(b"".join(self._parts), level=6)


def payload(views: Sequence[RunView]) -> tuple[dict[str, Any], bytes]:
    """What the front end draws.

    Args:
        views: The runs.

    Returns:
        The JSON-able part, in which arrays are named, and the compressed arrays.
    """
    return assembled([_page(view, name) for view, name in zip(views, names(views), strict=True)])


def _page(view: RunView, name: str) -> tuple[str, list[Fact], list[figures.FigureData]]:
    """The story first, then the diagnosis, then what they rest on."""
    drawn = figures.data(view)
    facts, diagnosis = diagnosed(view)
    story = [figure for figure in drawn if figure.name == "story"]
    rest = [figure for figure in drawn if figure.name != "story"]
    return name, [*facts, *summary(view)], [*story, diagnosis, *rest]


def assembled(
    pages: Sequence[tuple[str, Sequence[Fact], Sequence[figures.FigureData]]],
) -> tuple[dict[str, Any], bytes]:
    """What the front end draws, from figures.

    Args:
        pages: The runs.

    Returns:
        As `payload`.
    """
    block = Block()
    runs = [
        {
            "name": name,
            "summary": [asdict(fact) for fact in facts],
            "figures": [{"name": f.name, "title": f.title, "panels": f.panels} for f in drawn if f.panels],
            "missing": [{"title": f.title, "reason": f.reason} for f in drawn if f.reason],
            "arrays": {key: block.add(_narrow(a)) for f in drawn for key, a in f.arrays.items()},
        }
        for name, facts, drawn in pages
    ]
    return {"format": FORMAT, "runs": runs}, block.compressed()


def to_json(value: Any) -> str:
    r"""JSON that may stand inside an HTML script element: nothing in it can end the element or begin a comment.

    Args:
        value: What to write; numbers must be finite.

    Returns:
        The text.

    Example:
        >>> to_json({"run": "</script>&"})
        '{"run":"\\u003c/script\\u003e\\u0026"}'
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def names(views: Sequence[RunView]) -> list[str]:
    """What the runs are called: their folders' names, with as many parents as it takes to tell them apart.

    Args:
        views: The runs.

    Returns:
        One name per run.
    """
    parts = [view.folder.resolve().parts for view in views]
    found: list[str] = []
    for mine in parts:
        others = [other for other in parts if other != mine]
        depth = next(d for d in range(1, len(mine) + 1) if all(other[-d:] != mine[-d:] for other in others))
        found.append("/".join(mine[-depth:]))
    return found


def _narrow(array: np.ndarray) -> np.ndarray:
    """Steps as 32-bit integers, which compress far better than float64."""
    if array.dtype == np.float64 and array.size:
        whole = array.astype(np.uint32) if array.min() >= 0 and array.max() < 2**32 else None
        if whole is not None and np.array_equal(whole, array):
            return whole
    return array
