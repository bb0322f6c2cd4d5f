"""`dynaxx.diagnose`: from a path or a log to a diagnosis."""

from collections.abc import Sequence
from pathlib import Path

from dynaxx.core.findings import Log
from dynaxx.detectors._diagnose import Diagnosis, diagnose_log
from dynaxx.readers import read_log


def diagnose(run: str | Path | Log, only: Sequence[str] | None = None) -> Diagnosis:
    """What is the matter with a run, from its log alone: findings with evidence, ranked causes, remedies.

    Args:
        run: A run's folder, while it trains or years later; another tool's log (CSV, JSON lines, TensorBoard, a
            Trainer's state); or a log that is open already.
        only: Names of detectors; None: all.

    Returns:
        The findings, worst first, which is also a sequence of them; and which detectors could not speak, and why.

    Raises:
        BadInput: The path holds no log. UnknownName: there is no such detector.

    Example:
        ```python
        for finding in dynaxx.diagnose("runs/first"):
            print(finding.code, finding.title, finding.causes[0].name)
        ```
    """
    return diagnose_log(read_log(run) if isinstance(run, str | Path) else run, only)
