"""Beginning anew, usual settings, jumps of the schedule and lost ground: what is proposed, and where nothing is."""

import numpy as np
import pytest

from dynaxx import catalog
from dynaxx.controllers._arbiter import arbitrate, start
from dynaxx.controllers._rates import jump
from dynaxx.core.navigation import Decision, Outcome, Promise, Proposal
from dynaxx.core.records import Action
from dynaxx.runlog import Table

BAND = {"rate_band", "momentum", "epsilon"}


def ask(name, where):
    controller = catalog.get("controllers", name)()
    return list(controller.decide(controller.init(), where)[1])


def table(step, *, rate=0.1, ratio=None, loss=None, **manifest):
    at = np.arange(1, step + 1)
    rates = rate(at) if callable(rate) else np.full(step, float(rate))
    values = 2 + 0.01 * np.sin(at * 2.3) if loss is None else loss(at)
    columns = {"loss": (at, values), "lr": (at, rates)}
    if ratio is not None:
        columns["update_ratio.total"] = (at, ratio(at) if callable(ratio) else np.full(step, ratio))
    return Table(columns, manifest=manifest)


def where(nav, step, found, run, **known):
    known = {"steps": 400, "healthy": (0,), "able": nav.ABLE | BAND, **known}
    return nav.situation(step, found, run=run, **known)


def wrong(nav, cause, step, severity="warning"):
    return nav.finding("update_size", (cause, 0.8), onset=1, last=step, severity=severity)


def then(proposal):
    return [(each["name"], each["arguments"]) for each in proposal.action.arguments["then"]]


def test_a_ruinous_rate_is_sought_anew_around_updates_of_one_per_cent(nav):
    run = table(20, rate=2.0, ratio=0.4)
    [proposal] = ask("begin_anew", where(nav, 20, wrong(nav, "learning_rate_too_high", 20), run))
    assert proposal.action.arguments["before"] == 1
    (rate, guess), (trial, arguments) = then(proposal)
    assert (rate, trial) == ("learning_rate", "trial")
    assert guess == {"factor": 0.00833}  # 1 % / 40 %, and a third of it
    arms = [arm[0]["arguments"]["factor"] for arm in arguments["arms"].values()]
    assert arms == [0.025, 0.075, 0.25]
    assert (arguments["steps"], arguments["scale"]) == (15, pytest.approx(1 / 3))  # 4 arms in 15 % of 400


def test_what_killed_units_is_looked_for_before_they_count_as_dead(nav):
    """An MLP at 70 times its rate: the loss leaps at the second step, and the units are dead from step 11 on."""
    loss = [2.296, 87.5, 77.6, 31.0, 11.6, 6.6, 3.5, *[2.3] * 13]
    ratio = [2.56, 0.68, 0.4, 0.27, 0.19, 0.15, 0.12, 0.09, 0.08, 0.06, *np.geomspace(0.05, 0.02, 10)]
    run = table(20, rate=0.2, ratio=lambda at: np.array(ratio), loss=lambda at: np.array(loss))
    dead = nav.finding("dead_units", ("learning_rate_too_high", 0.8), onset=11, last=20)
    assert len(ask("begin_anew", where(nav, 20, dead, run))) == 1
    calm = table(20, rate=0.2, ratio=0.02, loss=lambda at: np.array(loss))
    assert ask("begin_anew", where(nav, 20, dead, calm)) == []


def test_a_trial_in_a_warm_up_makes_up_for_its_rates(nav):
    rising = table(40, rate=lambda at: np.minimum(at / 30, 1.0), ratio=lambda at: 0.3 * np.minimum(at / 30, 1.0))
    [proposal] = ask("begin_anew", where(nav, 40, wrong(nav, "learning_rate_too_high", 40), rising))
    _, (_, arguments) = then(proposal)
    mean = float(np.mean(np.arange(1, 16) / 30))
    assert arguments["scale"] == pytest.approx(mean / 3)
    assert arguments["arms"]["× 0.0333"][0]["arguments"]["factor"] == pytest.approx(0.0333 / mean, rel=0.01)


def test_a_rate_that_is_too_low_is_never_lowered(nav):
    run = table(40, rate=1e-4, ratio=6e-3)
    [proposal] = ask("begin_anew", where(nav, 40, wrong(nav, "learning_rate_too_low", 40), run))
    assert then(proposal)[0] == ("learning_rate", {"factor": 1.0})


