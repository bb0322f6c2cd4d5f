"""`dynaxx diagnose RUN_OR_LOG`."""

import json
import time
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dynaxx.detectors import Diagnosis


@click.command(name="diagnose")
@click.argument("path", metavar="RUN_OR_LOG")
@click.option("--only", multiple=True, metavar="DETECTOR", help="Ask only this detector (several times: these).")
@click.option(
    "--fail-on",
    type=click.Choice(["note", "warning", "critical"]),
    help="Exit with code 3 when a finding is this severe or worse.",
)
@click.option("--follow", type=float, metavar="SECONDS", help="Look again every so often, and say what is new.")
@click.option("--all", "everything", is_flag=True, help="Name the detectors that could not speak, and why.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    path: str, only: tuple[str, ...], fail_on: str | None, follow: float | None, everything: bool, as_json: bool
) -> int:
    """Say what is the matter with a run, from its log alone, with evidence, causes and remedies.

    RUN_OR_LOG is a run's folder, finished or still training, or another tool's log: TensorBoard event files, a CSV or
    JSON-lines file, a Trainer's trainer_state.json.
    """
    from dynaxx.core.findings import SEVERITIES
    from dynaxx.detectors import diagnose
    from dynaxx.errors import BadInput

    if follow is not None and (not follow > 0 or as_json):
        raise BadInput(f"--follow takes a number of seconds above 0, and not beside --json. Got {follow:g}.")
    diagnosis = diagnose(path, only or None)
    if as_json:
        click.echo(json.dumps(plain(diagnosis, path), allow_nan=False))
    else:
        show(diagnosis, path, everything)
    while follow is not None:
        time.sleep(follow)
        known, diagnosis = diagnosis, diagnose(path, only or None)
        _news(known, diagnosis)
    if fail_on is None:
        return 0
    least = SEVERITIES.index(fail_on)  # pyright: ignore[reportArgumentType]  (click has checked it)
    return 3 if any(SEVERITIES.index(finding.severity) >= least for finding in diagnosis) else 0


def plain(diagnosis: "Diagnosis", path: str) -> dict[str, Any]:
    """The diagnosis as JSON-able data.

    Args:
        diagnosis: What was found.
        path: What was looked at.

    Returns:
        Plain data; numbers that are not finite are words.
    """
    from dynaxx.runlog.sealed import plain as finite

    return finite(
        {
            "run": path,
            "steps": diagnosis.steps,
            "findings": [finding.as_dict() for finding in diagnosis],
            "causes": [
                {
                    "name": cause.name,
                    "confidence": cause.confidence,
                    "findings": list(cause.findings),
                    "onset": cause.onset,
                    "symptom_of": cause.symptom_of,
                }
                for cause in diagnosis.causes
            ],
            "silent": list(diagnosis.silent),
            "not_applicable": diagnosis.not_applicable,
            "failed": diagnosis.failed,
        }
    )


def show(diagnosis: "Diagnosis", path: str, everything: bool) -> None:
    """Print it for a person.

    Args:
        diagnosis: What was found.
        path: What was looked at.
        everything: Whether to name the detectors that could not speak.
    """
    from dynaxx.core.causes import CAUSES

    alarms, notes = len(diagnosis.alarms), len(diagnosis) - len(diagnosis.alarms)
    asked = len(diagnosis) + len(diagnosis.silent)
    counted = f"{alarms} alarm{'s' * (alarms != 1)}, {notes} note{'s' * (notes != 1)}"
    click.echo(f"{path}: {diagnosis.steps:,} steps, {counted}; {asked} detector{'s' * (asked != 1)} spoke.")
    for cause in diagnosis.roots[:3] if alarms else ():
        seen = ", ".join(cause.findings)
        click.echo(f"  {cause.confidence:4.0%}  {click.style(CAUSES[cause.name], bold=True)} ({seen})")
        for remedy in cause.remedies[:1]:
            click.echo(f"      → {remedy.text}")
        for symptom in diagnosis.symptoms(cause.name):
            click.echo(f"      brings about: {CAUSES[symptom.name]} ({symptom.confidence:.0%}, step {symptom.onset:,})")
    for finding in diagnosis:
        _finding(finding, diagnosis)
    for name, error in diagnosis.failed.items():
        click.echo(f"\n{name} failed, which is a defect of Dynaxx; the others spoke. {error}", err=True)
    silent = len(diagnosis.not_applicable)
    if everything:
        click.echo("\nCould not speak:")
        for name, why in sorted(diagnosis.not_applicable.items()):
            click.echo(f"  {name}: {why}")
    elif silent:
        click.echo(f"\n{silent} detectors could not speak about this log; --all says why.")


_COLOURS = {"note": "blue", "warning": "yellow", "critical": "red"}


def _finding(finding: Any, diagnosis: "Diagnosis") -> None:
    from dynaxx.core.causes import CAUSES

    head = click.style(f"{finding.severity:<8}", fg=_COLOURS[finding.severity], bold=True)
    spans = ", ".join(str(a) if a == b else f"{a:,}–{b:,}" for a, b in finding.spans[-3:])
    more = f" and {len(finding.spans) - 3} earlier" if len(finding.spans) > 3 else ""
    click.echo(f"\n{head} {finding.code} {click.style(finding.title, bold=True)}  (steps {spans}{more})")
    if finding.layers:
        rest = f" and {len(finding.layers) - 4} more" if len(finding.layers) > 4 else ""
        click.echo(f"    layers: {', '.join(finding.layers[:4])}{rest}")
    for evidence in finding.evidence:
        click.echo(f"    · {evidence.text}")
    above = {cause.name: cause.symptom_of for cause in diagnosis.causes}
    for cause in finding.causes[:3]:
        why = f": {cause.why}" if cause.why else ""
        click.echo(f"    because {CAUSES[cause.name]} ({cause.confidence:.0%}){why}")
        if above[cause.name]:
            click.echo(f"        which may follow from this: {CAUSES[above[cause.name]]}")
            continue
        for remedy in cause.remedies[:2]:
            click.echo(f"        → {remedy.text}")
    if finding.test is not None:
        click.echo(f"    to be sure: {finding.test.text}")


def _news(before: "Diagnosis", now: "Diagnosis") -> None:
    """What a further look found that the last one had not."""
    known = {(finding.name, finding.onset, finding.severity) for finding in before}
    for finding in now:
        if (finding.name, finding.onset, finding.severity) not in known:
            _finding(finding, now)
