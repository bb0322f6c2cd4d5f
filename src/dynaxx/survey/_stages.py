"""The stages of a map: how each probe is cut to what it is granted, and run where the others have led."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynaxx.core.contracts import Probe
from dynaxx.core.isolation import isolated_random
from dynaxx.core.records import Cost
from dynaxx.errors import NotApplicable
from dynaxx.landscape._point import Point
from dynaxx.landscape._supplies import SUPPLIES
from dynaxx.landscape.connectivity import Connectivity
from dynaxx.landscape.flatness import Flatness
from dynaxx.landscape.gradient_noise import GradientNoise
from dynaxx.landscape.lr_range import LrRange
from dynaxx.landscape.slices import Slices
from dynaxx.landscape.spectrum import Spectrum
from dynaxx.landscape.trajectory_map import TrajectoryMap
from dynaxx.survey._ground import Found, Ground, TooDear
from dynaxx.survey.budget import SHARES, passes
from dynaxx.survey.comparison import RATES, compare
from dynaxx.survey.fleet import Fleet, member_steps, run_fleet
from dynaxx.survey.member import Member, product
from dynaxx.survey.proxies import scale_down, search
from dynaxx.survey.results import Result
from dynaxx.survey.sensitivity import SIGNALS, grid, read_scan

Stage = Callable[[Ground, float], Found]
"""`stage(ground, passes) -> Found`; raises `NotApplicable` where the passes, or what was found, do not suffice."""

LEAST = {"lr_range": 36.0, "sensitivity": 130.0, "fleet": 80.0, "gradient_noise": 22.0, "spectrum": 60.0,
         "slices": 20.0, "trajectory_map": 10.0}  # fmt: skip
"""Passes below which a stage would say nothing, which it gets of a small budget before any gets its share. Together
they are about the floor of a map, since most take less than they are granted."""
TRIALS = 8
"""Least trials of a search by proxy: TPE draws its first ten at random, and fewer than eight leave gaps of half a
decade in the three that are searched."""
SEARCHED = 60
"""Steps of a trial on a proxy, at most: rates part within the first tens of steps (the scan's own `LONG` is 50)."""
SHORTEST = 20
"""Steps of a training below which warm-up and decay leave nothing between them."""
LONG = 50
"""Steps of a training from which on another seed tells more than more steps."""
LONGEST = 0.25
"""Of the planned steps, for one training of a scan: a map of a short training has few, long ones."""
LEAST_PART = 0.25
"""Of a training batch, for curvature: n examples of C outputs have no more than n · C directions of it."""
SEEDS = 2
"""Of each optimizer that is compared: the least that shows a spread."""


def granted(name: str, total: float) -> float:
    """The share of the whole budget that a stage asks for.

    Args:
        name: The stage.
        total: Passes of the whole budget.

    Returns:
        In (0, 1].
    """
    return min(1.0, max(SHARES.get(name, OPTIONAL.get(name, 0.02)), LEAST.get(name, 0.0) / total))


def proxies(ground: Ground, total: float) -> Found:
    """A search on a narrower model, before the task itself is looked at; where its scan then begins to look."""
    proxy = scale_down(ground.spec, ground.task.size)
    one = ground.parameters_of(proxy) / ground.parameters  # a pass over the proxy, in passes over the task's model
    planned = ground.task.steps
    steps = min(planned, SEARCHED)
    trials = min(24, int(total / (steps * one + _evaluations(ground, 1, 2) * one)))
    if trials < TRIALS:
        needed = TRIALS * (steps + _evaluations(ground, 1, 2)) * one
        raise TooDear(f"a search of {TRIALS} trials on {proxy.about} takes {needed:.0f} passes; {total:.0f} are left.")
    found = search(
        ground.spec, ground.folder / "proxies", size=ground.task.size, proxy=proxy, steps=steps, trials=trials,
        seed=ground.seed, engine=ground.engine, progress=ground.progress,
    ).chart  # fmt: skip
    cost = found.cost
    return Found(chart=replace(found, cost=replace(cost, forwards=cost.forwards * one, backwards=cost.backwards * one)))


def lr_range(ground: Ground, total: float) -> Found:
    """One sweep, and looks at single rates where there is enough for them; from a fresh model."""
    there = ground.fresh(batches=1)
    richest = ({"seeds": 3, "steps": 100, "looks": 8}, {"seeds": 1, "steps": 100, "looks": 6},
               {"seeds": 1, "steps": 60, "looks": 0}, {"seeds": 1, "steps": 32, "looks": 0})  # fmt: skip
    return _measured(ground, LrRange, richest, there, total)


def sensitivity(ground: Ground, total: float) -> Found:
    """Short whole trainings at rates around what the sweep showed, as long and over as many seeds as can be."""
    rates, seeds, steps = _scanned(ground, total)
    members = product(
        ground.spec, steps=steps, seeds=ground.seeds(seeds), rates=rates, size=ground.task.size, signals=SIGNALS,
        evaluations=1,
    )  # fmt: skip
    done = run_fleet(members, ground.fleet, engine=ground.engine, progress=ground.progress)
    return Found(chart=read_scan(done, title=_title(ground, steps)), members=_folders(done))


def fleet(ground: Ground, total: float) -> Found:
    """Other optimizers against the task's own, seed by seed, in trainings as long as those of the scan."""
    own = type(ground.task.optimizer(ground.task.model())).__name__.lower()
    if "adam" not in own:
        raise NotApplicable(
            f"the task's optimizer is {own}, whose rates do not carry over to {' and '.join(RATES)}: "
            "each would need a scan of its own."
        )
    yardstick = _yardstick(ground)
    one, steps = yardstick[0].member, yardstick[0].steps
    # Seeds that the scan has trained at this rate are the same members, and cost nothing.
    fresh = len(set(ground.seeds(SEEDS)) - {result.member.seed for result in yardstick})
    names = _affordable(ground, steps, fresh, total)
    rate = one.rate * _own_rate(ground)
    common: dict[str, Any] = {"steps": steps, "seeds": ground.seeds(SEEDS), "size": ground.task.size}
    common |= {"signals": SIGNALS, "evaluations": 1}
    words = tuple(f"{name}:lr={rate * RATES[name]:.6g}" for name in names)
    members = [
        *product(ground.spec, rates=(one.rate,), **common),
        *product(ground.spec, optimizers=words, **common),
    ]
    done = run_fleet(members, ground.fleet, engine=ground.engine, progress=ground.progress)
    return Found(chart=compare(done, title=_title(ground, steps)), members=_folders(done))


def gradient_noise(ground: Ground, total: float) -> Found:
    """Noise of mini-batches where the best short training ended."""
    there = ground.trained(batches=max(1, int(total) - 2))
    options = ({"points": 2, "products": 16}, {"points": 0, "products": 8}, {"points": 0, "products": 0})
    return _measured(ground, GradientNoise, options, there, total)


def spectrum(ground: Ground, total: float) -> Found:
    """Curvature where the best short training ended."""
    options = (
        {"eigenvalues": 5, "probes": 4, "steps": 60, "samples": 24},
        {"eigenvalues": 3, "probes": 2, "steps": 40, "samples": 12},
        {"eigenvalues": 1, "probes": 2, "steps": 20, "samples": 4},
        {"eigenvalues": 1, "probes": 2, "steps": 8, "samples": 2},
    )
    part = 1.0
    while True:
        try:
            return _measured(ground, Spectrum, options, ground.trained(batches=part), total)
        except TooDear:  # fewer examples say the same less surely, and leave passes for the slices
            if part == LEAST_PART:
                raise
            part, options = part / 2, options[-1:]


def flatness(ground: Ground, total: float) -> Found:
    """How far a small step uphill raises the loss, where the best short training ended."""
    ascent = {"measures": "ascent"}  # what the terrain is judged by; all measures take some hundred passes
    options = ({}, {**ascent, "steps": 5}, {**ascent, "steps": 1})
    return _measured(ground, Flatness, options, ground.trained(batches=1), total)


def slices(ground: Ground, total: float) -> Found:
    """A plane, or lines where there is less, through the end of the best short training."""
    options = (
        {"dimensions": 2, "points": 560},
        {"dimensions": 2, "points": 200, "resolution": 25},
        {"dimensions": 2, "points": 96, "resolution": 17},
        {"dimensions": 1, "count": 3, "points": 21},
        {"dimensions": 1, "count": 2, "points": 11, "curvature": False},
    )
    return _measured(ground, Slices, options, ground.trained(batches=1), total)


def trajectory_map(ground: Ground, total: float) -> Found:
    """The paths of the short trainings of the best kind, in their common principal components."""
    best = ground.best()
    same = [r for r in ground.results("sensitivity", "fleet") if _kind(r) == _kind(best)]
    there = ground.trained(batches=1, along=[r.folder for r in same if r.folder != best.folder])
    return _measured(ground, TrajectoryMap, ({"grid": 15}, {"grid": 9}, {"grid": 0}), there, total)


def connectivity(ground: Ground, total: float) -> Found:
    """Whether two seeds of the best kind end in one basin."""
    best = ground.best()
    others = [
        r
        for r in ground.results("sensitivity", "fleet")
        if _kind(r) == _kind(best) and r.member.seed != best.member.seed
    ]
    if not others:
        raise NotApplicable("the best short training was made with one seed only, so there is nothing to connect.")
    there = ground.trained(batches=1, other=others[0].folder)
    options = (
        {"points": 11, "steps": 200, "curves": "bezier"},
        {"points": 11, "curves": "none"},
        {"points": 7, "curves": "none", "matching": "none", "repair": "none"},
    )
    return _measured(ground, Connectivity, options, there, total)


ORDER: Mapping[str, Stage] = {
    "proxies": proxies,
    "lr_range": lr_range,
    "sensitivity": sensitivity,
    "fleet": fleet,
    "gradient_noise": gradient_noise,
    "spectrum": spectrum,
    "slices": slices,
    "flatness": flatness,
    "trajectory_map": trajectory_map,
    "connectivity": connectivity,
}
"""Rates first, since the other probes look at where a good rate leads."""
OPTIONAL: Mapping[str, float] = {"proxies": 0.15}
"""Stages that are measured only when asked for, with their share; the others then share what is left."""


def _measured(
    ground: Ground, kind: type[Probe], options: Sequence[Mapping[str, Any]], there: Point, total: float
) -> Found:
    """A probe of a point, with the richest options whose price the grant covers."""
    names = inspect.signature(kind).parameters
    objects = {name: supply(there) for name, supply in SUPPLIES.items() if name in names}
    batches = there.objective.weight / ground.weight
    prices: list[float] = []
    for each in options:
        probe = kind(**objects, **each)
        prices.append(passes(probe.price(there.objective), batches))
        if prices[-1] <= total:
            chart = probe.run(there.objective)
            taken = chart.cost
            return Found(
                chart=replace(
                    chart,
                    cost=replace(
                        taken,
                        forwards=taken.forwards * batches,
                        backwards=taken.backwards * batches,
                        products=taken.products * batches,
                    ),
                )
            )
    raise TooDear(f"it takes at least {prices[-1]:.0f} passes; {total:.0f} are left for it.")


def _scanned(ground: Ground, total: float) -> tuple[tuple[float, ...], int, int]:
    """Rates, seeds and steps of a scan; where five rates are too dear, three still show where the best one lies."""
    planned, centre = ground.task.steps, _centre(ground)
    least, share = min(SHORTEST, planned), max(LONGEST, min(1.0, SHORTEST / planned))
    for decades, seeds in ((2.0, 3), (2.0, 2), (2.0, 1), (1.0, 1)):
        rates = grid(centre, decades=decades)
        evaluated = _evaluations(ground, len(rates) * seeds, 2)
        steps = member_steps(planned, len(rates) * seeds, total - evaluated, share=share)
        if steps >= (LONG if seeds > 1 else least):
            return rates, seeds, steps
    needed = 3 * least + _evaluations(ground, 3, 2)
    raise TooDear(f"three trainings of {least} steps take {needed:.0f} passes; {total:.0f} are left for them.")


def _centre(ground: Ground) -> float:
    """Where to look for the rate, as a factor on the task's own: between what the sweep and the proxy showed."""
    seen = [factor for factor in (_swept(ground), _searched(ground)) if factor is not None]
    return math.exp(math.fsum(map(math.log, seen)) / len(seen)) if seen else 1.0


def _swept(ground: Ground) -> float | None:
    chart = ground.charts.get("lr_range")
    if chart is None:
        return None
    if "recommended" in chart.values:
        return chart["recommended"] / _own_rate(ground)
    if "steepest" in chart.values:
        # A rate held for a whole training must be below the one at which a single sweep still gains.
        return math.sqrt(chart["steepest"] * chart["safe_maximum"]) / _own_rate(ground)
    return None


def _searched(ground: Ground) -> float | None:
    chart = ground.charts.get("proxies")
    return None if chart is None else chart["centre"]


def _own_rate(ground: Ground) -> float:
    """Peak of the task's own learning rate: its largest group's."""
    with isolated_random():
        optimizer = ground.task.optimizer(ground.task.model())
    return max(float(group["lr"]) for group in optimizer.param_groups)


def _affordable(ground: Ground, steps: int, own: int, total: float) -> tuple[str, ...]:
    """The optimizers that there are passes for, beside so many trainings of the task's own."""
    each = steps + _evaluations(ground, 1, 2)
    most = math.floor((total / each - own) / SEEDS)
    if most < 1:
        needed = (SEEDS + own) * each
        raise TooDear(f"to compare {next(iter(RATES))} takes about {needed:.0f} passes; {total:.0f} are left for it.")
    return tuple(RATES)[:most]


def _yardstick(ground: Ground) -> list[Result]:
    """The scan's trainings at the rate of its grid that ended lowest, by seed."""
    by_rate: dict[float, list[Result]] = {}
    for result in ground.results("sensitivity"):
        by_rate.setdefault(result.member.rate, []).append(result)
    good = {rate: each for rate, each in by_rate.items() if not any(result.diverged for result in each)}
    if not good:
        raise NotApplicable("no scan of learning rates was made, so there is no rate to compare optimizers at.")
    return min(good.values(), key=lambda each: math.fsum(result.final for result in each) / len(each))


def _evaluations(ground: Ground, members: int, each: int) -> float:
    """Passes that the members' evaluations take."""
    validation = sum(ground.task.weight(batch) for batch in ground.task.batches("validation", 0))
    return members * each * passes(Cost(forwards=validation / ground.weight))


def _title(ground: Ground, steps: int) -> str:
    return f"{Path(ground.spec.partition(':')[0]).stem} · {steps} steps"


def _folders(done: Fleet) -> tuple[str, ...]:
    return tuple(Path(result.folder).name for result in done.results)


def _kind(result: Result) -> Member:
    """What a training is but for its seed."""
    return replace(result.member, seed=0)
