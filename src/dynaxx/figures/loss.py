"""The loss of every step, smoothed over the raw values, and the validation loss."""

from collections.abc import Sequence

import numpy as np

from dynaxx.core.contracts import Figure
from dynaxx.core.panels import Lines, Panel
from dynaxx.figures._build import line, smoothed
from dynaxx.figures._read import named, read_some, scale_for
from dynaxx.runlog import RunView


class Loss(Figure):
    """Training and validation loss."""

    title = "Loss"
    order = 10

    def panels(self, view: RunView) -> Sequence[Panel]:
        """One panel: smoothed training loss over the raw one, validation loss as points."""
        found = read_some(
            view, ("loss", "val_loss"), "neither loss nor val_loss was logged: run.log(loss=loss) in the loop adds it"
        )
        lines = smoothed(view, "loss", "training") if "loss" in found else ()
        if "val_loss" in found:
            lines += (line(found["val_loss"], "validation", "points"),)
        marked = any(not np.isfinite(array.values).all() for array in found.values())
        unit = next(iter(found.values())).column.unit
        return [
            Lines(
                title="Loss",
                lines=lines,
                y_label=named("loss", unit),
                y_scale=scale_for(*(array.values for array in found.values())),
                note="Steps whose loss is not finite are marked; smoothing leaves them out." if marked else "",
            )
        ]
