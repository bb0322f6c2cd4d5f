"""The arbiter's rules, one by one."""

import json

import pytest

from dynaxx.controllers import arbitrate, start
from dynaxx.core.navigation import ADVICE, Outcome, Promise, Proposal
from dynaxx.core.records import Action

PROMISE = Promise(column="loss", below=1.0, steps=20)


def proposal(name="learning_rate", found=None, *, level=3, controller="rate_down", cause="", promise=PROMISE, **given):
    arguments = given.pop("arguments", {"factor": 0.5} if name == "learning_rate" else {})
    return Proposal(
        controller=controller,
        action=Action(name=name, arguments=arguments, **given),
        finding=found,
        cause=cause or (found.causes[0].name if found is not None and found.causes else ""),
        promise=promise,
        level=level,
    )


def statuses(state, proposals, where, mode="act"):
    state, decisions = arbitrate(state, proposals, where, mode)
    return state, [(d.status, d.why) for d in decisions]


def one(nav, asked, step=300, mode="act", state=None, **known):
    found = [] if asked.finding is None else [asked.finding]
    _, [(status, why)] = statuses(
        start() if state is None else state, [asked], nav.situation(step, *found, **known), mode
    )
    return status, why


def test_modes(nav):
    cut = proposal(found=nav.finding("oscillation", ("learning_rate_too_high", 0.8)))
    look = proposal("check", cut.finding, level=0, controller="escalate", promise=None, arguments={"check": "x"})
    word = proposal(ADVICE, cut.finding, promise=None)
    assert one(nav, cut)[0] == "taken"
    assert one(nav, cut, mode="advise")[0] == "advised"
    assert one(nav, look, mode="advise")[0] == "taken"  # it leaves no trace
    assert one(nav, word) == ("advised", "only a person can do it")
    assert arbitrate(start(), [cut], nav.situation(), "off")[1] == []


def test_nothing_is_looked_at_in_a_run_that_goes_back(nav):
    found = nav.finding("dead_units", ("learning_rate_too_high", 0.8))
    look = proposal("check", found, level=0, controller="escalate", promise=None, arguments={"check": "x"})
    back = proposal("rollback", found, level=5, controller="begin_anew", arguments={"before": 1})
    where = nav.situation(20, found, healthy=(0,))
    decided = arbitrate(start(), [look, back], where, "act")[1]
    assert [(d.proposal.action.name, d.status) for d in decided] == [("rollback", "taken"), ("check", "refused")]
    decided = arbitrate(start(), [look, back], where, "advise")[1]
    assert [(d.proposal.action.name, d.status) for d in decided] == [("rollback", "advised"), ("check", "taken")]


def test_what_the_run_cannot_do_is_advised(nav):
    status, why = one(nav, proposal(found=nav.finding("oscillation")), able=frozenset())
    assert status == "advised"
    assert "cannot carry out learning_rate" in why


@pytest.mark.parametrize(
    ("name", "cause", "step", "severity", "status"),
    [
        ("edge_of_stability", "learning_rate_too_high", 300, "warning", "refused"),
        ("oscillation", "edge_of_stability", 300, "warning", "refused"),
        ("overfitting", "grokking", 300, "warning", "refused"),
        ("divergence", "learning_rate_too_high", 90, "warning", "refused"),  # perhaps a catapult
        ("divergence", "learning_rate_too_high", 90, "critical", "taken"),
        ("divergence", "learning_rate_too_high", 110, "warning", "taken"),
        ("loss_spike", "corrupted_batch", 90, "warning", "taken"),  # no catapult starts with a bad batch
        ("update_size", "learning_rate_too_high", 15, "warning", "refused"),  # warm-up
        ("update_size", "learning_rate_too_high", 25, "warning", "taken"),
    ],
)
def test_what_is_healthy_or_too_early_is_left_alone(nav, name, cause, step, severity, status):
    found = nav.finding(name, (cause, 0.9), severity=severity, onset=5, last=step)
    assert (
        one(
            nav, proposal(found=found, cause="learning_rate_too_high" if cause == "edge_of_stability" else cause), step
        )[0]
        == status
    )


