"""What each controller proposes, and where it keeps still."""

import numpy as np
import pytest

from dynaxx import catalog
from dynaxx.controllers.layer_balance import balanced
from dynaxx.core.findings import Cause, Finding, Remedy, Test
from dynaxx.core.navigation import Decision, Outcome, Promise, Proposal
from dynaxx.core.records import Action, Axis, Column
from dynaxx.runlog import Table

STRENGTH_OF_STEP = 0.5 * np.log(100) / 7 + np.log(
    1.5
)  # a seventh of the way for the heavy layer, the bound for the light
CLIP = Action(name="adaptive_clip")
STEPS = np.arange(1, 401)


def ask(name, where, state=None):
    controller = catalog.get("controllers", name)()
    return list(controller.decide(controller.init() if state is None else state, where)[1])


def table(loss=None, **more):
    falling = 1 + np.exp(-STEPS / 200) + 0.0002 * np.sin(STEPS * 2.3)
    series = {"loss": (STEPS, falling if loss is None else loss)}
    return Table({**series, **{k.replace("__", "."): v for k, v in more.items()}})


def constant(value):
    return STEPS, np.full(len(STEPS), value)


def low(nav, **known):
    found = nav.finding("slow_progress", ("learning_rate_too_low", 0.9), last=400)
    return nav.situation(400, found, **{"run": table(), **known})


def high(nav, **known):
    found = nav.finding("oscillation", ("learning_rate_too_high", 0.9), last=400)
    return nav.situation(400, found, **{"run": table(), **known})


def done(action, controller, *, kept=True, step=300, finding=None, level=3):
    promise = Promise(column="loss", below=1.0, steps=20)
    proposal = Proposal(controller=controller, action=action, finding=finding, promise=promise, level=level)
    decision = Decision(proposal=proposal, status="taken", why="", step=step)
    return decision, Outcome(proposal=proposal, step=step, judged=step + 20, kept=kept, measured=1.0, undone=not kept)


def rate(factor):
    return Action(name="learning_rate", arguments={"factor": factor})


@pytest.mark.parametrize(
    ("column", "factor"),
    [
        ({}, 3.0),
        ({"update_ratio__total": constant(1e-5)}, 10.0),  # aims at 1/300, at most × 10
        ({"update_ratio__total": constant(2e-4)}, 10.0),
        ({"update_ratio__total": constant(1 / 1500)}, 5.0),
        ({"update_ratio__total": constant(5e-3)}, 2.0),  # at most to 1e-2
        ({"update_ratio__total": constant(9e-3)}, None),
        ({"stability_margin": constant(4.0)}, 2.0),  # half of the margin
        ({"stability_margin": constant(2.0)}, None),
        ({"lr": (STEPS, STEPS / 1000)}, None),  # the loop itself is warming up
    ],
)
def test_rate_up_is_bounded_by_what_is_logged(nav, column, factor):
    found = ask("rate_up", low(nav, run=table(**column)))
    assert [p.action.arguments["factor"] for p in found] == ([] if factor is None else [factor])


def test_rate_up_stops_at_ten_thousand(nav):
    run = table(update_ratio__total=constant(1e-5))
    found = ask("rate_up", low(nav, run=run, in_force={"learning_rate": rate(5000.0)}))
    assert found[0].action.arguments == {"factor": 10_000.0}
    assert ask("rate_up", low(nav, run=run, in_force={"learning_rate": rate(9000.0)})) == []


def test_rate_up_stops_at_thirty_where_no_update_is_logged(nav):
    assert ask("rate_up", low(nav, in_force={"learning_rate": rate(9.0)}))[0].action.arguments == {"factor": 27.0}
    assert ask("rate_up", low(nav, in_force={"learning_rate": rate(27.0)})) == []


