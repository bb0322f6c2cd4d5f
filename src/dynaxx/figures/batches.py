"""What goes into the model and what comes out of it: scale of the inputs, largest class, units that are alike."""

from collections.abc import Sequence

from dynaxx.core.contracts import Figure
from dynaxx.core.panels import Lines, Panel
from dynaxx.figures._build import heat_map, line
from dynaxx.figures._read import read_some, scale_for
from dynaxx.runlog import RunView

_SCALES = {"inputs.mean": "mean", "inputs.std": "standard deviation", "inputs.max": "largest magnitude"}
_NAMES = (*_SCALES, "outputs.top_share", "unit_symmetry")


class Batches(Figure):
    """Inputs and outputs."""

    title = "Inputs and outputs"
    order = 55

    def panels(self, view: RunView) -> Sequence[Panel]:
        """Scale of the inputs, share of the commonest class, equal units by layer."""
        found = read_some(view, _NAMES, "the model's inputs and outputs were not measured")
        panels: list[Panel] = []
        scales = [name for name in _SCALES if name in found]
        if scales:
            panels.append(
                Lines(
                    title="Scale of the inputs",
                    lines=tuple(line(found[name], _SCALES[name]) for name in scales),
                    y_label="inputs",
                    y_scale=scale_for(*(found[name].values for name in scales)),
                    note="A batch unlike the others stands out here.",
                )
            )
        if "outputs.top_share" in found:
            panels.append(
                Lines(
                    title="Largest mean probability of a class",
                    lines=(line(found["outputs.top_share"], "over a batch"),),
                    y_label="probability",
                    note="Near one, the model says the same whatever it sees.",
                )
            )
        if "unit_symmetry" in found:
            note = "Units that start alike and receive equal gradients stay alike."
            panels.append(heat_map(found["unit_symmetry"], "Units equal to another", note))
        return panels
