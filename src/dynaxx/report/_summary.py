"""The strip on top of the report: how a run ended, in a few numbers."""

from dataclasses import dataclass

import numpy as np

from dynaxx.errors import UnknownName
from dynaxx.figures.cost import what_is_known
from dynaxx.runlog import LabelledArray, RunView


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One number of the strip.

    Args:
        label: What it is.
        value: The number, with its unit.
        detail: What stands below it in small print.
        alarm: Whether it needs a look.
    """

    label: str
    value: str
    detail: str = ""
    alarm: bool = False


def summary(view: RunView) -> list[Fact]:
    """Final loss, best validation loss, steps, time, overhead and problems, as far as they are known.

    Args:
        view: The run.

    Returns:
        The facts, in the order in which they are shown.
    """
    facts: list[Fact] = []
    loss, validation = _read(view, "loss"), _read(view, "val_loss")
    if loss is not None:
        facts.append(_final(loss, view["loss.smoothed"]))
    if validation is not None and np.isfinite(validation.values).any():
        best = int(np.nanargmin(np.where(np.isfinite(validation.values), validation.values, np.nan)))
        value, step = validation.values[best], validation.steps[best]
        facts.append(Fact(label="best validation loss", value=f"{value:.4g}", detail=f"step {step:,}"))
    steps = view.steps
    if len(steps):
        detail = f"in {len(view.attempts)} attempts" if len(view.attempts) > 1 else ""
        facts.append(Fact(label="steps", value=f"{steps[-1]:,}", detail=detail))
    seconds = _seconds(view)
    if seconds is not None:
        facts.append(Fact(label="training time", value=duration(seconds), detail="evaluation left out"))
    facts += _overhead(view)
    problems = len(view.problems)
    facts.append(
        Fact(
            label="problems with the log",
            value=str(problems) if problems else "none",
            detail="listed under About" if problems else "",
            alarm=problems > 0,
        )
    )
    return facts


def duration(seconds: float) -> str:
    """A time in the two largest units that matter.

    Args:
        seconds: The time.

    Returns:
        Text.

    Example:
        >>> duration(0.25), duration(75), duration(3 * 3600 + 240), duration(200_000)
        ('0.25 s', '1 min 15 s', '3 h 4 min', '2 d 7 h')
    """
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    for unit, size, below, part in (("min", 60, "s", 1), ("h", 3600, "min", 60), ("d", 86400, "h", 3600)):
        if unit == "d" or whole < size * (60 if unit == "min" else 24):
            return f"{whole // size} {unit} {whole % size // part} {below}"
    raise AssertionError("days take the rest")


def _read(view: RunView, name: str) -> LabelledArray | None:
    try:
        array = view[name]
    except UnknownName:
        return None
    return array if len(array) and array.values.ndim == 1 else None


def _final(loss: LabelledArray, smoothed: LabelledArray) -> Fact:
    bad = np.flatnonzero(~np.isfinite(loss.values))
    if bad.size and bad[-1] == len(loss) - 1:
        # The last uninterrupted stretch of values that are not finite, which reaches the end.
        finite = np.flatnonzero(np.isfinite(loss.values))
        since = loss.steps[finite[-1] + 1] if finite.size else loss.steps[0]
        return Fact(
            label="final loss",
            value="NaN" if np.isnan(loss.values[-1]) else "infinite",
            detail=f"not finite since step {since:,}",
            alarm=True,
        )
    detail = f"smoothed; last step {loss.values[-1]:.4g}" + (f"; {bad.size:,} steps not finite" if bad.size else "")
    return Fact(label="final loss", value=f"{smoothed.values[-1]:.4g}", detail=detail, alarm=bad.size > 0)


def _seconds(view: RunView) -> float | None:
    """Time in steps: each measured step stands for those since the last one."""
    times = _read(view, "system.step_seconds")
    if times is None:
        return None
    apart = np.diff(times.steps, prepend=0)
    return float(np.nansum(times.values * apart))


def _overhead(view: RunView) -> list[Fact]:
    known = what_is_known(view)
    overhead, budget = known.get("overhead"), known.get("budget")
    if not isinstance(overhead, int | float):
        return []
    budgeted = isinstance(budget, int | float)
    calibrations = view.events("calibration")
    acting = bool(calibrations) and (calibrations[-1].get("navigator") or {}).get("mode") == "act"
    if acting:  # what it tries is bounded by the budget of acts, in passes
        return [
            Fact(label="overhead of measuring and acting", value=f"{overhead:.1%}", detail="looks, checks and trials")
        ]
    return [
        Fact(
            label="overhead of measuring",
            value=f"{overhead:.1%}",
            detail=f"budget {budget:.1%}" if budgeted else "",
            alarm=budgeted and overhead > budget,
        )
    ]
