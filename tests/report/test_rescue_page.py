import json
import math

from dynaxx.report import write_rescue
from dynaxx.report._rescue import rescue_payload
from dynaxx.rescue.observer import Alarm, Observation
from dynaxx.rescue.repairs import policy_score
from dynaxx.rescue.report import Report
from dynaxx.rescue.scores import changed, observer_score
from dynaxx.rescue.training import Case, Ended


def ended(alteration, final, policy="nothing"):
    return Ended(
        case=Case(net="mlp", seed=0, alteration=alteration, policy=policy), folder="", status="finished", steps=100,
        step=100, passes=100, final=final, span=(1, 100), causes=("learning_rate_too_high",), repairable=True,
    )  # fmt: skip


def said(*causes):
    return Observation(alarms=tuple(Alarm(step=20, rule="spike") for _ in causes[:1]), causes=causes, missing={})


def found():
    runs = (
        ended(None, 0.1),
        ended("long_warmup", 0.1),
        ended("rate_too_high", math.nan),
        ended("no_warmup", 0.9),
        ended("rate_too_high", 0.4, "halve"),
        ended("rate_too_high", 0.104, "navigator"),
        ended("long_warmup", 0.102, "navigator"),
    )
    heard = {
        "healthy/clean-mlp-0": said(),
        "healthy/long_warmup-mlp-0": said(),
        "faulty/rate_too_high-mlp-0": said("learning_rate_too_high"),
        "faulty/no_warmup-mlp-0": said("label_noise", "<b>"),
    }
    return Report(
        runs=runs,
        changes=tuple(changed(runs)),
        observers={"dynaxx": observer_score(runs, heard), "silent": observer_score(runs, dict.fromkeys(heard, said()))},
        policies={name: policy_score(runs, name) for name in ("halve", "navigator")},
    )


def tables(content):
    return {panel["title"]: panel for figure in content["runs"][0]["figures"] for panel in figure["panels"]}


def test_the_page_says_who_found_what_what_was_taken_for_what_and_who_mended_it():
    content, _ = rescue_payload(found())
    facts = {fact["label"]: fact for fact in content["runs"][0]["summary"]}
    assert (facts["faults detected"]["value"], facts["faults detected"]["alarm"]) == ("100%", False)
    assert (facts["right cause first"]["value"], facts["right cause first"]["alarm"]) == ("50%", True)
    assert facts["right cause first"]["detail"].startswith("1 of 2, 1% to 99%")
    assert (facts["repaired"]["value"], facts["repaired"]["alarm"]) == ("100%", False)
    assert facts["healthy kinds harmed"]["detail"].startswith("1 of 1")
    assert facts["healthy kinds harmed"]["alarm"]
    shown = tables(content)
    assert ("no_warmup", "1", "1", "0", "0", "label_noise 1") in map(
        tuple, shown["Confusion, by what was planted"]["rows"]
    )
    assert [row[0] for row in shown["Missed or misnamed"]["rows"]] == ["faulty/no_warmup-mlp-0"]
    assert tuple(shown["Not repaired"]["rows"][0][:3]) == ("halve", "faulty/rate_too_high-mlp-0-halve", "4.000×")
    assert len(shown["Observers that do not act, on the same logs"]["rows"]) == 2


def test_the_file_needs_nothing_else_and_holds_no_markup_of_the_logs(tmp_path):
    text = write_rescue(found(), tmp_path / "rescue.html").read_text()
    assert "<b>" not in text
    start = text.index('id="payload">') + len('id="payload">')
    assert json.loads(text[start : text.index("</script>", start)])["runs"][0]["name"] == "Rescue suite"