@pytest.mark.parametrize(
    ("known", "step"),
    [
        ({}, 101),  # a quarter of the run is over
        ({"healthy": (20,)}, 40),  # the beginning is not kept, or not healthy
        ({"able": frozenset({"learning_rate"})}, 40),
    ],
)
def test_a_run_that_cannot_begin_anew_does_not(nav, known, step):
    run = table(step, rate=2.0, ratio=0.4)
    assert ask("begin_anew", where(nav, step, wrong(nav, "learning_rate_too_low", step), run, **known)) == []


def test_a_rate_whose_updates_are_no_harm_is_left_to_a_cut(nav):
    run = table(40, rate=0.1, ratio=0.05)
    assert ask("begin_anew", where(nav, 40, wrong(nav, "learning_rate_too_high", 40), run)) == []


@pytest.mark.parametrize(
    ("cause", "group", "action"),
    [
        ("momentum_too_high", {"momentum": 0.995}, ("momentum", {"most": 0.9})),
        ("momentum_too_high", {"betas": "(0.997, 0.999)"}, ("momentum", {"most": 0.9})),
        ("learning_rate_too_high", {"momentum": 0.995}, ("momentum", {"most": 0.9})),  # its memory is half the run
        ("epsilon_too_large", {"eps": 1.0}, ("epsilon", {"value": 0.0, "most": 1e-8})),
    ],
)
def test_settings_are_set_back_early_anew_and_late_in_place(nav, cause, group, action):
    optimizer = {"optimizer": {"groups": [group]}}
    early = where(nav, 40, wrong(nav, cause, 40), table(40, rate=2.0, ratio=0.4, **optimizer))
    [proposal] = ask("begin_anew", early)
    assert then(proposal) == [action]
    assert ask("usual_setting", early) == []
    assert ask("rate_down", early) == []  # the rate is not to blame
    late = where(nav, 200, wrong(nav, cause, 200), table(200, rate=2.0, ratio=0.4, **optimizer))
    assert ask("begin_anew", late) == []
    if cause != "learning_rate_too_high":
        [proposal] = ask("usual_setting", late)
        assert (proposal.action.name, proposal.action.arguments) == action
    held = {action[0]: Action(name=action[0], arguments=action[1])}
    for controller in ("begin_anew", "usual_setting"):
        again = where(nav, 40, wrong(nav, cause, 40), table(40, rate=0.1, ratio=0.05, **optimizer), in_force=held)
        assert ask(controller, again) == []


def test_a_usual_momentum_is_not_blamed(nav):
    run = table(200, momentum=0.9, optimizer={"groups": [{"momentum": 0.9}]})
    assert ask("usual_setting", where(nav, 200, wrong(nav, "momentum_too_high", 200), run)) == []


def up(at):
    return np.where(at < 200, 0.1, 2.0)


def down(at):
    return np.where(at < 20, 0.1, 1e-4)


def test_jumps_are_told_from_warm_ups_and_decays(nav):
    def found(rate, step=250):
        return jump(nav.situation(step, run=table(step, rate=rate), steps=400))

    assert found(up) == (200, 0.1, 2.0)
    assert found(down) == (20, 0.1, 1e-4)
    assert found(lambda at: np.minimum(at / 40, 1.0)) is None
    assert found(lambda at: 0.5 * (1 + np.cos(np.pi * at / 400))) is None
    assert found(0.1) is None


def test_a_rate_that_was_thrown_up_is_held_where_it_was(nav):
    run = table(230, rate=up, loss=lambda at: np.where(at < 200, 1.0, 5.0))
    thrown = nav.finding("divergence", ("learning_rate_too_high", 0.8), onset=203, last=230)
    situation = where(nav, 230, thrown, run, healthy=(0, 160, 199, 220))
    [proposal] = ask("level_schedule", situation)
    assert proposal.action.arguments["before"] == 200  # the newest before the jump
    assert then(proposal) == [("rate_band", {"most": 0.1, "shape": True})]
    assert ask("rate_down", situation) == []
    band = Action(name="rate_band", arguments={"most": 0.1})
    assert ask("level_schedule", where(nav, 230, thrown, run, in_force={"rate_band": band})) == []


