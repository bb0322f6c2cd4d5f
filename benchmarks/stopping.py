"""When to stop: Dynaxx and the rules of its peers on the same runs, real and synthetic, judged alike.

Real runs (`stopping_runs.py`) are recorded whole with drawn settings, synthetic ones (`stopping_curves.py`) are drawn.
`--seed N` is the first seed of both (1000; the rule was set on seeds below 44), `--real N` how many seeds of each of
five tasks are taken, `--curves N` of each of six shapes; `--json FILE` keeps every verdict, a line each.

Every rule is asked at each of 50 evaluations and keeps the best checkpoint so far by the measured validation loss.
Given up is (kept − best of the whole run) / best of the whole run; without noise where that is known. Dynaxx is asked
as in a live run in mode act, by all of its detectors: where it lowers the rate for its last stretch, a real training
goes on from its state at that step at that rate, and what comes of it counts; a synthetic one does not feel it.

A run rested where its best loss so far (of medians of three where there is noise) had come within 1 % of its lowest by
44 % of the steps: with a plateau of a fifth of the steps so far and a last stretch of 5 %, which specification V asks
for, such a run can be stopped at 60 %. Of those that came to rest later no rule that waits for evidence can be in time.
Runs whose schedule lowers the rate up to the planned end are counted apart: Dynaxx follows a plan, as what a decay will
gain cannot be read from the log before it.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table as Shown
from scipy.stats import beta, ttest_ind

import stopping_curves
import stopping_runs
from dynaxx import catalog
from dynaxx.controllers import begin, navigate
from dynaxx.core.findings import Detector
from dynaxx.core.navigation import Situation
from dynaxx.core.records import Action
from dynaxx.detectors import ask
from dynaxx.runlog import Table
from dynaxx.runlog.clipped import ClippedView

COST, RESTED, HORIZON = 0.01, 0.44, 0.6
Rule = Callable[[np.ndarray], int | None]
"""The validation losses → the index of the evaluation after which it stops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a rule on a run.

    Args:
        rule: Its name.
        kind: Of the run.
        seed: Of the run.
        rested: Whether the run came to rest by 44 % of its steps.
        decays: Whether its schedule lowers the rate up to the planned end.
        share: Steps taken over steps planned; 1: it did not stop.
        given_up: Relative loss against the whole run.
    """

    rule: str
    kind: str
    seed: int
    rested: bool
    decays: bool
    share: float
    given_up: float

    @property
    def wrong(self) -> bool:
        """Whether it stopped where there was more than 1 % to gain."""
        return self.share < 1 and self.given_up > COST

    @property
    def hit(self) -> bool:
        """Whether it stopped in time and cheaply."""
        return self.share <= HORIZON + 1e-9 and self.given_up <= COST


def patience(evaluations: int, least: float = 0.0) -> Rule:
    """EarlyStopping of Lightning and Keras: so many evaluations on end not better than the best by `least`."""

    def stop(values: np.ndarray) -> int | None:
        best, waited = math.inf, 0
        for index, value in enumerate(values):
            best, waited = (value, 0) if value < best - least else (best, waited + 1)
            if waited >= evaluations:
                return index
        return None

    return stop


def generalisation_loss(limit: float) -> Rule:
    """Prechelt's GL_α (1998): 100 (v / best − 1) > α."""

    def stop(values: np.ndarray) -> int | None:
        over = 100 * (values / np.minimum.accumulate(values) - 1) > limit
        return int(np.argmax(over)) if over.any() else None

    return stop


def t_test(window: int) -> Rule:
    """The mean of the last evaluations is not lower than that of as many before, at 5 %."""

    def stop(values: np.ndarray) -> int | None:
        for index in range(2 * window - 1, len(values)):
            before, now = values[index + 1 - 2 * window : index + 1 - window], values[index + 1 - window : index + 1]
            _, p = np.array(ttest_ind(before, now, alternative="greater"))
            if p > 0.05:
                return index
        return None

    return stop


