"""How the commands about checkpoints read and print: steps or ids, settings, sizes, tables."""

import json
from typing import Any

import click


def which(at: str | None) -> int | str | None:
    """A checkpoint as a word names it.

    Args:
        at: A step, an id, or None.

    Returns:
        The step as a number.
    """
    return int(at) if at is not None and at.isdecimal() else at


def settings(changes: tuple[str, ...]) -> dict[str, Any]:
    """Settings from words.

    Args:
        changes: Each NAME=VALUE; the value is JSON where it can be read so, else text.

    Returns:
        Name → value.

    Raises:
        BadInput: One has no equals sign.

    Example:
        >>> settings(("seed=3", "task=digits"))
        {'seed': 3, 'task': 'digits'}
    """
    from dynaxx.errors import BadInput

    found: dict[str, Any] = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise BadInput(f"dynaxx checkpoints branch --set {change!r} must be NAME=VALUE.")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def size(count: float) -> str:
    """Bytes in the largest unit that keeps them above 1.

    Args:
        count: How many.

    Returns:
        Words.

    Example:
        >>> size(999), size(1500), size(2.5e9)
        ('999 B', '1.5 kB', '2.5 GB')
    """
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:.3g} {units[0]}"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]], right: tuple[str, ...] = ()) -> None:
    """Print rows in columns.

    Args:
        header: Names of the columns.
        rows: The cells.
        right: Names of the columns that are set flush right.
    """
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    for line in [header, *rows]:
        cells = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(header, line, widths, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())
