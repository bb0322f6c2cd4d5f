"""What is blended: checkpoints of runs and live states, each read tensor by tensor, never whole."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from dynaxx.checkpoints.codec import decode
from dynaxx.checkpoints.manifest import STATE, TENSORS, CheckpointInfo, load_manifest, read_capped
from dynaxx.checkpoints.store import CheckpointStore
from dynaxx.checkpoints.tensorfile import read_tensors
from dynaxx.core.parameters import bare_name
from dynaxx.core.snapshot import Snapshot
from dynaxx.errors import BadInput, CorruptData, DynaxxWarning
from dynaxx.runlog import open_run

Stream = Iterator[tuple[str, Tensor]]
"""Parameters and persistent buffers by bare name. Use each before the next is asked for; exhaust it before any of it
counts, because damage may be found at the last byte."""
Source = str | Path | CheckpointStore | Snapshot | Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One of what is blended.

    Args:
        run: Of which run, as a reader knows it.
        step: Completed optimizer steps.
        id: The checkpoint's; "" for a live state.
        folder: The run's folder; None for a live state.
        seed: The run's; 0 where it is not known.
        tensors: Reads it anew.
        frame: Reads what is not averaged: `metadata`, `buffers` that are not persistent, `state` that is no tensor.
    """

    run: str
    step: int
    id: str
    folder: Path | None
    seed: int
    tensors: Callable[[], Stream]
    frame: Callable[[], dict[str, Any]]

    def __str__(self) -> str:
        return f"step {self.step} of {self.run}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which checkpoints of a run.

    Args:
        last: The newest so many.
        steps: First and last step, both included; None: all.
        duration: Those of the last so many steps before the newest; None: all.
    """

    last: int = 50
    steps: tuple[int, int] | None = None
    duration: int | None = None

    def __post_init__(self) -> None:
        if self.last < 1:
            raise BadInput(f"blend(last=...) must be at least 1 checkpoint. Got {self.last}.")
        if self.steps is not None and self.steps[0] > self.steps[1]:
            raise BadInput(f"blend(steps=(first, last)): the first must not be behind the last. Got {self.steps}.")
        if self.duration is not None and self.duration < 0:
            raise BadInput(f"blend(duration=...) must be 0 steps or more. Got {self.duration}.")

    def of(self, infos: Sequence[CheckpointInfo]) -> list[CheckpointInfo]:
        """The chosen ones, oldest first; of one step the last save alone.

        Args:
            infos: Of one run, oldest first.

        Returns:
            None or more.
        """
        first, last = self.steps or (0, max((i.step for i in infos), default=0))
        found = list({i.step: i for i in infos if first <= i.step <= last}.values())
        if self.duration is not None and found:
            found = [i for i in found if i.step >= found[-1].step - self.duration]
        return found[-self.last :]


def parts(of: Source | Sequence[Source], selection: Selection) -> list[Part]:
    """The parts of a blend, run by run and each oldest first.

    Args:
        of: A run's folder, one of its checkpoints, a store, a snapshot or a state_dict; or several of them.
        selection: Which checkpoints of each run that is named whole.

    Returns:
        One or more.

    Raises:
        BadInput: There is none, or something is no source.
    """
    several = isinstance(of, Sequence) and not isinstance(of, str)
    given = list(cast("Sequence[Source]", of)) if several else [cast("Source", of)]
    found = [part for number, each in enumerate(given) for part in _parts(each, selection, number)]
    if not found:
        raise BadInput(f"blend({_shown(given)}): there is no checkpoint to blend with {selection}. Widen the range.")
    keys = [(part.run, part.step, part.id) for part in found]
    if twice := next((part for part, key in zip(found, keys, strict=True) if keys.count(key) > 1), None):
        raise BadInput(f"blend(of=...): {twice} is named twice. Name it once.")
    return found


def _parts(source: Source, selection: Selection, number: int) -> list[Part]:
    if isinstance(source, Snapshot):
        return [_live(source.run, source.step, source.load)]
    if isinstance(source, Mapping):
        return [_live("states", number, lambda: source)]
    if isinstance(source, CheckpointStore):
        return _stored(_sound(source, selection))
    if not isinstance(source, str | Path):
        raise BadInput(f"blend(of=...) takes folders, stores, snapshots and states. Got {type(source).__name__}.")
    path = Path(source).absolute()
    if path.parent.name == "checkpoints":
        return _stored([load_manifest(path).info(path)])
    if not (path / "checkpoints").is_dir():
        raise BadInput(f"blend({str(source)!r}): it is neither a run's folder (it holds no checkpoints/) nor one of its "
                       "checkpoints. `dynaxx train` makes one.")  # fmt: skip
    return _stored(_sound(CheckpointStore(path / "checkpoints"), selection))


def _sound(store: CheckpointStore, selection: Selection) -> list[CheckpointInfo]:
    """Those whose files have the sizes that were written; their bytes are checked when they are read."""
    kept: list[CheckpointInfo] = []
    for info in store.list():
        try:
            store.verify(info, deep=False)
        except CorruptData as error:
            warnings.warn(f"A corrupted checkpoint is passed over: {error}", DynaxxWarning, stacklevel=5)
        else:
            kept.append(info)
    return selection.of(kept)


def _stored(infos: Sequence[CheckpointInfo]) -> list[Part]:
    """Checkpoints of one run."""
    if not infos:
        return []
    folder = infos[0].path.parent.parent
    seed = _seed(folder)

    def part(info: CheckpointInfo) -> Part:
        return Part(
            run=folder.name,
            step=info.step,
            id=info.id,
            folder=folder,
            seed=seed,
            tensors=lambda: _stream(info),
            frame=lambda: _frame(info),
        )

    return [part(info) for info in infos]


def _seed(folder: Path) -> int:
    """The run's, where it says so: a training that `dynaxx train` did not start may have none."""
    if not (folder / "run.json").is_file():
        return 0
    seed = open_run(folder).manifest.get("facts", {}).get("seed", 0)
    return seed if isinstance(seed, int) else 0


