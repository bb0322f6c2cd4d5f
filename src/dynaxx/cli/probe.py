"""`dynaxx probe NAME TASK_OR_RUN`."""

import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import click

_POINT = (
    click.argument("target", metavar="TASK_OR_RUN"),
    click.option("--task", help="The run's task, where its folder does not say: file.py:Class."),
    click.option("--size", help="One of the task's sizes; a run's own by default."),
    click.option("--step", type=int, help="Which checkpoint of a run; the latest by default."),
    click.option("--split", type=click.Choice(["train", "validation"]), default="train", show_default=True),
    click.option("--examples", type=int, default=512, show_default=True, help="Examples (or tokens), at least."),
    click.option("--parameters", help="Comma-separated names of parameters; all by default."),
    click.option("--mode", type=click.Choice(["evaluation", "training"]), default="evaluation", show_default=True,
                 help="How dropout and batch normalisation work."),
    click.option("--microbatch", type=int, help="Split batches into parts of so many examples: less memory."),
    click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the figure (.png, .svg, .pdf) here."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    click.option("--quiet", is_flag=True, help="Show no progress."),
)  # fmt: skip
_OF_OBJECTS = {
    "other": click.option("--other", metavar="RUN_OR_CHECKPOINT", help="The second point, of the same architecture."),
    "trajectory": click.option("--with", "along", metavar="RUN", multiple=True,
                               help="A further run whose checkpoints to look at; may be repeated."),
}  # fmt: skip
"""Options by which an argument that is an object is named; a probe that takes none of it does not have the option."""
_IMAGES = (".png", ".svg", ".pdf")
_TAKEN = {
    "target", "task", "size", "step", "split", "examples", "parameters", "mode", "microbatch", "output", "quiet",
    "along", "as_json",
}  # fmt: skip
"""Options that say where to probe; a probe's own of the same name is called --probe-<name>."""


class _Probes(click.Group):
    """One file in `dynaxx.landscape` is one probe; its options are those of its class."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all probes."""
        del ctx
        from dynaxx import catalog

        return catalog.names("probes")

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a probe."""
        from dynaxx import catalog

        del ctx
        return _command(cmd_name, catalog.get("probes", cmd_name), catalog.about("probes", cmd_name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the probes without importing any."""
        from dynaxx import catalog

        with formatter.section("Probes"):
            formatter.write_dl([(name, catalog.about("probes", name)) for name in self.list_commands(ctx)])


@click.group(name="probe", cls=_Probes)
def command() -> None:
    """Probe a point of the landscape: of a fresh model of a TASK, or of a RUN's checkpoint.

    The chart is printed, kept in the run's folder for its report, and drawn with -o.
    """


def _command(name: str, kind: type[Any], about: str) -> click.Command:
    options = _options(kind)
    objects = [key for key in inspect.signature(kind).parameters if key not in options]

    def body(target: str, output: Path | None, as_json: bool, quiet: bool, **given: Any) -> None:
        chosen = {key: given.pop(f"probe_{key}" if key in _TAKEN else key) for key in options}

        _probe(name, lambda there: kind(**chosen, **_objects(objects, there)), target, output, as_json, quiet, given)

    function: Callable[..., Any] = body
    naming = [_OF_OBJECTS[key] for key in objects if key in _OF_OBJECTS]
    for option in [*options.values(), *naming, *reversed(_POINT)]:
        function = option(function)
    return click.command(name=name, help=about)(function)


def _objects(names: Sequence[str], there: Any) -> dict[str, Any]:
    """What the point gives for the arguments that no word can name; for others the probe's default stands."""
    from dynaxx.landscape._supplies import SUPPLIES

    found = {name: SUPPLIES[name](there) for name in names if name in SUPPLIES}
    return {name: thing for name, thing in found.items() if thing is not None}


def _options(kind: type[Any]) -> dict[str, Callable[..., Any]]:
    """A click option for each argument of a probe's constructor that can be written as a word."""
    hints = get_type_hints(kind.__init__)
    texts = _arguments(kind)
    found: dict[str, Callable[..., Any]] = {}
    for name, parameter in list(inspect.signature(kind).parameters.items()):
        hint, default = hints.get(name, str), parameter.default
        key = f"probe_{name}" if name in _TAKEN else name
        flag = f"--{key.replace('_', '-')}"
        text = texts.get(name, "")
        if hint is bool:
            found[name] = click.option(f"{flag}/--no-{flag[2:]}", key, default=default, show_default=True, help=text)
        elif (kind_of := _type(hint)) is not None:
            found[name] = click.option(flag, key, type=kind_of, default=default, show_default=True, help=text)
    return found


def _type(hint: Any) -> Any:
    """How click reads an argument of a type; None for objects, which only Python can give."""
    if get_origin(hint) is Literal:
        return click.Choice([str(value) for value in get_args(hint)])
    kinds = {int: int, float: float, str: str, Path: click.Path(path_type=Path)}
    if isinstance(hint, type):
        return kinds.get(hint)
    inner = [part for part in get_args(hint) if part is not type(None)]
    optional = len(inner) == 1 and len(get_args(hint)) == 2 and get_origin(hint) in (Union, UnionType)
    return _type(inner[0]) if optional else None


def _arguments(kind: type[Any]) -> dict[str, str]:
    """What the docstring of the class says of each argument."""
    found: dict[str, str] = {}
    within, name = False, ""
    for line in inspect.cleandoc(kind.__doc__ or "").splitlines():
        if line.rstrip() == "Args:":
            within = True
        elif within and line and not line.startswith(" "):
            break
        elif within and line.startswith("    ") and not line.startswith("     ") and ":" in line:
            name, _, text = line.strip().partition(":")
            found[name] = text.strip()
        elif within and name:
            found[name] += " " + line.strip()
    return {key: text.partition(". ")[0].rstrip(".") + "." for key, text in found.items()}


def _probe(
    name: str,
    made: Callable[[Any], Any],
    target: str,
    output: Path | None,
    as_json: bool,
    quiet: bool,
    given: dict[str, Any],
) -> None:
    from dynaxx.cli._progress import working
    from dynaxx.errors import BadInput
    from dynaxx.landscape._point import point, remember
    from dynaxx.landscape._unlike import explained

    if output is not None and output.suffix not in _IMAGES:
        raise BadInput(f"dynaxx probe -o: the figure's name must end in {', '.join(_IMAGES)}. Got {str(output)!r}.")
    names = given.pop("parameters")
    there = point(target, parameters=names.split(",") if names else None, **given)
    probe = made(there)
    price = probe.price(there.objective)
    with explained(there.task), working(name, price, batches=len(there.objective.batches), json=as_json, quiet=quiet):
        chart = probe.run(there.objective)
    kept = remember(chart, there)
    if output is not None:
        chart.plot().savefig(output, dpi=130)
    if as_json:
        click.echo(json.dumps(chart.to_dict()))
        return
    click.echo(str(chart))
    cost = chart.cost
    click.echo(f"  cost: {cost.products:.0f} products, {cost.forwards:.0f} forwards, {cost.seconds:.1f} s")
    for path in (kept, output):
        if path is not None:
            click.echo(f"  written: {path}")
