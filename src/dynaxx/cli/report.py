"""`dynaxx report RUN [RUN …]`."""

import json
from pathlib import Path

import click


@click.command(name="report")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to write; RUN/report.html by default.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(runs: tuple[Path, ...], output: Path | None, as_json: bool) -> None:
    """Write one self-contained HTML page about a RUN, or several laid over one another."""
    from dynaxx.report import write_report
    from dynaxx.runlog import open_run

    views = [open_run(run) for run in runs]
    path = write_report(views, output if output is not None else runs[0] / "report.html")
    size = path.stat().st_size
    if as_json:
        click.echo(json.dumps({"report": str(path), "bytes": size, "runs": [str(run) for run in runs]}))
    else:
        click.echo(f"{path} ({size / 1e6:.1f} MB): open it in any browser.")
