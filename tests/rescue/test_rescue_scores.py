import math

import pytest

from dynaxx.rescue.observer import Alarm, Observation
from dynaxx.rescue.repairs import alike, policy_score, repairs
from dynaxx.rescue.scores import changed, hurt, judge, observer_score
from dynaxx.rescue.training import Case, Ended

CAUSES = ("learning_rate_too_high",)


def run(alteration, seed, final, *, net="mlp", policy="nothing", span=(1, 100), passes=100, causes=CAUSES, order=0):
    case = Case(net=net, seed=seed, alteration=alteration, policy=policy, order=order)
    return Ended(
        case=case, folder="", status="finished", steps=100, step=100, passes=passes, final=final, span=span,
        codes=("D6", "D8"), causes=() if alteration is None else causes, repairable=alteration == "rate_too_high",
    )  # fmt: skip


def said(*steps, rule="spike", code="", causes=()):
    return Observation(alarms=tuple(Alarm(step=s, rule=rule, code=code) for s in steps), causes=causes, missing={})


CLEAN = [run(None, seed, 0.1 + 0.01 * seed) for seed in range(5)]


def test_a_fault_changes_the_outcome_if_it_is_worse_over_matched_seeds():
    worse = [run("rate_too_high", seed, 0.3 + 0.01 * seed) for seed in range(5)]
    mixed = [run("label_noise", seed, 0.3 if seed % 2 else 0.0) for seed in range(5)]
    found = {each.name: each for each in changed([*CLEAN, *worse, *mixed])}
    assert found["rate_too_high"].p == 1 / 32
    assert found["rate_too_high"].effect == pytest.approx(0.2 / 0.0158113883)
    assert found["label_noise"].p > 0.05
    # Of the significant kind all; of the other none, though two runs of it ended much worse.
    assert [each.case.name for each in hurt([*CLEAN, *worse, *mixed])] == ["rate_too_high"] * 5


def test_a_mild_draw_of_a_kind_that_hurts_need_not_be_found():
    runs = [run("rate_too_high", seed, 0.3 if seed else 0.115) for seed in range(5)]
    assert [each.case.seed for each in hurt([*CLEAN, *runs])] == [1, 2, 3, 4]


def test_a_run_that_ends_in_no_number_is_hurt():
    assert len(hurt([CLEAN[0], run("rate_too_high", 0, math.nan)])) == 1


def test_alarms_count_from_the_planting_on_and_not_where_the_twin_has_them_too():
    spiked = run("rate_bump", 0, 1.0, span=(50, 70))
    assert not judge(spiked, said(20, 49)).detected
    found = judge(spiked, said(20, 57))
    assert (found.detected, found.delay) == (True, 7)
    assert not judge(spiked, said(57), said(60)).detected
    assert judge(spiked, said(57), said(60, rule="another")).detected
    assert judge(spiked, said(57), said(90)).detected


def test_an_apt_detector_is_one_that_may_speak_of_it():
    faulty = run("rate_too_high", 0, 1.0)
    assert judge(faulty, said(9, code="D8")).apt
    assert not judge(faulty, said(9, code="D11")).apt
    assert observer_score([CLEAN[0], faulty], {faulty.case.key: said(9, code="D11")}).apt.of == 1
    assert observer_score([CLEAN[0], faulty], {faulty.case.key: said(9)}).apt.of == 0  # rules without codes


def test_the_place_of_the_right_cause():
    faulty = run("rate_too_high", 0, 1.0)
    names = ("overfitting", "learning_rate_too_high", "noise_floor")
    assert judge(faulty, said(1, causes=names)).place == 2
    assert judge(faulty, said(1, causes=names[:1])).place == 0


def test_an_observer_is_scored_over_faults_and_healthy_runs():
    faulty = [run("rate_too_high", seed, 1.0) for seed in range(5)]
    seen = {each.case.key: said() for each in CLEAN}
    seen[CLEAN[0].case.key] = said(60, 90)
    seen |= {each.case.key: said(30, causes=CAUSES) for each in faulty[:3]}
    seen[faulty[3].case.key] = said(30, causes=("overfitting", *CAUSES))
    seen[faulty[4].case.key] = said()
    score = observer_score([*CLEAN, *faulty], seen)
    assert (score.faults.hits, score.faults.of) == (4, 5)
    assert (score.first.hits, score.three.hits, score.three.of) == (3, 4, 5)
    assert (score.alarms.events, score.alarms.steps) == (2, 500)
    assert (score.healthy.hits, score.healthy.of) == (1, 5)
    assert score.delay == 30
    assert score.missed == (faulty[4].case.key,)
    assert score.noisiest == {"spike": 1}


def test_who_names_no_cause_is_not_judged_by_causes():
    faulty = run("rate_too_high", 0, 1.0)
    score = observer_score([CLEAN[0], faulty], {faulty.case.key: said(3), CLEAN[0].case.key: said()})
    assert score.faults.hits == 1
    assert score.first.of == 0


def test_repairs_are_within_five_percent_and_better_than_untouched():
    faulty = [run("rate_too_high", seed, math.nan if seed == 0 else 1.0) for seed in range(5)]
    finals = (0.104, 0.114, 0.13, 1.2, math.nan)  # clean: 0.10, 0.11, 0.12, 0.13, 0.14
    treated = [
        run("rate_too_high", seed, final, policy="halve", passes=130) for seed, final in enumerate(finals)
    ]  # fmt: skip
    found = repairs([*CLEAN, *faulty, *treated], "halve")
    assert [each.mended for each in found] == [True, True, False, False, False]
    assert [each.better for each in found] == [True, True, True, False, False]
    score = policy_score([*CLEAN, *faulty, *treated], "halve")
    assert (score.mended.hits, score.mended.of) == (2, 5)
    assert score.passes == pytest.approx(1.3)
    assert (score.kinds.hits, score.kinds.of) == (0, 1)


