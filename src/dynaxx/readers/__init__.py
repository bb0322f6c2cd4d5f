"""Logs of other tools, read as a log of ours: one file per format."""

from dynaxx.readers._read import read_log

__all__ = ["read_log"]
