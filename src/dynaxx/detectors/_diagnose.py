"""Asks every detector about a log."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dynaxx import catalog
from dynaxx.core.findings import Detector, Finding, Log, by_urgency
from dynaxx.core.ranking import BELIEVED, RankedCause, rank
from dynaxx.errors import NotApplicable, UnknownName


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis(Sequence[Finding]):
    """What was found, and what could not be looked for.

    Args:
        findings: Worst first.
        silent: Detectors that looked and found nothing.
        not_applicable: Detector → why it could not speak. Silence never passes for health.
        steps: The last step of the log.
        failed: Detector → the error it raised: a defect of the detector, which silences no other.
    """

    findings: tuple[Finding, ...]
    silent: tuple[str, ...]
    not_applicable: dict[str, str]
    steps: int
    failed: dict[str, str] = field(default_factory=dict[str, str])

    def __getitem__(self, at):  # pyright: ignore  # noqa: ANN001, ANN204  (the overloads of Sequence)
        return self.findings[at]

    def __len__(self) -> int:
        return len(self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    @property
    def alarms(self) -> tuple[Finding, ...]:
        """Warnings and worse."""
        return tuple(finding for finding in self.findings if finding.alarms)

    @property
    def causes(self) -> tuple[RankedCause, ...]:
        """The causes over all findings, most likely first; symptoms of others last."""
        return rank(self.findings)

    @property
    def roots(self) -> tuple[RankedCause, ...]:
        """Those that nothing else explains."""
        return tuple(cause for cause in self.causes if not cause.symptom_of)

    def symptoms(self, name: str) -> tuple[RankedCause, ...]:
        """What a cause brings about, directly or by another symptom, of what is likelier than not.

        Args:
            name: The cause.

        Returns:
            Most likely first.
        """
        causes = {cause.name: cause for cause in self.causes}

        def root(cause: RankedCause) -> str:
            return root(causes[cause.symptom_of]) if cause.symptom_of else cause.name

        return tuple(c for c in causes.values() if c.symptom_of and c.confidence >= BELIEVED and root(c) == name)


def diagnose_log(run: Log, only: Sequence[str] | None = None) -> Diagnosis:
    """Ask detectors about a log.

    Args:
        run: The log.
        only: Names of detectors; None: all.

    Returns:
        The diagnosis.

    Raises:
        UnknownName: There is no such detector.
    """
    names = catalog.names("detectors") if only is None else only
    return ask({name: catalog.get("detectors", name)() for name in names}, run)


def ask(detectors: Mapping[str, Detector], run: Log) -> Diagnosis:
    """Ask detectors that are at hand already, as a live run does again and again: to find one takes as long as to ask.

    Args:
        detectors: By name.
        run: The log.

    Returns:
        The diagnosis.
    """
    findings: list[Finding] = []
    silent: list[str] = []
    missing: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name, detector in detectors.items():
        try:
            check_columns(detector, run)
            found = detector.detect(run)
        except NotApplicable as reason:
            missing[name] = str(reason)
            continue
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
            continue
        if found is None:
            silent.append(name)
        else:
            findings.append(found)
    return Diagnosis(
        findings=tuple(by_urgency(findings)),
        silent=tuple(silent),
        not_applicable=missing,
        steps=int(run.steps[-1]) if len(run.steps) else 0,
        failed=failed,
    )


def check_columns(detector: Detector, run: Log) -> None:
    """Refuse a log that lacks what a detector reads.

    Args:
        detector: Declares `reads`.
        run: The log.

    Raises:
        NotApplicable: A column is absent.
    """
    for need in detector.reads:
        options = need.split("|")
        if not any(_holds(run, name) for name in options):
            raise NotApplicable(f"needs the column {' or '.join(options)}, which the log does not hold")


def _holds(run: Log, name: str) -> bool:
    """Whether a column is there, stored or derived, with a row at least."""
    if not any(part in run.columns for part in (name, name.rpartition(".")[0], name.partition("[")[0])):
        return False  # at once: to raise UnknownName is to look for similar names, which takes milliseconds
    try:
        return len(run[name].steps) > 0
    except (UnknownName, NotApplicable):
        return False
