"""Branch trials: their judgement, nothing left behind, the budget; and the actions that loops and trials take."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dynaxx
from dynaxx.actuator.accumulate import Accumulate
from dynaxx.actuator.kick import Kick
from dynaxx.core.records import Action
from dynaxx.core.task import Task
from dynaxx.errors import BadInput
from dynaxx.numerics.sign_flip import sign_flip
from dynaxx.session.train import train as train_task
from dynaxx.session.trial import HELD, advantage

STEPS = 60


def test_sign_flip_by_enumeration():
    import itertools

    values = [0.3, -0.1, 0.7, 0.2, 0.2]
    patterns = [
        sum(s * v for s, v in zip(signs, values, strict=True)) for signs in itertools.product((1, -1), repeat=5)
    ]
    assert sign_flip(values) == sum(p >= sum(values) - 1e-9 for p in patterns) / 32
    assert sign_flip([1.0] * 8) == 1 / 256
    with pytest.raises(BadInput):
        sign_flip([float("nan")])


def test_advantage_where_losses_are_not_finite():
    assert advantage([1.0, 2.0], [float("inf"), 0.0]) == 1.0
    assert advantage([float("nan"), 2.0], [1.0, 1.0]) == 0.25
    with pytest.raises(BadInput):
        advantage([1.0], [1.0, 2.0])


def data(count=40):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(32 * count, 10, generator=draw)
    y = (x @ torch.randn(10, 4, generator=draw)).argmax(1)
    return [(x[i : i + 32], y[i : i + 32]) for i in range(0, 32 * count, 32)]


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def train(folder, *, rate=0.05, arms=None, at=5, length=5, hold=()):
    """One epoch; behind step `at` a trial of the arms over `length` steps is asked for."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    run = dynaxx.watch(
        model, optimizer, folder, loss=cross_entropy, scheduler=scheduler, steps=1000, quiet=True,
        signals=["lr", "grad_norm"], navigate="off",
    )  # fmt: skip
    for name, arguments in hold:
        run.apply(name, **arguments)
    for batch in run.batches(data()):
        loss = cross_entropy(model, batch)
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        run.log(loss=loss)
        if run.step == at and arms is not None:
            plain = {
                n: [{"name": a, "arguments": k, "steps": None, "reason": "r"} for a, k in w] for n, w in arms.items()
            }
            run.steering.remedies.ask(Action(name="trial", arguments={"arms": plain, "steps": length}))
    run.close()
    return [t.clone() for t in model.state_dict().values()] + [torch.get_rng_state()], run


def test_where_nothing_wins_nothing_has_been(tmp_path: Path) -> None:
    hold = [("adaptive_clip", {"by": "quantile", "window": 8, "warmup": 4})]  # an action with a state of its own
    plain, _ = train(tmp_path / "plain", hold=hold)
    tried, run = train(tmp_path / "tried", hold=hold, arms={"far too low": [("learning_rate", {"factor": 1e-6})]})
    assert all(map(torch.equal, plain, tried))
    assert run.step == 40
    [event] = dynaxx.open_run(tmp_path / "tried").events("trial")
    assert event["winner"] == "do nothing"
    assert event["arms"]["do nothing"]["p"] == 1.0
    assert event["held"] == HELD
    assert event["spent"] == pytest.approx(2 * (5 + HELD / 3))
    view, reference = (dynaxx.open_run(tmp_path / name) for name in ("tried", "plain"))
    np.testing.assert_array_equal(view["loss"].values, reference["loss"].values)
    np.testing.assert_array_equal(view["grad_norm.total"].values, reference["grad_norm.total"].values)


def test_arms_are_what_they_would_have_been(tmp_path: Path) -> None:
    """An arm's loss after its steps is that of a run that takes the remedy at that step."""
    arms = {"half": [("learning_rate", {"factor": 0.5})], "clip": [("gradient_clip", {"max_norm": 0.1})]}
    _, _ = train(tmp_path / "tried", arms=arms, at=8, length=6)
    [event] = dynaxx.open_run(tmp_path / "tried").events("trial")
    for name, options in (("do nothing", None), ("half", arms["half"]), ("clip", arms["clip"])):
        assert event["arms"][name]["loss"] == pytest.approx(by_hand(options), rel=1e-6)


def by_hand(actions):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    batches = data()
    for i, batch in enumerate(batches[:14]):
        cross_entropy(model, batch).backward()
        [(name, options)] = actions or [("", {})]
        rate = optimizer.param_groups[0]["lr"]
        if i >= 8 and name == "gradient_clip":
            nn.utils.clip_grad_norm_(model.parameters(), options["max_norm"])
        if i >= 8 and name == "learning_rate":
            optimizer.param_groups[0]["lr"] = rate * options["factor"]
        optimizer.step()
        optimizer.param_groups[0]["lr"] = rate
        scheduler.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        return float(np.mean([float(cross_entropy(model, batch)) for batch in batches[14 : 14 + HELD]]))


