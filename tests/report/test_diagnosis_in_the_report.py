"""The report says what the detectors say, alarms on top, and names those that could not speak."""

import pytest

from dynaxx.core.findings import Cause, Evidence, Finding, Remedy
from dynaxx.detectors import Diagnosis
from dynaxx.report import _diagnosis
from dynaxx.report._diagnosis import diagnosed

FOUND = Finding(
    code="D7", name="divergence", title="loss ×50 since step 900", severity="critical", spans=((900, 1000),),
    evidence=(Evidence(text="median ×50"),),
    causes=(Cause(name="learning_rate_too_high", confidence=0.9, remedies=(Remedy(text="Halve the rate."),)),),
)  # fmt: skip


def say(monkeypatch: pytest.MonkeyPatch, *findings: Finding, silent: tuple[str, ...] = ()) -> None:
    made = Diagnosis(findings=findings, silent=silent, not_applicable={"overfitting": "no val_loss"}, steps=1000)
    monkeypatch.setattr(_diagnosis, "diagnose_log", lambda view: made)


def test_an_alarm_is_on_the_strip_and_told_with_cause_and_remedy(monkeypatch: pytest.MonkeyPatch, healthy):
    say(monkeypatch, FOUND)
    (fact,), section = diagnosed(healthy)
    assert (fact.value, fact.alarm) == ("learning rate too high", True)
    causes, findings, silence = section.panels
    assert causes["rows"][0][1:] == ["90%", "divergence", "", "Halve the rate."]
    assert findings["rows"][0] == ["critical", "D7", "loss ×50 since step 900", "900–1,000", "median ×50"]
    assert silence["rows"] == [["overfitting", "could not speak: no val_loss"]]


def test_silence_is_no_health_where_nothing_could_speak(monkeypatch: pytest.MonkeyPatch, healthy):
    say(monkeypatch)
    facts, section = diagnosed(healthy)
    assert not facts
    assert "no detector could speak" in section.reason
    say(monkeypatch, silent=("divergence",))
    (fact,), _ = diagnosed(healthy)
    assert (fact.value, fact.alarm) == ("no alarm", False)
