"""What is said later of a checkpoint that never changes: whether the training that it holds was in good health.

A fresh checkpoint is on probation: a fault shows some steps after it began. Once it has stood `PROBATION` steps without
an alarm it is healthy; an alarm within them makes it suspect. One whose numbers were not finite when it was written is
bad from the beginning, whether anybody judges or not.
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, cast, get_args

from dynaxx.checkpoints.finite import Word
from dynaxx.checkpoints.manifest import CheckpointInfo
from dynaxx.checkpoints.places import LocalPlace, Place, behind, original
from dynaxx.checkpoints.store import CheckpointStore
from dynaxx.errors import BadInput, DynaxxWarning

Health = Literal["probation", "healthy", "suspect", "bad"]
"""probation: too young to tell; healthy; suspect: an alarm was raised near it; bad: it is known to be damaged goods."""
PROBATION = 100
"""Steps without an alarm that make a checkpoint healthy. PaLM (2022) restarted about 100 steps before each spike and
none came back; our detectors of spikes speak within 10 steps."""
KIND = "health"
_FINITE_BY_NATURE = ("weight", "bias", "running_mean", "running_var")
"""What torch's layers call that in which no infinity is meant; other tensors of a model may be masks or bounds."""
_NAMED = 3  # tensors in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is said of a checkpoint.

    Args:
        health: In one word.
        why: In words.
        signals: Name → value at its step.
        findings: Those that were open at its step, by name.
    """

    health: Health
    why: str
    signals: Mapping[str, float] = field(default_factory=dict[str, float])
    findings: tuple[str, ...] = ()


def mark(
    store: CheckpointStore | Place,
    info: CheckpointInfo,
    health: Health,
    why: str,
    *,
    signals: Mapping[str, float] | None = None,
    findings: Sequence[str] = (),
) -> None:
    """Say how healthy a checkpoint is, in the place of what was said before; whole or not at all.

    Args:
        store: Where it lies.
        info: The checkpoint.
        health: In one word.
        why: In words.
        signals: Name → value at its step; None: as said before.
        findings: Those that were open at its step.

    Raises:
        BadInput: There is no such word.
        OSError: It cannot be written.
    """
    if health not in get_args(Health):
        raise BadInput(f"mark(health=...) must be one of {', '.join(get_args(Health))}. Got {health!r}.")
    place = as_place(store)
    before = verdicts(place).get(original(info).id)
    said = Verdict(
        health=health,
        why=why,
        signals=dict(signals if signals is not None else before.signals if before else {}),
        findings=tuple(findings or (before.findings if before else ())),
    )
    _say(place, info, said)


def illness(info: CheckpointInfo) -> str:
    """What is wrong with the numbers of a checkpoint of a training, known from its manifest alone.

    Counted are NaN in the model and the optimizer's state, and infinities in the latter and in what layers call
    weight, bias, running_mean and running_var: elsewhere in a model they may be meant, as in a causal mask.

    Args:
        info: The checkpoint.

    Returns:
        In words; empty where nothing is.
    """
    found = [f"{word} in {name}" for name, word in info.not_finite.items() if _counts(name, word)]
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ", ".join(found[:_NAMED]) + more


def verdicts(store: CheckpointStore | Place) -> dict[str, Verdict]:
    """What was said of the checkpoints of a place.

    Args:
        store: The place.

    Returns:
        Id → verdict; those of which nothing was said, or can be read, are missing.
    """
    return {
        key: Verdict(
            health=cast(Health, record["health"]),
            why=str(record["why"]),
            signals={name: float(value) for name, value in record["signals"].items()},
            findings=tuple(record["findings"]),
        )
        for key, record in as_place(store).notes(KIND).items()
    }


def settle(
    store: CheckpointStore | Place, step: int, alarms: Collection[int] = (), probation: int = PROBATION
) -> dict[str, Verdict]:
    """End the probation of those checkpoints that have stood long enough, or near which an alarm was raised.

    An alarm at step a makes those at steps a − probation … a suspect: what it speaks of may have begun before them. So
    are those that the training has gone back past: it was not without a reason. What is not finite is bad at once.

    Args:
        store: The place.
        step: Completed optimizer steps now.
        alarms: Steps at which a detector raised an alarm since the training last went back.
        probation: Steps to stand without an alarm.

    Returns:
        Id → verdict of those whose health changed.
    """
    place = as_place(store)
    said, infos = verdicts(place), place.list()
    past = behind(infos)
    changed: dict[str, Verdict] = {}
    for info in infos:
        before, ill = said.get(info.id), illness(info)
        if before is not None and before.health != "probation" and (not ill or before.health == "bad"):
            continue
        near = min((alarm for alarm in alarms if info.step <= alarm <= info.step + probation), default=None)
        word: tuple[Health, str]
        if ill:
            word = "bad", ill
        elif info.path.name in past:
            word = "suspect", "the training went back past it"
        elif near is not None:
            word = "suspect", f"an alarm at step {near}, {near - info.step} steps after it"
        elif step >= info.step + probation:
            word = "healthy", f"{probation} steps without an alarm after it"
        elif before is None:
            word = "probation", f"younger than {probation} steps"
        else:
            continue
        changed[info.id] = replace(before or Verdict(health=word[0], why=""), health=word[0], why=word[1])
        _say(place, info, changed[info.id])
    return changed


def healthy(infos: Sequence[CheckpointInfo], said: Mapping[str, Verdict]) -> list[CheckpointInfo]:
    """The checkpoints to trust, the best to go back to first.

    Args:
        infos: The checkpoints of a place.
        said: What was said of them. Where nobody ever said more than that some are bad, all others are trusted.

    Returns:
        Those of the line that the training is on, newest first; then those that it left behind. Whatever was said, none
        whose numbers are not finite.
    """
    words = {info.id: said[original(info).id].health for info in infos if original(info).id in said}
    judged = bool(set(words.values()) - {"bad"})
    trusted = [i for i in infos if not illness(i) and words.get(i.id) in (("healthy",) if judged else (None,))]
    past = behind(infos)
    return sorted(trusted, key=lambda info: (info.path.name not in past, info.step, info.id), reverse=True)


def last_healthy(store: CheckpointStore | Place, before: int | None = None) -> CheckpointInfo | None:
    """The newest healthy checkpoint whose every byte is as it was written.

    Args:
        store: The place.
        before: Only those of a smaller step: before the trouble began; None: any.

    Returns:
        The checkpoint; None where there is none. Damaged ones are passed over with a `DynaxxWarning`.
    """
    place = as_place(store)
    for info in healthy(place.list(), verdicts(place)):
        if before is not None and info.step >= before:
            continue
        if place.is_sound(info):
            return info
        message = f"{info.path.name} in {place.name} is healthy by its record and damaged on disk: it is passed over."
        warnings.warn(message, DynaxxWarning, stacklevel=2)
    return None


def as_place(store: CheckpointStore | Place) -> Place:
    """A store as a place.

    Args:
        store: A store, or a place already.

    Returns:
        The place.
    """
    return store if isinstance(store, Place) else LocalPlace(store)


def _counts(name: str, word: Word) -> bool:
    if name.startswith("model/"):
        return word == "nan" or name.endswith(_FINITE_BY_NATURE)
    return name.startswith("optimizer/state/")


def _say(place: Place, info: CheckpointInfo, verdict: Verdict) -> None:
    place.note(KIND, original(info).id, {"step": info.step, **asdict(verdict)})
