"""Whatever else was logged: the user's metrics, and columns that no other figure shows."""

from collections.abc import Sequence

from dynaxx.core.contracts import Figure
from dynaxx.core.panels import Lines, Panel
from dynaxx.errors import NotApplicable
from dynaxx.figures._build import column, line, smoothed
from dynaxx.figures._read import read, scale_for
from dynaxx.runlog import RunView

_ELSEWHERE = frozenset({
    "loss", "val_loss", "lr", "effective_batch", "epoch", "grad_norm", "grad_max", "grad_zeros", "grad_nonfinite",
    "clip_coefficient", "update_ratio", "update_norm", "parameter_norm", "activations", "attention", "logit_norm",
    "router", "optimizer_state", "precision", "system", "flops", "trajectory", "phase",
    "sharpness", "stability_margin", "trace", "directional_curvature", "gradient_noise", "gradient_agreement",
    "inputs", "outputs", "unit_symmetry",
})  # fmt: skip
"""Column families that have a figure of their own."""
_VALIDATION = "val_"


class Metrics(Figure):
    """The user's metrics, training and validation in one panel."""

    title = "Metrics"
    order = 15

    def panels(self, view: RunView) -> Sequence[Panel]:
        """One panel for each metric; `val_x` joins `x`."""
        names = [n for n in view.columns if n.partition(".")[0] not in _ELSEWHERE and read(view, n) is not None]
        if not names:
            raise NotApplicable("no metric beside the loss was logged: run.log(accuracy=...) adds one")
        scalars = {n for n in names if view[n].values.ndim == 1}
        bases = {n.removeprefix(_VALIDATION) if n in scalars else n: None for n in names}
        return [panel for base in bases for panel in _panels(view, base, names, scalars)]


def _panels(view: RunView, base: str, names: list[str], scalars: set[str]) -> list[Panel]:
    """The metric and its validation in one panel, or in two where the metric runs over an axis."""
    validation = _VALIDATION + base
    if validation not in scalars:
        return [column(view, base)]
    lines = (line(view[validation], "validation", "points"),)
    if base in scalars:
        lines = (*smoothed(view, base, "training"), *lines)
    joint = Lines(title=base, lines=lines, y_label=base, y_scale=scale_for(*(curve.y for curve in lines)))
    return [joint, *([column(view, base)] if base in names and base not in scalars else [])]