@pytest.mark.parametrize(
    ("name", "arguments", "word"),
    [
        ("learning_rate", {"factor": 10_001}, "outside"),
        ("learning_rate", {"factor": 0.0009}, "outside"),
        ("learning_rate", {}, "cannot be read"),
        ("accumulate", {"batches": 64, "rate": 10_001}, "outside"),
        ("rollback", {"before": 100, "then": [{"name": "learning_rate", "arguments": {"factor": 10_001}}]}, "outside"),
        ("gradient_scale", {"factor": 2.0}, "not scaled up"),
        ("layer_rates", {"factors": {"a": 5.0, "b": 0.4}}, "more than 10"),
        ("layer_rates", {"factors": {"a": 11.0}}, "more than 10"),  # the others keep 1
    ],
)
def test_bounds(nav, name, arguments, word):
    status, why = one(nav, proposal(name, nav.finding("x", ("hard_batch", 0.9)), arguments=arguments))
    assert status == "refused"
    assert word in why


def test_the_factors_of_two_actions_multiply(nav):
    force = {"accumulate": Action(name="accumulate", arguments={"batches": 4, "rate": 4.0})}
    found = nav.finding("slow", ("learning_rate_too_low", 0.9))
    assert one(nav, proposal(found=found, arguments={"factor": 2_400.0}), in_force=force)[0] == "taken"
    assert one(nav, proposal(found=found, arguments={"factor": 2_600.0}), in_force=force)[0] == "refused"


def test_what_cannot_be_judged_must_end(nav):
    found = nav.finding("x", ("hard_batch", 0.9))
    assert "ends by itself" in one(nav, proposal(found=found, promise=None))[1]
    assert one(nav, proposal(found=found, promise=None, steps=10))[0] == "taken"


def test_the_same_is_not_done_twice_for_one_stretch(nav):
    found = nav.finding("x", ("hard_batch", 0.9))
    state, _ = statuses(start(), [proposal(found=found)], nav.situation(300, found))
    status, why = one(nav, proposal(found=found), 600, state=state)
    assert (status, why) == ("refused", "this was answered so already")
    anew = nav.finding("x", ("hard_batch", 0.9), onset=500, last=600)
    assert one(nav, proposal(found=anew), 600, state=state)[0] == "taken"


def test_cooldown_grows_with_broken_promises_until_it_is_given_up(nav):
    found = nav.finding("x", ("hard_batch", 0.9))
    first = proposal(found=found)
    second = proposal(found=found, arguments={"factor": 0.25})
    state, _ = statuses(start(), [first], nav.situation(300, found))

    def after(step, broken):
        outcomes = tuple(
            Outcome(proposal=first, step=300, judged=320, kept=False, measured=2.0, undone=True) for _ in range(broken)
        )
        return one(nav, second, step, state=state, outcomes=outcomes)

    assert after(319, 0)[0] == "refused"
    assert after(321, 0)[0] == "taken"  # 1000 steps: a cooldown of 20
    assert after(379, 1) == ("refused", "it rests for 80 updates")
    assert after(380, 1)[0] == "taken"
    assert after(619, 2)[0] == "refused"
    assert after(620, 2)[0] == "taken"
    assert after(999, 3) == ("refused", "its promise was broken 3 times")


def test_words_are_repeated_ever_more_rarely(nav):
    state, said = start(), []
    for step in range(300, 1000, 10):  # the onset moves a little each time
        found = nav.finding("x", ("hard_batch", 0.9), onset=step - 50, last=step)
        state, found_statuses = statuses(state, [proposal(found=found)], nav.situation(step, found), "advise")
        said += [step for status, _ in found_statuses if status == "advised"]
    assert said == [300, 380, 700]


def test_one_act_on_one_thing_until_it_is_judged(nav):
    slow, mismatch = nav.finding("slow", ("learning_rate_too_low", 0.9)), nav.finding("m", ("ill_conditioned", 0.8))
    up = proposal(found=slow, controller="rate_up", arguments={"factor": 3.0})
    layers = proposal("layer_rates", mismatch, controller="layer_balance", arguments={"factors": {"a": 2.0}})
    state, found = statuses(start(), [layers, up], nav.situation(300, slow, mismatch))
    assert found == [("taken", "no rule speaks against it"), ("refused", "something else is done at this step")]
    kick = proposal(found=nav.finding("p", ("saddle", 0.9)), controller="kick", arguments={"factor": 2.0}, steps=10)
    assert one(nav, layers, 310, state=state)[0] == "taken"  # another thing, at another step
    assert one(nav, kick, 310, state=state)[1] == "learning_rate of rate_up is still to be judged"
    judged = (Outcome(proposal=up, step=300, judged=310, kept=True, measured=1.0, undone=False),)
    assert one(nav, kick, 310, state=state, outcomes=judged)[0] == "taken"


