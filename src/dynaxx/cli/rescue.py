"""`dynaxx rescue [TASK]`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from dynaxx.rescue.report import Report
    from dynaxx.rescue.training import Ended


MEASURE, SHARE = 34, 26
"""Characters of the longest name of a measure, and of a share with its interval."""


@click.command(name="rescue")
@click.argument("task", required=False)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("rescue"),
    show_default=True,
    help="The suite's folder; what is done there is not done again.",
)
@click.option("--seeds", type=int, default=5, show_default=True, help="Draws of everything; five can be tested.")
@click.option("--first-seed", type=int, default=0, show_default=True, help="The first of them.")
@click.option(
    "--nets",
    default="mlp,cnn,lstm,transformer",
    show_default=True,
    help="The suite's own nets, where no TASK is given.",
)
@click.option("--plant", "planted", help="Comma-separated names, or kinds: fault, incident, healthy. All by default.")
@click.option("--steps", type=int, help="Optimizer steps of each run; the task's own by default.")
@click.option("--observers", help="Who looks at the logs, comma-separated; everybody by default.")
@click.option("--act", "policies", default="", help="Who acts, comma-separated: navigator, halve, chance.")
@click.option(
    "--orders",
    type=int,
    default=1,
    show_default=True,
    help="Orders of the data that each case is trained on; acting is judged by the mean over them.",
)
@click.option("--workers", type=int, default=2, show_default=True, help="Processes, of one thread each.")
@click.option("--list", "listing", is_flag=True, help="Say what can be planted, and train nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def command(
    task: str | None,
    out: Path,
    seeds: int,
    first_seed: int,
    nets: str,
    planted: str | None,
    steps: int | None,
    observers: str | None,
    policies: str,
    orders: int,
    workers: int,
    listing: bool,
    as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Plant faults in small trainings, or in your own TASK, and score who finds and mends them.

    Every fault is drawn from a distribution and trained beside its clean twin. Observers are judged on the recorded
    logs; who acts (--act) trains a treated twin. Writes rescue.md, rescue.html and rescue.json into the suite's folder.
    """
    if listing:
        _list(as_json)
        return
    from dynaxx.report import write_rescue
    from dynaxx.rescue.observers import OBSERVERS
    from dynaxx.rescue.report import report
    from dynaxx.rescue.suite import cases, run_suite

    chosen = cases(
        nets=(task,) if task else _words(nets),
        seeds=range(first_seed, first_seed + seeds),
        alterations=_chosen(planted),
        policies=("nothing", *_words(policies)),
        steps=steps,
        orders=orders,
    )
    runs = run_suite(chosen, out, workers=workers, progress=None if quiet or as_json else _said)
    found = report(runs, _words(observers) if observers else tuple(OBSERVERS), workers=workers)
    text, data = found.write(out)
    shown = write_rescue(found, out / "rescue.html")
    if as_json:
        click.echo(data.read_text())
        return
    _show(found)
    click.echo("\n".join(f"  written: {path}" for path in (shown, text, data)))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _chosen(planted: str | None) -> list[str] | None:
    """Names of alterations, kinds spelled out."""
    if planted is None:
        return None
    from dynaxx.rescue.faults import ALTERATIONS, names, plant

    found: list[str] = []
    for word in _words(planted):
        of_kind = [name for name in names() if ALTERATIONS[name].kind == word]
        found += of_kind or [plant(word, seed=0).name]  # raises where there is no such thing
    return list(dict.fromkeys(found))


def _list(as_json: bool) -> None:
    from dynaxx.rescue.faults import ALTERATIONS

    rows = {
        name: {
            "kind": entry.kind,
            "about": (entry.__doc__ or "").partition("\n")[0],
            "causes": list(entry.causes),
            "repairable": bool(entry.undone_by),
        }
        for name, entry in ALTERATIONS.items()
    }
    if as_json:
        click.echo(json.dumps(rows))
        return
    for name, row in rows.items():
        click.echo(f"{row['kind']:9} {name:24} {row['about']}")


def _said(done: int, total: int, ended: "Ended") -> None:
    why = f": {ended.why}" if ended.why else f"  loss {ended.final:.4g}"
    click.echo(f"  {done}/{total}  {ended.case.key}  {ended.status}{why}", err=True)


def _show(found: "Report") -> None:
    from rich.console import Console
    from rich.table import Table

    from dynaxx.rescue.report import OBSERVER_HEAD, POLICY_HEAD

    console = Console()
    console.print(found.head)
    for title, head, rows in (
        ("Who finds it", OBSERVER_HEAD, found.observer_rows()),
        ("Who mends it", POLICY_HEAD, found.policy_rows()),
    ):
        abreast = max(2, (console.width - MEASURE) // SHARE)
        for first in range(0, len(rows), abreast):  # a column each: twelve measures abreast are read by nobody
            shown = rows[first : first + abreast]
            table = Table(head[0], *(row[0] for row in shown), title=title, title_justify="left")
            for measure, *values in zip(head[1:], *(row[1:] for row in shown), strict=True):
                table.add_row(measure, *values)
            console.print(table)
