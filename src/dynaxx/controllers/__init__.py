"""Policies from findings to acts: one file per policy; the arbiter chooses among what they propose."""

from dynaxx.controllers._arbiter import arbitrate, start
from dynaxx.controllers._judge import Judgement, Undo, judge, pend
from dynaxx.controllers._navigate import Turn, begin, navigate

__all__ = ["Judgement", "Turn", "Undo", "arbitrate", "begin", "judge", "navigate", "pend", "start"]
