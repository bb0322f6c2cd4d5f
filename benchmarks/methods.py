"""Do the methods train faster than a tuned AdamW? Every contender is tuned by one protocol, peers in the same run.

`python benchmarks/methods.py [TASK …]` (`--tune`: the grids only) works in two stages and keeps every training in
`methods_results.json`, by what determines it, so a run that is interrupted goes on and a table is made anew at once.

Tuning: at half of the full length, each contender over learning rates a factor of 2 apart at weight decay 0.1, from
one in the middle on until both neighbours of the best are worse; then both decays at it, on a seed of its own. Where
the momentum is tuned too, peer or not, all of that at each of `MOMENTA`, from 0.8 on until both neighbours are worse.
Scoring, other seeds: AdamW at full length gives each seed's target; a contender is trained with horizons of its own
(the schedule always anneals to zero at the horizon) until two neighbours of `LADDER` hold the target between their mean
losses. Its share of AdamW's steps is where its loss, linear in the logarithm of the horizon between the two, meets the
target, seed by seed; shown are the mean and the 95 % interval of Student's t. A ratio of two contenders is paired by
seed too.

Schedule: linear warm-up over 4 %, linear decay to zero, for all but schedule-free, which has the warm-up only.

`--pace` takes the time of a step anew, which wants a machine without other load: contenders take five steps each in
turns, over trainings of 120 steps; kept is the median of a turn's wall-clock time over AdamW's of the same round.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from scipy.stats import t as student

from dynaxx.errors import NotApplicable
from methods_contenders import CONTENDERS, Setting, course, trained

T = TypeVar("T")

RESULTS = Path(__file__).with_name("methods_results.json")
STEPS = {"stdlib-lm": 400, "digits": 300, "diabetes": 200}
"""Full lengths; of stdlib-lm half an epoch, so that no method sees a batch twice."""
DECAYS = (0.0, 0.1)
MOMENTA = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
TUNING_SEED = 100
SEEDS = (0, 1, 2)
LADDER = (0.2, 0.3, 0.45, 0.65, 1.0)
FIRST = 2
"""The horizon that is tried first, in LADDER."""
TURN, ROUNDS = 5, 24


class Kept:
    """Trainings by what determines them, on disk after each.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, float | None]] = json.loads(path.read_text()) if path.exists() else {}

    def __call__(self, name: str, who: str, at: Setting, steps: int, seed: int) -> dict[str, float]:
        """The result, trained now if it is not there; a diverged loss is infinite."""
        momentum = "" if at.momentum is None else f" m={at.momentum:g}"
        key = f"{name} {who} lr={at.rate:.3g} wd={at.decay:g}{momentum} steps={steps} seed={seed}"
        if key not in self.rows:
            self.keep(key, trained(name, who, at, steps, seed))
            print(key, self.rows[key], flush=True)
        return {k: math.inf if v is None else v for k, v in self.rows[key].items()}

    def keep(self, key: str, row: dict[str, float]) -> None:
        """Write a row down."""
        self.rows[key] = {k: None if math.isinf(v) else round(v, 6) for k, v in row.items()}
        self.path.write_text(json.dumps(self.rows, indent=0, sort_keys=True) + "\n")


def tuned(kept: Kept, name: str, who: str) -> Setting:
    """What has the smallest loss at half length."""
    middle = CONTENDERS[who].momentum
    if middle is None:
        return tuned_at(kept, name, who, None)[1]
    best, place = tuned_at(kept, name, who, middle), MOMENTA.index(middle)
    for direction in (1, -1):
        while 0 <= place + direction < len(MOMENTA):
            found = tuned_at(kept, name, who, MOMENTA[place + direction])
            if found[0] >= best[0]:
                break
            best, place = found, place + direction
    return best[1]