def test_rate_up_searches_before_it_climbs(nav):
    run = table(lr=(STEPS, np.full(len(STEPS), 1e-4)), update_ratio__total=constant(1e-5))
    [proposal] = ask("rate_up", low(nav, run=run))
    arms = [arm[0]["arguments"]["factor"] for arm in proposal.action.arguments["arms"].values()]
    assert proposal.action.name == "trial"
    assert arms == [1000.0, 3000.0, 10_000.0]  # updates of 1, 3 and 10 % of the weights
    assert proposal.action.arguments["scale"] == pytest.approx(1 / 3)
    look, _ = done(Action(name="check", arguments={"check": "directional_curvature"}), "rate_up", step=40)
    assert ask("rate_up", low(nav, run=run, decisions=(look,), outcomes=(_,)))[0].action.name == "trial"
    decision, _ = done(proposal.action, "rate_up", step=380)
    where = low(nav, run=run, decisions=(decision,))
    assert "trial" not in [p.action.name for p in ask("rate_up", where)]  # once


def test_rate_up_climbs_on_a_horizon_after_a_search(nav):
    """The search sets a third of its winner; what is left is tried under a promise, where nothing is wrong."""
    trial = Proposal(controller="rate_up", action=Action(name="trial", arguments={"arms": {}, "steps": 11}))
    decision = Decision(proposal=trial, status="taken", why="", step=380)
    known = {"run": table(), "in_force": {"learning_rate": rate(3.0)}, "decisions": (decision,)}
    [proposal] = ask("rate_up", nav.situation(400, **known))
    assert proposal.action.arguments == {"factor": 9.0}
    assert proposal.promise is not None
    assert ask("rate_up", nav.situation(390, **known)) == []
    wrong = nav.finding("divergence", ("data_shift", 0.8), onset=385, last=400)
    assert ask("rate_up", nav.situation(400, wrong, **known)) == []


def test_rate_up_promises_what_a_faster_descent_would_show(nav):
    promise = ask("rate_up", low(nav))[0].promise
    level, slope = 1 + np.exp(-2), -np.exp(-2) / 200
    assert level + 2.2 * 20 * slope < promise.below < level + 1.2 * 20 * slope
    noisy = table(loss=2 - STEPS * 1e-5 + 0.3 * np.sin(STEPS * 2.3))
    promise = ask("rate_up", low(nav, run=noisy))[0].promise
    assert promise.below > 2.0  # nothing could be seen: it is only to do no harm


def test_rate_up_climbs_on_after_a_kept_promise_and_not_after_a_broken_one(nav):
    action = rate(3.0)
    decision, outcome = done(action, "rate_up", step=380)
    where = {"run": table(), "in_force": {"learning_rate": action}, "decisions": (decision,), "outcomes": (outcome,)}
    assert ask("rate_up", nav.situation(400, **where))[0].action.arguments == {"factor": 9.0}
    assert ask("rate_up", nav.situation(390, **{**where, "outcomes": ()})) == []  # still to be judged
    resting = table(loss=1 + 0.05 * np.sin(STEPS * 2.3))
    assert ask("rate_up", nav.situation(400, **{**where, "run": resting})) == []  # nothing could be seen
    tiny = table(loss=1 + 0.05 * np.sin(STEPS * 2.3), update_ratio__total=constant(1e-4))
    assert ask("rate_up", nav.situation(400, **{**where, "run": tiny}))[0].action.arguments == {"factor": 30.0}
    flat = table(loss=1 + 0.05 * np.sin(STEPS * 2.3), lr=(STEPS, np.full(len(STEPS), 0.3)), lr__factor=constant(3.0))
    for ratio, factors in ((0.002, [9.0]), (-0.002, [9.0]), (0.004, [])):  # looked at at a rate of 0.1, a third of now
        look = {"directional_curvature": {"step": 40, "values": {"ratio": ratio, "rate": 0.1}}}
        found = ask("rate_up", nav.situation(400, **{**where, "run": flat, "last": look}))
        assert [p.action.arguments["factor"] for p in found] == factors
    _, broken = done(action, "rate_up", kept=False, step=380)
    assert ask("rate_up", nav.situation(400, **{**where, "in_force": {}, "outcomes": (broken,)})) == []


