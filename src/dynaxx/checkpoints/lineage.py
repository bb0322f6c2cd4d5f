"""The lineage of runs: which branched from which checkpoint, as plain data, as a tree in words and as a figure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from dynaxx.checkpoints import health
from dynaxx.checkpoints.branch import CHECKPOINTS
from dynaxx.checkpoints.manifest import CheckpointInfo
from dynaxx.checkpoints.places import LocalPlace, original
from dynaxx.checkpoints.pruning import PINS
from dynaxx.core.panels import Lines
from dynaxx.errors import BadInput
from dynaxx.figures.lineage import Strand, panel, strands
from dynaxx.runlog.lineage import Save, lanes
from dynaxx.runlog.manifest import NAME, read_manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A checkpoint in the lineage.

    Args:
        save: Its id, step and origin.
        tier: "full" or "archive".
        health: What was said of it; "" where nothing was.
        pinned: Whether no pruning removes it.
    """

    save: Save
    tier: str
    health: str
    pinned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """A run in the lineage.

    Args:
        name: Its folder, below the one that was asked for.
        folder: Its folder.
        branch: What `run.json` says of where it came from; empty: it began by itself.
        checkpoints: Those that are there, in the order they were saved.
    """

    name: str
    folder: str
    branch: Mapping[str, Any]
    checkpoints: tuple[Known, ...]

    @property
    def saves(self) -> list[Save]:
        """The saves."""
        return [known.save for known in self.checkpoints]


def lineage(folder: str | Path) -> tuple[Descent, ...]:
    """The runs in a folder and up to two levels below, with their checkpoints.

    Args:
        folder: A run's folder, or a folder of runs.

    Returns:
        By name.

    Raises:
        BadInput: There is no run.
    """
    root = Path(folder).absolute()
    folders = [path.parent for pattern in (NAME, f"*/{NAME}", f"*/*/{NAME}") for path in sorted(root.glob(pattern))]
    if not folders:
        raise BadInput(f"{folder} holds no run. Give a run's folder, or a folder of runs.")
    return tuple(_descent(run, root) for run in folders)


def as_graph(runs: Sequence[Descent]) -> Lines:
    """Every line of every run over the steps, each rising from where it forks or branches off.

    Args:
        runs: The runs.

    Returns:
        The panel.
    """
    found: list[Strand] = []
    at: dict[tuple[str, str], int] = {}  # run and checkpoint → strand on which it is drawn
    for run in _parents_first(runs):
        base = len(found)
        for place, strand in enumerate(strands(run.name, run.saves)):
            fork = None if strand.fork is None else (strand.fork[0], strand.fork[1] + base)
            came_from = (str(run.branch.get("origin")), str(run.branch.get("checkpoint")))
            if place == 0 and came_from in at:
                fork = (int(run.branch["step"]), at[came_from])
            at |= {(run.folder, save.id): len(found) for save in strand.saves}
            found.append(replace(strand, fork=fork))
    return panel(found, "Each line is a run, or what it left behind; it rises from the checkpoint that it came from.")


def as_tree(runs: Sequence[Descent]) -> list[str]:
    """The lineage in words, one line of text per stretch of checkpoints.

    Args:
        runs: The runs.

    Returns:
        The lines.
    """
    lines: list[str] = []
    for run in _roots(runs):
        lines.append(_title(run))
        lines += _drawn(_stretches(run, runs))
    return lines


_Node = tuple[str, list[Any]]
"""A label and the nodes below it."""


def _descent(run: Path, root: Path) -> Descent:
    place = LocalPlace(run / CHECKPOINTS)
    said, pins = health.verdicts(place), place.notes(PINS)
    full, cold = place.list(), place.archive.list()
    tiers = {original(info).id: (original(info), "archive") for info in cold}
    tiers |= {info.id: (info, "full") for info in full}
    known = [
        Known(
            save=_save(info),
            tier=tier,
            health=said[key].health if key in said else "",
            pinned=key in pins,
        )
        for key, (info, tier) in sorted(tiers.items())
    ]
    name = str(run.relative_to(root)) if run != root else run.name
    branch = read_manifest(run)[0].get("branch", {})
    return Descent(name=name, folder=str(run), branch=branch, checkpoints=tuple(known))


def _save(info: CheckpointInfo) -> Save:
    origin = info.origin
    back = None if origin is None else (origin.checkpoint.partition("-")[2], origin.number)
    return Save(id=info.id, step=info.step, origin=back)


def _roots(runs: Sequence[Descent]) -> list[Descent]:
    """Runs that began by themselves, or whose origin is not among these."""
    there = {run.folder for run in runs}
    return [run for run in runs if run.branch.get("origin") not in there]


def _parents_first(runs: Sequence[Descent]) -> list[Descent]:
    found = _roots(runs)
    for run in found:  # grows as it is read
        found += [child for child in runs if child.branch.get("origin") == run.folder and child not in found]
    return found


def _title(run: Descent) -> str:
    count = len(run.checkpoints)
    words = [run.name, f"{count} checkpoint{'' if count == 1 else 's'}"]
    if run.branch:
        words.insert(1, f"{run.branch.get('level')} from step {run.branch.get('step')}")
    return " · ".join(words)


def _stretches(run: Descent, runs: Sequence[Descent]) -> list[_Node]:
    """The run's own line, cut where another one leaves it; what leaves it below the cut."""
    by_id = {known.save.id: known for known in run.checkpoints}
    leaving: dict[str, list[_Node]] = {}
    for child in runs:
        if child.branch.get("origin") == run.folder:
            below = _stretches(child, runs)
            leaving.setdefault(str(child.branch.get("checkpoint")), []).append((_title(child), below))
    placed = lanes(run.saves)
    for lane in reversed(placed[1:]):  # the last ones leave those before them
        below = _cut(lane[1:], leaving, by_id)
        leaving.setdefault(lane[0].id, []).append(("left behind", below))
    nodes = _cut(placed[0], leaving, by_id) if placed else []
    return nodes + [node for key, below in leaving.items() if key not in by_id for node in below]


def _cut(lane: Sequence[Save], leaving: Mapping[str, list[_Node]], by_id: Mapping[str, Known]) -> list[_Node]:
    nodes: list[_Node] = []
    number = 0
    marked: list[tuple[int, Save]] = []
    for save in lane:
        marked.append((number, save))
        number += save.id in leaving
    for _, group in groupby(marked, key=lambda pair: pair[0]):
        saves = [save for _, save in group]
        nodes.append((_words([by_id[save.id] for save in saves]), leaving.get(saves[-1].id, [])))
    return nodes


def _words(stretch: Sequence[Known]) -> str:
    steps = [known.save.step for known in stretch]
    words = [f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} … {steps[-1]} ({len(steps)})"]
    facts = Counter(
        word for known in stretch for word in (known.health, "archived" * (known.tier == "archive")) if word
    )
    words += [word if count == len(steps) else f"{count} {word}" for word, count in facts.items()]
    pinned = [str(known.save.step) for known in stretch if known.pinned]
    return ", ".join([*words, *([f"pinned: {' '.join(pinned)}"] if pinned else [])])


def _drawn(nodes: Sequence[_Node], indent: str = "") -> list[str]:
    lines: list[str] = []
    for place, (label, below) in enumerate(nodes):
        last = place == len(nodes) - 1
        lines.append(f"{indent}{'└─' if last else '├─'} {label}")
        lines += _drawn(below, indent + ("   " if last else "│  "))
    return lines
