"""Scores of observers and of those who act, from what became of the cases; pure, and so checked by hand."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dynaxx.rescue.observer import Observation
from dynaxx.rescue.statistics import Rate, Share, effect, sign_flip
from dynaxx.rescue.training import Ended

LEVEL = 0.05
"""Of the sign-flip test."""
ENOUGH = 5
"""Matched seeds with which it can be reached: 2⁻⁵ = 0.031."""
HARMED = 1.05
"""A run counts as changed where it ends worse by this factor and `MARGIN` nats: what a repair
may leave (issue 7), and no seed-to-seed noise of a tiny net."""
MARGIN = 0.02
SAME = 20
"""Steps within which two alarms of a rule on twins are one: the replay asks every twentieth step."""
MENDED = 1.05
"""A repair ends within 5 % of the clean twin (issue 7)."""
UNHARMED = 1.01
"""Acting on a healthy run leaves it within 1 % (issue 7)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """Whether what was planted changed the outcome, over matched seeds.

    Args:
        name: What was planted.
        net: Where.
        seeds: How many twins.
        p: Of the one-sided sign-flip test that it ends worse.
        effect: Mean difference over the spread of the clean twins.
    """

    name: str
    net: str
    seeds: int
    p: float
    effect: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """How an observer did on one run that something was planted in.

    Args:
        key: The run.
        name: What was planted.
        net: Where.
        incident: Whether it passes.
        detected: An alarm rose from the planting on.
        apt: One of these alarms is of a detector that may speak of what was planted.
        delay: Steps from the planting to the first of them; NaN without one.
        place: Place of the first right cause, from 1; 0 where none of those named is right.
        named: The causes that it named, at most three.
    """

    key: str
    name: str
    net: str
    incident: bool
    detected: bool
    apt: bool
    delay: float
    place: int
    named: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserverScore:
    """How an observer did altogether.

    Args:
        faults: Detected, of the lasting faults that change the outcome.
        incidents: Detected, of the incidents that do.
        apt: Detected by a detector that may speak of it, of both; nothing where detectors have no codes.
        first: Right cause first, of all of both.
        three: Right cause among the first three.
        alarms: On healthy steps.
        healthy: Healthy runs with an alarm.
        delay: Median steps to detection, of what was detected.
        noisiest: Rules that speak on healthy runs, with how many runs each.
        missed: Runs that were not detected.
        misnamed: Runs whose first cause is wrong.
        detections: Of every run that was hurt, in order.
    """

    faults: Share
    incidents: Share
    apt: Share
    first: Share
    three: Share
    alarms: Rate
    healthy: Share
    delay: float
    noisiest: Mapping[str, int]
    missed: tuple[str, ...]
    misnamed: tuple[Detection, ...]
    detections: tuple[Detection, ...]


def worse(run: Ended, twin: Ended) -> float:
    """How much worse a run ended than its twin, in nats: infinite where it is no number."""
    return math.inf if not math.isfinite(run.final) else run.final - twin.final


def twins(runs: Sequence[Ended]) -> dict[tuple[str, int], Ended]:
    """Clean runs by net and seed.

    Args:
        runs: All runs.

    Returns:
        The twins.
    """
    return {
        (run.case.net, run.case.seed): run
        for run in runs
        if run.case.alteration is None and run.case.policy == "nothing" and run.status == "finished"
        if run.case.order == 0
    }


def untouched(runs: Sequence[Ended]) -> list[Ended]:
    """Runs that nobody acted on and that were trained.

    Args:
        runs: All runs.

    Returns:
        Those.
    """
    return [
        run
        for run in runs
        if run.case.policy == "nothing" and run.status in ("finished", "refused") and run.case.order == 0
    ]


def changed(runs: Sequence[Ended]) -> list[Changed]:
    """Which alterations change the outcome of which nets.

    Args:
        runs: All runs.

    Returns:
        One per alteration and net that has a twin.
    """
    clean = twins(runs)
    groups: dict[tuple[str, str], list[tuple[Ended, Ended]]] = defaultdict(list)
    for run in untouched(runs):
        twin = clean.get((run.case.net, run.case.seed))
        if run.case.kind != "healthy" and twin is not None:
            groups[run.case.name, run.case.net].append((run, twin))
    return [
        Changed(
            name=name,
            net=net,
            seeds=len(pairs),
            p=sign_flip([worse(run, twin) for run, twin in pairs]),
            effect=effect([run.final for run, _ in pairs], [twin.final for _, twin in pairs]),
        )
        for (name, net), pairs in groups.items()
    ]


