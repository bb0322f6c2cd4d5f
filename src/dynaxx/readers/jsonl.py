"""JSON lines: one object per line, nested or flat, as most training scripts and W&B exports write them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dynaxx.errors import BadInput
from dynaxx.readers._reader import Reader
from dynaxx.readers._rows import flat, table
from dynaxx.runlog import Table

_SUFFIXES = (".jsonl", ".ndjson", ".json", ".log", ".txt")


class JsonLinesReader(Reader):
    """A file with one JSON object per line. Lines of other text among them are passed over, a torn last one too."""

    def recognises(self, path: Path) -> bool:
        """By the file's name, and a line within the first hundred that is an object."""
        if not path.is_file() or path.suffix.lower() not in _SUFFIXES:
            return False
        with path.open(encoding="utf-8", errors="replace") as file:
            return any(_record(line) is not None for _, line in zip(range(100), file, strict=False))

    def read(self, path: Path) -> Table:
        """Read it."""
        with path.open(encoding="utf-8", errors="replace") as file:
            rows = list(_records(file))
        if not rows:
            raise BadInput(f"{path}: no line is a JSON object.")
        return table(rows, str(path))


def _records(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        record = _record(line)
        if record is not None:
            yield flat(record)


def _record(line: str) -> dict[str, Any] | None:
    line = line.strip()
    if not (line.startswith("{") and line.endswith("}")):
        return None
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
