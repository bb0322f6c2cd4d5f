"""Which save of a run came from which: one rule for logs and for manifests, in which no clock is asked."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Save:
    """One save of a run.

    Args:
        id: The checkpoint's id; it begins with the number of the save, which grows whatever the clock says.
        step: Completed optimizer steps.
        origin: Id of the checkpoint that the training had last gone back to, and the number that the next save got;
            None: it never had, or nobody said.
    """

    id: str
    step: int
    origin: tuple[str, int] | None = None

    @property
    def number(self) -> int:
        """The number of the save within the run."""
        return number(self.id)


def number(id: str) -> int:
    """The number of a save.

    Args:
        id: The checkpoint's id.

    Returns:
        The number, from 1.

    Example:
        >>> number("000003-9f3c12ab")
        3
    """
    return int(id.partition("-")[0])


def parents(saves: Iterable[Save]) -> dict[str, str | None]:
    """Each save's parent among those that are still there.

    It is the newest save before it, of a smaller step, since the training last went back; the first one after that has
    the checkpoint that it went back to. Where that one was pruned, or nothing was recorded, it is the newest save
    before it of a smaller step: so a training whose steps fall is seen to have left the later ones behind.

    Args:
        saves: In any order.

    Returns:
        Id → id of the parent, None at a root; in the order of the saves.

    Example:
        >>> saves = [Save(id="000001-a", step=100), Save(id="000002-b", step=200), Save(id="000003-c", step=150)]
        >>> parents(saves)
        {'000001-a': None, '000002-b': '000001-a', '000003-c': '000001-a'}
    """
    ordered = in_order(saves)
    known = {save.id for save in ordered}
    found: dict[str, str | None] = {}
    for place, save in enumerate(ordered):
        earlier = [s for s in ordered[:place] if s.step < save.step]
        since = [s for s in earlier if s.origin == save.origin]
        if not since and save.origin is not None:
            if save.origin[0] in known:
                found[save.id] = save.origin[0]
                continue
            since = [s for s in earlier if s.number < number(save.origin[0])]
        elif not since:
            since = earlier
        found[save.id] = since[-1].id if since else None
    return found


def lanes(saves: Sequence[Save]) -> list[list[Save]]:
    """The saves as lines without forks: the one that the training is on first, then what it left behind.

    Args:
        saves: In any order.

    Returns:
        Per line its saves, oldest first; a line that branches off begins with the save it came from.

    Example:
        >>> saves = [Save(id="000001-a", step=100), Save(id="000002-b", step=200), Save(id="000003-c", step=150)]
        >>> [[save.step for save in lane] for lane in lanes(saves)]
        [[100, 150], [100, 200]]
    """
    up, by_id = parents(saves), {save.id: save for save in saves}
    drawn: set[str] = set()
    tips = (save for save in reversed(in_order(saves)) if save.id not in drawn)  # looked up as it is drawn
    return [_upwards(tip.id, up, by_id, drawn)[::-1] for tip in tips]


def in_order(saves: Iterable[Save]) -> list[Save]:
    """The saves in the order they were made.

    Args:
        saves: In any order.

    Returns:
        By number, then id.
    """
    return sorted(saves, key=lambda save: (save.number, save.id))


def _upwards(id: str, up: Mapping[str, str | None], by_id: Mapping[str, Save], drawn: set[str]) -> list[Save]:
    """A save, its parent, and so on, up to the first that is drawn already; what is met is drawn."""
    lane: list[Save] = []
    at: str | None = id
    while at is not None:
        lane.append(by_id[at])
        if at in drawn:  # a fork; or a circle, which only a forged record can make
            break
        drawn.add(at)
        at = up[at]
    return lane
