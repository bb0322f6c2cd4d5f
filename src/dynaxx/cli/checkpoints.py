"""`dynaxx checkpoints list|verify|branch|blend|prune|pin|mirror|export|lineage`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from dynaxx.cli import _blend
from dynaxx.cli._checkpoint_words import settings, size, table, which

_SOURCE = click.argument("source", metavar="RUN_OR_URL")
_AT = click.option("--at", metavar="STEP_OR_ID", help="Which checkpoint; the latest by default.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_KEEP = "What stays: last:N, newer:STEPS, every:STEPS, best:K:METRIC:min|max, diverse:K, all; joined by commas."


@click.group(name="checkpoints")
def command() -> None:
    """Look after checkpoints: of a run's folder, of a folder of checkpoints, or behind an fsspec URL (s3://…)."""


command.add_command(_blend.command)


@command.command(name="list")
@_SOURCE
@_JSON
def list_(source: str, as_json: bool) -> None:
    """List the checkpoints, full and archived ones, with what is known of them.

    Where a policy has measured distances between them (diverse:K), shown is how far each is from the nearest other.
    """
    from dynaxx.checkpoints.coordinates import ByWeights
    from dynaxx.checkpoints.health import verdicts
    from dynaxx.checkpoints.opening import open_place
    from dynaxx.checkpoints.places import behind, original
    from dynaxx.checkpoints.pruning import protected

    place = open_place(source)
    full, cold = place.list(), place.archive.list()
    said, kept, past = verdicts(place), protected(place), behind(full)
    near = ByWeights(place).nearest(full)
    rows = [
        {
            "step": info.step,
            "id": info.id,
            "tier": tier,
            "bytes": info.size,
            "created": info.created,
            "health": said[original(info).id].health if original(info).id in said else None,
            "why": said[original(info).id].why if original(info).id in said else None,
            "nearest": near.get(info.id),
            "left_behind": info.path.name in past,
            "kept": kept.get(original(info).id),
            "facts": dict(info.facts),
        }
        for tier, infos in (("archive", cold), ("full", full))
        for info in infos
    ]
    if as_json:
        click.echo(json.dumps({"place": place.name, "checkpoints": rows}, default=str))
        return
    table(
        ("step", "id", "tier", "size", "health", "nearest", "facts"),
        [_row(row) for row in rows],
        right=("step", "size", "nearest"),
    )
    total = sum(info.size for info in (*full, *cold))
    click.echo(f"{len(full)} full, {len(cold)} archived; {size(total)} in {place.name}")


@command.command()
@_SOURCE
@_AT
@click.option("--shallow", is_flag=True, help="Manifests and sizes only; else every byte is read and hashed.")
@_JSON
def verify(source: str, at: str | None, shallow: bool, as_json: bool) -> int:
    """Check that every byte is as it was written; exit 1 where one is not."""
    from dynaxx.checkpoints.opening import find, open_place
    from dynaxx.cli import DONE, FAILED
    from dynaxx.errors import CorruptData

    place = open_place(source)
    chosen = [find(place, which(at))] if at is not None else [(i, p) for p in (place, place.archive) for i in p.list()]
    damaged: dict[str, str] = {}
    for info, lies in chosen:
        try:
            lies.verify(info, deep=not shallow)
        except CorruptData as error:
            damaged[info.path.name] = str(error)
        if not as_json:  # one by one: reading takes its time
            click.echo(f"{info.path.name}  {size(info.size):>9}  {damaged.get(info.path.name, 'as it was written')}")
    if as_json:
        sound = [info.path.name for info, _ in chosen if info.path.name not in damaged]
        click.echo(json.dumps({"place": place.name, "sound": sound, "damaged": damaged}))
    return FAILED if damaged else DONE


@command.command()
@_SOURCE
@click.argument("folder", metavar="NEW_RUN", type=click.Path(path_type=Path))
@_AT
@click.option("--steps", type=click.IntRange(min=1), help="Planned steps of the new run; as planned before by default.")
@click.option("--set", "changes", metavar="NAME=VALUE", multiple=True, help="A setting that shall differ; repeatable.")
@_JSON
def branch(
    source: str, folder: Path, at: str | None, steps: int | None, changes: tuple[str, ...], as_json: bool
) -> None:
    """Make a new run that begins at a checkpoint, with all its state; from an archived one with its weights alone."""
    from dynaxx.checkpoints.branch import branch as made

    result = made(source, folder, at=which(at), steps=steps, facts=settings(changes))
    if as_json:
        click.echo(json.dumps(asdict(result)))
        return
    if result.level == "exact":
        click.echo(
            f"{result.run} goes on from step {result.step} of {result.origin}, bit for bit if nothing is changed."
        )
        click.echo(f"train it: dynaxx train TASK --resume --out {result.run}, with the options of the origin")
    else:
        click.echo(f"{result.run} begins anew from the archived weights of step {result.step} of {result.origin}:")
        click.echo("a warm start, at step 0, with fresh optimizer state.")
        click.echo(f"train it: dynaxx.session.train.train(..., start={result.start!r}, resume=True)")


