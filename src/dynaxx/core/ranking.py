"""The causes that several findings name together, ranked: what follows from another cause yields to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dynaxx.core.causes import BRINGS_ABOUT, CAUSES, NO_FAULT, STATES
from dynaxx.core.findings import Finding, Remedy, Severity, by_urgency

WEIGHT: dict[Severity, float] = {"note": 0.3, "warning": 1.0, "critical": 1.0}
"""How far a finding's causes count over all findings: what is no alarm explains little."""
BELIEVED = 0.5
"""Confidence from which a cause may explain others: likelier than not."""
NEARLY = 0.7
"""Share of the confidence of a setting or of data that a cause behind it must have: a guess does not explain what is
all but certain. States yield to whatever is believed."""
LATENCY = 50
"""Steps by which a symptom may be dated before its cause: some detectors gather two windows of 20 to 25 steps before
they speak, and date the finding from then on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedCause:
    """A cause with all that speaks for it.

    Args:
        name: A key of `CAUSES`.
        confidence: 1 − Π(1 − wᵢcᵢ) over the findings that name it: independent reasons add up.
        findings: Their names, strongest first.
        remedies: What would help, each once.
        onset: The first step of the earliest of them.
        symptom_of: The cause that brings it about; "" where it stands for itself.
    """

    name: str
    confidence: float
    findings: tuple[str, ...]
    remedies: tuple[Remedy, ...]
    onset: int
    symptom_of: str = ""

    def __str__(self) -> str:
        return f"{CAUSES[self.name]} ({self.confidence:.0%})"


def rank(findings: Sequence[Finding]) -> tuple[RankedCause, ...]:
    """The causes that findings name, together.

    Args:
        findings: In any order.

    Returns:
        Those that stand for themselves, most likely first, ties in the order of the findings; then what is no fault;
        then the symptoms of others, most likely first.
    """
    found = _together(findings)
    explained = {name: _explanation(name, found) for name in found}
    causes = [replace(cause, symptom_of=explained[name]) for name, cause in found.items()]
    return tuple(sorted(causes, key=lambda c: (bool(c.symptom_of), c.name in NO_FAULT, -c.confidence)))


def _together(findings: Sequence[Finding]) -> dict[str, RankedCause]:
    """The causes by name, each for itself."""
    doubt: dict[str, float] = {}
    onset: dict[str, int] = {}
    named: dict[str, list[tuple[float, str]]] = {}
    remedies: dict[str, dict[str, Remedy]] = {}
    for finding in by_urgency(findings):
        for cause in finding.causes:
            share = WEIGHT[finding.severity] * cause.confidence
            doubt[cause.name] = doubt.get(cause.name, 1.0) * (1.0 - share)
            onset[cause.name] = min(onset.get(cause.name, finding.spans[0][0]), finding.spans[0][0])
            named.setdefault(cause.name, []).append((share, finding.name))
            remedies.setdefault(cause.name, {}).update({r.text: r for r in cause.remedies})
    return {
        name: RankedCause(
            name=name,
            confidence=1.0 - doubt[name],
            findings=tuple(found for _, found in sorted(named[name], key=lambda pair: -pair[0])),
            remedies=tuple(remedies[name].values()),
            onset=onset[name],
        )
        for name in doubt
    }


def _explanation(name: str, found: Mapping[str, RankedCause]) -> str:
    """The believed cause that brings a named one about and did not begin after it; the surest of several."""
    behind = [
        cause
        for cause in found.values()
        if name in BRINGS_ABOUT.get(cause.name, ())
        and cause.confidence >= max(BELIEVED, 0.0 if name in STATES else NEARLY * found[name].confidence)
        and cause.onset <= found[name].onset + LATENCY
    ]
    return max(behind, key=lambda cause: cause.confidence).name if behind else ""