def test_short_updates_are_looked_at_once(nav):
    short = table(update_ratio__total=constant(5e-4))
    [proposal] = ask("rate_up", nav.situation(400, run=short))
    assert (proposal.action.name, proposal.action.arguments) == ("check", {"check": "directional_curvature"})
    assert ask("rate_up", nav.situation(400, run=table(update_ratio__total=constant(2e-3)))) == []
    assert ask("rate_up", nav.situation(400, run=short, last={"directional_curvature": {"step": 40}})) == []
    annealed = table(update_ratio__total=constant(5e-4), lr=(STEPS, np.linspace(1.0, 0.4, len(STEPS))))
    assert ask("rate_up", nav.situation(400, run=annealed)) == []
    warming = table(update_ratio__total=constant(5e-4), lr=(STEPS, STEPS / 400))
    assert ask("rate_up", nav.situation(400, run=warming)) == []


@pytest.mark.parametrize(("ratio", "factor"), [(2e-2, None), (5e-3, 0.2), (1e-3, 0.3)])
def test_the_way_back_ends_where_updates_are_large(nav, ratio, factor):
    calm = {"clock": {"updates": 399, "step": 399}, "accused": 360, "factor": 0.1}
    where = nav.situation(400, run=table(update_ratio__total=constant(ratio)), in_force={"learning_rate": rate(0.1)})
    assert [p.action.arguments["factor"] for p in ask("rate_down", where, calm)] == ([factor] if factor else [])


def test_late_in_the_run_nothing_is_raised(nav):
    assert ask("rate_up", low(nav, steps=490)) == []
    assert len(ask("rate_up", low(nav, steps=510))) == 1


def test_rate_down_halves_twice_and_leaves_the_rest_to_the_ladder(nav):
    [proposal] = ask("rate_down", high(nav))
    assert proposal.action.arguments == {"factor": 0.5}
    finding = proposal.finding
    once, judged = done(rate(0.5), "rate_down", finding=finding)
    where = {"decisions": (once,), "outcomes": (judged,), "in_force": {"learning_rate": rate(0.5)}}
    assert ask("rate_down", high(nav, **where))[0].action.arguments == {"factor": 0.25}
    assert ask("rate_down", high(nav, **{**where, "decisions": (once, once), "outcomes": (judged, judged)})) == []
    assert ask("rate_down", high(nav, **{**where, "outcomes": ()})) == []  # still to be judged


def test_rate_down_leaves_alone_what_is_over(nav):
    for last, cuts in ((395, 1), (394, 0)):
        found = nav.finding("update_size", ("learning_rate_too_high", 0.9), last=last)
        assert len(ask("rate_down", nav.situation(400, found, run=table()))) == cuts


def test_rate_down_does_not_cut_while_the_loss_comes_back(nav):
    found = nav.finding("divergence", ("learning_rate_too_high", 0.6), onset=360, last=400)
    noise = 0.05 * np.sin(STEPS * 2.3)
    back = np.where(STEPS < 360, 0.2, 0.8 * np.exp(-(STEPS - 360) / 30)) + noise
    stays = np.where(STEPS < 360, 0.2, 0.3) + noise
    assert ask("rate_down", nav.situation(400, found, run=table(loss=back))) == []
    assert len(ask("rate_down", nav.situation(400, found, run=table(loss=stays)))) == 1
    swings = nav.finding("oscillation", ("learning_rate_too_high", 0.6), last=400)
    assert len(ask("rate_down", nav.situation(400, swings, run=table(loss=back)))) == 1


def test_rate_down_leaves_an_annealed_schedule_alone(nav):
    found = nav.finding("schedule_too_aggressive", ("schedule_too_aggressive", 0.9), last=400)
    decayed = table(lr=(STEPS, 0.1 * np.exp(-STEPS / 40)))
    assert ask("rate_down", nav.situation(400, found, run=decayed)) == []
    rising = table(lr=(STEPS, 0.1 * np.exp(STEPS / 40)))
    assert len(ask("rate_down", nav.situation(400, found, run=rising))) == 1


