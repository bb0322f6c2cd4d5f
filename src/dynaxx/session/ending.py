"""What a converged run leaves behind: the blend of the checkpoints of its last stretch, judged, beside the last one."""

import json
import warnings
from typing import Any

from dynaxx.checkpoints.blend import blend
from dynaxx.core.task import Task
from dynaxx.errors import BadInput, DynaxxWarning, NotApplicable
from dynaxx.session.run import Run

BLENDED = "blended.safetensors"
"""The blend's weights in the run's folder."""
KEEP = 12
"""Checkpoints of the last stretch that stay for the blend: one at each evaluation, which are nine in the longest."""


def end(task: Task, run: Run, since: int) -> dict[str, Any]:
    """Blend what was saved since a step, judge the blend, and tell the log.

    Half of the validation examples choose how many checkpoints are blended, the other half compare the blend with the
    best of them (`checkpoints.blend`). Its weights and its chart go to the run's folder; the checkpoints stay.

    Args:
        task: Whose loss judges.
        run: A run of one process that is about to be closed; its checkpoints are on disk.
        since: The step at which the last stretch began.

    Returns:
        verdict, and where there is a blend rule, parts, the loss of blend and best part on the judging examples and
        the file; else why there is none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DynaxxWarning)  # a damaged part is told by the number of those that count
            found = blend(run.dir, task, steps=(since, run.step))
    except (BadInput, NotApplicable) as reason:
        told: dict[str, Any] = {"verdict": "not applicable", "why": str(reason)}
    else:
        values = found.chart.values
        told = {
            "verdict": found.verdict,
            "rule": found.lineage["rule"],
            "parts": len(found.lineage["parts"]),
            "blend": values["blend"].value,
            "best_part": values["best_part"].value,
            "file": found.save(run.dir / BLENDED).name,
        }
        chart = run.dir / "charts" / f"{run.step:010d}-blend.json"
        chart.parent.mkdir(exist_ok=True)
        chart.write_text(json.dumps(found.chart.to_dict()))
    run.steering.event("blend", **told)
    return told
