"""The contract of a reader: from another tool's log to a log of ours."""

from abc import ABC, abstractmethod
from pathlib import Path

from dynaxx.runlog import Table


class Reader(ABC):
    """Reads one format."""

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Whether a path looks like this format, without reading all of it.

        Args:
            path: A file or a folder that exists.

        Returns:
            Whether `read` should try.
        """

    @abstractmethod
    def read(self, path: Path) -> Table:
        """Read a log.

        Args:
            path: A file or a folder.

        Returns:
            Its columns under our names. Raises `BadInput` where it holds two runs, no numbers, or another format.
        """
