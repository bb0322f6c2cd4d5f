"""How far each layer moves in a step, relative to its size, as the optimizer really applied it."""

from collections.abc import Sequence

from dynaxx.core.contracts import Figure
from dynaxx.core.panels import Lines, Panel
from dynaxx.figures._build import heat_map, line, quantiles
from dynaxx.figures._read import named, read, read_some, scale_for
from dynaxx.runlog import RunView

COMMON = 1e-3
"""Update ratio often found in healthy runs: a rule of thumb, no threshold (Karpathy, CS231n notes, 2015)."""


class Updates(Figure):
    """Update ratios and the norms they are made of."""

    title = "Updates"
    order = 40

    def panels(self, view: RunView) -> Sequence[Panel]:
        """Update ratio by layer, its spread over layers, and the norms of update and parameters."""
        found = read_some(
            view, ("update_ratio", "update_norm", "parameter_norm"), "no parameter update was measured in this run"
        )
        panels: list[Panel] = []
        if "update_ratio" in found:
            ratio = found["update_ratio"]
            common = "About 1e-3 is common in healthy runs; it is a rule of thumb, not a limit."
            panels.append(heat_map(ratio, "Update ratio by layer: |change| / |parameters|", common, "log"))
            panels.append(
                quantiles(view, "update_ratio", "Spread of the update ratio over layers", common, ("1e-3", COMMON))
            )
        for name, title in (("update_norm", "Norm of the update"), ("parameter_norm", "Norm of the parameters")):
            total = read(view, name + ".total")
            if total is not None:
                panels.append(
                    Lines(
                        title=named(f"{title}, whole model", total.column.unit),
                        lines=(line(total, "all layers"),),
                        y_label="norm",
                        y_scale=scale_for(total.values),
                    )
                )
        return panels
