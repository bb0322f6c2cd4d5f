"""Where the training went back, and where it branched from: the lines of its checkpoints over their steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynaxx.core.contracts import Figure
from dynaxx.core.panels import Line, Lines, Panel
from dynaxx.errors import NotApplicable
from dynaxx.runlog import RunView
from dynaxx.runlog.lineage import Save, lanes


@dataclass(frozen=True, slots=True, kw_only=True)
class Strand:
    """A line of checkpoints without forks.

    Args:
        label: Whose.
        saves: Its checkpoints, steps increasing.
        fork: Step at which it leaves another strand, and the place of that one among the strands; None: it does not.
    """

    label: str
    saves: Sequence[Save]
    fork: tuple[int, int] | None = None


class Lineage(Figure):
    """The saves of a run, those it left behind included, pruned or not."""

    title = "Lineage of the checkpoints"
    order = 104

    def panels(self, view: RunView) -> Sequence[Panel]:
        """One curve per line; not applicable where there is one only, and it is nobody's branch."""
        saves = [save for event in view.events("checkpoint") if (save := _save(event)) is not None]
        branch = view.manifest.get("branch")
        found = strands("this run", saves)
        if len(found) < 2 and branch is None:
            raise NotApplicable("the training never went back to a checkpoint, and is no branch of another run")
        note = "A line that forks off was gone on from a checkpoint; the line that it left was left behind."
        if isinstance(branch, Mapping):
            note += (
                f" The run is a branch of {branch.get('origin')} at step {branch.get('step')} ({branch.get('level')})."
            )
        return [panel(found, note)]


def strands(label: str, saves: Sequence[Save]) -> list[Strand]:
    """The lines of a run: the one that it is on first.

    Args:
        label: The run.
        saves: Its saves, in any order.

    Returns:
        The strands.
    """
    found: list[Strand] = []
    at: dict[str, int] = {}  # save → strand on which it is drawn
    for lane in lanes(saves):
        place = len(found)
        fork = (lane[0].step, at[lane[0].id]) if lane[0].id in at else None
        own = lane if fork is None else lane[1:]
        at.update({save.id: place for save in own})
        name = label if place == 0 else f"{label}, left behind"
        found.append(Strand(label=name, saves=own, fork=fork))
    return found


def panel(found: Sequence[Strand], note: str) -> Lines:
    """Strands as curves one above the other, each rising from where it forks off.

    Args:
        found: The strands.
        note: How to read it.

    Returns:
        The panel.
    """
    curves: list[Line] = []
    for height, strand in enumerate(found):
        start = [] if strand.fork is None else [strand.fork]
        points = [*start, *((save.step, height) for save in strand.saves)]
        x, y = np.array(points, dtype=np.float64).reshape(-1, 2).T
        curves.append(Line(label=strand.label, x=x, y=y, style="points"))
    return Lines(title="Checkpoints and where their lines fork", lines=tuple(curves), y_label="line", note=note)


def _save(event: Mapping[str, Any]) -> Save | None:
    """The save that an event tells of; None where it is not told in full."""
    id, step, origin = event.get("id"), event.get("of_step", event.get("step")), event.get("origin")
    if not isinstance(id, str) or not id.partition("-")[0].isdecimal() or not isinstance(step, int):
        return None
    if not isinstance(origin, Mapping):
        return Save(id=id, step=step)
    went_back_to = str(origin.get("checkpoint", "")).partition("-")[2]
    return Save(id=id, step=step, origin=(went_back_to, int(origin.get("number", 0))))
