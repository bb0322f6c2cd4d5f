"""Every figure, built-in ones and plug-ins, in the order of the report."""

from functools import cache
from types import MappingProxyType

from dynaxx import catalog
from dynaxx.core.contracts import Figure


@cache
def entries() -> MappingProxyType[str, Figure]:
    """Every figure by its name.

    Returns:
        Name → figure, in the order of the report.
    """
    found: dict[str, Figure] = {name: catalog.get("figures", name)() for name in catalog.names("figures")}
    return MappingProxyType(dict(sorted(found.items(), key=lambda item: (item[1].order, item[0]))))