def tuned_at(kept: Kept, name: str, who: str, momentum: float | None) -> tuple[float, Setting]:
    """The smallest loss at half length with one momentum, and its setting."""

    def loss(rate: float, decay: float) -> float:
        at = Setting(rate=rate, decay=decay, momentum=momentum)
        return kept(name, who, at, STEPS[name] // 2, TUNING_SEED)["loss"]

    rate = CONTENDERS[who].rate
    for factor in (2.0, 0.5):  # uphill in factors of two from the middle, first faster, then slower
        while loss(rate * factor, DECAYS[-1]) < loss(rate, DECAYS[-1]):
            rate *= factor
    decay = min(DECAYS, key=lambda d: loss(rate, d))
    return loss(rate, decay), Setting(rate=rate, decay=decay, momentum=momentum)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How a contender did.

    Args:
        who: Its name.
        at: Tuned.
        shares: Steps to AdamW's final loss over AdamW's, by seed; NaN where the full length does not reach it.
    """

    who: str
    at: Setting
    shares: list[float]


def scored(kept: Kept, name: str, who: str, targets: list[float]) -> Score:
    """One contender against the targets of the seeds; none: AdamW itself."""
    at = tuned(kept, name, who)
    rows: dict[int, list[dict[str, float]]] = {}

    def losses(place: int) -> list[float]:
        if place not in rows:
            steps = round(LADDER[place] * STEPS[name])
            rows[place] = [kept(name, who, at, steps, seed) for seed in SEEDS]
        return [row["loss"] for row in rows[place]]

    low, high = bracket(lambda place: statistics.fmean(losses(place)), statistics.fmean(targets))
    shares = [
        reached((LADDER[low], LADDER[high]), (above, below), target)
        for above, below, target in zip(losses(low), losses(high), targets, strict=True)
    ]
    return Score(who=who, at=at, shares=shares)


def bracket(mean: Callable[[int], float], target: float) -> tuple[int, int]:
    """The neighbours on the ladder whose mean losses hold the target between them; the end pair where none do."""
    high = FIRST
    while mean(high) > target and high < len(LADDER) - 1:
        high += 1
    while high > 1 and mean(high - 1) <= target:
        high -= 1
    return high - 1, high


def reached(horizons: tuple[float, float], losses: tuple[float, float], target: float) -> float:
    """Where the line through two losses, over the logarithm of the horizon, meets the target.

    Example:
        >>> round(reached((0.5, 1.0), (2.0, 1.0), 1.5), 4)
        0.7071
    """
    slope = (losses[1] - losses[0]) / math.log(horizons[1] / horizons[0])
    found = horizons[0] * math.exp((target - losses[0]) / slope) if slope < 0 else math.nan
    return found if found <= LADDER[-1] else math.nan


def interval(values: list[float]) -> str:
    """Mean and its 95 % interval."""
    if len(values) < 2 or any(map(math.isnan, values)):
        return "not reached" if any(map(math.isnan, values)) else f"{values[0]:.3f}"
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.3f} ± {half:.3f}"


def of_each(names: Iterable[str], make: Callable[[str], T]) -> dict[str, T]:
    """Something of each contender that the task is for."""
    found: dict[str, T] = {}
    for who in names:
        try:
            found[who] = make(who)
        except NotApplicable as reason:
            print(f"{who} is left out: {reason}.")
    return found


def table(kept: Kept, name: str) -> None:
    """Score everyone, and print it."""
    at = tuned(kept, name, "adamw")
    base = [kept(name, "adamw", at, STEPS[name], seed) for seed in SEEDS]
    targets = [row["loss"] for row in base]
    print(f"\n{name}: AdamW, rate {at.rate:.3g}, decay {at.decay:g}, {STEPS[name]} steps: {interval(targets)} nats")
    rest = [who for who in CONTENDERS if who != "adamw"]
    scores = list(of_each(rest, lambda who: scored(kept, name, who, targets)).values())
    peers = [s for s in scores if CONTENDERS[s.who].peer and not any(map(math.isnan, s.shares))]
    rival = min(peers, key=lambda s: statistics.fmean(s.shares)) if peers else None
    name_of_rival = "" if rival is None else rival.who
    print(f"| method | rate | decay | momentum | steps to it / AdamW's | / {name_of_rival}'s | time per step | time |")
    print("|---|---|---|---|---|---|---|---|")
    for score in scores:
        against = [a / b for a, b in zip(score.shares, rival.shares, strict=True)] if rival else [math.nan]
        slower = kept.rows.get(f"{name} {score.who} pace", {}).get("ratio") or math.nan
        print(
            f"| {score.who} | {score.at.rate:.3g} | {score.at.decay:g} | {score.at.momentum or ''} "
            f"| {interval(score.shares)} | {interval(against)} "
            f"| {slower:.2f} | {slower * statistics.fmean(score.shares):.2f} |"
        )


def pace(kept: Kept, name: str) -> None:
    """Time the steps of everyone in turns, at what tuning has chosen."""
    steps = TURN * ROUNDS
    going = of_each(CONTENDERS, lambda who: course(name, who, tuned(kept, name, who), steps, TUNING_SEED).losses(steps))
    rounds: list[dict[str, float]] = []
    for turn in range(ROUNDS):
        taken: dict[str, float] = {}
        for who in sorted(going, reverse=turn % 2 == 1):
            began = time.perf_counter()
            for loss in islice(going[who], TURN):
                loss.item()
            taken[who] = time.perf_counter() - began
        rounds.append(taken)
    for who in going:
        # The first round holds what is done once: allocations, and the bases of a first step.
        ratios = [each[who] / each["adamw"] for each in rounds[1:]]
        low, middle, high = statistics.quantiles(ratios, n=4)
        milliseconds = 1e3 * statistics.median(each[who] for each in rounds[1:]) / TURN
        kept.keep(f"{name} {who} pace", {"ratio": middle, "low": low, "high": high, "milliseconds": milliseconds})
        print(f"{name} {who}: {milliseconds:.1f} ms, {middle:.2f} ({low:.2f}–{high:.2f}) × AdamW's", flush=True)


def main() -> None:
    """Tune, then score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=["stdlib-lm"])
    parser.add_argument("--tune", action="store_true", help="the grids only")
    parser.add_argument("--pace", action="store_true", help="the time of a step only")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    kept = Kept(arguments.results)
    for name in arguments.tasks:
        if arguments.tune:
            print(of_each(CONTENDERS, lambda who, name=name: tuned(kept, name, who)))
        elif arguments.pace:
            pace(kept, name)
        else:
            table(kept, name)


if __name__ == "__main__":
    main()
