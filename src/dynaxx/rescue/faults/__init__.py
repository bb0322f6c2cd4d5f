"""What can be planted: faults, incidents and healthy oddities by name, each drawn from its distribution by a seed."""

from collections.abc import Mapping
from random import Random

from dynaxx.core.task import derive_seed
from dynaxx.errors import UnknownName
from dynaxx.rescue.alteration import Alteration, Kind
from dynaxx.rescue.faults import (
    data,
    healthy_data,
    healthy_schedules,
    incidents,
    precision,
    rates,
    regularisation,
    start,
    wiring,
)

_PLACES = (wiring, data, start, rates, precision, regularisation, incidents, healthy_schedules, healthy_data)
ALTERATIONS: Mapping[str, type[Alteration]] = {
    kind.name: kind
    for place in _PLACES
    for kind in vars(place).values()
    if isinstance(kind, type) and issubclass(kind, Alteration) and kind.__module__ == place.__name__
    if "name" in vars(kind)
}
"""Every alteration by name, in the order of the files."""


def names(kind: Kind | None = None) -> list[str]:
    """What can be planted.

    Args:
        kind: Of this kind only; None: all.

    Returns:
        The names.
    """
    return [name for name, entry in ALTERATIONS.items() if kind in (None, entry.kind)]


def plant(name: str, seed: int) -> Alteration:
    """An alteration, drawn.

    Args:
        name: Its name.
        seed: Of the draw.

    Returns:
        The alteration.

    Raises:
        UnknownName: There is none of that name.
    """
    if name not in ALTERATIONS:
        raise UnknownName("alteration", name, ALTERATIONS)
    return ALTERATIONS[name](Random(derive_seed(seed, name)))
