"""The loss by phase of the plan: which optimizer, average or perturbation was in force when."""

from collections.abc import Sequence

import numpy as np

from dynaxx.core.contracts import Figure
from dynaxx.core.panels import Line, Lines, Panel
from dynaxx.figures._build import line
from dynaxx.figures._read import named, read_some, scale_for
from dynaxx.runlog import RunView


class Phases(Figure):
    """Loss, a curve for each phase."""

    title = "Phases"
    order = 12

    def panels(self, view: RunView) -> Sequence[Panel]:
        """One panel: the training loss in pieces, and the first step of each phase but the first."""
        phase = read_some(view, ("phase",), "the optimizer was no dynaxx.phases.Phased")["phase"]
        loss = read_some(view, ("loss",), "loss was not logged: run.log(loss=loss) in the loop adds it")["loss"]
        # A loss belongs to the phase of the last step up to its own.
        at = np.searchsorted(phase.steps, loss.steps, side="right") - 1
        of = phase.values[at.clip(0)].astype(int)
        whole = line(loss, "")
        began = [0, *(np.flatnonzero(np.diff(of)) + 1).tolist()]
        pieces = [
            Line(label=f"phase {of[a]}", x=whole.x[a:b], y=whole.y[a:b])
            for a, b in zip(began, [*began[1:], len(of)], strict=True)
        ]
        return [
            Lines(
                title="Loss by phase",
                lines=tuple(pieces),
                y_label=named("loss", loss.column.unit),
                y_scale=scale_for(loss.values),
                marks={f"phase {of[a]} from step {int(whole.x[a])}": float(whole.x[a]) for a in began[1:]},
                note="phase.release below 1: layers whose steps are still held to their length before the switch.",
            )
        ]