def on_orders(alteration, finals, **more):
    return [run(alteration, 0, final, order=order, **more) for order, final in enumerate(finals)]


def test_a_repair_is_judged_by_the_mean_over_orders_of_the_data():
    clean, faulty = on_orders(None, (0.1, 0.2, 0.4)), on_orders("rate_too_high", (1.0, 1.0, 1.0))
    one, *_ = repairs([*clean, *faulty, *on_orders("rate_too_high", (0.13, 0.2, 0.4), policy="halve")], "halve")
    assert (one.ratio.of, one.mended, one.single) == (3, False, pytest.approx(1.3))
    assert one.ratio.value == pytest.approx(1.3 ** (1 / 3))
    # The seed's own order is bad luck, the others make up for it; and the other way round.
    lucky = on_orders("rate_too_high", (0.13, 0.18, 0.34), policy="halve")
    assert repairs([*clean, *faulty, *lucky], "halve")[0].mended
    score = policy_score([*clean, *faulty, *lucky], "halve")
    assert ((score.mended.hits, score.mended.of), (score.single.hits, score.single.of)) == ((1, 1), (0, 1))
    assert score.sure.of == 0  # three orders that differ so cannot say on which side of 5 % the mean lies
    lost = on_orders("rate_too_high", (0.09, math.nan, 0.34), policy="halve")
    one, *_ = repairs([*clean, *faulty, *lost], "halve")
    assert (one.mended, one.ratio.value) == (False, math.inf)


def test_what_hurts_on_one_order_alone_is_no_case():
    clean, faulty = on_orders(None, (0.1, 0.2, 0.4)), on_orders("rate_too_high", (0.2, 0.12, 0.36))
    treated = on_orders("rate_too_high", (0.1, 0.2, 0.4), policy="halve")
    assert not repairs([*clean, *faulty, *treated], "halve")
    assert len(repairs([clean[0], faulty[0], treated[0]], "halve")) == 1


def test_a_case_whose_interval_lies_on_one_side_is_sure():
    clean, faulty = on_orders(None, (0.1,) * 4), on_orders("rate_too_high", (1.0,) * 4)
    good = on_orders("rate_too_high", (0.100, 0.101, 0.099, 0.100), policy="halve")
    bad = on_orders("rate_too_high", (0.2, 0.21, 0.19, 0.2), policy="halve")
    assert [policy_score([*clean, *faulty, *each], "halve").sure.hits for each in (good, bad)] == [1, 0]
    assert [policy_score([*clean, *faulty, *each], "halve").sure.of for each in (good, bad)] == [1, 1]


def test_orders_count_as_pairs_of_the_sign_flip_test():
    clean, faulty = on_orders(None, (0.1,) * 5), on_orders("rate_too_high", (1.0,) * 5)
    score = policy_score([*clean, *faulty, *on_orders("rate_too_high", (0.5,) * 5, policy="halve")], "halve")
    assert (score.kinds.hits, score.kinds.of) == (1, 1)


def test_what_the_measure_of_repair_gives_to_runs_without_a_fault_is_said():
    assert alike([0.1, 0.104], 1) == 1.0
    assert alike([0.1, 0.2], 1) == pytest.approx(0.5, abs=0.05)
    noisy = [0.1 * 1.5**sign for sign in (-1, 1) for _ in range(8)]
    assert alike(noisy, 1) < alike([0.1 * each for each in (0.99, 1.0, 1.01, 1.02)] * 4, 1) == 1.0
    assert math.isnan(alike([0.1, math.nan], 1))
    clean, faulty = on_orders(None, (0.1, 0.2, 0.4, 0.1)), on_orders("rate_too_high", (1.0,) * 2)
    treated = on_orders("rate_too_high", (0.1, 0.2), policy="halve")
    known = alike([0.1, 0.2, 0.4, 0.1], 2)  # clean trainings on more orders than the repair has
    assert policy_score([*clean, *faulty, *treated], "halve").alike == known < 1


def test_doing_nothing_repairs_nothing():
    faulty = [run("rate_too_high", seed, 1.0) for seed in range(5)]
    score = policy_score([*CLEAN, *faulty], "nothing")
    assert (score.mended.hits, score.mended.of, score.harmed.hits) == (0, 5, 0)


def test_harm_is_paired_with_the_untouched_healthy_run():
    acted = [run(None, seed, (0.1 + 0.01 * seed) * (1.02 if seed < 2 else 1.005), policy="halve") for seed in range(5)]
    score = policy_score([*CLEAN, *acted], "halve")
    assert (score.harmed.hits, score.harmed.of) == (2, 5)
    assert score.harm == 1 / 32
    assert score.healthy.value == pytest.approx((1.02**2 * 1.005**3) ** 0.2)
    assert [(each.name, each.net) for each in score.harms] == [("clean", "mlp")]  # by the mean over its seeds


def test_a_healthy_kind_that_a_bad_order_hits_once_is_not_harmed():
    clean = on_orders(None, (0.1, 0.1, 0.1, 0.1))
    score = policy_score([*clean, *on_orders(None, (0.102, 0.1, 0.1, 0.099), policy="halve")], "halve")
    assert ((score.harmed.hits, score.harmed.of), (score.worse.hits, score.worse.of)) == ((1, 4), (0, 1))
    assert score.healthy.value == pytest.approx((1.02 * 0.99) ** 0.25)
