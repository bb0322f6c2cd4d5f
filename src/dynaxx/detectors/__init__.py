"""Findings from the log: one file per finding, and the engine that asks them all."""

from dynaxx.detectors._diagnose import Diagnosis, RankedCause, diagnose_log

__all__ = ["Diagnosis", "RankedCause", "diagnose_log"]