RULES: Mapping[str, Rule] = {
    "patience 3 (Lightning)": patience(3),
    "patience 5": patience(5),
    "patience 10": patience(10),
    "patience 10, 0.001": patience(10, 0.001),
    "GL 5 (Prechelt)": generalisation_loss(5),
    "t-test of 5": t_test(5),
}


def detectors() -> dict[str, Detector]:
    """All of them."""
    return {name: catalog.get("detectors", name)() for name in catalog.names("detectors")}


class Dynaxx:
    """The navigator with the controllers that end runs, asked at every evaluation."""

    def __init__(self, steps: int) -> None:
        self._detectors, self._steps = detectors(), steps
        self._state, self._force, self._since = begin(["converge", "overtraining"]), dict[str, tuple[Action, int]](), 0

    @property
    def factor(self) -> float:
        """Of the learning rate."""
        return float(self._force["learning_rate"][0].arguments["factor"]) if "learning_rate" in self._force else 1.0

    def stops(self, log: Table, step: int) -> bool:
        """Ask; what it wants of the rate is in force from here on."""
        self._force = {name: (act, end) for name, (act, end) in self._force.items() if end > step}
        clipped = ClippedView(log, last=step)
        found = ask(self._detectors, clipped).findings
        situation = Situation(
            step=step,
            steps=self._steps,
            findings=found,
            fresh=frozenset(f.name for f in found if f.last >= self._since),
            run=clipped,
            in_force={name: act for name, (act, _) in self._force.items()},
            able=frozenset({"learning_rate", "stop"}),
        )
        self._since = step
        turn = navigate(self._state, situation, "act")
        assert not turn.failed, turn.failed
        self._state = turn.state
        for undo in turn.undo:
            self._force.pop(undo.name, None)
        for decision in turn.decisions:
            action = decision.proposal.action
            if decision.status == "taken" and action.name == "stop":
                return True
            if decision.status == "taken":
                self._force[action.name] = (action, step + (action.steps or 10**9))
        return False


def on_curve(curve: stopping_curves.Curve) -> tuple[float, int]:
    """Share of the steps and index of the evaluation kept."""
    steps, measured = curve.log["val_loss"].steps, np.asarray(curve.log["val_loss"].values)
    dynaxx = Dynaxx(int(steps[-1]))
    for index, step in enumerate(steps[:-1]):
        if dynaxx.stops(curve.log, int(step)):
            return (index + 1) / len(steps), int(measured[: index + 1].argmin())
    return 1.0, int(measured.argmin())


def on_run(run: stopping_runs.Recorded) -> tuple[float, float]:
    """Share of the steps and the lowest validation loss."""
    evaluations, dynaxx = len(run.forks), Dynaxx(run.setting.steps)
    training, log, before = None, run.log, 1.0
    for index, fork in enumerate(run.forks):
        step = fork.step
        if training is not None:
            training.factor = before
            training.advance()
            log = training.log()
        if index == evaluations - 1 or dynaxx.stops(log, step):
            kept = np.asarray(log["val_loss"].values)[: index + 1]
            return (index + 1) / evaluations, float(kept.min())
        before = dynaxx.factor
        if training is None and before != 1:
            training = fork.fork()
    raise AssertionError


def rests(losses: np.ndarray) -> bool:
    """Whether the best so far came within 1 % of the lowest in time."""
    best = np.minimum.accumulate(losses)
    return bool((np.argmax(best <= best[-1] + COST * abs(best[-1])) + 1) / len(losses) <= RESTED)


def judged_curves(seeds: range) -> Iterator[Verdict]:
    """Every rule on every synthetic run."""
    for seed in seeds:
        for kind in stopping_curves.SHAPES:
            curve = stopping_curves.draw(kind, seed)
            measured, truth = np.asarray(curve.log["val_loss"].values), curve.truth
            rested, whole = rests(truth), truth[measured.argmin()]
            of = partial(Verdict, kind=kind, seed=seed, rested=rested, decays=kind in ("cosine", "wsd"))
            for name, (share, kept) in _ended(measured, lambda c=curve: on_curve(c)):
                yield of(rule=name, share=share, given_up=float(truth[kept] - whole) / whole)