@command.command()
@_SOURCE
@click.option("--keep", required=True, help=_KEEP)
@click.option("--archive", "cold", help="Whose weights stay, in bfloat16, once the full one has gone; likewise.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@_JSON
def prune(source: str, keep: str, cold: str | None, dry_run: bool, as_json: bool) -> None:
    """Remove what no policy keeps, but not the last two healthy ones, pinned ones, or those that runs branched from."""
    from dynaxx.checkpoints.opening import open_place
    from dynaxx.checkpoints.policy_words import policy
    from dynaxx.checkpoints.pruning import prune as pruned

    place = open_place(source)
    frozen = None if cold is None else policy(cold, place)
    done = pruned(place, policy(keep, place), cold=frozen, dry_run=dry_run)
    groups = {name: getattr(done, name) for name in ("kept", "removed", "archived", "expired")}
    if as_json:
        steps = {name: [{"step": i.step, "id": i.id, "bytes": i.size} for i in infos] for name, infos in groups.items()}
        click.echo(json.dumps({**steps, "why": done.why, "refused": done.refused or None, "dry_run": dry_run}))
        return
    for name, infos in groups.items():
        total = f", {size(sum(info.size for info in infos))}" if infos else ""
        click.echo(f"{name:>9}: {len(infos)}{total}  {' '.join(str(info.step) for info in infos)}".rstrip())
    for key, reason in done.why.items():
        click.echo(f"  {key} stays: {reason}")
    if done.refused:
        click.echo(f"  nothing is removed: {done.refused}")
    if dry_run:
        click.echo("  nothing was done: --dry-run")


@command.command()
@_SOURCE
@_AT
@click.option("--why", help="The reason; without it the pin is taken away.")
@_JSON
def pin(source: str, at: str | None, why: str | None, as_json: bool) -> None:
    """Keep a checkpoint through every pruning (--why), or leave it to the policies again."""
    from dynaxx.checkpoints.opening import find, open_place
    from dynaxx.checkpoints.pruning import pin as pinned
    from dynaxx.checkpoints.pruning import unpin

    place = open_place(source)
    info, _ = find(place, which(at))
    unpin(place, info) if why is None else pinned(place, info, why)
    if as_json:
        click.echo(json.dumps({"step": info.step, "id": info.id, "why": why}))
    else:
        click.echo(f"step {info.step} ({info.id}) is {'no longer pinned' if why is None else 'pinned'}.")


@command.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("url")
@click.option("--keep", help="What stays there; everything by default. " + _KEEP)
@_JSON
def mirror(run: Path, url: str, keep: str | None, as_json: bool) -> int:
    """Upload what is not there yet; half an upload stays invisible."""
    from dynaxx.checkpoints.mirror import Mirror
    from dynaxx.checkpoints.opening import open_place
    from dynaxx.checkpoints.places import LocalPlace
    from dynaxx.checkpoints.policy_words import policy
    from dynaxx.checkpoints.remote import RemotePlace
    from dynaxx.cli import DONE, FAILED
    from dynaxx.errors import BadInput

    here = open_place(run)
    if not isinstance(here, LocalPlace):
        raise BadInput(
            f"dynaxx checkpoints mirror: {run} must be a local folder. Copy between stores with their tools."
        )
    there = RemotePlace(url)
    following = Mirror(here.store, there, keep=None if keep is None else policy(keep, there))
    following.catch_up()
    waiting = following.pending
    while not following.flush(1.0):
        if not as_json:
            click.echo(f"{waiting - following.pending} of {waiting}")
    complete = not following.problems
    following.close() if complete else None
    if as_json:
        report = {"url": there.name, "uploaded": following.uploaded, "problems": following.problems}
        click.echo(json.dumps(report))
    else:
        click.echo(f"{following.uploaded} uploaded, {len(there.list())} in {there.name}")
        for problem in following.problems:
            click.echo(f"  not uploaded: {problem}", err=True)
    return DONE if complete else FAILED


@command.command()
@_SOURCE
@click.option(
    "-o", "--output", "folder", required=True, type=click.Path(path_type=Path), help="The folder to write to."
)
@_AT
@click.option("--dtype", help="float32, float16 or bfloat16; as they are by default.")
@click.option("--averaged", is_flag=True, help="The averaged weights instead of the last ones.")
@_JSON
def export(source: str, folder: Path, at: str | None, dtype: Any, averaged: bool, as_json: bool) -> None:
    """Write the weights as safetensors under the model's own names, for other tools."""
    from dynaxx.checkpoints.export import export as exported

    done = exported(source, folder, at=which(at), dtype=dtype, averaged=averaged)
    if as_json:
        click.echo(json.dumps(asdict(done)))
        return
    of = "averaged over the run" if done.step is None else f"of step {done.step}"
    click.echo(f"{done.tensors} tensors {of}, {size(done.bytes)}: {', '.join(done.files)} in {done.folder}")
    for name, other in done.tied.items():
        click.echo(f"  {name} is tied to {other}, which is in the file")
    for name in done.left_out:
        click.echo(f"  {name} is no tensor and left out")


@command.command()
@click.argument("folder", metavar="RUN_OR_RUNS", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Draw it here (.png, .svg, .pdf).")
@_JSON
def lineage(folder: Path, output: Path | None, as_json: bool) -> None:
    """Show which run branched from which checkpoint, and what was left behind."""
    from dynaxx.checkpoints.lineage import as_graph, as_tree
    from dynaxx.checkpoints.lineage import lineage as runs_in

    runs = runs_in(folder)
    if output is not None:
        from dynaxx.figures import picture

        picture([as_graph(runs)]).savefig(output, dpi=130)
    if as_json:
        click.echo(json.dumps({"runs": [asdict(run) for run in runs]}))
        return
    for line in as_tree(runs):
        click.echo(line)
    if output is not None:
        click.echo(f"written: {output}")


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    facts = [f"{name} {value:.4g}" for name, value in row["facts"].items() if isinstance(value, int | float)]
    facts += [str(row["facts"]["reason"])] if "reason" in row["facts"] else []
    words = ["left behind"] * row["left_behind"] + ([row["kept"]] if row["kept"] else [])
    words += [row["why"]] if row["health"] == "bad" else []
    near = "" if row["nearest"] is None else f"{row['nearest']:.3g}"
    said = row["health"] or ""
    return str(row["step"]), row["id"], row["tier"], size(row["bytes"]), said, near, ", ".join([*facts, *words])
