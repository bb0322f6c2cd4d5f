"""What could not be read of a run, and where."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A part of a run folder that cannot be read; everything else is.

    Args:
        file: Its path within the run folder.
        at: Offset in bytes; None: the file as a whole.
        what: What is wrong.
        lost: What is missing from the view for it.
    """

    file: str
    what: str
    lost: str
    at: int | None = None

    def __str__(self) -> str:
        where = self.file if self.at is None else f"{self.file} at byte {self.at}"
        return f"{where}: {self.what}; lost: {self.lost}"
