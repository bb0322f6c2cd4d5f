"""Scores of those who act: repairs of what can be repaired, their price, and harm done to healthy runs."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dynaxx.rescue.scores import ENOUGH, HARMED, LEVEL, MARGIN, MENDED, UNHARMED, significant, worse
from dynaxx.rescue.statistics import Ratio, Share, mean_ratio, sign_flip
from dynaxx.rescue.training import Ended, Status

Orders = Mapping[int, Ended]
"""Runs that differ in the order of their data alone."""
Key = tuple[str, str, int]
"""What was planted, where, and the seed."""
DRAWS = 2000
"""Pairs of sets of clean orders that are compared: the error of a share is 1 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """How a policy did on a fault that can be repaired: one seed of one net, on every order of the data it was run on.

    Args:
        key: The treated run, on the first of the orders.
        name: What was planted.
        net: Where.
        ratio: Its loss over the clean twin's on the same order, over the orders.
        single: The same on the seed's own order alone; NaN where that was not run.
        better: It ends below the untouched faulty twins, on average over the orders.
        passes: Its passes, on average, over the clean twin's.
        alike: What the measure gives to no fault at all: the probability that the mean over as many clean orders lies
            within 5 % of that over as many others; NaN where too few were trained.
    """

    key: str
    name: str
    net: str
    ratio: Ratio
    single: float
    better: bool
    passes: float
    alike: float

    @property
    def mended(self) -> bool:
        """Whether it ends within 5 % of the clean twins and below the untouched ones."""
        return self.ratio.value <= MENDED and self.better


@dataclass(frozen=True, slots=True, kw_only=True)
class Harm:
    """What acting did to a healthy kind of run, over its seeds and orders.

    Args:
        name: The healthy oddity, or "clean".
        net: Where.
        ratio: Loss over that of the untouched run.
    """

    name: str
    net: str
    ratio: Ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyScore:
    """How a policy did altogether.

    Args:
        mended: Cases that end within 5 % of the clean twins, by the mean over the orders, and below the untouched ones.
        single: The same by the seed's own order alone. On small nets the order moves the end by more than 5 %.
        sure: Of the cases whose interval lies on one side of 5 %, those that lie within.
        alike: Mean over the cases of what the measure gives to clean trainings.
        ratio: Loss over the clean twins', over the cases.
        kinds: Kinds of fault (by net) that end below the untouched twins by the sign-flip test, of those treated on
            enough seeds and orders for it.
        passes: Median passes over the clean twin's.
        harmed: Healthy runs that end worse than 1 % above their untouched twin.
        worse: Kinds of healthy runs (by net) that do on average over their seeds and orders.
        harm: p of the sign-flip test that acting makes healthy runs worse.
        healthy: Loss over that of the untouched twin, over the healthy runs.
        left: Cases that were not mended.
        harms: The kinds of `worse`.
        hurt: The runs of `harmed`.
    """

    mended: Share
    single: Share
    sure: Share
    alike: float
    ratio: Ratio
    kinds: Share
    passes: float
    harmed: Share
    worse: Share
    harm: float
    healthy: Ratio
    left: tuple[Repair, ...]
    harms: tuple[Harm, ...]
    hurt: tuple[str, ...]


def repairs(runs: Sequence[Ended], policy: str) -> list[Repair]:
    """A policy's treatment of what a fault has hurt and what can be repaired inside a run.

    A case is hurt where the untouched runs end worse than the clean twins by `HARMED` and `MARGIN`, on average over the
    orders that all of them were trained on.

    Args:
        runs: All runs.
        policy: Its name.

    Returns:
        One per treated case.
    """
    ends, telling = _by_order(runs, "nothing"), significant(runs)
    found: list[Repair] = []
    for key, treated in _by_order(runs, policy, ("finished", "stopped")).items():
        name, net, seed = key
        clean = ends.get(("clean", net, seed), {})
        faulty = ends.get(key, {})
        common = sorted(
            treated.keys() & faulty.keys() & {order for order in clean if math.isfinite(clean[order].final)}
        )
        if (name, net) not in telling or not common or not faulty[common[0]].repairable:
            continue
        acted, left, twin = ([_end(each[order]) for order in common] for each in (treated, faulty, clean))
        if mean_ratio(left, twin).value <= HARMED or float(np.mean(left) - np.mean(twin)) <= MARGIN:
            continue
        found.append(
            Repair(
                key=treated[common[0]].case.key,
                name=name,
                net=net,
                ratio=mean_ratio(acted, twin),
                single=acted[0] / twin[0] if common[0] == 0 else math.nan,
                better=sum(_gain(faulty[order], treated[order]) for order in common) > 0,
                # The twin on the seed's own order is measured as treated runs are, and so its probes are counted.
                passes=float(np.mean([treated[order].passes for order in common])) / clean[min(clean)].passes,
                alike=alike([each.final for each in clean.values()], len(common)),
            )
        )
    return found


