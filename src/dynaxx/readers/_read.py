"""From a path to a log, whoever wrote it."""

from pathlib import Path

from dynaxx import catalog
from dynaxx.errors import BadInput
from dynaxx.readers._reader import Reader
from dynaxx.runlog import Columnar, open_run
from dynaxx.runlog.writer import holds_run


def read_log(path: str | Path) -> Columnar:
    """Open a run's folder, or another tool's log.

    Args:
        path: A run's folder; an event file of TensorBoard or its folder; a CSV or JSON-lines file; a Trainer's
            `trainer_state.json` or output folder.

    Returns:
        The log.

    Raises:
        BadInput: There is nothing, or nothing that any reader knows; the formats are named.
    """
    at = Path(path)
    if at.is_dir() and holds_run(at):
        return open_run(at)
    if at.exists():
        for name in catalog.names("readers"):
            reader: Reader = catalog.get("readers", name)()
            if reader.recognises(at):
                return reader.read(at)
        if at.is_file():
            known = ", ".join(catalog.names("readers"))
            raise BadInput(f"read_log({str(path)!r}): no reader knows this file. There are: {known}.")
    return open_run(at)  # which says what is wrong