def _ended(measured: np.ndarray, dynaxx: Callable[[], tuple[float, int]]) -> Iterator[tuple[str, tuple[float, int]]]:
    for name, rule in RULES.items():
        index = rule(measured)
        index = len(measured) - 1 if index is None else index
        yield name, ((index + 1) / len(measured), int(measured[: index + 1].argmin()))
    yield "dynaxx", dynaxx()


def judged_runs(seeds: range) -> Iterator[Verdict]:
    """Every rule on every real run."""
    for seed in seeds:
        for task in stopping_runs.TASKS:
            run = stopping_runs.record(stopping_runs.draw(task, seed))
            measured = np.asarray(run.log["val_loss"].values)
            smooth = np.median(np.lib.stride_tricks.sliding_window_view(np.pad(measured, 1, mode="edge"), 3), axis=1)
            whole, rested = float(measured.min()), rests(smooth)
            schedule = run.setting.schedule
            of = partial(Verdict, kind=f"{task}, {schedule}", seed=seed, rested=rested, decays=schedule != "constant")
            for name, rule in RULES.items():
                index = rule(measured)
                index = len(measured) - 1 if index is None else index
                given = (float(measured[: index + 1].min()) - whole) / whole
                yield of(rule=name, share=(index + 1) / len(measured), given_up=given)
            share, kept = on_run(run)
            yield of(rule="dynaxx", share=share, given_up=(kept - whole) / whole)


def interval(hits: int, of: int) -> str:
    """A share with its exact 95 % interval (Clopper and Pearson 1934)."""
    if of == 0:
        return "–"
    low = 0.0 if hits == 0 else float(beta.ppf(0.025, hits, of - hits + 1))
    high = 1.0 if hits == of else float(beta.ppf(0.975, hits + 1, of - hits))
    return f"{hits}/{of} ({low:.0%}–{high:.0%})"


def table(title: str, verdicts: Sequence[Verdict]) -> Shown:
    """One row a rule."""
    shown = Shown(title=title)
    heads = ("rule", "wrong stops, of all runs", "in time and within 1 %, of runs that rested", "at a constant rate",
             "under a decay", "stops at, median", "given up, worst of the stops")  # fmt: skip
    for head in heads:
        shown.add_column(head)
    for rule in (*RULES, "dynaxx"):
        mine = [v for v in verdicts if v.rule == rule]
        rested, stopped = [v for v in mine if v.rested], [v for v in mine if v.share < 1]
        constant, decaying = ([v for v in rested if v.decays == decays] for decays in (False, True))
        shown.add_row(
            rule,
            interval(sum(v.wrong for v in mine), len(mine)),
            *(interval(sum(v.hit for v in part), len(part)) for part in (rested, constant, decaying)),
            f"{np.median([v.share for v in stopped]):.0%}" if stopped else "–",
            f"{max(v.given_up for v in stopped):+.1%}" if stopped else "–",
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1000, help="the first seed")
    parser.add_argument("--real", type=int, default=8, help="seeds of each of five tasks")
    parser.add_argument("--curves", type=int, default=40, help="seeds of each of six shapes")
    parser.add_argument("--json", type=Path, help="every verdict is added to this file, a line each")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for title, count, judged in (("real", given.real, judged_runs), ("synthetic", given.curves, judged_curves)):
        verdicts: list[Verdict] = []
        for verdict in judged(range(given.seed, given.seed + count)):
            verdicts.append(verdict)
            if given.json is not None:
                with given.json.open("a") as file:
                    file.write(json.dumps({"set": title, **asdict(verdict)}) + "\n")
        if verdicts:
            runs = len({(v.kind, v.seed) for v in verdicts})
            Console(width=170).print(table(f"{title}: {runs} runs", verdicts))


if __name__ == "__main__":
    main()