def test_a_bump_that_is_over_is_taken_back_where_the_loss_has_not_come_back(nav):
    """Two of four orders of one net were lost to one: the last jump is down, and nothing had gone back."""

    def bump(at):
        return np.where((at >= 200) & (at < 212), 9.0, 0.1)

    run = table(215, rate=bump, loss=lambda at: np.where(at < 200, 1.0, 5.0))
    thrown = nav.finding("schedule_too_aggressive", ("schedule_too_aggressive", 0.75), onset=200, last=215)
    [proposal] = ask("level_schedule", where(nav, 215, thrown, run, healthy=(0, 160, 199)))
    assert proposal.action.arguments["before"] == 200
    assert then(proposal) == [("rate_band", {"most": 0.1, "shape": True})]
    since = nav.finding("schedule_too_aggressive", ("schedule_too_aggressive", 0.75), onset=150, last=215)
    assert ask("level_schedule", where(nav, 215, since, run, healthy=(0, 160, 199))) == []  # it is about something else
    borne = nav.finding(
        "schedule_too_aggressive", ("schedule_too_aggressive", 0.75), onset=200, last=215, severity="note"
    )
    assert ask("level_schedule", where(nav, 215, borne, run, healthy=(0, 160, 199))) == []


def test_a_rate_is_held_in_place_where_no_update_may_be_repeated_any_more(nav):
    """A quarter of 400 updates may be repeated: after 80 of them a step back of 31 is too far."""
    run = table(230, rate=up, loss=lambda at: np.where(at < 200, 1.0, 5.0))
    thrown = nav.finding("divergence", ("learning_rate_too_high", 0.8), onset=203, last=230)
    back = Proposal(controller="go_back", action=Action(name="rollback", arguments={"before": 121}))
    spent = Decision(step=200, proposal=back, status="taken", why="")
    situation = where(nav, 230, thrown, run, healthy=(0, 160, 199, 220), decisions=(spent,))
    [proposal] = ask("level_schedule", situation)
    assert (proposal.action.name, proposal.action.arguments) == ("rate_band", {"most": 0.1, "shape": True})


def test_whatever_goes_wrong_after_a_rate_beyond_all_before_is_its_doing(nav):
    dead = nav.finding("layers_not_learning", ("dead_units", 0.5), onset=210, last=230)
    before = nav.finding("layers_not_learning", ("dead_units", 0.5), onset=150, last=230)

    def again(at):
        return np.where((at < 30) | (at >= 200), 2.0, 0.1)

    [proposal] = ask("level_schedule", where(nav, 230, dead, table(230, rate=up), healthy=(0, 160, 199, 220)))
    assert (proposal.action.arguments["before"], proposal.cause) == (200, "dead_units")
    assert ask("level_schedule", where(nav, 230, before, table(230, rate=up))) == []
    assert ask("level_schedule", where(nav, 230, dead, table(230, rate=again))) == []  # a warm restart


def test_a_rate_that_was_spent_early_is_held_up_until_the_end_is_near(nav):
    run = table(80, rate=down)
    spent = nav.finding("schedule_too_aggressive", ("schedule_too_aggressive", 0.8), onset=20, last=80)
    [proposal] = ask("level_schedule", where(nav, 80, spent, run, healthy=(0,)))
    [each] = proposal.action.arguments["then"]
    falls = {"least": 0.1, "falls": [320, 400]}
    assert (each["name"], each["arguments"], each["steps"]) == ("rate_band", falls, None)
    [proposal] = ask("level_schedule", where(nav, 80, spent, run, healthy=()))
    assert (proposal.action.name, proposal.action.arguments) == ("rate_band", falls)  # in place
    late = table(310, rate=down)
    assert (
        ask("level_schedule", where(nav, 310, spent, late, healthy=())) == []
    )  # the fall would begin within a horizon


