"""write_report, write_map and write_rescue: runs, a map or the rescue suite in, one HTML file out."""

import os
from collections.abc import Sequence
from pathlib import Path

from dynaxx.errors import BadInput
from dynaxx.report._map import map_payload
from dynaxx.report._page import drawn, page
from dynaxx.report._payload import payload
from dynaxx.report._rescue import rescue_payload
from dynaxx.rescue.report import Report
from dynaxx.runlog import RunView
from dynaxx.survey.map import Map


def write_report(views: RunView | Sequence[RunView], path: str | Path) -> Path:
    """Write a report that opens in any browser, without a network.

    Several runs are laid over each other in curves and set side by side in heat-maps. A report that is there already
    is replaced at once, never half-written.

    Args:
        views: One run or several.
        path: The HTML file; missing folders are made.

    Returns:
        The path of the file.

    Raises:
        BadInput: There is no run, or the path is a folder.
    """
    views = [views] if isinstance(views, RunView) else list(views)
    if not views:
        raise BadInput("write_report(views=[]): a report shows at least one run. Give one.")
    target = _file("write_report", path)
    return _put(target, page(*payload(views), [drawn(view) for view in views]))


def write_map(made: Map, path: str | Path) -> Path:
    """Write the page of a map: verdict, plan and every chart.

    Args:
        made: The map.
        path: The HTML file; missing folders are made.

    Returns:
        The path of the file.

    Raises:
        BadInput: The path is a folder.
    """
    target = _file("write_map", path)
    return _put(target, page(*map_payload(made), [""]))


def write_rescue(found: Report, path: str | Path) -> Path:
    """Write the page of the rescue suite: who finds what, what is taken for what, and who mends it.

    Args:
        found: What the suite found.
        path: The HTML file; missing folders are made.

    Returns:
        The path of the file.

    Raises:
        BadInput: The path is a folder.
    """
    target = _file("write_rescue", path)
    return _put(target, page(*rescue_payload(found), [""]))


def _file(call: str, path: str | Path) -> Path:
    target = Path(path)
    if target.is_dir():
        raise BadInput(f"{call}(path={str(path)!r}) must be a file, and this is a folder. Add a name: report.html.")
    return target


def _put(target: Path, text: str) -> Path:
    """The file holds the text or what it held before."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(target)
    return target
