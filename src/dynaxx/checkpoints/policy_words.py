"""Retention policies in words, as the command line takes them.

```
last:3                  the last 3 of the line that the training is on
newer:2000              those at most 2000 steps older than the newest
every:1000              the first one at or after each multiple of 1000 steps
best:2:val_loss:min     the best 2 by a number that was saved with them
spread:16               16 of the line, evenly apart in steps
spread:16:2e9           as many of them as 2 GB hold
diverse:10              10 that lie as far apart as can be
all                     every one
last:3,best:2           several: what any of them keeps
```
"""

from collections.abc import Collection, Sequence
from typing import Literal, cast

from dynaxx.checkpoints.coordinates import ByWeights
from dynaxx.checkpoints.diverse import Diverse
from dynaxx.checkpoints.health import healthy, verdicts
from dynaxx.checkpoints.manifest import CheckpointInfo
from dynaxx.checkpoints.places import Place
from dynaxx.checkpoints.pruning import protected
from dynaxx.checkpoints.retention import All, Best, Every, Last, Newer, Policy, Spread, Union
from dynaxx.errors import BadInput, UnknownName

FORM = (
    "last:N, newer:STEPS, every:STEPS, best:K[:METRIC[:min|max]], spread:K[:BYTES], diverse:K or all, joined by commas"
)
_ARGUMENTS = {
    "last": (1, 1),
    "newer": (1, 1),
    "every": (1, 1),
    "best": (1, 3),
    "spread": (1, 2),
    "diverse": (1, 1),
    "all": (0, 0),
}
"""Name → least and most arguments."""


def policy(words: str, place: Place | None = None) -> Policy:
    """A policy from words.

    Args:
        words: See the top of this module.
        place: Where the checkpoints lie: "diverse" measures their distances there.

    Returns:
        The policy; `str` gives words back.

    Raises:
        BadInput: The words cannot be read, or "diverse" is asked for without a place.

    Example:
        >>> str(policy("last:3, best:2"))
        'last:3,best:2:val_loss:min'
    """
    parts = [_part(part.strip(), words, place) for part in words.split(",") if part.strip()]
    if not parts:
        raise BadInput(f"A retention policy must keep something. Got {words!r}. Write {FORM}.")
    return parts[0] if len(parts) == 1 else Union(tuple(parts))


def _part(part: str, words: str, place: Place | None) -> Policy:
    name, *given = part.split(":")
    if name not in _ARGUMENTS:
        raise UnknownName("retention policy", name, _ARGUMENTS)
    least, most = _ARGUMENTS[name]
    if not least <= len(given) <= most or (given and not given[0].isdecimal()):
        raise BadInput(f"{part!r} in the retention policy {words!r} cannot be read. Write {FORM}.")
    match name:
        case "last":
            return Last(int(given[0]))
        case "newer":
            return Newer(int(given[0]))
        case "every":
            return Every(int(given[0]))
        case "best":
            return Best(int(given[0]), *cast("list[Literal['min', 'max']]", given[1:]))
        case "spread":
            return Spread(int(given[0]), *map(_bytes, given[1:]))
        case "diverse":
            return _diverse(int(given[0]), place)
        case _:
            return All()


def _bytes(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise BadInput(f"spread:K:BYTES: {word!r} is no number of bytes. Write 2e9 for two gigabytes.") from None


def _diverse(count: int, place: Place | None) -> Policy:
    if place is None:
        raise BadInput("policy('diverse:…', place=...) needs the place: the distances are measured there.")

    def excluded(infos: Sequence[CheckpointInfo]) -> Collection[str]:
        newest = healthy(infos, verdicts(place))[:1]
        return {info.id for info in newest} | (protected(place).keys() & {info.id for info in infos})

    return Diverse(coordinates=ByWeights(place), count=count, excluded=excluded)
