"""The ladder, rung by rung: which one follows from cause, severity, harm and what was tried."""

import numpy as np
import pytest

from dynaxx import catalog
from dynaxx.core.navigation import Decision, Outcome, Promise, Proposal
from dynaxx.core.records import Action
from dynaxx.runlog import Table


def log(nav, level, since=200, steps=230, ratio=None):
    """A loss of 1 with 1 % noise that jumps to a level."""
    at = np.arange(1, steps + 1)
    loss = np.where(at < since, 1.0, level) * (1 + 0.01 * np.sin(at * 2.3))
    series = {"loss": (at, loss)}
    if ratio is not None:
        series["update_ratio.total"] = (at, np.full(steps, ratio))
    return Table(series)


def climb(nav, cause, severity="critical", level=9.0, step=230, onset=200, run=None, **known):
    """The first proposal about an incident, as (level, action)."""
    found = nav.finding("divergence", (cause, 0.8), severity=severity, onset=onset, last=step)
    where = nav.situation(step, found, run=log(nav, level, steps=step) if run is None else run, **known)
    recover = catalog.get("controllers", "recover")()
    _, proposals = recover.decide(recover.init(), where)
    return proposals[0] if proposals else None


@pytest.mark.parametrize(
    ("cause", "severity", "level", "rung", "name"),
    [
        ("corrupted_batch", "warning", 1.0, 1, "skip"),
        ("corrupted_batch", "critical", 1.0, 1, "skip"),  # the loss has come back: the mildest rung does
        ("corrupted_batch", "critical", 9.0, 4, "rollback"),
        ("corrupted_batch", "critical", np.nan, 4, "rollback"),
        ("preconditioner_lag", "warning", 1.0, 2, "adaptive_clip"),
        ("preconditioner_lag", "critical", 9.0, 4, "rollback"),
        ("learning_rate_too_high", "critical", 1.0, 3, "learning_rate"),
        ("learning_rate_too_high", "critical", 9.0, 5, "rollback"),
    ],
)
def test_where_the_ladder_begins(nav, cause, severity, level, rung, name):
    proposal = climb(nav, cause, severity, level, healthy=(100, 180))
    assert (proposal.level, proposal.action.name) == (rung, name)
    assert proposal.promise is not None
    assert proposal.promise.below == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("cause", ["hard_batch", "data_shift", "frozen_parameters", "wrong_loss_sign", "converged"])
def test_what_is_a_persons_business_is_left_to_one(nav, cause):
    assert climb(nav, cause, healthy=(180,)) is None


def test_a_rate_that_is_merely_accused_is_left_to_rate_down(nav):
    assert climb(nav, "learning_rate_too_high", "warning", 9.0, healthy=(180,)) is None


def test_a_rollback_goes_before_the_onset_and_lowers_the_rate_where_that_is_the_cause(nav):
    data = climb(nav, "corrupted_batch", healthy=(100, 180, 210)).action
    assert data.arguments == {"before": 181, "pass_data": True, "further": 20, "then": []}
    rate = climb(nav, "learning_rate_too_high", healthy=(100, 180, 210)).action
    assert rate.arguments["before"] == 181
    assert [(a["name"], a["arguments"]) for a in rate.arguments["then"]] == [("learning_rate", {"factor": 0.1})]


def test_how_deep_a_cut_follows_from_what_is_logged(nav):
    margin = Table({"loss": (range(1, 231), [1.0] * 230), "stability_margin": ([200, 225], [0.5, 0.5])})
    assert climb(nav, "learning_rate_too_high", run=margin).action.arguments == {"factor": 0.25}
    huge = log(nav, 1.0, ratio=3.0)
    assert climb(nav, "learning_rate_too_high", run=huge).action.arguments == {"factor": 0.01}  # 3 % over 300 %


def test_what_has_kept_its_promise_survives_the_rollback(nav):
    raised = Action(name="learning_rate", arguments={"factor": 3.0})
    clip, fresh = Action(name="adaptive_clip"), Action(name="skip", arguments={"when": "outlier"})
    force = {a.name: a for a in (raised, clip, fresh)}
    good = tuple(outcome(a, kept=True) for a in (raised, clip))
    then = climb(nav, "corrupted_batch", healthy=(180,), in_force=force, outcomes=good).action.arguments["then"]
    assert [(a["name"], a["arguments"]) for a in then] == [("adaptive_clip", {}), ("learning_rate", {"factor": 3.0})]


def test_an_act_that_was_just_undone_did_it_so_the_rate_stays(nav):
    kick = outcome(Action(name="learning_rate", arguments={"factor": 3.0}), judged=230)
    proposal = climb(nav, "learning_rate_too_high", healthy=(180,), outcomes=(kick,))
    assert (proposal.level, proposal.action.name, proposal.action.arguments["then"]) == (4, "rollback", [])


def outcome(action, *, kept=False, judged=150, controller="other"):
    promise = Promise(column="loss", below=1.0, steps=20)
    proposal = Proposal(controller=controller, action=action, promise=promise)
    return Outcome(proposal=proposal, step=100, judged=judged, kept=kept, measured=1.0, undone=not kept)


