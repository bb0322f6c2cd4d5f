"""Whatever detectors may say, in whatever order: budgets and bounds hold, ladders end, replays agree."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dynaxx.controllers import begin, navigate
from dynaxx.controllers._limits import (
    ACTS,
    ACTS_IN_ALL,
    CHECKS,
    LAYER_SPREAD,
    LEAST_RATE,
    MOST_RATE,
    ROLLBACKS,
    limits,
)
from dynaxx.core.causes import CAUSES
from dynaxx.core.findings import Cause, Finding, Remedy, Test
from dynaxx.core.navigation import Situation
from dynaxx.core.records import Action, Axis, Column
from dynaxx.runlog import Table

ABLE = frozenset(
    ("learning_rate", "layer_rates", "gradient_clip", "adaptive_clip", "skip", "epsilon", "stop", "accumulate")
) | {"rollback", "check", "trial"}
NAMES = (
    "loss_spike",
    "divergence",
    "oscillation",
    "update_mismatch",
    "convergence",
    "overfitting",
    "overtraining",
    "x",
)
ACTED_ON = frozenset(
    ("learning_rate_too_high", "learning_rate_too_low", "corrupted_batch", "overflow", "preconditioner_lag", "saddle")
) | {"schedule_too_aggressive", "batch_too_small", "exploding_gradients", "flat_valley"}
PERSISTENT = settings(max_examples=15, deadline=None)


REMEDY_ACTIONS = (Action(name="learning_rate", arguments={"factor": 0.5}), Action(name="adaptive_clip"))


def findings(random, step):
    """Up to four at random; numbers rather than hypothesis draw them, which is twenty times as fast."""
    some = random.choice(NAMES, size=random.integers(0, 5), replace=False)
    return [finding(random, str(name), step) for name in some]


def finding(random, name, step):
    onset = int(random.integers(max(1, step - 60), step + 1))
    causes = random.choice(
        sorted(ACTED_ON if random.random() < 0.8 else CAUSES), size=random.integers(0, 4), replace=False
    )
    remedies = [Remedy(text=a.name, action=a) for a in random.permutation(REMEDY_ACTIONS)]
    check = random.choice(["", "replay_batch", "example_losses"])
    return Finding(
        code="D0",
        name=name,
        title="t",
        severity=str(random.choice(["note", "warning", "critical", "critical"])),
        spans=((onset, step),),
        causes=tuple(
            Cause(name=str(cause), confidence=float(random.uniform(0.3, 1)), remedies=(remedies[i % 2],))
            for i, cause in enumerate(causes)
        ),
        test=Test(text="t", check=str(check)) if check else None,
    )


class Run:
    """A run whose log is drawn at random; what is decided is carried out faithfully."""

    def __init__(self, seed, steps, mode="act"):
        self.random = np.random.default_rng(seed)
        self.steps, self.mode = steps, mode
        self.step = self.updates = 0
        self.values = {
            "loss": {},
            "val_loss": {},
            "gradient_noise": {},
            "effective_batch": {},
            "lr": {},
            "stability_margin": {},
        }
        self.ratios = {}
        self.in_force, self.ends = {}, {}
        self.state = begin()
        self.turns = []
        self.done = []
        self.checkpoints = [0]
        self.stopped = False

    def log(self):
        series = {k: (sorted(v), [v[s] for s in sorted(v)]) for k, v in self.values.items()}
        series["update_ratio"] = (sorted(self.ratios), [self.ratios[s] for s in sorted(self.ratios)])
        axis = Axis(name="layer", labels=("a", "b.c", "d"), weights=(3.0, 2.0, 1.0))
        return Table(series, columns={"update_ratio": Column(name="update_ratio", axis=axis)})

    def forward(self):
        for _ in range(10):
            self.step += 1
            self.updates += 1
            draw = self.random
            loss = float(np.exp(draw.normal(0, 0.1)) * draw.choice([1.0, 1.0, 1.0, 30.0]) * 0.99**self.step)
            self.values["loss"][self.step] = np.nan if draw.random() < 0.003 else loss
            self.values["lr"][self.step] = 0.1
            self.values["gradient_noise"][self.step] = float(draw.uniform(1, 1000))
            self.values["effective_batch"][self.step] = 32.0
            self.values["stability_margin"][self.step] = float(draw.uniform(0.2, 20))
            self.ratios[self.step] = np.exp(draw.normal(-7, 2, 3))
            if self.step % 20 == 0:
                self.values["val_loss"][self.step] = float(draw.uniform(0.5, 1.5))
                self.checkpoints.append(self.step)
        self.in_force = {n: a for n, a in self.in_force.items() if self.ends[n] is None or self.ends[n] > self.step}

    def turn(self, findings):
        where = Situation(
            step=self.step,
            steps=self.steps,
            findings=tuple(findings),
            fresh=frozenset(f.name for f in findings),
            run=self.log(),
            in_force=dict(self.in_force),
            healthy=tuple(self.checkpoints),
            able=ABLE,
        )
        turn = navigate(self.state, where, self.mode)
        assert turn.failed == {}
        self.turns.append((self.state, where, turn))
        self.state = turn.state
        for undo in turn.undo:
            self.in_force.pop(undo.name)
            if undo.restore is not None:
                self.begin(undo.restore)
        for decision in turn.decisions:
            if decision.status == "taken":
                self.carry_out(decision.proposal.action)

    def begin(self, action):
        self.in_force[action.name] = action
        self.ends[action.name] = None if action.steps is None else self.step + action.steps

    def carry_out(self, action):
        lost = 0
        if action.name == "rollback":
            to = max(s for s in self.checkpoints if s < action.arguments["before"])
            lost, self.step = self.step - to, to
            self.checkpoints = [s for s in self.checkpoints if s <= to]
            for kept in (*self.values.values(), self.ratios):
                for step in [s for s in kept if s > to]:
                    del kept[step]
            ends = [a for a in action.arguments["then"] if a["name"] == "stop"]
            lost = 0 if ends else lost
            for plain in action.arguments["then"]:
                self.carry_out(Action(**plain))
        elif action.name == "stop":
            self.stopped = True
        elif action.name not in ("check", "trial"):
            self.begin(action)
        self.done.append((self.updates, action, lost))


@PERSISTENT
@given(turns=st.integers(5, 45), seed=st.integers(0, 2**20), steps=st.sampled_from((300, 1000, None)))
def test_budgets_and_bounds_hold_whatever_is_found(turns, seed, steps):
    run = Run(seed, steps)
    for _ in range(turns):
        run.forward()
        run.turn(findings(run.random, run.step))
        assert json.loads(json.dumps(run.state)) == run.state
        factor = 1.0
        for name, argument in (("learning_rate", "factor"), ("accumulate", "rate")):
            if name in run.in_force:
                factor *= run.in_force[name].arguments.get(argument, 1.0)
        assert LEAST_RATE * 0.999 <= factor <= MOST_RATE * 1.001
        if "layer_rates" in run.in_force:
            factors = run.in_force["layer_rates"].arguments["factors"].values()
            assert max(factors) / min(factors) <= LAYER_SPREAD
        if run.stopped:
            break
    taken = [(s, d) for s, _, t in run.turns for d in t.decisions if d.status == "taken"]
    acts = [d for _, d in taken if d.proposal.action.name not in ("check", "stop")]
    assert len(acts) <= ACTS_IN_ALL
    assert sum(d.proposal.action.name == "check" for _, d in taken) <= CHECKS
    bounds = limits(run.turns[-1][1])
    assert sum(lost for _, _, lost in run.done) <= max(bounds.rollback, limits(run.turns[0][1]).rollback)
    spent = [a.arguments for _, a, _ in run.done if a.name == "trial"]
    assert sum((len(a["arms"]) + 1) * a["steps"] for a in spent) <= bounds.trial
    for at, _, _ in run.done:
        near = [a for u, a, _ in run.done if at <= u < at + bounds.window and a.name not in ("check", "stop")]
        top = [a for a in near if a.name == "rollback"]
        assert len(top) <= ROLLBACKS
    decided = [(w.step, d.proposal.action.name) for _, w, t in run.turns for d in t.decisions if d.status == "taken"]
    for step, names in _by_step(decided).items():
        acting = [n for n in names if n not in ("check", "stop")]
        assert len(acting) <= 1 + sum(w.step == step for _, w, _ in run.turns) - 1
    assert len(acts) <= ACTS * (1 + run.updates // bounds.window)


def _by_step(decided):
    table = {}
    for step, name in decided:
        table.setdefault(step, []).append(name)
    return table


@PERSISTENT
@given(turns=st.integers(5, 45), seed=st.integers(0, 2**20))
def test_a_replay_decides_the_same(turns, seed):
    run = Run(seed, 600)
    for _ in range(turns):
        run.forward()
        run.turn(findings(run.random, run.step))
    state = begin()
    for before, where, turn in run.turns:
        assert json.loads(json.dumps(before)) == state
        again = navigate(json.loads(json.dumps(state)), where, "act")
        assert [d.as_dict() for d in again.decisions] == [d.as_dict() for d in turn.decisions]
        assert [o.as_dict() for o in again.outcomes] == [o.as_dict() for o in turn.outcomes]
        assert again.undo == turn.undo
        state = again.state


@PERSISTENT
@given(turns=st.integers(5, 45), seed=st.integers(0, 2**20))
def test_advising_changes_nothing(turns, seed):
    run = Run(seed, 600, mode="advise")
    for _ in range(turns):
        run.forward()
        run.turn(findings(run.random, run.step))
    assert {action.name for _, action, _ in run.done} <= {"check"}
    assert run.in_force == {}


@settings(max_examples=16, deadline=None)
@given(
    cause=st.sampled_from(("corrupted_batch", "learning_rate_too_high", "preconditioner_lag", "overflow")),
    seed=st.integers(0, 999),
    anew=st.booleans(),
    checkpoints=st.booleans(),
)
def test_a_run_that_stays_lost_is_stopped(cause, seed, anew, checkpoints):
    """Something critical that nothing helps against: the ladder ends, whether the alarm begins anew or not."""
    run = Run(seed, 1000)
    if not checkpoints:
        run.checkpoints = []
    for _ in range(20):
        run.forward()
    for _ in range(60):
        run.forward()
        if not checkpoints:
            run.checkpoints = []
        run.values["loss"] = {
            s: v if s <= 150 or np.isnan(v) else 1e3 * (1 + 1e-3 * s) for s, v in run.values["loss"].items()
        }
        onset = run.step - 5 if anew else min(151, run.step)
        lost = Finding(code="D7", name="divergence", title="t", severity="critical", spans=((onset, run.step),),
                       causes=(Cause(name=cause, confidence=0.9),))  # fmt: skip
        run.turn([lost])
        if run.stopped:
            break
    assert run.stopped
    assert sum(action.name == "rollback" for _, action, _ in run.done) <= ROLLBACKS * 4
