"""Comma-separated values: Lightning's metrics.csv, Keras' CSVLogger, exports of dashboards, spreadsheets."""

import csv
from pathlib import Path

from dynaxx.errors import BadInput
from dynaxx.readers._reader import Reader
from dynaxx.readers._rows import table
from dynaxx.runlog import Table

_SUFFIXES = (".csv", ".tsv")


class CsvReader(Reader):
    """A file whose first row names the columns; commas, semicolons or tabs between them."""

    def recognises(self, path: Path) -> bool:
        """By the file's name."""
        return path.is_file() and path.suffix.lower() in _SUFFIXES

    def read(self, path: Path) -> Table:
        """Read it; cells that are no numbers are left out."""
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            head = file.readline()
            if not head.strip():
                raise BadInput(f"{path}: the file is empty, or its first line is. It must name the columns.")
            between = max(",;\t", key=head.count)
            file.seek(0)
            rows = [{k: v for k, v in row.items() if k} for row in csv.DictReader(file, delimiter=between)]
        return table(rows, str(path))