def policy_score(runs: Sequence[Ended], policy: str) -> PolicyScore:
    """How a policy did altogether.

    Args:
        runs: All runs.
        policy: Its name.

    Returns:
        The score.
    """
    found = repairs(runs, policy)
    sure = [each.ratio.high <= MENDED for each in found if each.ratio.high <= MENDED or each.ratio.low > MENDED]
    tests = [sign_flip(gains) <= LEVEL for gains in _gains(runs, policy, found).values() if len(gains) >= ENOUGH]
    single = [each for each in found if not math.isnan(each.single)]
    known = [each.alike for each in found if not math.isnan(each.alike)]
    pairs = _healthy(runs, policy)
    every = [pair for group in pairs.values() for pair in group]
    harmed = [run.case.key for run, twin in every if worse(run, twin) > (UNHARMED - 1) * twin.final]
    harms = [Harm(name=name, net=net, ratio=_ratio(group)) for (name, net), group in pairs.items()]
    worst = tuple(each for each in harms if each.ratio.value > UNHARMED)
    return PolicyScore(
        mended=Share(hits=sum(each.mended for each in found), of=len(found)),
        single=Share(hits=sum(each.single <= MENDED and each.better for each in single), of=len(single)),
        sure=Share(hits=sum(sure), of=len(sure)),
        alike=float(np.mean(known)) if known else math.nan,
        ratio=mean_ratio([each.ratio.value for each in found], [1.0] * len(found)),
        kinds=Share(hits=sum(tests), of=len(tests)),
        passes=float(np.median([each.passes for each in found])) if found else math.nan,
        harmed=Share(hits=len(harmed), of=len(every)),
        worse=Share(hits=len(worst), of=len(harms)),
        harm=sign_flip([worse(run, twin) for run, twin in every]),
        healthy=_ratio(every),
        left=tuple(each for each in found if not each.mended),
        harms=worst,
        hurt=tuple(harmed),
    )


def alike(finals: Sequence[float], orders: int) -> float:
    """What judging by so many orders gives to trainings without any fault.

    Args:
        finals: Losses of clean twins, one per order of the data.
        orders: How many a repair is judged by; fewer where there are not twice as many clean ones.

    Returns:
        The share of random pairs of disjoint sets of orders of which the first's geometric mean is at most 1.05 times
        the second's; NaN with fewer than two clean twins.

    Example:
        >>> alike([0.1, 0.103, 0.104, 0.1], 2)
        1.0
    """
    logs = np.log([each for each in finals if math.isfinite(each)])
    size = min(orders, len(logs) // 2)
    if size == 0:
        return math.nan
    drawn = np.random.default_rng(0).random((DRAWS, len(logs))).argsort(axis=1)
    first, second = logs[drawn[:, :size]].mean(axis=1), logs[drawn[:, size : 2 * size]].mean(axis=1)
    return round(float((first - second <= math.log(MENDED)).mean()), 2)


def _by_order(
    runs: Sequence[Ended], policy: str, statuses: Sequence[Status] = ("finished", "stopped", "refused")
) -> dict[Key, dict[int, Ended]]:
    found: dict[Key, dict[int, Ended]] = defaultdict(dict)
    for run in runs:
        if run.case.policy == policy and run.status in statuses:
            found[run.case.name, run.case.net, run.case.seed][run.case.order] = run
    return found


def _gains(runs: Sequence[Ended], policy: str, found: Sequence[Repair]) -> Mapping[tuple[str, str], Sequence[float]]:
    """How much lower treated runs ended than untouched ones, by kind and net."""
    gains: dict[tuple[str, str], list[float]] = defaultdict(list)
    faulty, judged = _by_order(runs, "nothing"), {each.key for each in found}
    for key, treated in _by_order(runs, policy, ("finished", "stopped")).items():
        common = sorted(treated.keys() & faulty.get(key, {}).keys())
        if common and treated[common[0]].case.key in judged:
            gains[key[:2]] += [_gain(faulty[key][order], treated[order]) for order in common]
    return gains


def _healthy(runs: Sequence[Ended], policy: str) -> Mapping[tuple[str, str], list[tuple[Ended, Ended]]]:
    """Healthy treated runs beside the untouched ones, by kind and net."""
    pairs: dict[tuple[str, str], list[tuple[Ended, Ended]]] = defaultdict(list)
    left = _by_order(runs, "nothing", ("finished",))
    for key, treated in _by_order(runs, policy, ("finished", "stopped")).items():
        for order in sorted(treated.keys() & left.get(key, {}).keys()):
            if treated[order].case.kind == "healthy":
                pairs[key[:2]].append((treated[order], left[key][order]))
    return pairs


def _ratio(pairs: Sequence[tuple[Ended, Ended]]) -> Ratio:
    return mean_ratio([_end(run) for run, _ in pairs], [twin.final for _, twin in pairs])


def _end(run: Ended) -> float:
    """The final loss; no number is the worst."""
    return run.final if math.isfinite(run.final) else math.inf


def _gain(faulty: Ended, run: Ended) -> float:
    """How much lower the treated run ended; runs that end in no number are equally bad."""
    if not math.isfinite(faulty.final):
        return math.inf if math.isfinite(run.final) else 0.0
    return faulty.final - run.final if math.isfinite(run.final) else -math.inf
