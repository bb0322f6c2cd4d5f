"""Scores of those who act: repairs of what can be repaired, their price, and harm done to healthy runs."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynaxx.rescue.scores import ENOUGH, LEVEL, MENDED, UNHARMED, hurt, twins, untouched, worse
from dynaxx.rescue.statistics import Share, sign_flip
from dynaxx.rescue.training import Ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """How a policy did on one run with a fault that can be repaired.

    Args:
        key: The treated run.
        name: What was planted.
        net: Where.
        mended: It ends within 5 % of the clean twin.
        better: It ends below the untouched faulty twin.
        ratio: Its loss over the clean twin's.
        passes: Its passes over the clean twin's.
        hurt: What was planted hurts beyond what the order of the data does; None where no other orders were trained.
        level: It ends within what clean twins on other orders of the data reach, and 5 % above; None likewise.
        over: Its loss over the median of theirs; NaN likewise.
        alike: Share of clean twins on other orders that end within 5 % of the twin; NaN likewise.
    """

    key: str
    name: str
    net: str
    mended: bool
    better: bool
    ratio: float
    passes: float
    hurt: bool | None = None
    level: bool | None = None
    over: float = math.nan
    alike: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyScore:
    """How a policy did altogether.

    Args:
        mended: Runs that end within 5 % of the clean twin and below the untouched one.
        level: Runs that end within what clean twins on other orders of the data reach and below the untouched one, of
            those hurt beyond that. A rollback that passes over data changes their order, and on small nets the order
            alone moves the end by more than 5 %.
        over: Median loss over that of the clean twins' median, where other orders were trained.
        alike: Mean share of clean twins on other orders that end within 5 % of the twin: what `mended` gives to runs
            without any fault.
        kinds: Kinds of fault (by net) that end below the untouched twins by the sign-flip test, of those treated on
            enough seeds for it.
        passes: Median passes over the clean twin's.
        harmed: Healthy runs that end worse than 1 % above their untouched twin.
        harm: p of the sign-flip test that acting makes healthy runs worse.
        drift: Median over the healthy runs of their loss over that of the untouched twin.
        left: Runs that were not mended.
        hurt: Healthy runs that were harmed.
    """

    mended: Share
    level: Share
    over: float
    alike: float
    kinds: Share
    passes: float
    harmed: Share
    harm: float
    drift: float
    left: tuple[Repair, ...]
    hurt: tuple[str, ...]


def repairs(runs: Sequence[Ended], policy: str) -> list[Repair]:
    """A policy's treatment of every run that a fault has hurt and that can be repaired inside it.

    Args:
        runs: All runs.
        policy: Its name.

    Returns:
        One per treated run.
    """
    clean, treated, reached = twins(runs), _treated(runs, policy), orders(runs)
    found: list[Repair] = []
    for faulty in hurt(runs):
        case = faulty.case
        run, twin = treated.get((case.name, case.net, case.seed)), clean[case.net, case.seed]
        if not faulty.repairable or run is None:
            continue
        final = run.final if math.isfinite(run.final) else math.inf
        known = reached.get((case.net, case.seed), ())
        most = MENDED * max(known, default=math.nan)
        found.append(
            Repair(
                key=run.case.key,
                name=case.name,
                net=case.net,
                mended=final <= MENDED * twin.final,
                better=_gain(faulty, run) > 0,
                ratio=final / twin.final,
                passes=run.passes / twin.passes,
                hurt=not faulty.final <= most if known else None,
                level=final <= most if known else None,
                over=final / float(np.median(known)) if known else math.nan,
                alike=float(np.mean([other <= MENDED * twin.final for other in known[1:]])) if known else math.nan,
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
    found, treated = repairs(runs, policy), _treated(runs, policy)
    gains: dict[tuple[str, str], list[float]] = defaultdict(list)
    for faulty in hurt(runs):
        run = treated.get((faulty.case.name, faulty.case.net, faulty.case.seed))
        if faulty.repairable and run is not None:
            gains[faulty.case.name, faulty.case.net].append(_gain(faulty, run))
    pairs = [
        (treated[key], run)
        for run in untouched(runs)
        if run.case.kind == "healthy" and (key := (run.case.name, run.case.net, run.case.seed)) in treated
    ]
    harmed = [run.case.key for run, twin in pairs if worse(run, twin) > (UNHARMED - 1) * twin.final]
    tests = [sign_flip(values) <= LEVEL for values in gains.values() if len(values) >= ENOUGH]
    beyond = [each for each in found if each.hurt]
    over = [each.over for each in beyond]
    alike = [each.alike for each in found if not math.isnan(each.alike)]
    return PolicyScore(
        level=Share(hits=sum(bool(each.level) and each.better for each in beyond), of=len(beyond)),
        over=float(np.median(over)) if over else math.nan,
        alike=float(np.mean(alike)) if alike else math.nan,
        mended=Share(hits=sum(each.mended and each.better for each in found), of=len(found)),
        kinds=Share(hits=sum(tests), of=len(tests)),
        passes=float(np.median([each.passes for each in found])) if found else math.nan,
        harmed=Share(hits=len(harmed), of=len(pairs)),
        harm=sign_flip([worse(run, twin) for run, twin in pairs]),
        drift=float(np.median([run.final / twin.final for run, twin in pairs])) if pairs else math.nan,
        left=tuple(each for each in found if not (each.mended and each.better)),
        hurt=tuple(harmed),
    )


def orders(runs: Sequence[Ended]) -> dict[tuple[str, int], tuple[float, ...]]:
    """What clean twins reach, by net and seed, where they were trained on other orders of the data, too.

    Args:
        runs: All runs.

    Returns:
        Their losses, the twin's first; nothing where there is the twin alone.
    """
    found = {key: [twin.final] for key, twin in twins(runs).items()}
    for run in runs:
        key = (run.case.net, run.case.seed)
        if run.case.order and run.status == "finished" and math.isfinite(run.final) and key in found:
            found[key].append(run.final)
    return {key: tuple(finals) for key, finals in found.items() if len(finals) > 1}


def _treated(runs: Sequence[Ended], policy: str) -> dict[tuple[str, str, int], Ended]:
    return {
        (run.case.name, run.case.net, run.case.seed): run
        for run in runs
        if run.case.policy == policy and run.case.order == 0 and run.status in ("finished", "stopped")
    }


def _gain(faulty: Ended, run: Ended) -> float:
    """How much lower the treated run ended; runs that end in no number are equally bad."""
    if not math.isfinite(faulty.final):
        return math.inf if math.isfinite(run.final) else 0.0
    return faulty.final - run.final if math.isfinite(run.final) else -math.inf
