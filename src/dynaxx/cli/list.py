"""`dynaxx list [FAMILY]`."""

import json

import click

_PRICED = ("optim", "averaging", "perturb")


@click.command(name="list")
@click.argument("family", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(family: str | None, as_json: bool) -> None:
    """List what there is: tasks, signals, actions, figures; or one FAMILY of them."""
    from dynaxx import catalog
    from dynaxx.errors import UnknownName

    if family is not None and family not in catalog.FAMILIES:
        raise UnknownName("family", family, catalog.FAMILIES)
    wanted = [family] if family is not None else list(catalog.FAMILIES)
    found = {kind: {name: catalog.about(kind, name) for name in catalog.names(kind)} for kind in wanted}
    if family in _PRICED:  # only then: it imports torch and every entry
        found[family] = {name: f"{about} ({_price(family, name)})" for name, about in found[family].items()}
    if as_json:
        click.echo(json.dumps(found))
        return
    width = max((len(name) for entries in found.values() for name in entries), default=0)
    for kind, entries in found.items():
        click.echo(click.style(kind, bold=True))
        for name, about in entries.items():
            click.echo(f"  {name:<{width}}  {about}")


def _price(family: str, name: str) -> str:
    """What a method keeps besides the weights, and how many passes its step takes."""
    from dynaxx import catalog

    kind = catalog.get(family, name)
    passes = 1.0 if family == "averaging" else kind.passes
    return f"keeps {kind.memory}; {passes:g} {'pass' if passes == 1 else 'passes'} a step"