def test_rate_down_goes_back_up_when_calm_and_only_where_it_could_be_seen_to_help(nav):
    calm = {"clock": {"updates": 399, "step": 399}, "accused": 360, "factor": 0.1}
    force = {"learning_rate": rate(0.1)}
    [proposal] = ask("rate_down", nav.situation(400, run=table(), in_force=force), calm)
    assert proposal.action.arguments == {"factor": 0.3}
    assert proposal.finding is None
    assert ask("rate_down", nav.situation(400, run=table(), in_force={}), calm) == []
    assert ask("rate_down", nav.situation(400, run=table(), in_force=force), {**calm, "accused": 361}) == []
    resting = table(loss=1 + 0.05 * np.sin(STEPS * 2.3))
    assert ask("rate_down", nav.situation(400, run=resting, in_force=force), calm) == []
    mild = {**calm, "factor": 0.5}
    assert len(ask("rate_down", nav.situation(400, run=resting, in_force={"learning_rate": rate(0.5)}), mild)) == 1
    [last] = ask(
        "rate_down", nav.situation(400, run=table(), in_force={"learning_rate": rate(0.6)}), {**calm, "factor": 0.6}
    )
    assert last.action.arguments == {"factor": 1.0}


def plateau(nav, cause="flat_valley", **known):
    found = nav.finding("plateau", (cause, 0.8), onset=250, last=400)
    evaluations = np.arange(20, 401, 20)
    resting = 1.2 + 0.01 * np.sin(evaluations * 1.0)
    run = table(loss=1 + 0.01 * np.sin(STEPS * 2.3), val_loss=(evaluations, resting), **known.pop("columns", {}))
    return nav.situation(400, found, run=run, **known)


@pytest.mark.parametrize(
    ("columns", "factor"),
    [({}, 3.0), ({"stability_margin": constant(100.0)}, 5.0), ({"stability_margin": constant(5.0)}, 2.5),
     ({"stability_margin": constant(3.0)}, None)],
)  # fmt: skip
def test_a_kick_is_between_two_and_five_and_leaves_room_to_the_edge(nav, columns, factor):
    found = ask("kick", plateau(nav, columns=columns))
    assert [p.action.arguments["factor"] for p in found] == ([] if factor is None else [factor])
    for proposal in found:
        assert proposal.action.steps == 20
        assert proposal.promise.column == "val_loss"
        assert proposal.promise.below < 1.2


def test_a_kick_needs_a_plateau_that_leads_on_and_a_free_rate(nav):
    assert ask("kick", plateau(nav, "noise_floor")) == []
    assert ask("kick", plateau(nav, "converged")) == []
    assert ask("kick", plateau(nav, in_force={"learning_rate": rate(0.5)})) == []
    assert ask("kick", plateau(nav, columns={"lr": (STEPS, 0.1 * np.exp(-STEPS / 100))})) == []
    decisions, outcomes = zip(*[done(rate(3.0), "kick") for _ in range(3)], strict=True)
    assert ask("kick", plateau(nav, decisions=decisions, outcomes=outcomes)) == []
    still_falling = nav.situation(
        400,
        nav.finding("plateau", ("flat_valley", 0.8), last=400),
        run=table(val_loss=(np.arange(20, 401, 20), 2 - np.arange(20, 401, 20) / 300)),
    )
    assert ask("kick", still_falling) == []


def test_a_restart_takes_an_annealed_rate_back_up(nav):
    decayed = {"lr": (STEPS, 0.1 * np.cos(STEPS / 400 * np.pi / 2.5))}
    [proposal] = ask("restart", plateau(nav, columns=decayed))
    assert proposal.action.arguments == {"factor": 3.24}  # 1 / cos(72°), from step 1 on
    assert proposal.action.steps == 300
    assert ask("restart", plateau(nav, columns=decayed, steps=500)) == []  # a fifth is left: too late
    assert ask("restart", plateau(nav)) == []
    bumped = {"lr": (STEPS, np.where((STEPS >= 250) & (STEPS < 260), 9.0, 0.1))}  # the finding's onset is 250
    assert ask("restart", plateau(nav, columns=bumped)) == []  # what it would go back to is what did the harm


