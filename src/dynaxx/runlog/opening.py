"""open_run: from a path to a RunView, or to a word on what the path is instead."""

import difflib
from pathlib import Path

from dynaxx.errors import BadInput
from dynaxx.runlog.manifest import NAME
from dynaxx.runlog.view import RunView
from dynaxx.runlog.writer import holds_run

_OFFERED = 8


def open_run(path: str | Path) -> RunView:
    """Open a run's folder for reading; a run that this process is logging is flushed first.

    Args:
        path: The run's folder.

    Returns:
        The view.

    Raises:
        BadInput: There is no such folder, it holds no run (the runs inside it are named), or a newer version wrote it.
    """
    folder, call = Path(path), f"open_run({str(path)!r})"
    try:
        if not folder.exists():
            raise BadInput(f"{call}: there is no such folder.{_near(folder)}")
        if not folder.is_dir():
            raise BadInput(f"{call}: this is a file. Give the run's folder.")
        if not holds_run(folder):
            raise BadInput(f"{call}: this folder holds no run.{_inside(folder)}")
    except OSError as error:
        raise BadInput(f"{call}: {error}.") from None
    return RunView(folder)


def _near(folder: Path) -> str:
    if not folder.parent.is_dir():
        return f" Neither is {folder.parent}."
    names = [path.name for path in folder.parent.iterdir() if path.is_dir()]
    near = difflib.get_close_matches(folder.name, names, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(str(folder.parent / name) for name in near)}?" if near else ""


def _inside(folder: Path) -> str:
    """The runs up to two levels below, newest first."""
    found = [path for pattern in (f"*/{NAME}", f"*/*/{NAME}") for path in folder.glob(pattern)]
    if not found:
        return " A run's folder has a run.json."
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    shown = ", ".join(str(path.parent) for path in found[:_OFFERED])
    return f" There are runs inside it: {shown}" + (" and more." if len(found) > _OFFERED else ".")
