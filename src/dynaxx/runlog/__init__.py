"""The run log: one folder per run, appended to while it trains, read as labelled arrays at any time."""

from dynaxx.runlog.array import LabelledArray
from dynaxx.runlog.clipped import ClippedView
from dynaxx.runlog.columnar import Columnar
from dynaxx.runlog.manifest import Attempt
from dynaxx.runlog.opening import open_run
from dynaxx.runlog.problems import Problem
from dynaxx.runlog.table import Table
from dynaxx.runlog.view import RunView
from dynaxx.runlog.writer import LogWriter

__all__ = [
    "Attempt",
    "ClippedView",
    "Columnar",
    "LabelledArray",
    "LogWriter",
    "Problem",
    "RunView",
    "Table",
    "open_run",
]
