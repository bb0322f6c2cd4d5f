"""write_report: runs in, one HTML file out."""

import os
from collections.abc import Sequence
from pathlib import Path

from dynaxx.errors import BadInput
from dynaxx.report._page import page
from dynaxx.report._payload import payload
from dynaxx.runlog import RunView


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
    target = Path(path)
    if not views:
        raise BadInput("write_report(views=[]): a report shows at least one run. Give one.")
    if target.is_dir():
        raise BadInput(
            f"write_report(path={str(path)!r}) must be a file, and this is a folder. Add a name: report.html."
        )
    text = page(views, *payload(views))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(target)
    return target
