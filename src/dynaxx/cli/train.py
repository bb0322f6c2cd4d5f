"""`dynaxx train TASK`."""

import json
import time
from pathlib import Path
from typing import Any, Literal

import click


@click.command(name="train")
@click.argument("task")
@click.option("--size", help="One of the task's sizes: tiny, small, medium.")
@click.option("--steps", type=click.IntRange(min=1), help="Optimizer steps; the task's own number by default.")
@click.option("--seed", type=int, default=0, show_default=True, help="Determines every random draw.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Examples in a batch.")
@click.option("--accumulate", type=click.IntRange(min=1), help="Batches per step; 1 by default.")
@click.option("--plan", type=click.Path(path_type=Path), help="A plan of `dynaxx map`; further options override it.")
@click.option("--optimizer", help="Another than the task's: soap, adamw:lr=3e-4; see dynaxx list optim.")
@click.option("--peak", type=float, help="Learning rate of the largest group before its schedule.")
@click.option("--rate", type=float, help="Multiplies all learning rates.")
@click.option("--macro", "schedule", help="Another schedule: wsd:warmup=0.05; see dynaxx list schedules.")
@click.option("--micro", help="Modulate the rates: period=100,amplitude=0.1.")
@click.option("--meso", type=float, metavar="SPREAD", help="Rates by layer, with at most this ratio between them.")
@click.option("--explorer", "averaging", help="Average the weights: ema:half_life=200; see dynaxx list averaging.")
@click.option("--perturber", "perturb", help="Perturb the steps: sam:rho=0.05,every=5; see dynaxx list perturb.")
@click.option("--phases", help='Methods one after the other: "descend until=0.5; stabilise averaging=ema".')
@click.option("--curriculum", help="Easy examples first: root:start=0.01,until=0.5, linear, step; see the docs.")
@click.option("--clip", type=float, help="Clip the total gradient norm at this value.")
@click.option(
    "--navigate",
    type=click.Choice(["off", "advise", "act"]),
    default="advise",
    show_default=True,
    help="Diagnose on the way; act: also do what helps, within bounds.",
)
@click.option("--out", type=click.Path(path_type=Path), help="The run's own folder; runs/<task>-<utc> by default.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, bit for bit; begin where there is none.")
@click.option(
    "--budget", type=float, default=0.02, show_default=True, help="Share of the time that measuring may take."
)
@click.option("--keep", help="Which checkpoints stay: last:3,best:1,spread:16:2e9 by default; diverse:8; see the docs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def command(
    task: str,
    size: str | None,
    steps: int | None,
    seed: int,
    batch_size: int | None,
    accumulate: int | None,
    plan: Path | None,
    navigate: Literal["off", "advise", "act"],
    out: Path | None,
    resume: bool,
    budget: float,
    keep: str | None,
    as_json: bool,
    quiet: bool,
    **methods: Any,
) -> int:
    """Train TASK, a built-in name or file.py:Class, with every instrument on.

    The task's loss on its validation batches is logged as val_loss. SIGINT and SIGTERM complete the step, write a
    checkpoint and exit with 4; --resume goes on from there.
    """
    from dynaxx.cli import FINDING, INTERRUPTED
    from dynaxx.errors import BadInput

    if resume and out is None:
        raise BadInput("dynaxx train --resume needs --out DIR: the folder of the run to go on with.")
    from dynaxx import catalog
    from dynaxx.cli._progress import reporter
    from dynaxx.phases.phase import read_phases
    from dynaxx.session.recipe import Recipe
    from dynaxx.session.train import KEPT, train
    from dynaxx.survey.plan import Plan

    given = {name: value for name, value in methods.items() if value is not None}
    if "phases" in given:
        given["phases"] = read_phases(given["phases"])
    recipe = Recipe(**given)
    if plan is not None:
        planned = Plan.read(plan).for_task(task)
        recipe = planned.recipe(**given)
        size = planned.task.size if size is None else size
        steps = planned.task.steps if steps is None else steps
        batch_size = planned.batch.size if batch_size is None else batch_size
        accumulate = planned.batch.accumulate if accumulate is None else accumulate
    work = catalog.task(task, size)
    if batch_size is not None:
        work.batch_size = batch_size
    label = Path(task.partition(":")[0]).stem if ".py" in task else task
    folder = out if out is not None else Path("runs") / f"{label}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    with reporter(label, json=as_json, quiet=quiet) as progress:
        outcome = train(
            work,
            folder,
            name=label,
            seed=seed,
            steps=steps,
            accumulate=accumulate or 1,
            recipe=recipe,
            navigate=navigate,
            checkpoints=None,
            resume=resume,
            budget=budget,
            keep=keep or KEPT,
            quiet=quiet or as_json,
            spec=_found_again(task),
            progress=progress,
        )
    click.echo(json.dumps(outcome.as_dict()) if as_json else _words(outcome.as_dict(), out is not None))
    return {"interrupted": INTERRUPTED, "stopped": FINDING}.get(outcome.status, 0)


def _found_again(task: str) -> str:
    """The task's name, with the whole path where it is in a file."""
    path, colon, kind = task.rpartition(":") if ".py:" in task else (task, "", "")
    return f"{Path(path).resolve()}{colon}{kind}" if path.endswith(".py") else task


def _words(outcome: dict[str, Any], named: bool) -> str:
    if outcome["status"] == "already finished":
        return f"{outcome['run']} is finished: {outcome['steps']} steps. Nothing to resume."
    parts = [f"{outcome['status']} at step {outcome['step']} of {outcome['steps']} in {outcome['seconds']:.0f} s"]
    parts += [f"{name} {value:.4g}" for name, value in outcome["validation"].items()]
    if outcome["best"]:
        parts.append(f"best val_loss {outcome['best']['val_loss']:.4g} at step {outcome['best']['step']:.0f}")
    parts.append(f"overhead {outcome['overhead']:.1%}")
    lines = ["; ".join(parts), f"run: {outcome['run']}", f"see it: dynaxx report {outcome['run']}"]
    if outcome["status"] != "finished" and named:
        lines.append(f"go on: the same command with --resume --out {outcome['run']}")
    return "\n".join(lines)
