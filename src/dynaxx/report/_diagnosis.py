"""What the detectors say about a run, as a section of its report."""

from dynaxx.core.causes import CAUSES
from dynaxx.core.findings import Finding
from dynaxx.core.panels import Panel, Table
from dynaxx.detectors import Diagnosis, diagnose_log
from dynaxx.figures import FigureData, of_panels
from dynaxx.report._summary import Fact
from dynaxx.runlog import RunView

NAME, TITLE = "diagnosis", "Diagnosis"
_SPANS = 3


def diagnosed(view: RunView) -> tuple[list[Fact], FigureData]:
    """Diagnose a run for its report.

    Args:
        view: The run.

    Returns:
        Facts for the strip on top, and the section.
    """
    found = diagnose_log(view)
    return _facts(found), _section(found)


def _facts(found: Diagnosis) -> list[Fact]:
    if not found.findings and not found.silent:
        return []
    alarms = found.alarms
    if not alarms:
        return [Fact(label="diagnosis", value="no alarm", detail=f"{len(found.silent) + len(found)} detectors spoke")]
    first = found.causes[0].name.replace("_", " ") if found.causes else alarms[0].title
    count = f"{len(alarms)} alarm{'s' * (len(alarms) != 1)}"
    return [Fact(label="diagnosis", value=first, detail=f"{count}; see Diagnosis", alarm=True)]


def _section(found: Diagnosis) -> FigureData:
    if not found.findings and not found.silent:
        return FigureData(name=NAME, title=TITLE, reason="no detector could speak about this log")
    panels: list[Panel] = []
    if found.alarms and found.causes:
        panels.append(_causes(found))
    if found.findings:
        panels.append(_findings(found))
    panels.append(_silence(found))
    return of_panels(NAME, TITLE, panels)


def _causes(found: Diagnosis) -> Table:
    rows = tuple(
        (
            CAUSES[cause.name],
            f"{cause.confidence:.0%}",
            ", ".join(name.replace("_", " ") for name in cause.findings),
            ", ".join(CAUSES[symptom.name] for symptom in found.symptoms(cause.name)),
            cause.remedies[0].text if cause.remedies else "",
        )
        for cause in found.roots[:5]
    )
    header = ("because", "confidence", "seen in", "which brings about", "what to do")
    return Table(title="Most likely causes", header=header, rows=rows)


def _findings(found: Diagnosis) -> Table:
    rows = tuple(
        (finding.severity, finding.code, finding.title, _steps(finding), "; ".join(e.text for e in finding.evidence))
        for finding in found
    )
    return Table(title="Findings", header=("", "", "what", "steps", "evidence"), rows=rows)


def _steps(finding: Finding) -> str:
    spans = [f"{a:,}" if a == b else f"{a:,}–{b:,}" for a, b in finding.spans[-_SPANS:]]
    more = f" and {len(finding.spans) - _SPANS} earlier" if len(finding.spans) > _SPANS else ""
    return ", ".join(spans) + more


def _silence(found: Diagnosis) -> Table:
    rows = [("looked and found nothing", ", ".join(found.silent).replace("_", " "))] if found.silent else []
    rows += [(name.replace("_", " "), f"could not speak: {why}") for name, why in found.not_applicable.items()]
    rows += [(name.replace("_", " "), f"failed, which is a defect: {why}") for name, why in found.failed.items()]
    return Table(title="Where nothing was found", header=("", ""), rows=tuple(rows))
