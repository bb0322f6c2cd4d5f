"""A phase of a training, and a plan of them read from words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dynaxx.catalog import Choice, choice
from dynaxx.core.arguments import at_least
from dynaxx.errors import BadInput, UnknownName

NONE = "none"
"""The word that ends averaging or perturbing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What trains the model until when. None: as in the phase before.

    Args:
        name: What it is called in the log, and by `Phased.switch`.
        until: Share of the planned steps at which it ends, in (0, 1]; None: it ends by signal or by hand.
        optimizer: An entry of `dynaxx list optim` with its options, "soap:every=10"; the first phase names one.
        averaging: An averager, "ema:half_life=200", or "none".
        perturb: A perturber, "sam:rho=0.5,every=5", or "none".

    Example:
        >>> Phase(name="stabilise", until=0.9, optimizer="soap:every=10", perturb="sam:rho=0.5,every=5").until
        0.9
    """

    name: str
    until: float | None = None
    optimizer: str | None = None
    averaging: str | None = None
    perturb: str | None = None


def read_phases(text: str) -> tuple[Phase, ...]:
    """Read phases as they are written on the command line.

    Args:
        text: "name option=value option=value; name …"; values hold no blanks.

    Returns:
        The phases.

    Raises:
        BadInput: The text cannot be read. UnknownName: a phase has no such option.

    Example:
        >>> [(p.name, p.until, p.averaging) for p in read_phases("descend until=0.5; stabilise averaging=ema")]
        [('descend', 0.5, None), ('stabilise', None, 'ema')]
    """
    found: list[Phase] = []
    for part in text.split(";"):
        name, *words = part.split() or [""]
        given: dict[str, Any] = {}
        for word in words:
            key, equals, value = word.partition("=")
            if key not in ("until", "optimizer", "averaging", "perturb"):
                raise UnknownName("option of a phase", key, ("until", "optimizer", "averaging", "perturb"))
            given[key] = _share(value) if key == "until" else value
            if not equals:
                raise BadInput(f"phases: {word!r} cannot be read. Write {key}=value.")
        if not name or "=" in name:
            raise BadInput(f"phases: {part.strip()!r} has no name. Write: descend until=0.5; stabilise averaging=ema.")
        found.append(Phase(name=name, **given))
    return tuple(found)


def _share(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise BadInput(f"phases: until must be a share of the steps such as 0.5. Got {value!r}.") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A phase with every word read and every "as before" filled in.

    Args:
        name: The phase's.
        end: The step after which it ends; None: unplanned.
        optimizer: The optimizer.
        averaging: The averager; None: none.
        perturb: The perturber; None: none.
    """

    name: str
    end: int | None
    optimizer: Choice
    averaging: Choice | None
    perturb: Choice | None


def stages(phases: Sequence[Phase], steps: int) -> tuple[Stage, ...]:
    """Read a plan.

    Args:
        phases: In their order.
        steps: Planned optimizer steps.

    Returns:
        One stage a phase.

    Raises:
        UnknownName: There is no such entry or option.
        BadInput: The plan breaks a rule.

    Example:
        >>> plan = [Phase(name="descend", until=0.8, optimizer="soap"), Phase(name="settle", optimizer="adamw")]
        >>> [(stage.name, stage.end) for stage in stages(plan, 1000)]
        [('descend', 800), ('settle', None)]
    """
    at_least("Phased", "steps", steps, 1)
    for phase in phases:
        if not isinstance(phase, Phase):
            raise BadInput(f"Phased(phases=...) must be a list of Phase. Got {phase!r}. Write Phase(name=..., ...).")
    if not phases or phases[0].optimizer is None:
        got = "no phase" if not phases else f"optimizer=None in {phases[0].name!r}"
        raise BadInput(f"Phased(phases=...): the first phase must name an optimizer. Got {got}. Write 'adamw'.")
    found: list[Stage] = []
    last = 0.0
    for phase in phases:
        if phase.name in {stage.name for stage in found} or not phase.name:
            raise BadInput(f"Phased(phases=...): every phase needs a name of its own. Got {phase.name!r} again.")
        if phase.until is not None:
            if not (isinstance(phase.until, int | float) and last < phase.until <= 1):  # neither holds of NaN
                raise BadInput(
                    f"Phased(phases=...): {phase.name!r} must end behind the phase before it, in ({last:g}, 1] of the "
                    f"steps. Got until={phase.until!r}."
                )
            if round(phase.until * steps) <= round(last * steps):
                raise BadInput(
                    f"Phased(phases=...): {phase.name!r} has no step of its own, from {last:g} to {phase.until:g} of "
                    f"{steps} steps. Give it more, or leave it out."
                )
            last = phase.until
        before = found[-1] if found else None
        found.append(
            Stage(
                name=phase.name,
                end=None if phase.until is None else round(phase.until * steps),
                optimizer=before.optimizer
                if phase.optimizer is None and before is not None
                else choice("optim", phase.optimizer or ""),
                averaging=_read("averaging", phase.averaging, None if before is None else before.averaging),
                perturb=_read("perturb", phase.perturb, None if before is None else before.perturb),
            )
        )
    _refuse_capturing(found)
    return tuple(found)


def _read(family: str, words: str | None, before: Choice | None) -> Choice | None:
    if words is None:
        return before
    return None if words.strip() == NONE else choice(family, words)


def _refuse_capturing(found: Sequence[Stage]) -> None:
    """K-FAC hands over no moments, and its hooks on the model would go on through the phases of other optimizers."""
    names = {stage.optimizer.name for stage in found}
    if "kfac" in names and any(stage.optimizer != found[0].optimizer for stage in found):
        raise BadInput(
            "Phased(phases=...): kfac cannot share a plan with another optimizer: it has no moments to hand over, and "
            "its hooks stay on the model. Take soap or shampoo, or kfac in every phase."
        )