def test_the_remedy_wins_where_it_helps(tmp_path: Path) -> None:
    arms = {"lower": [("learning_rate", {"factor": 0.02})], "higher": [("learning_rate", {"factor": 2.0})]}
    _, run = train(tmp_path / "run", rate=5.0, arms=arms, at=6, length=8)
    view = dynaxx.open_run(tmp_path / "run")
    [event] = view.events("trial")
    assert event["winner"] == "lower"
    assert event["arms"]["lower"]["p"] == 1 / 256
    assert run.steering._parts.actuator.in_force["learning_rate"].arguments == {"factor": 0.02}
    assert view["lr.max"].values[7] == pytest.approx(0.1)


def test_refused_beyond_the_share_and_put_off_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    arms = {"half": [("learning_rate", {"factor": 0.5})]}
    plain, _ = train(tmp_path / "plain")
    tried, _ = train(tmp_path / "share", arms=arms, at=5, length=500)
    assert all(map(torch.equal, plain, tried))
    [receipt] = dynaxx.open_run(tmp_path / "share").events("receipt")
    assert receipt["receipt"]["status"] == "refused"
    assert "beyond the share" in receipt["receipt"]["detail"]
    tried, run = train(tmp_path / "end", arms=arms, at=38, length=5)
    assert all(map(torch.equal, plain, tried))
    view = dynaxx.open_run(tmp_path / "end")
    assert not view.events("trial")
    assert not view.events("receipt")
    assert run.steering.remedies.waiting  # for the next epoch, which never came


def test_kick_dies_away(tmp_path: Path) -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = dynaxx.watch(model, optimizer, tmp_path / "run", steps=100, quiet=True, signals=["lr"], navigate="off")
    for step in range(30):
        if step == 4:
            assert run.kick(4, steps=8).status == "begun"
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    run.close()
    view = dynaxx.open_run(tmp_path / "run")
    expected = [0.01] * 4 + [0.01 * 4 ** (1 - t / 8) for t in range(8)] + [0.01] * 18
    np.testing.assert_allclose(view["lr.max"].values, expected, rtol=1e-12)
    kept = Kick(4.0, over=8)
    kept.load_state_dict({"taken": 3})
    assert kept.state_dict() == {"taken": 3}
    assert kept.at(3) == 4 ** (5 / 8)
    for bad in ({"factor": 1.0}, {"factor": 11.0}, {"factor": 3.0, "over": 0}):
        with pytest.raises(BadInput):
            Kick(**bad)


class Counted(Task):
    """Ten batches an epoch, each marked with its number; the gradient tells which were in a step."""

    steps, batch_size = 12, 1

    def model(self):
        return nn.Linear(1, 1, bias=False)

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=1.0)

    def batches(self, split, seed):
        return [torch.full((2, 1), float(i)) for i in range(60)]

    def loss(self, model, batch):
        return model(batch).mean()


def test_accumulate_in_a_tasks_loop(tmp_path: Path) -> None:
    """A controller's order takes more batches to an update, at a rate that goes with it."""

    def order(position):
        if position.step == 4:
            run.apply("accumulate", batches=3, rate=0.5, steps=5)

    import dynaxx.session.train as module

    watch, made = module.watch, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "watch", lambda *a, **k: (made.append(watch(*a, **k)), made[-1])[1])

        class Late:
            def apply(self, *a, **k):
                made[0].apply(*a, **k)

        run = Late()
        train_task(Counted(), tmp_path / "run", name="counted", quiet=True, signals=["lr", "grad_norm"], progress=order)
    view = dynaxx.open_run(tmp_path / "run")
    # Gradient of a step: the mean of the numbers of its batches.
    means = [0, 1, 2, 3, *(np.mean([4 + 3 * i, 5 + 3 * i, 6 + 3 * i]) for i in range(5)), 19, 20, 21]
    np.testing.assert_allclose(view["grad_norm.total"].values, means, rtol=1e-6)
    np.testing.assert_allclose(view["lr.max"].values, [1.0] * 4 + [0.5] * 5 + [1.0] * 3)
    assert str(Accumulate(3, 0.5)) == "3 batches per update, learning rates × 0.5"
    with pytest.raises(BadInput, match="at least 1"):
        Accumulate(0)


def test_accumulate_is_refused_in_a_loop_of_the_users_own(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    run = dynaxx.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path / "run", quiet=True)
    with pytest.raises(BadInput, match="decides itself how many batches"):
        run.apply("accumulate", batches=2)
    run.close()