def hurt(runs: Sequence[Ended]) -> list[Ended]:
    """Runs whose outcome the planted fault or incident changed: what an observer must detect.

    Of kinds that are significantly worse over matched seeds, or have too few of them to tell, those that ended worse by
    `HARMED` and `MARGIN` themselves: a kind that hurts on average has mild draws that do not.

    Args:
        runs: All runs.

    Returns:
        The runs, in order.
    """
    clean, telling = twins(runs), significant(runs)
    return [
        run
        for run in untouched(runs)
        if (run.case.name, run.case.net) in telling
        and (twin := clean.get((run.case.net, run.case.seed))) is not None
        and worse(run, twin) > max(MARGIN, (HARMED - 1) * twin.final)
    ]


def significant(runs: Sequence[Ended]) -> set[tuple[str, str]]:
    """Which alterations make which nets end worse over matched seeds, or have too few of them to tell.

    Args:
        runs: All runs.

    Returns:
        Pairs of name and net.
    """
    return {(each.name, each.net) for each in changed(runs) if each.p <= LEVEL or each.seeds < ENOUGH}


def judge(run: Ended, seen: Observation, clean: Observation | None = None) -> Detection:
    """How an observer did on a run.

    An alarm counts from the planting on, and only where the same rule did not speak at about the same step of the clean
    twin: a rule that fires on everything detects nothing.

    Args:
        run: What became of it, with the truth.
        seen: What the observer said.
        clean: What it said of the clean twin; None: there is none.

    Returns:
        The detection.
    """
    first = 0 if run.span[0] <= 1 else run.span[0]
    usual = [] if clean is None else [(alarm.rule, alarm.step) for alarm in clean.alarms]
    after = [
        alarm
        for alarm in seen.alarms
        if alarm.step >= first
        and not any(rule == alarm.rule and abs(step - alarm.step) <= SAME for rule, step in usual)
    ]
    right = [place for place, cause in enumerate(seen.causes, start=1) if cause in run.causes]
    return Detection(
        key=run.case.key,
        name=run.case.name,
        net=run.case.net,
        incident=run.case.kind == "incident",
        detected=bool(after),
        apt=any(alarm.code in run.codes for alarm in after),
        delay=float(after[0].step - first) if after else math.nan,
        place=right[0] if right else 0,
        named=seen.causes[:3],
    )


def observer_score(runs: Sequence[Ended], seen: Mapping[str, Observation]) -> ObserverScore:
    """How an observer did altogether.

    Args:
        runs: All runs.
        seen: What it said, by the case's key.

    Returns:
        The score.
    """
    clean = {key: seen.get(twin.case.key) for key, twin in twins(runs).items()}
    found = [
        judge(run, seen[run.case.key], clean.get((run.case.net, run.case.seed)))
        for run in hurt(runs)
        if run.case.key in seen
    ]
    speaks = any(each.causes for each in seen.values())  # who never names a cause is not judged by causes
    coded = any(alarm.code for each in seen.values() for alarm in each.alarms)
    healthy = [run for run in untouched(runs) if run.case.kind == "healthy" and run.case.key in seen]
    alarms = [(run, alarm) for run in healthy for alarm in seen[run.case.key].alarms]
    rules: dict[str, set[str]] = defaultdict(set)
    for run, alarm in alarms:
        rules[alarm.rule].add(run.case.key)
    delays = [each.delay for each in found if each.detected]
    noisiest = sorted(((rule, len(keys)) for rule, keys in rules.items()), key=lambda item: -item[1])
    return ObserverScore(
        faults=_share([d.detected for d in found if not d.incident]),
        incidents=_share([d.detected for d in found if d.incident]),
        apt=_share([d.apt for d in found if coded]),
        first=_share([d.place == 1 for d in found if speaks]),
        three=_share([1 <= d.place <= 3 for d in found if speaks]),
        alarms=Rate(events=len(alarms), steps=sum(run.step for run in healthy)),
        healthy=Share(hits=len({run.case.key for run, _ in alarms}), of=len(healthy)),
        delay=float(np.median(delays)) if delays else math.nan,
        noisiest=dict(noisiest),
        missed=tuple(d.key for d in found if not d.detected),
        misnamed=tuple(d for d in found if d.place != 1),
        detections=tuple(found),
    )


def _share(hits: Sequence[bool]) -> Share:
    return Share(hits=sum(hits), of=len(hits))