def _live(run: str, step: int, load: Callable[[], Mapping[str, Any]]) -> Part:
    def tensors() -> Stream:
        for name, value in load().items():
            if isinstance(value, Tensor):
                yield bare_name(name), value.detach()

    def frame() -> dict[str, Any]:
        state = load()
        rest = {bare_name(name): value for name, value in state.items() if not isinstance(value, Tensor)}
        versions = cast("dict[str, Any]", getattr(state, "_metadata", {}))  # what torch attaches to a state_dict
        return {"metadata": {bare_name(path): v for path, v in versions.items()}, "buffers": {}, "state": rest}

    return Part(run=run, step=step, id="", folder=None, seed=0, tensors=tensors, frame=frame)


def _stream(info: CheckpointInfo) -> Stream:
    """The model's tensors in the order of the file: no more than one is in memory, the optimizer's neither."""
    model, found = _opened(info)
    if found is None:
        yield from ((name, value) for name, value in model["state"].items() if isinstance(value, Tensor))
        return
    places: dict[str, list[tuple[str, Any]]] = {}
    for name, node in model["state"].items():
        if _is_tensor(node):
            places.setdefault(node["$tensor"], []).append((name, node))
    for key, tensor in found:
        for name, node in places.get(key, ()):
            yield name, decode({key: tensor}, node)


def _frame(info: CheckpointInfo) -> dict[str, Any]:
    model, found = _opened(info)
    if found is None:
        return {**model, "state": {name: v for name, v in model["state"].items() if not isinstance(v, Tensor)}}
    rest = {**model, "state": {name: node for name, node in model["state"].items() if not _is_tensor(node)}}
    wanted = _named(rest)
    return decode({key: tensor for key, tensor in found if key in wanted}, rest)


def _opened(info: CheckpointInfo) -> tuple[dict[str, Any], Stream | None]:
    """The tree of the model's state and a stream of all tensors; the state itself where the layout is another."""
    manifest = load_manifest(info.path)
    if set(manifest.files) != {STATE, TENSORS}:  # sharded: the store puts it together
        return CheckpointStore(info.path.parent).load(info)[0]["model"], None
    text = read_capped(info.path / STATE, manifest.files[STATE])
    try:
        model = cast("dict[str, Any]", json.loads(text)["model"])
    except (ValueError, KeyError, RecursionError) as error:
        raise CorruptData(f"{info.path / STATE} holds no state of a model: {type(error).__name__}: {error}.") from error
    return model, read_tensors(info.path / TENSORS, manifest.files[TENSORS], manifest.tensors)


def _is_tensor(node: Any) -> bool:
    return isinstance(node, dict) and "$tensor" in node


def _named(node: Any) -> set[str]:
    """Tensors that a tree refers to."""
    if isinstance(node, list):
        return {name for each in cast("list[Any]", node) for name in _named(each)}
    if not isinstance(node, dict):
        return set()
    node = cast("dict[str, Any]", node)
    own = {node[mark] for mark in ("$tensor", "$array") if mark in node}
    return own or {name for each in node.values() for name in _named(each)}


def _shown(given: Sequence[Source]) -> str:
    return ", ".join(str(each) if isinstance(each, str | Path) else type(each).__name__ for each in given[:3])
