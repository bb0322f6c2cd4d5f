"""`dynaxx checkpoints blend RUN…`."""

import json
from pathlib import Path
from typing import Any

import click


@click.command(name="blend")
@click.argument("sources", metavar="RUN_OR_CHECKPOINT…", nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the weights here (.safetensors).")
@click.option("--figure", type=click.Path(path_type=Path), help="Draw scores, weights and verdict here (.png, .svg).")
@click.option("--task", "task", help="Whose loss judges: a name or file.py:Class; the first run's own by default.")
@click.option("--no-judge", is_flag=True, help="Do not evaluate: parts are compared by their weights alone.")
@click.option(
    "--how",
    default="window",
    show_default=True,
    help="window, uniform, exponential[:temperature=T], greedy[:budget=N], ema:half_life=STEPS, decay[:shape=…].",
)
@click.option("--last", type=int, default=50, show_default=True, help="The newest so many checkpoints of each run.")
@click.option("--steps", nargs=2, type=int, metavar="FIRST LAST", help="Only those of these steps, both included.")
@click.option("--duration", type=int, help="Only those of the last so many steps.")
@click.option("--align", is_flag=True, help="Reorder hidden units of parts that a barrier stands before.")
@click.option("--seed", type=int, help="Of the splits; the first run's own by default.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    sources: tuple[str, ...],
    output: Path | None,
    figure: Path | None,
    task: str | None,
    no_judge: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Average checkpoints, and judge the result on examples that chose nothing.

    What is not better than its best part says so.
    """
    from dynaxx.checkpoints.blend import blend
    from dynaxx.errors import BadInput

    if output is not None and output.suffix != ".safetensors":
        raise BadInput(f"dynaxx checkpoints blend -o: the file's name must end in .safetensors. Got {str(output)!r}.")
    judge = None if no_judge else _task(sources[0], task)
    found = blend(list(sources), judge, **options)
    if output is not None:
        found.save(output)
    if figure is not None:
        found.chart.plot().savefig(figure, dpi=130)
    written = [str(path) for path in (output, figure) if path is not None]
    if as_json:
        report = {"verdict": found.verdict, "lineage": found.lineage, "chart": found.chart.to_dict()}
        click.echo(json.dumps({**report, "written": written}))
        return
    click.echo(str(found))
    for path in written:
        click.echo(f"  written: {path}")


def _task(source: str, named: str | None) -> Any:
    """The task that judges, as the first run trained it."""
    from dynaxx import catalog
    from dynaxx.errors import BadInput
    from dynaxx.runlog import open_run

    path = Path(source)
    run = next((folder for folder in (path, *path.parents[:2]) if (folder / "run.json").is_file()), None)
    facts = {} if run is None else open_run(run).manifest.get("facts", {})
    spec = named or facts.get("spec") or facts.get("task")
    if not spec:
        raise BadInput(
            f"dynaxx checkpoints blend: {source!r} does not say which task it trained. "
            "Name it by --task file.py:Class, or leave the result unjudged by --no-judge."
        )
    found = catalog.task(str(spec), facts.get("size"))
    found.batch_size = int(facts.get("batch_size", found.batch_size))
    return found
