"""TensorBoard's event files: the scalars of one run's folder."""

import importlib
import warnings
from pathlib import Path
from typing import Any

from dynaxx.errors import BadInput, NotApplicable
from dynaxx.readers._reader import Reader
from dynaxx.readers._rows import table
from dynaxx.runlog import Table

_MARK = "tfevents"


class TensorboardReader(Reader):
    """A folder of event files, or one of them, read with the library `tensorboard` (extra "tensorboard")."""

    def recognises(self, path: Path) -> bool:
        """By the files' names."""
        return _MARK in path.name if path.is_file() else any(_files(path))

    def read(self, path: Path) -> Table:
        """Read every scalar at its step."""
        folders = {file.parent for file in _files(path)} if path.is_dir() else {path.parent}
        if len(folders) > 1:
            shown = ", ".join(sorted(map(str, folders))[:4])
            raise BadInput(f"{path}: there are event files of {len(folders)} runs. Give one run's folder: {shown}.")
        files = _files(path) if path.is_dir() else [path]
        rows: list[dict[str, Any]] = []
        for file in files:
            rows += _scalars(file)
        if not rows:
            raise BadInput(f"{path}: the event files hold no scalar.")
        return table(rows, str(path))


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob(f"*{_MARK}*") if file.is_file()) if folder.is_dir() else []


def _scalars(file: Path) -> list[dict[str, Any]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own dependencies' deprecations
            loader: Any = importlib.import_module("tensorboard.backend.event_processing.event_file_loader")
            tensors: Any = importlib.import_module("tensorboard.util.tensor_util")
    except ImportError:
        raise NotApplicable('tensorboard is not installed. Run: pip install "dynaxx[tensorboard]"') from None
    rows: list[dict[str, Any]] = []
    for event in loader.EventFileLoader(str(file)).Load():
        for value in event.summary.value:
            if value.HasField("tensor"):
                array = tensors.make_ndarray(value.tensor)
                if array.size == 1 and array.dtype.kind in "fiu":
                    rows.append({"step": event.step, value.tag: float(array.reshape(()))})
            elif value.HasField("simple_value"):
                rows.append({"step": event.step, value.tag: value.simple_value})
    return rows