def test_layers_are_evened_out_slowly(nav):
    axis = Axis(name="layer", labels=("a.0", "b", "frozen"), weights=(1.0, 1.0, 5.0))
    ratios = np.tile([1e-4, 1e-2, 0.0], (40, 1))
    at = np.arange(361, 401)
    run = Table(
        {"loss": table()._series["loss"], "update_ratio": (at, ratios)},
        columns={"update_ratio": Column(name="update_ratio", axis=axis)},
    )
    found = nav.finding("update_mismatch", ("ill_conditioned", 0.8), last=400)
    [proposal] = ask("layer_balance", nav.situation(400, found, run=run))
    assert proposal.action.arguments["factors"] == {r"a\.0": 1.5, "b": 0.667}
    force = {"layer_rates": Action(name="layer_rates", arguments={"factors": {r"a\.0": 2.5, "b": 0.4}})}
    [proposal] = ask("layer_balance", nav.situation(400, found, run=run, in_force=force))
    factors = proposal.action.arguments["factors"]
    assert factors["a\\.0"] / factors["b"] == pytest.approx(9.8, rel=0.01)  # within the bound of 10
    assert ask("layer_balance", nav.situation(400, run=run)) == []


def test_layers_factors_keep_the_rate_of_the_whole_model():
    weights, present = np.array([6.0, 1.0, 0.0]), np.log([1.1, 0.8, 1.0])
    found = balanced(present, np.log([1e-4, 1e-2, 1.0]), weights)
    assert weights @ found == pytest.approx(0, abs=1e-12)
    assert found[2] == 0
    assert found[0] - found[1] == pytest.approx(present[0] - present[1] + STRENGTH_OF_STEP, rel=1e-6)


def noisy(nav, noise, cause="batch_too_small", **known):
    columns = {"gradient_noise": constant(noise), "effective_batch": constant(32.0)}
    accused = nav.finding("noise_dominated", (cause, 0.9), last=400)
    return nav.situation(400, accused, run=table(**columns), **known)


def test_batches_are_accumulated_by_the_noise_scale(nav):
    [proposal] = ask("batch_size", noisy(nav, 400.0))
    assert proposal.action == Action(
        name="accumulate", arguments={"batches": 2}, steps=200, reason=proposal.action.reason
    )
    assert ask("batch_size", noisy(nav, 40.0)) == []
    force = {"accumulate": Action(name="accumulate", arguments={"batches": 4})}
    assert ask("batch_size", noisy(nav, 400.0, in_force=force))[0].action.arguments["batches"] == 8
    halved = ask("batch_size", noisy(nav, 4.0, "batch_too_large", in_force=force))
    assert halved[0].action.arguments == {"batches": 2}


def test_epsilon(nav):
    lag = nav.finding("loss_spike", ("preconditioner_lag", 0.9), last=400)
    [proposal] = ask("epsilon", nav.situation(400, lag, run=table()))
    assert proposal.action.arguments == {"value": 1e-6}
    assert ask("epsilon", nav.situation(400, lag, run=table(), in_force={"epsilon": proposal.action})) == []
    large = nav.finding("epsilon_dominates", ("epsilon_too_large", 0.9), last=400)
    assert ask("epsilon", nav.situation(400, large, run=table())) == []  # `usual_setting` answers it


def spikes(nav, count, *others, **known):
    found = Finding(
        code="D6",
        name="loss_spike",
        title="spikes",
        severity="warning",
        spans=tuple((300 + 20 * i, 302 + 20 * i) for i in range(count)),
        causes=(Cause(name="hard_batch", confidence=0.8),),
    )
    return nav.situation(400, found, *others, run=table(), **known)


def test_spikes_that_recur_are_clipped_at_a_quantile(nav):
    assert ask("clip_spikes", spikes(nav, 3))[0].action.arguments == {"by": "quantile", "quantile": 0.9}
    assert ask("clip_spikes", spikes(nav, 2)) == []
    assert ask("clip_spikes", spikes(nav, 3, nav.finding("clipping_always_on", last=400))) == []
    assert ask("clip_spikes", spikes(nav, 3, in_force={"gradient_clip": Action(name="gradient_clip")})) == []


