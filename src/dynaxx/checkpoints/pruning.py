"""Pruning: what a policy does not keep goes to the archive or away, and never the last two healthy ones.

Kept besides what the policy keeps: pinned checkpoints, those that another run branched from, and as many verified
healthy ones as make two; while there are fewer, also those that may yet prove healthy.

The order of the work makes a kill at any point harmless: what is archived is committed before the full one is removed,
a removal takes a checkpoint out of sight whole before anything of it is deleted, and the next pruning goes on from what
it finds.
"""

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dynaxx.checkpoints import health
from dynaxx.checkpoints.archive import archive
from dynaxx.checkpoints.folders import ID
from dynaxx.checkpoints.manifest import CheckpointInfo
from dynaxx.checkpoints.places import Place, original
from dynaxx.checkpoints.retention import Policy
from dynaxx.checkpoints.store import CheckpointStore
from dynaxx.errors import BadInput, CorruptData, DynaxxWarning, NotSaved

FLOOR = 2
"""Verified healthy checkpoints that no pruning goes below: one may turn out damaged when it is needed."""
PINS, BRANCHES = "pins", "branches"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What a pruning did, or would do.

    Args:
        kept: Full checkpoints that stay.
        archived: Full ones of which the weights stay.
        removed: Full ones that are gone, archived ones of them included.
        expired: Archived ones that are gone.
        why: Id → what keeps it besides the policy.
        refused: Why nothing was removed; empty where it was, or nothing was to be.
    """

    kept: tuple[CheckpointInfo, ...]
    archived: tuple[CheckpointInfo, ...]
    removed: tuple[CheckpointInfo, ...]
    expired: tuple[CheckpointInfo, ...]
    why: dict[str, str]
    refused: str = ""


def prune(store: CheckpointStore | Place, keep: Policy, *, cold: Policy | None = None, dry_run: bool = False) -> Pruned:
    """Bring a place to what policies keep.

    Args:
        store: The place.
        keep: Which checkpoints stay in full.
        cold: Which ones' weights stay in the archive once the full one has gone; None: the archive is left as it is.
            It sees full and archived ones alike.
        dry_run: Say what would be done, and do nothing.

    Returns:
        What was done.

    Raises:
        OSError: The place cannot be listed.
    """
    place = health.as_place(store)
    infos, old = place.list(), place.archive.list()
    why = protected(place)
    wanted = keep.keep(infos) | why.keys()
    both = {original(info).id: original(info) for info in (*old, *infos)}
    chilled = frozenset(both) if cold is None else cold.keep(list(both.values())) | why.keys()
    leaving = [info for info in infos if info.id not in wanted]
    refused = ""
    if leaving:
        whole, floor = _floor(place, infos, wanted)
        why |= {key: reason for key, reason in floor.items() if key not in wanted}
        leaving = [info for info in leaving if info.id not in why]
        if leaving and whole < FLOOR:
            refused = f"only {whole} of the {len(infos)} checkpoints in {place.name} is as it was written"
            leaving = []
    freezing = {info.id for info in leaving if cold is not None and info.id in chilled}
    expiring = [info for info in old if original(info).id not in chilled]
    if not dry_run:
        if refused:
            warnings.warn(f"Nothing is pruned: {refused}; at least {FLOOR} must stay.", DynaxxWarning, stacklevel=2)
        leaving = _carry_out(place, leaving, freezing, expiring)
    gone = {info.id for info in leaving}
    return Pruned(
        kept=tuple(info for info in infos if info.id not in gone),
        archived=tuple(info for info in leaving if info.id in freezing),
        removed=tuple(leaving),
        expired=tuple(expiring),
        why=why,
        refused=refused,
    )


def pin(store: CheckpointStore | Place, info: CheckpointInfo, why: str) -> None:
    """Keep a checkpoint through every pruning.

    Args:
        store: The place.
        info: The checkpoint.
        why: In words.

    Raises:
        BadInput: No reason is given.
    """
    if not why:
        raise BadInput("pin(why=...): say why, for who finds it in a year.")
    health.as_place(store).note(PINS, original(info).id, {"step": info.step, "why": why})


def unpin(store: CheckpointStore | Place, info: CheckpointInfo) -> None:
    """Leave a checkpoint to the policies again.

    Args:
        store: The place.
        info: The checkpoint.
    """
    health.as_place(store).note(PINS, original(info).id, None)


def protected(place: Place) -> dict[str, str]:
    """What every pruning keeps: what is pinned, and what a run was branched from that is still there.

    Args:
        place: The place.

    Returns:
        Id → why.
    """
    pins = {key: f"pinned: {record.get('why', '')}" for key, record in place.notes(PINS).items()}
    branches = {
        str(record["checkpoint"]): f"{record['run']} branched from it"
        for record in place.notes(BRANCHES).values()
        if Path(record["run"]).exists()
    }
    return branches | pins


def _floor(place: Place, infos: Sequence[CheckpointInfo], wanted: Collection[str]) -> tuple[int, dict[str, str]]:
    """What must stay so that two healthy ones are verified, or come as near to it as can be.

    Where fewer than two are healthy, those that may yet prove to be stay too; and whole ones count, whatever was said
    of them, so that what is suspect does not pile up.

    Returns:
        How many were verified (two suffice), and id → why it must stay.
    """
    said = health.verdicts(place)
    healthy = health.healthy(infos, said)
    found = _sound(place, sorted(healthy, key=lambda info: info.id not in wanted), FLOOR)
    why = {info.id: "healthy, and one of the last two" for info in found}
    if len(found) < FLOOR:
        judged = {key for key, verdict in said.items() if verdict.health != "probation"}
        young = [info for info in infos if info.id not in judged and not health.illness(info)]
        why |= {info.id: "it may prove healthy, and fewer than two have" for info in young if info.id not in why}
        rest = sorted((info for info in reversed(infos) if info not in healthy), key=lambda i: i.id not in wanted)
        others = _sound(place, rest, FLOOR - len(found))
        why |= {info.id: "one of the last two that are as they were written" for info in others if info.id not in why}
        found += others
    return len(found), why


def _sound(place: Place, infos: Sequence[CheckpointInfo], count: int) -> list[CheckpointInfo]:
    """The first so many that are as they were written; no more are read than it takes."""
    return list(islice(filter(place.is_sound, infos), count))


def _carry_out(
    place: Place,
    leaving: Sequence[CheckpointInfo],
    freezing: Collection[str],
    expiring: Sequence[CheckpointInfo],
) -> list[CheckpointInfo]:
    """Archive, remove, expire; the full ones that are gone. One that cannot be archived as it was to be stays."""
    going = list(leaving)
    for info in (info for info in leaving if info.id in freezing):
        try:
            archive(place, info)
        except (CorruptData, BadInput, NotSaved) as error:
            message = f"{info.path.name} in {place.name} stays: it cannot be archived. {error}"
            warnings.warn(message, DynaxxWarning, stacklevel=3)
            going.remove(info)
    gone = place.remove_all(going)
    place.archive.remove_all(expiring)
    kept = {original(info).id for info in (*place.list(), *place.archive.list())}
    for kind in place.note_kinds():
        for name in place.read_notes(kind).keys() - kept:
            if ID.fullmatch(name):  # a note on a checkpoint that is gone
                place.note(kind, name, None)
    place.sweep()
    return [info for info in going if info.id in gone]