def test_one_remedy_for_one_cause_until_it_is_judged(nav):
    found = nav.finding("loss_spike", ("preconditioner_lag", 0.9))
    clip = proposal("adaptive_clip", found, level=2, controller="recover")
    epsilon = proposal("epsilon", found, controller="epsilon", arguments={"value": 1e-6})
    state, _ = statuses(start(), [clip, epsilon], nav.situation(300, found))
    assert one(nav, epsilon, 310, state=state)[1] == "adaptive_clip of recover is still to be judged"
    assert one(nav, epsilon, 320, state=state)[0] == "taken"


def test_something_critical_breaks_in_with_a_higher_rung_only(nav):
    slow = nav.finding("slow", ("learning_rate_too_low", 0.9))
    up = proposal(found=slow, controller="rate_up", arguments={"factor": 3.0})
    state, _ = statuses(start(), [up], nav.situation(300, slow))
    for severity, onset, level, status in [
        ("critical", 305, 3, "taken"),
        ("critical", 290, 3, "refused"),
        ("critical", 290, 4, "taken"),
        ("warning", 305, 4, "refused"),
    ]:
        found = nav.finding("other", ("learning_rate_too_high", 0.9), severity=severity, onset=onset, last=310)
        cut = proposal(found=found, controller="recover", level=level)
        assert one(nav, cut, 310, state=state)[0] == status, (severity, onset, level)


def test_of_two_answers_the_milder_wins_unless_it_is_critical(nav):
    warning = nav.finding("x", ("learning_rate_too_high", 0.9))
    critical = nav.finding("x", ("learning_rate_too_high", 0.9), severity="critical")
    for found, winner in ((warning, "rate_down"), (critical, "recover")):
        cut = proposal(found=found)
        back = proposal("rollback", found, controller="recover", level=5, arguments={"before": 50})
        where = nav.situation(120, found, healthy=(40,))
        _, decisions = arbitrate(start(), [back, cut], where, "act")
        assert [d.proposal.controller for d in decisions if d.status == "taken"] == [winner]


def test_rollbacks_repeat_a_fourth_of_the_run_at_most(nav):
    found = nav.finding("x", ("learning_rate_too_high", 0.9), severity="critical", onset=400, last=600)
    back = proposal("rollback", found, controller="recover", level=5, arguments={"before": 400})
    assert one(nav, back, 650, healthy=(399,))[0] == "refused"  # 251 updates
    assert one(nav, back, 650, healthy=(400, 399))[0] == "refused"  # 400 is not before 400
    assert one(nav, back, 649, healthy=(399,))[0] == "taken"
    ends = {"before": 400, "then": [{"name": "stop", "arguments": {}}]}
    last = proposal("rollback", found, controller="overtraining", level=6, arguments=ends)
    assert one(nav, last, 900, healthy=(399,))[0] == "taken"  # nothing is repeated where the run ends


def test_a_refusal_is_said_once(nav):
    found = nav.finding("edge_of_stability")
    state = start()
    seen = []
    for step in (300, 310, 320):
        state, given = statuses(state, [proposal(found=found)], nav.situation(step, found))
        seen.append(len(given))
    assert seen == [1, 0, 0]
    assert json.loads(json.dumps(state)) == state


@pytest.mark.parametrize(("apart", "taken", "why"), [(10, 8, "8 acts were done within 200 updates"),
                                                     (30, 24, "24 acts were done in this run")])  # fmt: skip
def test_acts_are_counted_in_a_window_and_in_all(nav, apart, taken, why):
    state, seen = start(), []
    for number in range(taken + 1):
        found = nav.finding(f"x{number}")
        asked = proposal(f"action{number}", found, steps=1, promise=None)
        where = nav.situation(300 + apart * number, found, able=frozenset({asked.action.name}), steps=1000)
        state, decisions = arbitrate(state, [asked], where, "act")
        seen += [(d.status, d.why) for d in decisions]
    assert [status for status, _ in seen] == ["taken"] * taken + ["refused"]
    assert seen[-1][1] == why


def test_checks_are_counted(nav):
    state, seen = start(), []
    for number in range(13):
        found = nav.finding(f"x{number}")
        look = proposal("check", found, controller="escalate", promise=None, level=0, arguments={"check": "a"})
        state, decisions = arbitrate(state, [look], nav.situation(300 + 30 * number, found), "advise")
        seen += [d.why for d in decisions if d.status == "refused"]
    assert seen == ["12 checks were made"]
