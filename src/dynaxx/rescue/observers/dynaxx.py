"""Dynaxx's own detectors, asked again and again about the log as it stood, as the live session asks them."""

from dynaxx.core.findings import Log
from dynaxx.detectors import diagnose_log
from dynaxx.rescue.observer import Alarm, Observation, Observer
from dynaxx.runlog import ClippedView, Columnar

TIMES = 20
"""How often in a run: as often as it is evaluated."""


class Dynaxx(Observer):
    """An alarm is a finding of warning or worse that was none the last time it was asked."""

    about = "dynaxx.detectors"

    def observe(self, log: Log) -> Observation:
        """Replay; causes are those of the last diagnosis."""
        assert isinstance(log, Columnar)
        last = int(log.steps[-1])
        alarms: list[Alarm] = []
        before: frozenset[str] = frozenset()
        causes: tuple[str, ...] = ()
        missing: dict[str, str] = {}
        for i in range(1, TIMES + 1):
            step = last * i // TIMES
            diagnosis = diagnose_log(ClippedView(log, 0, step))
            alarms += [Alarm(step=step, rule=f.name, code=f.code) for f in diagnosis.alarms if f.name not in before]
            before = frozenset(f.name for f in diagnosis.alarms)
            causes, missing = tuple(cause.name for cause in diagnosis.causes), diagnosis.not_applicable
        return Observation(alarms=tuple(alarms), causes=causes, missing=missing)
