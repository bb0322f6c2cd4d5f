"""Findings: rules of their parts, JSON round trip, order."""

import json

import pytest

from dynaxx.core.causes import CAUSES
from dynaxx.core.findings import Cause, Evidence, Finding, Remedy, Test, by_urgency
from dynaxx.core.records import Action
from dynaxx.errors import BadInput


def finding(name: str = "loss_spike", severity: str = "warning", spans: tuple[tuple[int, int], ...] = ((3, 5),)):
    return Finding(
        code="D6",
        name=name,
        title="loss ×4 at step 3",
        severity=severity,  # pyright: ignore[reportArgumentType]
        spans=spans,
        layers=("0", "2"),
        evidence=(Evidence(text="4 × the median", columns=("loss",), steps=(3, 5), value=4.0, threshold=1.5),),
        causes=(
            Cause(
                name="corrupted_batch",
                confidence=0.7,
                why="the next batch is normal",
                remedies=(Remedy(text="Skip it.", action=Action(name="skip", arguments={"when": "outlier"})),),
            ),
        ),
        test=Test(text="replay it", check="replay_batch"),
    )


def test_a_finding_survives_json():
    once = finding()
    assert Finding.from_dict(json.loads(json.dumps(once.as_dict()))) == once


def test_the_latest_stretch_is_what_counts():
    many = finding(spans=((3, 5), (90, 120)))
    assert (many.onset, many.last, many.alarms) == (90, 120, True)


def test_worst_first_then_earliest():
    late, early, note = finding(spans=((9, 9),)), finding(spans=((1, 2),)), finding(severity="note")
    critical = finding(severity="critical", spans=((50, 60),))
    assert by_urgency([note, late, early, critical]) == [critical, early, late, note]


@pytest.mark.parametrize("spans", [(), ((5, 3),)])
def test_spans_must_be_stretches(spans: tuple[tuple[int, int], ...]):
    with pytest.raises(BadInput, match="spans"):
        finding(spans=spans)


def test_causes_speak_one_vocabulary():
    with pytest.raises(BadInput, match="CAUSES"):
        Cause(name="bad_luck", confidence=0.5)
    with pytest.raises(BadInput, match="between 0 and 1"):
        Cause(name="overfitting", confidence=1.5)
    for name, words in CAUSES.items():
        assert name == name.lower(), name
        assert not words.endswith("."), name
