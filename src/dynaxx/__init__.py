"""Dynaxx: instrument, map, navigate and diagnose the training of neural networks with PyTorch.

Names are imported when they are first used, so that `import dynaxx` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dynaxx._version import __version__

if TYPE_CHECKING:
    from dynaxx.core.task import Task
    from dynaxx.detectors import diagnose
    from dynaxx.errors import BadInput, CorruptData, DynaxxError, DynaxxWarning, NotApplicable
    from dynaxx.report import write_report
    from dynaxx.runlog import RunView, open_run
    from dynaxx.session import Run, watch

_HOME = {
    "BadInput": "dynaxx.errors",
    "CorruptData": "dynaxx.errors",
    "DynaxxError": "dynaxx.errors",
    "DynaxxWarning": "dynaxx.errors",
    "NotApplicable": "dynaxx.errors",
    "Run": "dynaxx.session",
    "RunView": "dynaxx.runlog",
    "Task": "dynaxx.core.task",
    "diagnose": "dynaxx.detectors",
    "open_run": "dynaxx.runlog",
    "watch": "dynaxx.session",
    "write_report": "dynaxx.report",
}

_PACKAGES = {"averaging", "errors", "landscape", "optim", "perturb", "phases", "schedules", "survey"}

__all__ = [
    "BadInput",
    "CorruptData",
    "DynaxxError",
    "DynaxxWarning",
    "NotApplicable",
    "Run",
    "RunView",
    "Task",
    "__version__",
    "diagnose",
    "open_run",
    "watch",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:  # the import binds the name here
        return import_module(f"dynaxx.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'dynaxx' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
