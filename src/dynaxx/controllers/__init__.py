"""Policies from findings to acts: one file per policy; the arbiter chooses among what they propose.

`accused`, `waiting`, `unharmed`, `faster` and `own_factor` are what policies are written with.
"""

from dynaxx.controllers._arbiter import arbitrate, start
from dynaxx.controllers._judge import Judgement, Undo, judge, pend
from dynaxx.controllers._navigate import Turn, begin, navigate
from dynaxx.controllers._past import waiting
from dynaxx.controllers._promise import faster, unharmed
from dynaxx.controllers._reading import own_factor
from dynaxx.controllers._suspects import Suspect, accused

__all__ = [
    "Judgement",
    "Suspect",
    "Turn",
    "Undo",
    "accused",
    "arbitrate",
    "begin",
    "faster",
    "judge",
    "navigate",
    "own_factor",
    "pend",
    "start",
    "unharmed",
    "waiting",
]
