"""What is blended: checkpoints of runs and live states, each read tensor by tensor, never whole."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from dynaxx.checkpoints._model_stream import Stream, model_frame, stream_model
from dynaxx.checkpoints.archive import is_archived
from dynaxx.checkpoints.manifest import CheckpointInfo, load_manifest
from dynaxx.checkpoints.places import ARCHIVE, LocalPlace, Place, behind, original
from dynaxx.checkpoints.store import CheckpointStore
from dynaxx.core.parameters import bare_name
from dynaxx.core.snapshot import Snapshot
from dynaxx.errors import BadInput, CorruptData, DynaxxWarning
from dynaxx.runlog import open_run

Source = str | Path | Place | CheckpointStore | Snapshot | Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One of what is blended.

    Args:
        run: Of which run, as a reader knows it.
        step: Completed optimizer steps.
        id: The checkpoint's; "" for a live state.
        place: The folder or URL of the run's checkpoints, archived ones too; "" for a live state.
        seed: The run's; 0 where it is not known.
        archived: Whether its weights were rounded to bf16 and the rest left away.
        tensors: Reads it anew.
        frame: Reads what is not averaged: `metadata`, `buffers` that are not persistent, `state` that is no tensor.
    """

    run: str
    step: int
    id: str = ""
    place: str = ""
    seed: int = 0
    archived: bool = False
    tensors: Callable[[], Stream]
    frame: Callable[[], dict[str, Any]]

    @property
    def line(self) -> tuple[str, str]:
        """Equal for parts of one run, whose steps follow each other; names alone may be alike."""
        return self.place, self.run

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

    def of(self, parts: Sequence[Part]) -> list[Part]:
        """The chosen ones, oldest first.

        Args:
            parts: Of one run; of several of one step the last one counts.

        Returns:
            None or more.
        """
        by_step = {part.step: part for part in parts}
        first, last = self.steps or (0, max(by_step, default=0))
        found = [by_step[step] for step in sorted(by_step) if first <= step <= last]
        if self.duration is not None and found:
            found = [part for part in found if part.step >= found[-1].step - self.duration]
        return found[-self.last :]


def parts(of: Source | Sequence[Source], selection: Selection) -> list[Part]:
    """The parts of a blend, run by run and each oldest first.

    Args:
        of: A run's folder, one of its checkpoints, a place, a snapshot or a state_dict; or several of them.
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
        raise BadInput(f"blend({_shown(given)}): no checkpoint is there within {selection}. Widen the range.")
    keys = [(part.line, part.step) for part in found]
    if twice := next((part for part, key in zip(found, keys, strict=True) if keys.count(key) > 1), None):
        raise BadInput(f"blend(of=...): {twice} is named twice. Name it once.")
    return found


def _parts(source: Source, selection: Selection, number: int) -> list[Part]:
    if isinstance(source, Snapshot):
        return [_live(source.run, source.step, source.load)]
    if isinstance(source, Mapping):
        return [_live("states", number, lambda: source)]
    if isinstance(source, CheckpointStore):
        return _run(LocalPlace(source), selection)
    if isinstance(source, Place):
        return _run(source, selection)
    if not isinstance(source, str | Path):
        raise BadInput(f"blend(of=...) takes folders, places, snapshots and states. Got {type(source).__name__}.")
    path = Path(source).absolute()
    if "checkpoints" in (path.parent.name, path.parent.parent.name) and path.parent.name in ("checkpoints", ARCHIVE):
        place = LocalPlace(path.parent)
        return [_stored(place, load_manifest(path).info(path), _seed(_run_folder(place)))]
    if not (path / "checkpoints").is_dir():
        raise BadInput(
            f"blend({str(source)!r}): it is neither a run's folder (it holds no checkpoints/) nor one of its "
            "checkpoints. `dynaxx train` makes one."
        )
    return _run(LocalPlace(path / "checkpoints"), selection)


def _run(place: Place, selection: Selection) -> list[Part]:
    """The checkpoints of a run, hot or archived; of those that it went back past none."""
    seed = _seed(_run_folder(place))
    found = [_stored(each, info, seed) for each in (place.archive, place) for info in _sound(each)]
    return selection.of(found)  # the full one counts where both are there


def _sound(place: Place) -> list[CheckpointInfo]:
    """Those whose files have the sizes that were written; their bytes are checked when they are read."""
    infos = place.list()
    past, kept = behind([original(info) for info in infos]), list[CheckpointInfo]()
    for info in infos:
        if original(info).path.name in past:
            continue
        try:
            place.verify(info, deep=False)
        except CorruptData as error:
            warnings.warn(f"A corrupted checkpoint is passed over: {error}", DynaxxWarning, stacklevel=5)
        else:
            kept.append(info)
    return kept


def _stored(place: Place, info: CheckpointInfo, seed: int) -> Part:
    """A checkpoint; what is far away is read whole, what is here tensor by tensor."""
    local = isinstance(place, LocalPlace)

    def far(take: Callable[[dict[str, Any]], Any]) -> Callable[[], Any]:
        return lambda: take(place.load(info, only=("model",))[0]["model"])

    return Part(
        run=_run_folder(place).name,
        step=info.step,
        id=info.id,
        place=place.name.removesuffix(f"/{ARCHIVE}"),
        seed=seed,
        archived=is_archived(info),
        tensors=(lambda: stream_model(info.path)) if local else far(lambda model: _tensors(model["state"])),
        frame=(lambda: model_frame(info.path)) if local else far(_without_tensors),
    )


def _run_folder(place: Place) -> Path:
    folder = Path(place.name)
    return folder.parent.parent if folder.name == ARCHIVE else folder.parent


def _seed(folder: Path) -> int:
    """The run's, where it says so: a training that `dynaxx train` did not start may have none."""
    if not (folder / "run.json").is_file():
        return 0
    seed = open_run(folder).manifest.get("facts", {}).get("seed", 0)
    return seed if isinstance(seed, int) else 0


def _live(run: str, step: int, load: Callable[[], Mapping[str, Any]]) -> Part:
    def frame() -> dict[str, Any]:
        state = load()
        versions = cast("dict[str, Any]", getattr(state, "_metadata", {}))  # what torch attaches to a state_dict
        return _without_tensors({"state": state, "metadata": versions, "buffers": {}})

    return Part(run=run, step=step, tensors=lambda: _tensors(load()), frame=frame)


def _tensors(state: Mapping[str, Any]) -> Stream:
    return ((bare_name(name), value.detach()) for name, value in state.items() if isinstance(value, Tensor))


def _without_tensors(model: Mapping[str, Any]) -> dict[str, Any]:
    rest = {bare_name(name): value for name, value in model["state"].items() if not isinstance(value, Tensor)}
    versions = {bare_name(path): version for path, version in model["metadata"].items()}
    return {"metadata": versions, "buffers": dict(model["buffers"]), "state": rest}


def _shown(given: Sequence[Source]) -> str:
    return ", ".join(str(each) if isinstance(each, str | Path) else type(each).__name__ for each in given[:3])
