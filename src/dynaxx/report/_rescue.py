"""The page of the rescue suite: who finds what, what is taken for what, who mends it, and what changes the outcome."""

import math
from collections import Counter
from typing import Any

from dynaxx import figures
from dynaxx.core.panels import Panel, Table
from dynaxx.report._payload import assembled
from dynaxx.report._summary import Fact
from dynaxx.rescue.repairs import PolicyScore
from dynaxx.rescue.report import OBSERVER_HEAD, POLICY_HEAD, Report
from dynaxx.rescue.scores import ObserverScore
from dynaxx.rescue.statistics import Share

OURS, ACTING = "dynaxx", "navigator"
INTERVALS = "In brackets 95 % intervals: Clopper and Pearson's of shares, Poisson's of rates, Student's of mean ratios."


def rescue_payload(found: Report) -> tuple[dict[str, Any], bytes]:
    """What the front end draws of the rescue suite.

    Args:
        found: What the suite found.

    Returns:
        The JSON-able part and the compressed arrays, as of a run.
    """
    own = found.observers.get(OURS)
    pages = [
        figures.of_panels("observers", "Who finds it", (_observers(found),)),
        *([] if own is None else [figures.of_panels("kinds", "What Dynaxx makes of it", _kinds(own))]),
        *([figures.of_panels("policies", "Who mends it", _policies(found))] if found.policies else []),
        figures.of_panels("changes", "What changes the outcome", (_changes(found),)),
    ]
    return assembled([("Rescue suite", _facts(found), pages)])


def _facts(found: Report) -> list[Fact]:
    own, acting = found.observers.get(OURS), found.policies.get(ACTING)
    counted = Fact(label="runs", value=str(len(found.runs)), detail=found.head)
    if own is None:
        return [counted]
    return [
        _share("faults detected", own.faults, 0.95),
        _share("right cause first", own.first, 0.80),
        _share("in the first three", own.three, 0.95),
        _share("healthy runs alarmed", own.healthy, 0.02, least=False),
        Fact(
            label="alarms in 10 000 healthy steps",
            value="–" if math.isnan(own.alarms.value) else f"{own.alarms.value:.2g}",
            detail=f"{own.alarms.low:.2g} to {own.alarms.high:.2g}; asked: at most 1",
            alarm=own.alarms.value > 1,
        ),
        *([] if acting is None else _acted(acting)),
        counted,
    ]


def _acted(own: PolicyScore) -> list[Fact]:
    """What acting mended and harmed."""
    return [_share("repaired", own.mended, 0.90), _share("healthy kinds harmed", own.worse, 0.0, least=False)]


def _share(label: str, share: Share, asked: float, *, least: bool = True) -> Fact:
    """A share beside what is asked of it."""
    if not share.of:
        return Fact(label=label, value="–", detail="none was looked at")
    missed = share.value < asked if least else share.value > asked
    bound = "at least" if least else "at most"
    return Fact(
        label=label,
        value=f"{share.value:.0%}",
        detail=f"{share.hits} of {share.of}, {share.low:.0%} to {share.high:.0%}; asked: {bound} {asked:.0%}",
        alarm=missed,
    )


def _observers(found: Report) -> Table:
    return Table(
        title="Observers that do not act, on the same logs",
        header=OBSERVER_HEAD,
        rows=tuple(found.observer_rows()),
        note=f"Counted are the runs that were hurt, and all healthy ones. {INTERVALS}",
    )


def _kinds(own: ObserverScore) -> tuple[Panel, ...]:
    """Kind by kind what was found and named; wrong first causes; alarms on healthy runs."""
    rows: list[tuple[str, ...]] = []
    for kind in sorted({d.name for d in own.detections}):
        runs = [d for d in own.detections if d.name == kind]
        first = Counter(d.named[0] if d.named else "no cause" for d in runs)
        named = ", ".join(f"{cause} {count}" for cause, count in first.most_common())
        found, right, three = (
            sum(d.detected for d in runs),
            sum(d.place == 1 for d in runs),
            sum(1 <= d.place <= 3 for d in runs),
        )
        rows.append((kind, str(len(runs)), str(found), str(right), str(three), named))
    wrong = [
        (d.key, ", ".join(d.named) or "no cause", "" if d.detected else "not detected")
        for d in own.detections
        if d.place != 1 or not d.detected
    ]
    alarms = [(rule, str(count)) for rule, count in own.noisiest.items()]
    return (
        Table(
            title="Confusion, by what was planted",
            header=("planted", "runs", "detected", "right first", "in three", "named first"),
            rows=tuple(rows),
            note="Causes are those of the last look.",
        ),
        Table(
            title="Missed or misnamed",
            header=("run", "named, in order", ""),
            rows=tuple(wrong) or (("none", "", ""),),
        ),
        Table(
            title="Alarms on healthy runs",
            header=("detector", "runs"),
            rows=tuple(alarms) or (("none", "0"),),
        ),
    )


def _policies(found: Report) -> tuple[Panel, ...]:
    whole = Table(
        title="Who acts", header=POLICY_HEAD, rows=tuple(found.policy_rows()), note=f"On treated twins. {INTERVALS}"
    )
    left = [
        (name, each.key, str(each.ratio), "yes" if each.better else "no", f"{each.passes:.2f}")
        for name, score in found.acted.items()
        for each in score.left
    ]
    harmed = [(name, key, "") for name, score in found.acted.items() for key in score.hurt]
    harmed += [
        (name, f"{each.name} on {each.net}, all runs", str(each.ratio))
        for name, score in found.acted.items()
        for each in score.harms
    ]
    return (
        whole,
        Table(
            title="Not repaired",
            header=("who acted", "run", "over the clean loss", "better than untouched", "passes over the clean ones"),
            rows=tuple(left) or (("nobody", "", "", "", ""),),
        ),
        Table(
            title="Healthy runs harmed",
            header=("who acted", "run", "over the untouched loss"),
            rows=tuple(harmed) or (("nobody", "", ""),),
        ),
    )


def _changes(found: Report) -> Table:
    rows = tuple(
        (c.name, c.net, str(c.seeds), f"{c.p:.3f}", "–" if math.isnan(c.effect) else f"{c.effect:.3g}")
        for c in found.changes
    )
    return Table(
        title="Planted runs against their clean twins",
        header=("planted", "net", "seeds", "p of the sign-flip test", "effect"),
        rows=rows or (("nothing was planted", "", "", "", ""),),
        note="Effect: mean difference over the spread of the clean twins; five seeds can reach p = 0.031.",
    )
