"""The families of entries, and how an entry is listed, described and loaded by its name.

Nothing is imported until `get` loads an entry: listing a hundred entries costs a look into folders, and no torch.
"""

import ast
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from importlib.util import find_spec
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, cast

from dynaxx.errors import BadInput, DynaxxWarning, UnknownName


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Where the entries of a family are, and what each must be.

    Args:
        singular: What one entry is called.
        package: Its modules without a leading underscore are the built-in entries.
        contract: Module and name of the class that each entry's class subclasses.
    """

    singular: str
    package: str
    contract: tuple[str, str]


FAMILIES = {
    "actions": Family(singular="action", package="dynaxx.actuator", contract=("dynaxx.core.contracts", "Actuation")),
    "averaging": Family(singular="averager", package="dynaxx.averaging", contract=("dynaxx.core.methods", "Averager")),
    "checks": Family(singular="check", package="dynaxx.checks", contract=("dynaxx.core.navigation", "Check")),
    "controllers": Family(
        singular="controller", package="dynaxx.controllers", contract=("dynaxx.core.navigation", "Controller")
    ),
    "detectors": Family(singular="detector", package="dynaxx.detectors", contract=("dynaxx.core.findings", "Detector")),
    "figures": Family(singular="figure", package="dynaxx.figures", contract=("dynaxx.core.contracts", "Figure")),
    "optim": Family(singular="optimizer", package="dynaxx.optim", contract=("dynaxx.core.methods", "ModelOptimizer")),
    "perturb": Family(singular="perturber", package="dynaxx.perturb", contract=("dynaxx.core.methods", "Perturber")),
    "probes": Family(singular="probe", package="dynaxx.landscape", contract=("dynaxx.core.contracts", "Probe")),
    "readers": Family(singular="reader", package="dynaxx.readers", contract=("dynaxx.readers._reader", "Reader")),
    "schedules": Family(singular="schedule", package="dynaxx.schedules", contract=("dynaxx.core.methods", "Curve")),
    "signals": Family(singular="signal", package="dynaxx.signals", contract=("dynaxx.core.contracts", "Signal")),
    "tasks": Family(singular="task", package="dynaxx.tasks", contract=("dynaxx.core.task", "Task")),
}
"""By the name under which plug-ins join: entry point group "dynaxx.<family>", whose value is a module."""


def names(family: str) -> list[str]:
    """The names of a family's entries, built-in ones and plug-ins, without importing any.

    Args:
        family: A key of `FAMILIES`.

    Returns:
        Sorted names. A plug-in that takes the name of another entry is left out with a warning.

    Raises:
        UnknownName: There is no such family.

    Example:
        >>> names("tasks")[:2]
        ['diabetes', 'digits']
    """
    found = dict(_built_in(family))
    for plugin in _plugins(family):
        name = _shown(family, plugin.name)
        if found.setdefault(name, plugin.module) != plugin.module:
            warnings.warn(
                f"The plug-in {_described(plugin)} is left out: {family} has an entry {name!r} already. "
                "Rename its entry point.",
                DynaxxWarning,
                stacklevel=2,
            )
    return sorted(found)


def about(family: str, name: str) -> str:
    """The first line of an entry's docstring, read from its source without importing it.

    Args:
        family: A key of `FAMILIES`.
        name: The entry's name.

    Returns:
        The line; empty where there is none, or no source.

    Raises:
        UnknownName: There is no such family or entry.
    """
    spec = _find(_entry(family, name)[0])
    if spec is None or spec.loader is None:
        return ""
    source = cast(InspectLoader, spec.loader).get_source(spec.name)
    docstring = ast.get_docstring(ast.parse(source or ""))
    return (docstring or "").partition("\n")[0]


def get(family: str, name: str) -> type[Any]:
    """The class of an entry.

    Args:
        family: A key of `FAMILIES`.
        name: The entry's name; dashes and underscores are the same.

    Returns:
        The one public class of the family's contract that the entry's module defines.

    Raises:
        UnknownName: There is no such family or entry.
        BadInput: A plug-in cannot be imported, or its module defines no such class or several.
    """
    module, plugin = _entry(family, name)
    try:
        classes = defined(import_module(module), contract(family))
    except Exception as error:
        if plugin is None:
            raise
        raise BadInput(f"The plug-in {_described(plugin)} cannot be imported: {error!r}.") from error
    if len(classes) != 1:
        rule = (
            f"{module} must define exactly one public class of {contract(family).__name__}. "
            f"It defines {', '.join(each.__name__ for each in classes) or 'none'}."
        )
        assert plugin is not None, rule
        raise BadInput(f"The plug-in {_described(plugin)}: {rule}")
    return classes[0]


def contract(family: str) -> type[Any]:
    """The class that the classes of a family's entries subclass.

    Args:
        family: A key of `FAMILIES`.

    Returns:
        The class; its module is imported.
    """
    module, name = _family(family).contract
    return vars(import_module(module))[name]


def defined(module: ModuleType, base: type[Any]) -> list[type[Any]]:
    """The public classes of a contract that a module defines itself, those it imports left out.

    Args:
        module: Any module.
        base: The contract.

    Returns:
        The classes, in the order of the source.
    """
    classes = [member for member in vars(module).values() if isinstance(member, type) and issubclass(member, base)]
    return [each for each in classes if each.__module__ == module.__name__ and not each.__name__.startswith("_")]


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise UnknownName("family", name, FAMILIES)
    return FAMILIES[name]


def _entry(family: str, name: str) -> tuple[str, EntryPoint | None]:
    """The module of an entry, and the plug-in that brings it; built-in entries come first."""
    shown = _shown(family, name)
    built_in = _built_in(family)
    if shown in built_in:
        return built_in[shown], None
    for plugin in _plugins(family):
        if _shown(family, plugin.name) == shown:
            return plugin.module, plugin
    raise UnknownName(_family(family).singular, name, names(family))


@cache
def _built_in(family: str) -> Mapping[str, str]:
    """Module by name; the package's own folder does not change while the process runs, and a look asks often."""
    package = _family(family).package
    spec = _find(package)
    assert spec is not None, package
    stems = [m.name for m in iter_modules(spec.submodule_search_locations) if not m.ispkg and m.name[0] != "_"]
    return {_shown(family, stem): f"{package}.{stem}" for stem in stems}


def _plugins(family: str) -> list[EntryPoint]:
    return sorted(_entry_points(tuple(sys.path))[family], key=lambda plugin: (plugin.name, plugin.value))


@cache
def _entry_points(path: tuple[str, ...]) -> dict[str, EntryPoints]:
    """Every family's plug-ins by one scan of the installed distributions: it takes milliseconds, and watch asks often.

    A distribution installed while the process runs is seen once `sys.path` changes, as by a new process.
    """
    del path
    found = entry_points()
    return {family: found.select(group=f"dynaxx.{family}") for family in FAMILIES}


def _shown(family: str, name: str) -> str:
    """Tasks are words of the command line and take dashes; the other families name columns and arguments."""
    return name.replace("_", "-") if family == "tasks" else name.replace("-", "_")


def _described(plugin: EntryPoint) -> str:
    distribution = f" of the package {plugin.dist.name}" if plugin.dist else ""
    return f"{plugin.name!r} ({plugin.value}){distribution}"


def _find(module: str) -> ModuleSpec | None:
    """Where a module is; `importlib.util.find_spec` would import the packages above it."""
    top, *below = module.split(".")
    spec = find_spec(top)
    for name in below:
        if spec is None:
            break
        spec = PathFinder.find_spec(f"{spec.name}.{name}", spec.submodule_search_locations or [])
    return spec
