"""Findings from the log: one file per finding, and the engine that asks them all."""

from dynaxx.core.ranking import RankedCause
from dynaxx.detectors._diagnose import Diagnosis, ask, diagnose_log
from dynaxx.detectors._open import diagnose

__all__ = ["Diagnosis", "RankedCause", "ask", "diagnose", "diagnose_log"]