def test_a_rate_that_was_spent_on_the_plateau_of_the_start_is_no_search_for_one(nav):
    """A CNN whose rate falls to 1/3000 at step 22: the loss never fell, so the alarm is dated from the first step."""
    run = table(130, rate=down, ratio=2e-6)
    flat = nav.finding("plateau", ("learning_rate_too_low", 0.74), onset=1, last=130)
    situation = where(nav, 130, flat, run, healthy=(0,))
    [proposal] = ask("level_schedule", situation)
    assert proposal.action.arguments["least"] == 0.1
    assert ask("rate_up", situation) == []
    answered = where(nav, 130, flat, run, healthy=(0,), in_force={"rate_band": proposal.action})
    assert len(ask("rate_up", answered)) == 1
    assert len(ask("rate_up", where(nav, 130, flat, table(130, rate=1e-4, ratio=2e-6), healthy=(0,)))) == 1
    # Where the first stage was too high, what came after is right.
    high = nav.finding("warmup_missing", ("warmup_missing", 0.8), onset=1, last=130)
    both = {"findings": (flat, high), "fresh": frozenset(("plateau", "warmup_missing"))}
    [proposal] = ask("level_schedule", where(nav, 130, flat, run, healthy=(), **both))
    assert proposal.action.arguments == {"most": 1e-4}


def test_a_search_in_which_no_rate_is_allowed_is_not_made(nav):
    """Updates of 1e-7 of the weights: 1 % of them would take a factor of 100 000."""
    run = table(130, rate=1e-6, ratio=1e-7)
    low = nav.finding("plateau", ("learning_rate_too_low", 0.74), onset=1, last=130)
    [proposal] = ask("rate_up", where(nav, 130, low, run, healthy=(0,)))
    assert proposal.action.name == "learning_rate"


def test_a_missing_warm_up_is_held_at_what_came_after_it(nav):
    run = table(40, rate=lambda at: np.where(at < 20, 2.0, 0.1), ratio=0.4)
    cold = nav.finding("warmup_missing", ("warmup_missing", 0.8), onset=1, last=40)
    situation = where(nav, 40, cold, run)
    [proposal] = ask("level_schedule", situation)
    assert proposal.action.arguments["before"] == 1
    assert then(proposal) == [("rate_band", {"most": 0.1})]
    assert ask("begin_anew", situation) == []


def test_a_cut_is_lifted_when_the_loop_lowers_its_rate_itself(nav):
    run = table(40, rate=lambda at: np.where(at < 20, 2.0, 0.1))
    force = {"learning_rate": Action(name="learning_rate", arguments={"factor": 0.01})}
    [proposal] = ask("level_schedule", where(nav, 40, wrong(nav, "hard_batch", 40), run, in_force=force))
    assert proposal.action.arguments == {"factor": 0.2}  # 0.01 × 2.0 / 0.1
    assert ask("level_schedule", where(nav, 40, wrong(nav, "hard_batch", 40), run)) == []


def lost(nav, after, onset=200, step=250, healthy=(0, 190)):
    found = nav.finding("divergence", ("data_shift", 0.6), onset=onset, last=step)
    run = table(step, loss=lambda at: np.where(at < onset, 2 * np.exp(-at / 80), after(at)) + 0.001 * np.sin(2.3 * at))
    return where(nav, step, found, run, healthy=healthy)


def test_lost_ground_is_regained_by_going_back_where_waiting_costs_more(nav):
    stays = lost(nav, lambda at: 2.0)
    [proposal] = ask("go_back", stays)
    # As many batches again as have come since the onset are passed over, a horizon of 20 at most.
    assert proposal.action.arguments == {"before": 191, "pass_data": True, "further": 20, "then": []}
    assert ask("go_back", lost(nav, lambda at: 2.0 * np.exp(-(at - 200) / 20))) == []  # it comes back by itself
    assert len(ask("go_back", lost(nav, lambda at: 2.0 * np.exp(-(at - 200) / 800)))) == 1  # not soon enough
    assert ask("go_back", lost(nav, lambda at: 0.17)) == []  # nothing to speak of
    assert ask("go_back", lost(nav, lambda at: 2.0, healthy=(0,))) == []  # dearer than a quarter of the run
    taken = Decision(proposal=proposal, status="taken", why="", step=240)
    again = lost(nav, lambda at: 2.0)
    assert ask("go_back", nav.situation(250, *again.findings, run=again.run, steps=400, healthy=(190,),
                                        able=nav.ABLE, decisions=(taken,))) == []  # fmt: skip


def test_overwritten_weights_are_taken_back_with_the_same_batches(nav):
    found = nav.finding("weights_overwritten", ("weights_overwritten", 0.9), onset=200, last=250)
    run = table(250, loss=lambda at: np.where(at < 200, 1.0, 1.2))
    [proposal] = ask("go_back", where(nav, 250, found, run, healthy=(0, 190)))
    assert proposal.action.arguments == {"before": 191, "pass_data": False, "further": 0, "then": []}


