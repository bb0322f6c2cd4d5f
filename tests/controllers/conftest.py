"""Builders that the tests of this folder share, handed out as fixtures: findings, situations, and a small simulator."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dynaxx.controllers import begin, navigate
from dynaxx.core.findings import Cause, Finding, Test
from dynaxx.core.navigation import Situation, history
from dynaxx.core.records import Action, Receipt
from dynaxx.runlog import Table

ABLE = frozenset(
    ("learning_rate", "layer_rates", "gradient_clip", "adaptive_clip", "gradient_scale", "skip", "epsilon", "stop")
) | {"accumulate", "rollback", "check", "trial"}


def finding(
    name: str,
    *causes: tuple[str, float],
    severity: str = "warning",
    onset: int = 50,
    last: int = 100,
    check: str | None = None,
) -> Finding:
    return Finding(
        code="D0",
        name=name,
        title=f"{name} since step {onset}",
        severity=severity,
        spans=((onset, last),),
        causes=tuple(Cause(name=cause, confidence=confidence) for cause, confidence in causes),
        test=None if check is None else Test(text=f"try {check}", check=check),
    )


def situation(step: int = 100, *findings: Finding, **known: Any) -> Situation:
    """A run of 1000 steps whose loss falls from 2 to 1 with a little noise, unless said otherwise."""
    steps = np.arange(1, step + 1)
    loss = 1 + np.exp(-steps / 40) + 0.01 * np.sin(steps * 2.3)
    given = {
        "step": step,
        "steps": 1000,
        "findings": findings,
        "fresh": frozenset(f.name for f in findings),
        "run": Table({"loss": (steps, loss)}),
        "able": ABLE,
    }
    return Situation(**{**given, **known})


@dataclass
class Simulator:
    """SGD on a quadratic with curvatures 0.01 … 1 and noisy gradients, navigated; what is wrong is said by an oracle.

    The oracle has the shape of the detectors but knows the truth: it accuses the rate of what the rate did.
    """

    factor: float = 1.0
    steps: int = 600
    bad: Mapping[int, float] = field(default_factory=dict)
    mode: str = "act"
    seed: int = 0
    interval: int = 10
    oracle: Callable[["Simulator"], list[Finding]] | None = None
    checkpoints: bool = True
    rate: float = 0.5

    def __post_init__(self) -> None:
        self.curvature = np.logspace(-2, 0, 20)
        self.noise = np.random.default_rng(self.seed)
        self.x = np.ones(20)
        self.step = self.batch = 0
        self.losses: dict[int, float] = {}
        self.lr: dict[int, float] = {}
        self.in_force: dict[str, tuple[Action, int]] = {}
        self.saved: dict[int, tuple[np.ndarray, dict[str, tuple[Action, int]]]] = {0: (self.x.copy(), {})}
        self.norms: list[float] = []
        self.state = begin()
        self.turns: list[tuple[Any, Any, Any]] = []
        self.passes = 0
        self.stopped: str | None = None
        self.receipts: list[Receipt] = []

    def run(self) -> "Simulator":
        while self.step < self.steps and self.stopped is None:
            self._update()
            if self.step % self.interval == 0:
                self._turn()
        return self

    @property
    def final(self) -> float:
        """The loss without noise."""
        return float(0.5 * self.curvature @ self.x**2)

    def actions(self, name: str) -> list[Action]:
        return [d.proposal.action for _, _, t in self.turns for d in t.decisions if d.proposal.action.name == name]

    @property
    def taken(self) -> list[str]:
        return [d.proposal.action.name for _, _, t in self.turns for d in t.decisions if d.status == "taken"]

    def _update(self) -> None:
        gradient = self.curvature * self.x + 0.02 * self.noise.standard_normal(20)
        scale = self.bad.get(self.batch, 1.0)
        gradient = gradient * scale
        self.batch += 1
        self.passes += 1
        norm = float(np.linalg.norm(gradient))
        usual = self.norms[-100:]
        factor = 1.0
        if "learning_rate" in self.in_force:
            factor = self.in_force["learning_rate"][0].arguments["factor"]
        skip = "skip" in self.in_force and len(usual) >= 64 and norm > np.mean(usual) + 6 * np.std(usual)
        if "adaptive_clip" in self.in_force and len(usual) >= 25 and norm > np.quantile(usual, 0.95):
            gradient = gradient * np.quantile(usual, 0.95) / norm
        self.norms.append(norm)
        with np.errstate(over="ignore", invalid="ignore"):
            loss = (0.5 * self.curvature @ self.x**2) * max(1.0, scale) + 0.01 * (
                1 + 0.05 * self.noise.standard_normal()
            )
        self.step += 1
        self.losses[self.step] = float(loss)
        self.lr[self.step] = self.rate * self.factor * factor
        if not skip:
            with np.errstate(over="ignore", invalid="ignore"):
                self.x = self.x - self.rate * self.factor * factor * gradient
        for name, (_, until) in list(self.in_force.items()):
            if until == self.step:
                del self.in_force[name]
        if self.checkpoints and self.step % 20 == 0:
            self.saved[self.step] = (self.x.copy(), dict(self.in_force))

    def _turn(self) -> None:
        found = (self.oracle or diagnose)(self)
        onset = min((f.onset for f in found), default=self.step + 1)
        where = Situation(
            step=self.step,
            steps=self.steps,
            findings=tuple(found),
            fresh=frozenset(f.name for f in found),
            run=self.log(),
            in_force={name: action for name, (action, _) in self.in_force.items()},
            healthy=tuple(sorted(s for s in self.saved if s < onset)) if found else (),
            able=ABLE - {"accumulate", "epsilon", "trial", "layer_rates", "check"},
        )
        turn = navigate(self.state, where, self.mode)
        assert not turn.failed, turn.failed
        self.turns.append((self.state, where, turn))
        self.state = turn.state
        for undo in turn.undo:
            self.in_force.pop(undo.name, None)
            if undo.restore is not None:
                self._begin(undo.restore)
        for decision in turn.decisions:
            if decision.status == "taken":
                self._carry_out(decision.proposal.action)

    def log(self) -> Table:
        steps = np.array(sorted(self.losses))
        loss = np.array([self.losses[s] for s in steps])
        return Table({"loss": (steps, loss), "lr": (steps, np.array([self.lr[s] for s in steps]))})

    def _begin(self, action: Action) -> None:
        self.in_force[action.name] = (action, -1 if action.steps is None else self.step + action.steps)
        self.receipts.append(Receipt(action=action, step=self.step, status="begun"))

    def _carry_out(self, action: Action) -> None:
        if action.name == "stop":
            self.stopped = action.reason
        elif action.name == "rollback":
            to = max(s for s in self.saved if s < action.arguments["before"])
            x, force = self.saved[to]
            self.x, self.in_force, self.step = x.copy(), dict(force), to
            for kept in (self.losses, self.lr, self.saved):
                for later in [s for s in kept if s > to]:
                    del kept[later]
            for plain in action.arguments.get("then", ()):
                self._carry_out(Action(**plain))
        else:
            self._begin(action)


def diagnose(run: Simulator) -> list[Finding]:
    """What detectors with the truth in hand would find."""
    steps = np.array(sorted(run.losses))
    loss = np.array([run.losses[s] for s in steps])
    level = np.median(loss[-5:]) if np.isfinite(loss[-5:]).all() else np.inf
    best = np.min(np.convolve(loss, np.ones(5) / 5, mode="valid")) if len(loss) >= 5 else loss.min()
    best = min(best, np.median(loss[:3]))
    factor = run.in_force["learning_rate"][0].arguments["factor"] if "learning_rate" in run.in_force else 1.0
    rate = run.rate * run.factor * factor
    if level > 3 * best:
        low = np.flatnonzero(loss <= 2 * best)
        onset = int(steps[min(len(steps) - 1, low[-1] + 1)]) if len(low) else 1
        after_bad = any(
            scale > 1 and steps[-1] - run.interval * 6 <= batch <= run.batch for batch, scale in run.bad.items()
        )
        cause = "corrupted_batch" if after_bad and rate < 2 else "learning_rate_too_high"
        return [finding("divergence", (cause, 0.8), severity="critical", onset=onset, last=run.step)]
    if len(loss) >= 40 and rate < 0.1 and level > 0.05:
        return [finding("slow_progress", ("learning_rate_too_low", 0.8), onset=1, last=run.step)]
    return []


@pytest.fixture(scope="session")
def nav() -> SimpleNamespace:
    """finding(...), situation(...), Simulator, ABLE, history."""
    return SimpleNamespace(finding=finding, situation=situation, Simulator=Simulator, ABLE=ABLE, history=history)