def test_weight_decay_is_a_word(nav):
    run = table()
    run.manifest["optimizer"] = {"groups": [{"weight_decay": 0.03}, {"weight_decay": 0.0}]}
    found = nav.finding("overfitting", ("overfitting", 0.9), last=400)
    [proposal] = ask("weight_decay", nav.situation(400, found, run=run))
    assert proposal.action.name == "advice"
    assert "raise the weight decay to 0.09" in proposal.action.reason


def test_a_check_is_asked_for_where_causes_are_close_and_once(nav):
    def where(first, second, **known):
        causes = (("hard_batch", first), ("corrupted_batch", second))
        found = nav.finding("loss_spike", *causes, onset=350, last=400, check="replay_batch")
        return nav.situation(400, found, run=table(), **known)

    assert ask("escalate", where(0.6, 0.5))[0].action.arguments == {"check": "replay_batch"}
    assert len(ask("escalate", where(0.4, 0.1))) == 1
    assert ask("escalate", where(0.8, 0.5)) == []
    assert ask("escalate", where(0.6, 0.5, last={"replay_batch": {"values": {}, "step": 360}})) == []
    assert len(ask("escalate", where(0.6, 0.5, last={"replay_batch": {"values": {}, "step": 340}}))) == 1


def test_a_trial_is_asked_for_when_the_check_did_not_part_them(nav):
    def where(other=CLIP, check="replay_batch", **known):
        cut = Action(name="learning_rate", arguments={"factor": 0.5})
        causes = (
            Cause(name="learning_rate_too_high", confidence=0.6, remedies=(Remedy(text="cut", action=cut),)),
            Cause(name="preconditioner_lag", confidence=0.5, remedies=(Remedy(text="clip", action=other),)),
        )
        found = Finding(code="D6", name="loss_spike", title="a spike", severity="warning", spans=((350, 400),),
                        causes=causes, test=None if check is None else Test(text="", check=check))  # fmt: skip
        known = {"steps": 4000, "run": table(), **known}
        return nav.situation(400, found, **known)

    assert ask("trial", where()) == []  # the check comes first
    after = {"last": {"replay_batch": {"values": {}, "step": 360}}}
    [proposal] = ask("trial", where(**after, in_force={"learning_rate": rate(0.5)}))
    arms = proposal.action.arguments["arms"]
    assert {k: (v[0]["name"], v[0]["arguments"]) for k, v in arms.items()} == {
        "learning_rate_too_high": ("learning_rate", {"factor": 0.25}),  # a total
        "preconditioner_lag": ("adaptive_clip", {}),
    }
    assert proposal.action.arguments["steps"] == 100  # the most; 3 arms within half of 20 % of 4000 would be 133
    assert len(ask("trial", where(check=None))) == 1
    same = Action(name="learning_rate", arguments={"factor": 0.5})
    assert ask("trial", where(same, **after)) == []
    assert ask("trial", where(steps=250, **after)) == []  # 8 steps an arm are too few


def memorising(nav, *others, onset=200, step=400, **known):
    at = np.arange(20, 401, 20)
    run = table(val_loss=(at, 1 + ((at - 200) / 200) ** 2))
    found = nav.finding("overtraining", ("overfitting", 0.9), onset=onset, last=step)
    return nav.situation(step, found, *others, run=run, **known)


def test_a_run_that_only_memorises_ends_at_its_best_checkpoint(nav):
    [proposal] = ask("overtraining", memorising(nav, healthy=(100, 180, 300)))
    assert proposal.level == 6
    assert proposal.action.name == "rollback"
    assert proposal.action.arguments["before"] == 181
    assert [a["name"] for a in proposal.action.arguments["then"]] == ["stop"]
    [proposal] = ask("overtraining", memorising(nav))
    assert proposal.action.name == "stop"
    assert "1 at step 200" in proposal.action.reason
    assert ask("overtraining", memorising(nav, onset=310)) == []  # a tenth of the run has not passed
    grokking = nav.finding("grokking", ("grokking", 0.9), severity="note", last=400)
    assert ask("overtraining", memorising(nav, grokking)) == []