def test_a_rate_that_was_thrown_up_is_not_met_with_the_same_rate_again(nav):
    run = table(250, rate=up, loss=lambda at: np.where(at < 200, 1.0, 5.0))
    high = nav.finding("divergence", ("learning_rate_too_high", 0.8), onset=203, last=250)
    situation = where(nav, 250, high, run, healthy=(0, 199))
    assert ask("go_back", situation) == []
    assert len(ask("level_schedule", situation)) == 1
    data = nav.finding("divergence", ("corrupted_batch", 0.8), onset=203, last=250)
    assert len(ask("go_back", where(nav, 250, data, run, healthy=(0, 199)))) == 1


def test_what_a_rate_beyond_all_before_has_done_is_no_bad_batch(nav):
    """A CNN whose rate is thrown up 80-fold: gradients explode by 14 decades, as by a corrupted batch."""
    burst = nav.finding("exploding_gradients", ("corrupted_batch", 0.58), onset=203, last=230)
    thrown = where(nav, 230, burst, table(230, rate=up, loss=lambda at: np.where(at < 200, 1.0, 1.1)), healthy=(0, 160))
    assert ask("recover", thrown) == []
    assert len(ask("level_schedule", thrown)) == 1
    band = {"rate_band": Action(name="rate_band", arguments={"most": 0.1})}
    held = where(nav, 230, burst, thrown.run, healthy=(0, 160), in_force=band)
    flat = where(nav, 230, burst, table(230, loss=lambda at: np.where(at < 200, 1.0, 1.1)), healthy=(0, 160))
    assert [[p.action.name for p in ask("recover", each)] for each in (held, flat)] == [["skip"], ["skip"]]


def test_lost_ground_is_no_matter_of_leaving_out_batches(nav):
    bad = lost(nav, lambda at: 2.0)
    spoilt = nav.finding("loss_spike", ("corrupted_batch", 0.8), onset=200, last=250)
    situation = where(nav, 250, spoilt, bad.run, healthy=(0, 190))
    assert ask("recover", situation) == []
    assert len(ask("go_back", situation)) == 1
    back = lost(nav, lambda at: 2.0 * np.exp(-(at - 200) / 20))
    assert [p.action.name for p in ask("recover", where(nav, 250, spoilt, back.run, healthy=(0, 190)))] == ["skip"]


def test_what_an_act_has_done_is_taken_back_with_it(nav):
    promise = Promise(column="loss", below=1.0, steps=20)
    action = Action(name="rate_band", arguments={"least": 0.1})
    proposal = Proposal(controller="level_schedule", action=action, promise=promise)

    def undone(measured, **known):
        outcome = Outcome(proposal=proposal, step=100, judged=120, kept=False, measured=measured, undone=True)
        run = table(120, loss=lambda at: 1 + 0.01 * np.sin(at * 2.3))
        known = {"healthy": (0, 80, 110), "outcomes": (outcome,), **known}
        return ask("go_back", nav.situation(known.pop("step", 120), run=run, steps=400, able=nav.ABLE, **known))

    [back] = undone(3.0)
    assert back.action.arguments == {"before": 81, "pass_data": True, "then": []}  # 110 has the act in it
    assert len(undone(float("nan"))) == 1
    assert undone(1.0) == []  # it has only not helped
    assert undone(3.0, step=121) == []  # an older matter
    assert undone(3.0, healthy=(110,)) == []


def test_trials_after_a_rollback_are_counted(nav):
    run = table(40, rate=2.0, ratio=0.4)
    situation = where(nav, 40, wrong(nav, "learning_rate_too_high", 40), run)
    [proposal] = ask("begin_anew", situation)
    state, [decision] = arbitrate(start(), [proposal], situation, "act")
    assert decision.status == "taken"
    assert (state["spent"]["lost"], state["spent"]["trial"]) == (40, 60)
    state["spent"] |= {"trial": 0, "lost": 30}  # 40 more to lose and 60 to try: 130 of 120
    _, [refused] = arbitrate({**start(), "spent": state["spent"]}, [proposal], situation, "act")
    assert "repairs may take 120 updates" in refused.why
