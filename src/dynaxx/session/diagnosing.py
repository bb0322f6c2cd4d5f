"""Asks the detectors about the live log again and again, and tells what has opened, changed or closed since."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from dynaxx import catalog
from dynaxx.core.findings import Detector, Finding, Log
from dynaxx.detectors import ask

Change = Literal["opened", "changed", "closed"]


class Diagnosing:
    """The detectors at work on one run, and the findings that stand.

    Args:
        warn: Called with a message when a detector fails; it is asked no more.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._detectors: dict[str, Detector] | None = None
        self._standing: dict[str, Finding] = {}
        self._failed: list[str] = []
        self._since = 0
        self.findings: tuple[Finding, ...] = ()
        """All that was found over the log of the last look, worst first."""
        self.fresh: frozenset[str] = frozenset()
        """Names of those whose latest stretch is open, or ended since the look before."""

    def look(self, log: Log, step: int) -> list[tuple[Change, Finding]]:
        """Look at the log.

        Args:
            log: The log up to now.
            step: Completed optimizer steps.

        Returns:
            What has changed since the last look, in order of urgency.
        """
        if self._detectors is None:  # not before the first look: they import what a short run never needs
            self._detectors = self._loaded()
        diagnosis = ask(self._detectors, log)
        for name, error in diagnosis.failed.items():
            self._leave_out(name, error)
            del self._detectors[name]
        self.findings = diagnosis.findings
        self.fresh = frozenset(finding.name for finding in self.findings if self._is_fresh(finding, log))
        self._since = step
        return self._changes()

    def go_back(self) -> None:
        """The run has gone back: what stood, stands no more, and is closed."""
        self._standing.clear()
        self.findings, self.fresh = (), frozenset()

    def state_dict(self) -> dict[str, Any]:
        """What stands, as plain data."""
        return {
            "since": self._since,
            "failed": list(self._failed),
            "standing": {name: finding.as_dict() for name, finding in self._standing.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: What `state_dict` returned.
        """
        self._since = state["since"]
        self._failed = list(state["failed"])
        self._standing = {name: Finding.from_dict(plain) for name, plain in state["standing"].items()}

    def _loaded(self) -> dict[str, Detector]:
        loaded: dict[str, Detector] = {}
        for name in catalog.names("detectors"):
            if name not in self._failed:
                try:
                    loaded[name] = catalog.get("detectors", name)()
                except Exception as error:
                    self._leave_out(name, repr(error))
        return loaded

    def _leave_out(self, name: str, error: str) -> None:
        """A broken detector must never stop a training."""
        self._failed.append(name)
        self._warn(f"The detector {name!r} failed and is asked no more in this run; training goes on. {error}")

    def _is_fresh(self, finding: Finding, log: Log) -> bool:
        """Whether its latest stretch reaches the end of what was measured, or ended since the last look."""
        if finding.last >= self._since:
            return True
        read = [name for evidence in finding.evidence for name in evidence.columns]
        ends = [int(log[name].steps[-1]) for name in read if name in log.columns and len(log[name].steps)]
        return bool(ends) and finding.last >= min(ends)

    def _changes(self) -> list[tuple[Change, Finding]]:
        changes: list[tuple[Change, Finding]] = []
        for finding in self.findings:
            before = self._standing.get(finding.name)
            if finding.name not in self.fresh:
                if before is not None:
                    changes.append(("closed", finding))
                    del self._standing[finding.name]
                continue
            if before is None or finding.onset > before.last:
                changes.append(("opened", finding))
            elif _core(finding) != _core(before):
                changes.append(("changed", finding))
            self._standing[finding.name] = finding
        gone = sorted(self._standing.keys() - {finding.name for finding in self.findings})
        return changes + [("closed", self._standing.pop(name)) for name in gone]


def _core(finding: Finding) -> tuple[Any, ...]:
    """What a reader would call another finding when it changes; figures in titles change all the time."""
    return finding.severity, finding.causes[0].name if finding.causes else "", finding.layers[:1]
