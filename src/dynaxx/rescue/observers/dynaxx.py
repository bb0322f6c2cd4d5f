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
        """Replay; causes are those of the last look that alarmed, of the last look where none did.

        That is what a user is told when there is something to do: an incident may have passed by the end, and a slow
        run have caught up. Peers' rules keep every cause that they ever named (`Rules.observe`).
        """
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
            missing = diagnosis.not_applicable
            if before or not alarms:
                causes = tuple(cause.name for cause in diagnosis.causes)
        return Observation(alarms=tuple(alarms), causes=causes, missing=missing)
