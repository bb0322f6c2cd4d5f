"""`dynaxx map TASK`."""

import json
import time
from pathlib import Path
from typing import Any

import click


class _Share(click.ParamType):
    """A share as 10% or as 0.1."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip()
        try:
            return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            self.fail(f"{value!r} is no share. Write 10% or 0.1.", param, ctx)


@click.command(name="map")
@click.argument("task")
@click.option("--size", help="One of the task's sizes: tiny, small, medium.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of the planned training; the task's own by default.")
@click.option("--seed", type=int, default=0, show_default=True, help="Determines models and data orders.")
@click.option(
    "--budget",
    type=_Share(),
    help="Share of the planned training that the map may take; 10%, at least 300 passes, by default.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes of this machine; one per core by default.")
@click.option("--ray", metavar="ADDRESS", help='Train on a Ray cluster: its address, "auto", or "local".')
@click.option("--slurm", is_flag=True, help="Train on a SLURM cluster.")
@click.option("--proxy", is_flag=True, help="Search on a narrower model first, as a prior for the scan of rates.")
@click.option("--production", is_flag=True, help="Variance between runs cannot be accepted.")
@click.option("--fine-tuning", is_flag=True, help="The training begins from a good model.")
@click.option("--memory", type=float, help="Gigabytes for the optimizer's state; ample by default.")
@click.option("--passes", type=float, default=1.25, show_default=True, help="Passes per step that can be afforded.")
@click.option("--out", type=click.Path(path_type=Path), help="The map's folder; maps/<task> by default.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def command(
    task: str,
    size: str | None,
    steps: int | None,
    seed: int,
    budget: float | None,
    workers: int | None,
    ray: str | None,
    slurm: bool,
    proxy: bool,
    production: bool,
    fine_tuning: bool,
    memory: float | None,
    passes: float,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Survey TASK before its budget is spent: charts, the terrain, and a plan that `dynaxx train --plan` runs.

    A map that was cut off goes on where it was; one that is finished costs nothing when it is drawn again.
    """
    from dynaxx.cli._progress import fleet_reporter
    from dynaxx.report import write_map
    from dynaxx.survey.advice import Circumstances
    from dynaxx.survey.map import map_task

    label = Path(task.partition(":")[0]).stem if ".py" in task else task
    folder = out if out is not None else Path("maps") / (label if size is None else f"{label}-{size}")
    began = time.perf_counter()
    with fleet_reporter(label, json=as_json, quiet=quiet) as (said, progress):
        made = map_task(
            task,
            folder,
            size=size,
            steps=steps,
            seed=seed,
            budget=budget,
            engine=_engine(workers, ray, slurm, folder),
            circumstances=Circumstances(production=production, fine_tuning=fine_tuning, memory=memory, passes=passes),
            proxy=proxy,
            said=said,
            progress=progress,
        )
    page = write_map(made, folder / "report.html")
    if as_json:
        click.echo(json.dumps({**made.to_dict(), "report": str(page), "seconds": time.perf_counter() - began}))
        return
    click.echo(_words(made, page, time.perf_counter() - began))


def _engine(workers: int | None, ray: str | None, slurm: bool, folder: Path) -> Any:
    from dynaxx.errors import BadInput

    chosen = [flag for flag, on in (("--workers", workers), ("--ray", ray), ("--slurm", slurm)) if on]
    if len(chosen) > 1:
        raise BadInput(f"dynaxx map: {' and '.join(chosen)} name different engines. Give one.")
    from dynaxx.survey.engines import Processes, Ray, Slurm

    if ray is not None:
        return Ray(ray)
    return Slurm(folder / "slurm") if slurm else Processes(workers)


def _words(made: Any, page: Path, seconds: float) -> str:
    plan, terrain = made.plan, made.terrain
    rate, batch = plan.learning_rate, plan.batch
    said = {
        "terrain": terrain.name or "not established",
        "approach": plan.evidence["approach"].partition(":")[0],
        "optimizer": "the task's own" if plan.optimizer.name == "task" else plan.optimizer.name,
        "learning_rate": _ranged("the task's own" if rate.peak is None else f"{rate.peak:.3g}", rate.low, rate.high),
        "batch": _ranged("the task's own", batch.low, batch.high),
        "warm_up": plan.evidence["warm_up"].partition(". ")[0],
        "weight_decay": plan.evidence["weight_decay"].partition(", on ")[0],
    }
    lines = [
        f"{name.replace('_', ' ')}: {value}" + (f" · confidence {sure}" if (sure := plan.confidence.get(name)) else "")
        for name, value in said.items()
    ]
    return "\n".join([
        made.budget,
        *lines,
        *(f"not established: {each}" for each in plan.not_established),
        f"mapped in {seconds:.0f} s: {page}",
        f"train by it: dynaxx train {plan.task.name} --plan {made.folder / 'plan.toml'}",
    ])  # fmt: skip


def _ranged(value: str, low: float | None, high: float | None) -> str:
    return value if low is None else f"{value} ({low:.3g} to {high:.3g})"
