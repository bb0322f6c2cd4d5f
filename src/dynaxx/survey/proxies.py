"""A search by proxy: Optuna on a scaled-down model or a short run; what it finds centres later grids, no more."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dynaxx import catalog
from dynaxx.core.chart import Chart, Estimate
from dynaxx.core.isolation import isolated_random
from dynaxx.core.panels import Line, Lines, Table
from dynaxx.core.records import Cost
from dynaxx.core.task import Task
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.survey.engines import Engine
from dynaxx.survey.fleet import FleetProgress, run_fleet
from dynaxx.survey.member import Member
from dynaxx.survey.results import Result
from dynaxx.survey.transfer import Transfer, transfer

SHARE = 0.01
"""Parameters of the proxy, as a share of the model's (the survey's specification, M14)."""
NARROWEST = 8
"""Least width: below it a layer's width is no longer what limits it."""
RATES = (0.03, 30.0)
"""Range of the factor on the proxy's own rate: the three decades of Wortsman et al. (2023), in round numbers."""
AT_ONCE = 4
"""Trials asked for together: the sampler knows nothing of those under way, and learns less from larger rounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """What is trained in the place of the task.

    Args:
        size: The task's size; None: its own.
        width: The width of its hidden layers; None: its own.
        about: How it was chosen, in words.
    """

    size: str | None = None
    width: int | None = None
    about: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """What a search by proxy says of the task: where to begin to look.

    Args:
        centre: Factor on the task's own learning rate on which to centre a grid: `grid(prior.centre)`.
        optimizer: The best optimizer; None: the task's own.
        transfer: How the rate was carried from the proxy to the task.
        chart: All trials.
    """

    centre: float
    optimizer: str | None
    transfer: Transfer
    chart: Chart


def scale_down(task: str, size: str | None = None, *, share: float = SHARE) -> Proxy:
    """The proxy of a task: a narrower model where it declares a width, else its smallest size, else itself.

    Args:
        task: A built-in task, or "file.py:Class".
        size: The size that is to be trained in the end.
        share: Parameters of the narrow model, at most, as a share of the whole; but no width below `NARROWEST`.

    Returns:
        The proxy.

    Raises:
        BadInput: The share is not in (0, 1], or there is no such task or size.
    """
    if not 0 < share <= 1:
        raise BadInput(f"scale_down(share=...) must be in (0, 1]. Got {share}.")
    whole = catalog.task(task, size)
    if whole.width is not None:
        most = share * _numel(whole)
        low, high = min(NARROWEST, whole.width), whole.width
        while low < high:  # the widest that fits, by halving
            middle = (low + high + 1) // 2
            low, high = (middle, high) if _numel(whole.scaled(middle)) <= most else (low, middle - 1)
        return Proxy(size=size, width=low, about=f"width {low} instead of {whole.width}")
    if whole.size is not None and whole.size != whole.sizes[0]:
        return Proxy(size=whole.sizes[0], about=f"size {whole.sizes[0]} instead of {whole.size}")
    return Proxy(size=size, about="the task itself, trained briefly: it declares no width and has no smaller size")


def search(
    task: str,
    dir: str | Path,
    *,
    size: str | None = None,
    proxy: Proxy | None = None,
    steps: int = 100,
    trials: int = 24,
    optimizers: Sequence[str | None] = (None,),
    rates: tuple[float, float] = RATES,
    seed: int = 0,
    engine: Engine | None = None,
    progress: Callable[[FleetProgress], None] = lambda _: None,
    **common: Any,
) -> Prior:
    """Search optimizer and learning rate on a proxy with Optuna's TPE sampler, and carry the rate to the task by width.

    A trial is a member of a fleet, scored by min(final, initial) validation loss, the initial one where it diverged.
    The same search again costs nothing.

    Args:
        task: A built-in task, or "file.py:Class".
        dir: The fleet's folder.
        size: The size that is to be trained in the end.
        proxy: What is trained instead; None: `scale_down(task, size)`.
        steps: Optimizer steps of a trial, with the whole schedule compressed.
        trials: How many.
        optimizers: Among which to choose; None: the task's own.
        rates: Lowest and highest factor on the learning rate.
        seed: Of the sampler and of the trainings.
        engine: Where they are trained: a Ray cluster searches in parallel.
        progress: Called as each round proceeds.
        common: Further arguments of every `Member`.

    Returns:
        Where to begin to look.

    Raises:
        BadInput: Optuna is not installed, an argument breaks a rule, or there is no such task.
        NotApplicable: No trial lowered the loss.
    """
    if trials < 1 or not optimizers:
        raise BadInput(f"search(trials=..., optimizers=...) must hold at least one. Got {trials}, {list(optimizers)}.")
    if not 0 < rates[0] < rates[1] < math.inf:
        raise BadInput(f"search(rates=...) must be two positive factors, the lower first. Got {rates}.")
    chosen = proxy or scale_down(task, size)
    study, ask = _study(optimizers, rates, seed)
    results: list[Result] = []
    cost = Cost()
    while len(results) < trials:
        asked = [ask() for _ in range(min(AT_ONCE, trials - len(results)))]
        options: dict[str, Any] = {"signals": ("lr",), "evaluations": 1, **common}
        members = [
            Member(task=task, steps=steps, size=chosen.size, width=chosen.width, seed=seed,
                   optimizer=optimizer, rate=rate, **options)
            for _, optimizer, rate in asked
        ]  # fmt: skip
        fleet = run_fleet(members, dir, engine=engine, progress=progress)
        for (trial, _, _), result in zip(asked, fleet.results, strict=True):
            if result.finished:
                study.tell(trial, score(result))
            else:
                study.tell(trial, state=_failed())
        results += fleet.results
        cost = _sum([cost, fleet.cost])
    return _prior(task, size, chosen, results, cost)


def score(result: Result) -> float:
    """The loss that a trial is judged by: no training is worse than none.

    Args:
        result: A finished training.

    Returns:
        min(final, initial); the initial one where it diverged.
    """
    return result.initial if result.diverged else min(result.final, result.initial)


def _prior(task: str, size: str | None, proxy: Proxy, results: Sequence[Result], cost: Cost) -> Prior:
    good = [result for result in results if result.finished and score(result) < result.initial]
    if not good:
        why = next((result.why for result in results if not result.finished), "every trial diverged or stood still")
        raise NotApplicable(f"search: no trial on the proxy ({proxy.about}) lowered the loss: {why}.")
    best = min(good, key=score)
    carried = _carry(task, size, proxy, best.member.optimizer)
    centre = best.member.rate * carried.rate
    return Prior(
        centre=centre,
        optimizer=best.member.optimizer,
        transfer=carried,
        chart=Chart(
            probe="proxies",
            title=f"{Path(task.partition(':')[0]).stem} · {proxy.about} · {len(results)} trials of {best.steps} steps",
            values={
                "centre": Estimate(value=centre, about="factor on the task's own rate to centre the next grid on"),
                "proxy_rate": Estimate(value=best.member.rate, about="best factor on the proxy's own rate"),
                "proxy_loss": Estimate(value=score(best), about="its final validation loss"),
                "transfer": Estimate(value=carried.rate, about="from the proxy to the task"),
            },
            panels=(_losses(results), _ranking(results)),
            cost=cost,
            notes=(carried.about, "A prior for the range test and the scan, never the answer."),
        ),
    )


def _carry(task: str, size: str | None, proxy: Proxy, optimizer: str | None) -> Transfer:
    whole = catalog.task(task, size)
    if proxy.width is not None:
        return transfer(whole.scaled(proxy.width), whole, optimizer)
    about = "The factor on the task's own rate is carried over as it is: no width is declared to scale it by."
    return Transfer(rate=1.0, matrices=1.0, about=about)


def _study(optimizers: Sequence[str | None], rates: tuple[float, float], seed: int) -> tuple[Any, Callable[[], Any]]:
    """Optuna's study, and a function that asks it for (trial, optimizer, rate)."""
    optuna = _optuna()
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=seed))
    names = [optimizer or "" for optimizer in optimizers]

    def ask() -> tuple[Any, str | None, float]:
        trial = study.ask()
        name = trial.suggest_categorical("optimizer", names) if len(names) > 1 else names[0]
        # Each optimizer has its own best rate: one parameter for all would mix them up.
        rate = trial.suggest_float(f"rate {name}", *rates, log=True)
        return trial, name or None, float(f"{rate:.3g}")

    return study, ask


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise BadInput("A search by proxy needs Optuna. Install it: pip install 'dynaxx[optuna]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _failed() -> Any:
    return _optuna().trial.TrialState.FAIL


def _losses(results: Sequence[Result]) -> Lines:
    lines: list[Line] = []
    for name in dict.fromkeys(result.member.optimizer for result in results):
        mine = [result for result in results if result.member.optimizer == name and result.finished]
        mine.sort(key=lambda result: result.member.rate)
        x, y = np.array([r.member.rate for r in mine]), np.array([score(r) for r in mine])
        lines.append(Line(label=name or "the task's own", x=x, y=y, style="points"))
    positive = all((line.y > 0).all() for line in lines)
    return Lines(
        title="Trials on the proxy",
        lines=tuple(lines),
        x_label="factor on the learning rate",
        y_label="validation loss",
        x_scale="log",
        y_scale="log" if positive else "linear",
        note="Trials that diverged stand at the loss before training.",
    )


def _ranking(results: Sequence[Result], shown: int = 5) -> Table:
    done = sorted((result for result in results if result.finished), key=score)[:shown]
    rows = tuple((r.member.optimizer or "the task's own", f"{r.member.rate:.3g}", f"{score(r):.4g}") for r in done)
    return Table(title="Best trials", header=("optimizer", "rate factor", "validation loss"), rows=rows)


def _numel(task: Task) -> int:
    with isolated_random():
        return sum(p.numel() for p in task.model().parameters())


def _sum(costs: Iterable[Cost]) -> Cost:
    costs = list(costs)
    return Cost(
        forwards=math.fsum(c.forwards for c in costs),
        backwards=math.fsum(c.backwards for c in costs),
        seconds=math.fsum(c.seconds for c in costs),
    )