class Incident:
    """A run that stays at nine times its loss whatever is done; rollbacks are carried out, promises are broken."""

    def __init__(self, nav, cause, healthy):
        self.nav, self.cause, self.healthy = nav, cause, healthy
        self.recover = catalog.get("controllers", "recover")()
        self.state = self.recover.init()
        self.decisions, self.outcomes = [], []
        self.step = 230
        self.acts = []

    def go(self, turns, anew=True):
        for _ in range(turns):
            onset = min(self.step, max(200, self.step - 8) if anew else 200)
            found = self.nav.finding("divergence", (self.cause, 0.8), severity="critical", onset=onset, last=self.step)
            where = self.nav.situation(
                self.step,
                found,
                run=log(self.nav, 9.0, since=min(200, self.step - 3), steps=self.step),
                healthy=self.healthy,
                decisions=tuple(self.decisions),
                outcomes=tuple(self.outcomes),
            )
            self.state, proposals = self.recover.decide(self.state, where)
            for proposal in proposals:
                self.acts.append((proposal.level, proposal.action))
                self.decisions.append(Decision(proposal=proposal, status="taken", why="", step=self.step))
                if proposal.action.name == "stop":
                    return self
                if proposal.action.name == "rollback":
                    self.step = max(s for s in self.healthy if s < proposal.action.arguments["before"])
            self.step += 20
            for decision in self.decisions[len(self.outcomes) :]:
                if decision.proposal.promise is not None:
                    broken = outcome(decision.proposal.action, controller="recover")
                    self.outcomes.append(broken)
        return self


@pytest.mark.parametrize("cause", ["corrupted_batch", "learning_rate_too_high", "preconditioner_lag"])
@pytest.mark.parametrize("anew", [True, False])
def test_every_ladder_ends(nav, cause, anew):
    run = Incident(nav, cause, healthy=(150, 170, 190)).go(60, anew)
    levels = [level for level, _ in run.acts]
    assert levels[-1] == 6
    backs = [action.arguments["before"] for level, action in run.acts if level in (4, 5)]
    assert len(backs) == 3
    assert backs == sorted(backs, reverse=True)
    assert len(set(backs)) == 3  # each further back
    assert levels.count(4) <= 1
    assert levels.count(3) <= 3
    reason = run.acts[-1][1].reason
    assert "tried: " in reason
    assert "rollback" in reason


def test_a_rollback_beyond_the_budget_is_not_asked_for(nav):
    cut = climb(nav, "learning_rate_too_high", step=450, onset=200, healthy=(180,), level=9.0)
    assert cut.action.name == "learning_rate"  # 270 of 1000 updates would be repeated; 250 may be


def test_a_run_that_cannot_go_back_has_its_rate_cut(nav):
    proposal = climb(nav, "corrupted_batch", able=nav.ABLE - {"rollback"}, healthy=(180,))
    assert (proposal.level, proposal.action.name) == (3, "learning_rate")


def test_lost_weights_without_a_checkpoint_are_a_reason_to_stop(nav):
    proposal = climb(nav, "learning_rate_too_high", level=np.nan)
    assert (proposal.level, proposal.action.name) == (6, "stop")
    assert "nothing was possible" in proposal.action.reason


def test_a_loss_that_comes_down_by_itself_is_not_stopped(nav):
    """The ladder is at its end, but the run is on its way back."""
    at = np.arange(1, 331)
    loss = np.where(at < 200, 1.0, 1.0 + 300 * np.exp(-(at - 200) / 30.0)) * (1 + 0.01 * np.sin(at * 2.3))
    run = Table({"loss": (at, loss)})
    recover = catalog.get("controllers", "recover")()
    found = nav.finding("divergence", ("corrupted_batch", 0.8), severity="critical", onset=200, last=330)
    where = nav.situation(330, found, run=run, able=frozenset({"stop"}))
    state = {**recover.init(), "since": 0, "clock": {"updates": 330, "step": 330}, "quiet": 330}
    assert recover.decide(state, where)[1] == ()


def test_a_rate_that_ruined_the_first_steps_begins_again(nav):
    """Huge updates, a loss above where it began: going back 20 steps is cheaper than seeing whether a cut helps."""
    at = np.arange(1, 21)
    ruined = Table({"loss": (at, 2.3 * at), "update_ratio.total": (at, np.r_[3.0, np.full(19, 0.01)])})
    found = nav.finding("update_size", ("learning_rate_too_high", 0.9), onset=1, last=16)
    where = nav.situation(20, found, run=ruined, healthy=(0,))
    recover, down = (catalog.get("controllers", name)() for name in ("recover", "rate_down"))
    [proposal] = recover.decide(recover.init(), where)[1]
    assert (proposal.level, proposal.action.arguments["before"]) == (5, 1)
    assert proposal.action.arguments["then"][0]["arguments"] == {"factor": 0.00333}  # updates of 1 %
    assert down.decide(down.init(), where)[1] == ()
    calmer = Table({"loss": (at, 2.3 / at), "update_ratio.total": (at, np.r_[3.0, np.full(19, 0.01)])})
    assert recover.decide(recover.init(), nav.situation(20, found, run=calmer, healthy=(0,)))[1] == ()
    assert len(down.decide(down.init(), nav.situation(20, found, run=calmer, healthy=(0,)))[1]) == 1


@pytest.mark.parametrize(("ratio", "again"), [(0.13, True), (0.11, True), (0.09, False)])
def test_weights_that_were_replaced_begin_again_though_the_loss_falls(nav, ratio, again):
    """Twenty updates of 13 % of the weights leave nothing of how they began; one below a tenth is only cut."""
    at = np.arange(1, 21)
    run = Table({"loss": (at, 5.0 / at**0.2), "update_ratio.total": (at, np.full(20, ratio))})
    found = nav.finding("update_size", ("learning_rate_too_high", 0.9), onset=1, last=16)
    where = nav.situation(20, found, run=run, healthy=(0,))
    recover, down = (catalog.get("controllers", name)() for name in ("recover", "rate_down"))
    proposals = recover.decide(recover.init(), where)[1]
    assert [p.action.name for p in proposals] == ["rollback"] * again
    assert len(down.decide(down.init(), where)[1]) == (not again)
    if again:
        [lower] = proposals[0].action.arguments["then"]
        assert lower["arguments"]["factor"] == pytest.approx(0.01 / ratio, rel=0.005)
