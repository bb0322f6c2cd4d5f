"""The figures that there are: one file of this folder each, found by its name."""

import importlib
import pkgutil
from functools import cache
from types import MappingProxyType

from dynaxx.core.contracts import Figure


@cache
def entries() -> MappingProxyType[str, Figure]:
    """Every figure by its file's name, in the order of the report.

    Returns:
        Name → figure.
    """
    package = __name__.rpartition(".")[0]
    folder = importlib.import_module(package).__path__
    found = {m.name: _figure(f"{package}.{m.name}") for m in pkgutil.iter_modules(folder) if not m.name.startswith("_")}
    return MappingProxyType(dict(sorted(found.items(), key=lambda item: (item[1].order, item[0]))))


def _figure(module: str) -> Figure:
    members = vars(importlib.import_module(module)).values()
    (only,) = [m for m in members if isinstance(m, type) and issubclass(m, Figure) and m.__module__ == module]
    return only()
