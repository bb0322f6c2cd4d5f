"""Mixed precision: loss scale, skipped steps and gradient entries that underflow."""

from collections.abc import Sequence

import numpy as np

from dynaxx.core.contracts import Figure
from dynaxx.core.panels import Line, Lines, Panel
from dynaxx.figures._build import column, line
from dynaxx.figures._read import read_some, scale_for
from dynaxx.runlog import LabelledArray, RunView

_NAMES = ("precision.loss_scale", "precision.skipped", "precision.underflow")


class Precision(Figure):
    """Loss scale, skipped steps, underflow."""

    title = "Precision"
    order = 80

    def panels(self, view: RunView) -> Sequence[Panel]:
        """Loss scale, number of skipped steps so far, underflow."""
        found = read_some(view, _NAMES, "no loss scale, skipped step or underflow was measured in this run")
        panels: list[Panel] = []
        if "precision.loss_scale" in found:
            scale = found["precision.loss_scale"]
            panels.append(
                Lines(
                    title="Loss scale",
                    lines=(line(scale, "scale"),),
                    y_label="scale",
                    y_scale=scale_for(scale.values),
                    note="It halves after an overflow and doubles after a quiet time.",
                )
            )
        if "precision.skipped" in found:
            panels.append(_skipped(found["precision.skipped"]))
        if "precision.underflow" in found:
            panels.append(column(view, "precision.underflow", "Fraction of gradient entries that underflow"))
        return panels


def _skipped(skipped: LabelledArray) -> Lines:
    so_far = np.cumsum(np.nan_to_num(skipped.values))
    return Lines(
        title="Updates left out so far",
        lines=(Line(label="skipped", x=skipped.steps.astype(np.float64), y=so_far),),
        y_label="updates",
        note=f"{so_far[-1]:.0f} updates were seen to be left out, in {len(so_far)} measured steps.",
    )
