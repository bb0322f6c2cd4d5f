"""Branching: a new run that begins at a checkpoint of another, and the record of it in both."""

import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dynaxx.checkpoints.archive import is_archived
from dynaxx.checkpoints.opening import find, open_place
from dynaxx.checkpoints.places import LocalPlace, Place, original
from dynaxx.checkpoints.pruning import BRANCHES
from dynaxx.errors import BadInput, DynaxxWarning, RunFolderExists
from dynaxx.runlog.manifest import NAME as RUN
from dynaxx.runlog.manifest import read_manifest, write_manifest
from dynaxx.runlog.writer import holds_run

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A new run and where it came from.

    Args:
        run: The new run's folder.
        origin: The run, or the place, that it branched from.
        checkpoint: The id of the checkpoint there.
        step: Its completed optimizer steps.
        level: "exact": the training goes on there with everything that it was, bit for bit if nothing is changed.
            "warm": the checkpoint holds weights only; a training begins from them, at step 0 and with fresh optimizer
            state.
        start: The folder of the copy of the checkpoint in the new run.
        changed: Names of the settings that differ from those of the origin.
    """

    run: str
    origin: str
    checkpoint: str
    step: int
    level: Literal["exact", "warm"]
    start: str
    changed: tuple[str, ...] = ()


def branch(
    source: str | Path,
    folder: str | Path,
    *,
    at: int | str | None = None,
    steps: int | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Branch:
    """Make a new run's folder that begins at a checkpoint of another run.

    The folder holds a copy of the checkpoint, and a `run.json` with the settings of the origin, so that
    `watch(..., resume=True)` or `dynaxx train ... --resume --out FOLDER` goes on in it. Nothing is loaded or trained.

    Args:
        source: A run's folder, a folder of checkpoints, or the URL of one.
        folder: The new run's own folder.
        at: The checkpoint's step, id or name; None: the latest. Full ones are preferred to archived ones.
        steps: Planned optimizer steps of the new run; None: as planned there.
        facts: Settings that shall differ, by name ("seed", "order_seed", "recipe", …), as `run.json` has them.

    Returns:
        What was made.

    Raises:
        BadInput: There is no such run or checkpoint, or a setting that the origin does not have.
        RunFolderExists: The folder holds a run.
        CorruptData: The checkpoint is damaged; nothing is made.
        OSError: The folder cannot be written; what was made of it is taken away.

    Example:
        `branch("runs/first", "runs/second", at=5000)`
    """
    target = Path(folder).absolute()
    if holds_run(target) or (target / CHECKPOINTS).exists():
        raise RunFolderExists(f"branch(folder={str(folder)!r}): this folder holds a run already. Give another.")
    place = open_place(source)
    info, lies = find(place, at)
    level: Literal["exact", "warm"] = "warm" if is_archived(info) or "blend" in info.facts else "exact"
    parent = _manifest_of(place)
    changes = dict(facts or {})
    if unknown := changes.keys() - parent.get("facts", {}).keys():
        raise BadInput(
            f"branch(facts=...): the origin has no setting {', '.join(sorted(unknown))}. "
            f"It has: {', '.join(sorted(parent.get('facts', {}))) or 'none'}."
        )
    made = _first_missing(target)
    try:
        checkpoints = LocalPlace(target / CHECKPOINTS)
        copy = (checkpoints if level == "exact" else checkpoints.archive).adopt(lies, info)
        result = Branch(
            run=str(target),
            origin=str(Path(place.name).parent) if isinstance(place, LocalPlace) else place.name,
            checkpoint=original(info).id,
            step=info.step,
            level=level,
            start=str(copy.path),
            changed=tuple(sorted([*changes, *(["steps"] if steps not in (None, parent.get("steps")) else [])])),
        )
        _record(result, parent, changes, steps)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    try:  # last: with it alone there would be a branch of nothing
        place.note(BRANCHES, f"{copy.id}-{target.name}", asdict(result))
    except OSError as error:
        warnings.warn(f"{place.name} does not know of the branch {target}: {error}.", DynaxxWarning, stacklevel=2)
    return result


def _manifest_of(place: Place) -> dict[str, Any]:
    """What the origin's `run.json` says; nothing where the checkpoints lie apart from their run."""
    folder = Path(place.name).parent
    if not isinstance(place, LocalPlace) or not (folder / RUN).exists():
        return {}
    return read_manifest(folder)[0]


def _record(result: Branch, parent: Mapping[str, Any], changes: Mapping[str, Any], steps: int | None) -> None:
    manifest: dict[str, Any] = {"branch": asdict(result)}
    if parent:
        facts = {**parent.get("facts", {}), **changes}
        if result.level == "warm" and "start" in facts:
            facts["start"] = result.start
        manifest |= {"facts": facts, "steps": parent.get("steps") if steps is None else steps}
    elif steps is not None:
        manifest["steps"] = steps
    write_manifest(Path(result.run), manifest)


def _first_missing(folder: Path) -> Path:
    """The outermost folder that making this one would make: what a failure takes away again."""
    while not folder.parent.exists():
        folder = folder.parent
    return folder
