"""The learning-rate sensitivity scan: short trainings on a log grid of rates × seeds, and what they say."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynaxx.core.chart import Chart, Estimate
from dynaxx.core.panels import HeatMap, Line, Lines, Panel, Scale
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.survey.engines import Engine
from dynaxx.survey.fleet import Fleet, FleetProgress, run_fleet
from dynaxx.survey.member import product
from dynaxx.survey.response import CONFIDENCE, Best, Scan, best, divergence, early_curvature
from dynaxx.survey.response import sensitivity as decade_sensitivity
from dynaxx.survey.results import Result

STEPS = 200
"""Of each training: a few hundred (the survey's specification, M2)."""
SIGNALS = ("lr", "update_norm")
"""The rate that was really used, and the length of the first step."""


def grid(centre: float = 1.0, *, decades: float = 3.0, per_decade: int = 2) -> tuple[float, ...]:
    """Factors on the learning rate, evenly spaced in their logarithm.

    Three decades as in Wortsman et al. (2023); two a decade because the loss near its minimum is a parabola in log η
    that half a decade to either side determines.

    Args:
        centre: The middle: 1 is the task's own rate.
        decades: From the lowest to the highest.
        per_decade: Factors a decade.

    Returns:
        An odd number of factors, the middle one being `centre`.

    Raises:
        BadInput: A number is not positive, or there would be fewer than three factors.

    Example:
        >>> [round(f, 3) for f in grid(decades=2, per_decade=1)]
        [0.1, 1.0, 10.0]
    """
    if not (centre > 0 and decades > 0 and per_decade > 0):
        raise BadInput(f"grid(...) must be given positive numbers. Got {centre}, {decades} and {per_decade}.")
    half = round(decades * per_decade / 2)
    if half < 1:
        raise BadInput(f"grid(decades={decades}, per_decade={per_decade}) must give at least three factors.")
    return tuple(float(centre * 10 ** (i / per_decade)) for i in range(-half, half + 1))


def sensitivity(
    task: str,
    dir: str | Path,
    *,
    rates: Sequence[float] = grid(),
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = STEPS,
    engine: Engine | None = None,
    progress: Callable[[FleetProgress], None] = lambda _: None,
    **common: Any,
) -> Chart:
    """Train briefly at every rate and seed, with the whole schedule compressed, and read the answer.

    Args:
        task: A built-in task, or "file.py:Class".
        dir: The fleet's folder; what it holds of this scan is not trained again.
        rates: Factors on the task's own learning rate, increasing, at least three.
        seeds: Seeds; with one there are no standard errors.
        steps: Optimizer steps of each training.
        engine: Where they are trained; None: processes of this machine.
        progress: Called as the fleet proceeds.
        common: Further arguments of every `Member`: size, optimizer, batch_size, horizon.

    Returns:
        `learning_rate` with its interval, `sensitivity`, `divergence` with its interval, `curvature`; the losses.

    Raises:
        BadInput: The rates or the seeds break a rule, or there is no such task.
        NotApplicable: Everything diverged, nothing lowered the loss, or no seed was trained at every rate.
    """
    factors, seeds = [float(rate) for rate in rates], tuple(seeds)
    if len(factors) < 3 or sorted(set(factors)) != factors:
        raise BadInput(f"sensitivity(rates=...) must be at least three increasing factors. Got {factors}.")
    if not seeds or len(set(seeds)) != len(seeds):
        raise BadInput(f"sensitivity(seeds=...) must be at least one seed, each once. Got {list(seeds)}.")
    options: dict[str, Any] = {"signals": SIGNALS, "evaluations": 1, **common}
    members = product(task, steps=steps, seeds=seeds, rates=factors, **options)
    fleet = run_fleet(members, dir, engine=engine, progress=progress)
    return read_scan(fleet, title=f"{Path(task.partition(':')[0]).stem} · {steps} steps")


def read_scan(fleet: Fleet, *, title: str) -> Chart:
    """What a fleet over rates × seeds says.

    Args:
        fleet: Its members differ in `rate` and `seed` alone, all combinations.
        title: What was trained.

    Returns:
        The chart of `sensitivity`.

    Raises:
        NotApplicable: See `sensitivity`.
    """
    rows, whole = _rows(fleet)
    scan = _scan(rows, _base(rows))
    found = best(scan)
    curvature = _curvature(rows)
    edge = divergence(scan)
    values = {
        "learning_rate": _rate(found),
        "learning_rate_low": Estimate(value=found.low, about=f"lower end of its {CONFIDENCE:.0%} interval"),
        "learning_rate_high": Estimate(value=found.high, about="upper end"),
        "rate": Estimate(value=found.rate / _base(rows), about="the same as a factor on the task's own rate"),
        "sensitivity": decade_sensitivity(scan, found.rate),
    }
    if edge is not None:
        for name, value, about in zip(
            ("divergence", "divergence_low", "divergence_high"),
            edge,
            (
                "learning rate at which training begins to diverge",
                "highest that did not, in any seed",
                "lowest that did",
            ),
            strict=True,
        ):
            values[name] = Estimate(value=value, about=about)
    if curvature is not None:
        values["curvature"] = curvature
    return Chart(
        probe="sensitivity",
        title=f"{title} · {len(scan.rates)} rates × {len(scan.initial)} seed{'' if len(scan.initial) == 1 else 's'}",
        values=values,
        arrays={
            "learning_rates": scan.rates,
            "final_loss": scan.losses,
            "diverged": scan.diverged.astype(float),
            "initial_loss": scan.initial,
        },
        panels=_panels(scan, found, edge, rows),
        cost=fleet.cost,
        notes=tuple(_notes(scan, found, edge, curvature, whole)),
    )


def _rows(fleet: Fleet) -> tuple[list[list[Result]], list[str]]:
    """Results by seed and rate; seeds that lack a rate are left out, and named."""
    rates = sorted({result.member.rate for result in fleet.results})
    by = {(result.member.seed, result.member.rate): result for result in fleet.results}
    seeds = sorted({seed for seed, _ in by})
    whole = [seed for seed in seeds if all((seed, r) in by and by[seed, r].finished for r in rates)]
    if not whole:
        why = next((result.why for result in fleet.failed), "combinations are missing")
        raise NotApplicable(f"sensitivity: no seed was trained at every rate: {why}")
    return [[by[seed, rate] for rate in rates] for seed in whole], [str(s) for s in seeds if s not in whole]


def _base(rows: list[list[Result]]) -> float:
    """The peak of the task's own learning rate, as logged: largest over steps and groups."""
    one = rows[0][0]
    return float(np.nanmax(np.asarray(one.run()["lr.max"], dtype=float))) / one.member.rate


def _scan(rows: list[list[Result]], base: float) -> Scan:
    return Scan(
        rates=np.array([base * result.member.rate for result in rows[0]]),
        losses=np.array([[result.final for result in row] for row in rows]),
        diverged=np.array([[result.diverged for result in row] for row in rows]),
        initial=np.array([row[0].initial for row in rows]),
    )


def _curvature(rows: list[list[Result]]) -> Estimate | None:
    """From the first step's length and the second batch's loss; None for trainings of one step."""
    if rows[0][0].steps < 2:
        return None
    pairs = np.array([[_early(result) for result in row] for row in rows])
    return early_curvature(pairs[..., 0], pairs[..., 1])


def _early(result: Result) -> tuple[float, float]:
    view = result.run()
    return float(np.asarray(view["update_norm.total"])[0]), float(np.asarray(view["loss"])[1])


def _rate(found: Best) -> Estimate:
    error = None if found.decades is None else found.rate * np.log(10) * found.decades
    return Estimate(value=found.rate, error=error, about="learning rate of the least final loss (peak of the schedule)")


def _notes(
    scan: Scan, found: Best, edge: tuple[float, float, float] | None, curvature: Estimate | None, lost: list[str]
) -> list[str]:
    notes: list[str] = []
    if found.side in ("lowest", "highest"):
        notes.append(
            f"The best rate is the {found.side} of the grid, so the true best may lie beyond it. "
            f"Scan {'lower' if found.side == 'lowest' else 'higher'} rates."
        )
    elif found.side == "beside divergence":
        notes.append("The best rate lies beside one that diverged: it is a rate of the grid, not of a fit.")
    elif not found.fitted:
        notes.append(
            "The losses near the best rate are not those of a minimum: it is a rate of the grid, not of a fit."
        )
    if len(scan.initial) == 1:
        notes.append("One seed: the interval is that of the neighbouring rates, and nothing is known of the noise.")
    if found.rate * 10**0.5 > scan.rates[-1] * 1.001 or found.rate / 10**0.5 < scan.rates[0] * 0.999:
        notes.append(
            "The decade around the best rate reaches beyond the grid; the sensitivity is that of its part within."
        )
    if edge is None:
        notes.append(f"No training diverged, up to a rate of {scan.rates[-1]:.3g}.")
    if curvature is None:
        notes.append("The curvature of the early loss could not be read: too few finite second losses.")
    if lost:
        notes.append(f"Left out, since not every rate was trained: seeds {', '.join(lost)}.")
    return notes


def _panels(
    scan: Scan, found: Best, edge: tuple[float, float, float] | None, rows: list[list[Result]]
) -> tuple[Panel, ...]:
    seeds = tuple(f"seed {row[0].member.seed}" for row in rows)
    shown = np.where(np.isfinite(scan.losses) & ~scan.diverged, scan.losses, np.nan)
    marks = {"best": found.rate, "low": found.low, "high": found.high}
    if edge is not None:
        marks["divergence"] = edge[0]
    start = Line(label="before training", x=scan.rates, y=np.full(len(scan.rates), scan.initial.mean()), style="dashed")
    each = tuple(Line(label=name, x=scan.rates, y=y, style="faint") for name, y in zip(seeds, shown, strict=True))
    mean = Line(label="mean, at most the loss before training", x=scan.rates, y=scan.capped.mean(axis=0))
    scale: Scale = "log" if (scan.capped > 0).all() else "linear"
    curves = Lines(
        title="Final validation loss by learning rate",
        lines=(mean, *each, start),
        x_label="learning rate η (peak of the schedule)",
        y_label="validation loss",
        y_scale=scale,
        x_scale="log",
        marks=marks,
        note="Trainings that diverged are missing from the lines of the seeds, and count as untrained in the mean.",
    )
    if len(rows) == 1:
        return (curves,)
    return (
        curves,
        HeatMap(
            title="Final validation loss by learning rate and seed",
            x=np.log10(scan.rates),
            x_label="log₁₀ η",
            rows=seeds,
            values=shown.T,
            value_label="validation loss",
            scale=scale,
            note="Empty: diverged.",
        ),
    )
