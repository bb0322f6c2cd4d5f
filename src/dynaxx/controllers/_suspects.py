"""What the standing findings accuse: the causes that a controller may act on."""

from collections.abc import Set
from typing import NamedTuple

from dynaxx.controllers._limits import CLOSE, SURE
from dynaxx.core.findings import Finding
from dynaxx.core.navigation import Situation
from dynaxx.core.ranking import WEIGHT, rank

HEALTHY_CAUSES = frozenset({"edge_of_stability", "grokking"})
"""Causes that are no fault."""
HEALTHY_FINDINGS = frozenset({"edge_of_stability", "grokking", "catapult"})
"""Findings that are none."""


ANSWERED = {"momentum_too_high": "momentum", "epsilon_too_large": "epsilon"}
"""Causes that are settings → the action in force under which the setting is another, whatever the manifest says."""


class Suspect(NamedTuple):
    """A cause and what accuses it.

    Args:
        cause: A key of `CAUSES`.
        confidence: 1 − Π(1 − wᵢcᵢ) over what puts it first; w is 1 for standing alarms and 0.3 for notes beside them.
        finding: The worst of them, of equals the surest.
    """

    cause: str
    confidence: float
    finding: Finding


def standing(situation: Situation) -> tuple[Finding, ...]:
    """The alarms that are open, or ended since the last decision.

    Args:
        situation: Where the run is.

    Returns:
        Worst first; findings of healthy phenomena are left out.
    """
    return tuple(f for f in situation.findings if f.alarms and f.name in situation.fresh and not healthy(f))


def _notes(situation: Situation) -> tuple[Finding, ...]:
    """What is said beside the alarms, and is no healthy phenomenon."""
    return tuple(f for f in situation.findings if not f.alarms and f.name in situation.fresh and not healthy(f))


def healthy(finding: Finding) -> bool:
    """Whether a finding describes a phenomenon that is no fault.

    Args:
        finding: The finding.

    Returns:
        True for the edge of stability, grokking under way and the catapult.
    """
    return finding.name in HEALTHY_FINDINGS or (bool(finding.causes) and finding.causes[0].name in HEALTHY_CAUSES)


def accused(situation: Situation, causes: Set[str], least: float = SURE) -> Suspect | None:
    """The cause, of those that a controller knows a remedy for, that the run most likely suffers from.

    A cause is accused by alarms that name it first: the detector has weighed it against the others. One that another
    believed cause brings about is a symptom, and left alone: its remedy alone would not help. Where the alarm names
    that cause, too, it accuses it instead. Notes accuse nobody; they may support what an alarm names.

    Args:
        situation: Where the run is.
        causes: Keys of `CAUSES`.
        least: Least confidence.

    Returns:
        The suspect, or None.
    """
    doubts: dict[str, float] = {}
    first: dict[str, Finding] = {}
    open_ = [finding for finding in standing(situation) if finding.causes and not _answered(finding, situation)]
    notes = [finding for finding in _notes(situation) if finding.causes and not _answered(finding, situation)]
    behind = {cause.name: cause.symptom_of for cause in rank([*open_, *notes]) if cause.symptom_of}
    for finding in open_:
        name = finding.causes[0].name
        while name in behind:
            name = behind[name]
        cause = next((c for c in finding.causes if c.name == name), None)
        if cause is not None and cause.name in causes:
            doubts[cause.name] = doubts.get(cause.name, 1.0) * (1.0 - cause.confidence)
            first.setdefault(cause.name, finding)
    for note in notes:
        cause = note.causes[0]
        if cause.name in doubts:
            doubts[cause.name] *= 1.0 - WEIGHT["note"] * cause.confidence
    found = [Suspect(name, 1.0 - doubt, first[name]) for name, doubt in doubts.items() if 1.0 - doubt >= least]
    return max(found, key=lambda s: (s.finding.severity == "critical", s.confidence), default=None)


def _answered(finding: Finding, situation: Situation) -> bool:
    """Whether the setting that it blames is another one by now."""
    return ANSWERED.get(finding.causes[0].name) in situation.in_force


def unsure(finding: Finding) -> bool:
    """Whether a finding's first cause is not told apart from the second, or from none.

    Args:
        finding: The finding.

    Returns:
        True where a check would help.
    """
    sure = [cause.confidence for cause in finding.causes[:2]]
    return not sure or sure[0] < SURE or (len(sure) == 2 and sure[0] - sure[1] < CLOSE)


def known(situation: Situation, finding: Finding) -> bool:
    """Whether the check that a finding asks for was made since it began.

    Args:
        situation: Where the run is.
        finding: A finding with a test.

    Returns:
        True where its result is in the log.
    """
    check = None if finding.test is None else finding.test.check
    if check is None or check not in situation.last:
        return False
    return int(situation.last[check].get("step", -1)) >= finding.onset
