"""What runs are called in a figure: their folders' names, or what tells short trainings of a fleet apart."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynaxx.runlog import open_run

_ADDRESS = re.compile("[0-9a-f]{16}")
"""A folder named by what it holds, as those of a fleet are."""


def run_names(folders: Sequence[Path]) -> list[str]:
    """One short name each, all different.

    Args:
        folders: Of runs, each once.

    Returns:
        The last parts of the paths, as many as tell them apart; where those are addresses, the settings that differ, of
        one alone the settings themselves.

    Example:
        >>> run_names([Path("runs/first"), Path("runs/second")])
        ['first', 'second']
    """
    if folders and all(_ADDRESS.fullmatch(folder.name) for folder in folders):
        named = _by_settings([open_run(folder).manifest.get("facts", {}) for folder in folders])
        if len(set(named)) == len(named):
            return named
    whole = [folder.resolve() for folder in folders]
    for count in range(1, max((len(folder.parts) for folder in whole), default=0) + 1):
        named = ["/".join(folder.parts[-count:]) for folder in whole]
        if len(set(named)) == len(named):
            return named
    return list(map(str, folders))


def _by_settings(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    settings = [{**each.get("recipe", {}), "seed": each.get("seed")} for each in facts]
    keys = list(dict.fromkeys(key for each in settings for key in each))
    telling = [key for key in keys if len(settings) == 1 or len({str(each.get(key)) for each in settings}) > 1]
    return [" · ".join(f"{key} {_short(each[key])}" for key in telling if key in each) for each in settings]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
