"""Attention logits and entropy by layer, and the norm of the output logits."""

from collections.abc import Sequence

from dynaxx.core.contracts import Figure
from dynaxx.core.panels import Panel
from dynaxx.figures._build import column, heat_map
from dynaxx.figures._read import read_some
from dynaxx.runlog import RunView

_NAMES = ("attention.logit_max", "attention.entropy", "logit_norm")


class Attention(Figure):
    """Attention and output logits."""

    title = "Attention and logits"
    order = 60

    def panels(self, view: RunView) -> Sequence[Panel]:
        """Largest attention logit, attention entropy, norm of the output logits."""
        found = read_some(view, _NAMES, "no attention and no output logits were seen in this model")
        panels: list[Panel] = []
        if "attention.logit_max" in found:
            array = found["attention.logit_max"]
            panels.append(heat_map(array, "Largest attention logit", "Steady growth comes before divergence."))
        if "attention.entropy" in found:
            array = found["attention.entropy"]
            panels.append(heat_map(array, "Entropy of attention", "Near zero, attention looks at one place only."))
        if "logit_norm" in found:
            panels.append(column(view, "logit_norm", "Norm of the output logits"))
        return panels
