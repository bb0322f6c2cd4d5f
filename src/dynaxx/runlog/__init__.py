"""The run log: one folder per run, appended to while it trains, read as labelled arrays at any time."""

from dynaxx.runlog.array import LabelledArray
from dynaxx.runlog.manifest import Attempt
from dynaxx.runlog.opening import open_run
from dynaxx.runlog.problems import Problem
from dynaxx.runlog.view import RunView
from dynaxx.runlog.writer import LogWriter

__all__ = ["Attempt", "LabelledArray", "LogWriter", "Problem", "RunView", "open_run"]
