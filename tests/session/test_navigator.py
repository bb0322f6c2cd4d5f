"""The navigator on live runs: it changes nothing in "advise", acts in "act", decides alike after a resume."""

import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

import dynaxx
from dynaxx import catalog
from dynaxx.core.findings import Finding
from dynaxx.core.navigation import Decision, Proposal
from dynaxx.core.records import Action
from dynaxx.errors import BadInput, DynaxxWarning
from dynaxx.runlog import Table
from dynaxx.session import diagnosing, navigator
from dynaxx.session.instruments import Instruments
from dynaxx.session.navigator import Navigator, Surroundings

STEPS = 90
"""Fewer than the hundred after which intervals and cadences hang on the clock."""


def data():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(256, 10, generator=draw)
    y = (x @ torch.randn(10, 4, generator=draw)).argmax(1)
    return [(x[i : i + 32], y[i : i + 32]) for i in range(0, 256, 32)]


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def train(folder, mode, *, rate=0.05, steps=STEPS, until=0, resume=False, loss=cross_entropy, batches=None, ddp=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4))
    model = nn.parallel.DistributedDataParallel(model) if ddp else model
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    run = dynaxx.watch(
        model, optimizer, folder, loss=loss, navigate=mode, steps=steps, resume=resume, quiet=True,
        signals=["lr", "grad_norm", "update_ratio", "parameter_norm", "gradient_agreement"],
    )  # fmt: skip
    source = data() if batches is None else batches
    while run.step < steps and run.stopping is None:
        for batch in run.batches(source):
            value = loss(model, batch)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.log(loss=value)
            if run.step % 15 == 0:
                run.save(keep=10)
            if run.step in (until, steps):
                break
        if run.step == until:
            break
    run.close()
    return model, run


def bits(model):
    return [t.clone() for t in model.state_dict().values()] + [torch.get_rng_state()]


def told(folder, kind):
    """The events of a kind without what a clock or an attempt's number changes."""
    events = dynaxx.open_run(folder).events(kind)
    return [{k: v for k, v in e.items() if k not in ("time", "attempt", "seconds")} for e in events]


@pytest.mark.parametrize("rate", [0.05, 3.0])
def test_advise_changes_nothing(tmp_path: Path, rate: float) -> None:
    off = bits(train(tmp_path / "off", "off", rate=rate)[0])
    advised = bits(train(tmp_path / "advise", "advise", rate=rate)[0])
    assert all(map(torch.equal, off, advised))
    assert not told(tmp_path / "off", "finding")
    assert not told(tmp_path / "advise", "receipt")
    assert all(
        d["status"] != "taken" or d["proposal"]["action"]["name"] == "check"
        for d in told(tmp_path / "advise", "decision")
    )


def test_act_decides_alike_after_a_resume(tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "whole", "act", rate=3.0)
    truth = bits(whole)
    decisions = told(tmp_path / "whole", "decision")
    assert any(d["status"] == "taken" for d in decisions)
    assert not all(map(torch.equal, truth, bits(train(tmp_path / "off", "off", rate=3.0)[0])))
    train(tmp_path / "cut", "act", rate=3.0, until=52)  # saved at 45
    resumed, run = train(tmp_path / "cut", "act", rate=3.0, resume=True)
    assert run.resumed_from is not None
    assert all(map(torch.equal, truth, bits(resumed)))
    again = told(tmp_path / "cut", "decision")
    assert [d for d in again if d["step"] > 60] == [d for d in decisions if d["step"] > 60]


def test_a_healthy_run_is_left_alone(tmp_path: Path) -> None:
    off = bits(train(tmp_path / "off", "off")[0])
    acted = bits(train(tmp_path / "act", "act")[0])
    assert all(map(torch.equal, off, acted))  # the guard against non-finite updates never spoke


class Looks:
    """A log is not read; a made-up detector finds what it is told to."""

    def __init__(self, monkeypatch):
        self.found: Finding | None = None
        self.broken = False
        looks = self

        class Detector:
            code, title, reads = "D0", "", ()

            def detect(self, run):
                if looks.broken:
                    raise ZeroDivisionError("of a plug-in")
                return looks.found

        names = catalog.names
        get = catalog.get
        monkeypatch.setattr(catalog, "names", lambda family: ["made_up"] if family == "detectors" else names(family))
        monkeypatch.setattr(
            catalog, "get", lambda family, name: Detector if family == "detectors" else get(family, name)
        )


def finding(first, last, severity="warning"):
    return Finding(code="D0", name="made_up", title="t", severity=severity, spans=((first, last),))


def test_findings_open_change_and_close(tmp_path: Path, monkeypatch) -> None:
    looks = Looks(monkeypatch)
    watcher = diagnosing.Diagnosing(pytest.fail)
    seen = []
    story = {10: None, 20: finding(15, 20), 30: finding(15, 30), 40: finding(15, 40, "critical"), 50: finding(15, 41),
             60: finding(15, 41), 70: finding(65, 66), 80: None}  # fmt: skip

    class Log:
        columns, steps = (), (1,)

    for step, found in story.items():
        looks.found = found
        seen += [(step, change) for change, _ in watcher.look(Log(), step)]
        watcher.load_state_dict(__import__("json").loads(__import__("json").dumps(watcher.state_dict())))
    assert seen == [(20, "opened"), (40, "changed"), (50, "changed"), (60, "closed"), (70, "opened"), (80, "closed")]


def test_a_broken_detector_is_left_out_and_said_once(tmp_path: Path, monkeypatch) -> None:
    looks = Looks(monkeypatch)
    looks.broken = True
    with pytest.warns(DynaxxWarning, match="detector 'made_up' failed") as said:
        _, run = train(tmp_path / "run", "advise")
    assert run.step == STEPS
    assert len([w for w in said if "made_up" in str(w.message)]) == 1


def test_a_broken_navigator_is_off_and_training_goes_on(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(navigator, "navigate", lambda *_: 1 / 0)
    with pytest.warns(DynaxxWarning, match="navigator failed") as said:
        _, run = train(tmp_path / "run", "act")
    assert run.step == STEPS
    assert len(said) == 1


def ordered(monkeypatch, orders):
    """At a step, the controllers take these decisions; once, also where the step comes again."""

    def navigate(state, situation, mode):
        actions = orders.pop(situation.step, [])
        proposals = [Proposal(controller="made_up", action=action) for action in actions]
        decisions = [Decision(proposal=p, status="taken", why="", step=situation.step) for p in proposals]
        return navigator.Turn(dict(state), (), (), tuple(decisions), {})

    monkeypatch.setattr(navigator, "navigate", navigate)


def test_orders_are_carried_out_and_survive_a_resume(tmp_path: Path, monkeypatch) -> None:
    """What waits for the next batch when a checkpoint is saved is carried out after a resume."""
    then = [{"name": "learning_rate", "arguments": {"factor": 0.5}, "steps": None, "reason": "r"}]
    back = Action(name="rollback", arguments={"before": 50, "pass_data": True, "then": then}, reason="made up")
    look = Action(name="check", arguments={"check": "replay_batch"})
    wrong = Action(name="check", arguments={"check": "replay_batch", "step": 50})
    orders = {40: [look, wrong, Action(name="learning_rate", arguments={"factor": -1})], 60: [back]}
    ordered(monkeypatch, dict(orders))
    whole, _ = train(tmp_path / "whole", "act")
    truth = bits(whole)
    [event] = told(tmp_path / "whole", "rolled_back")
    assert (event["came_from"], event["step"]) == (60, 30)  # 45 has not outlived its probation of 20 steps
    looked, refused = told(tmp_path / "whole", "check")
    assert looked["step"] == 40
    assert "ratio" in looked["values"]
    assert "step 50 is not among" in refused["not_applicable"]
    receipts = [(r["receipt"]["action"]["name"], r["receipt"]["status"]) for r in told(tmp_path / "whole", "receipt")]
    assert receipts == [
        ("skip", "begun"),
        ("learning_rate", "refused"),
        ("check", "refused"),
        ("learning_rate", "begun"),
    ]
    ordered(monkeypatch, dict(orders))
    train(tmp_path / "cut", "act", until=60)  # saved at 60, when the rollback was ordered and not yet made
    resumed, _ = train(tmp_path / "cut", "act", resume=True)
    assert all(map(torch.equal, truth, bits(resumed)))
    assert [e["step"] for e in told(tmp_path / "cut", "rolled_back")] == [30]


def test_a_checkpoint_of_the_beginning_is_there_to_go_back_to(tmp_path: Path, monkeypatch) -> None:
    ordered(monkeypatch, {20: [Action(name="rollback", arguments={"before": 5, "pass_data": False}, reason="r")]})
    again, _ = train(tmp_path / "act", "act", steps=40)
    plain, _ = train(tmp_path / "off", "off", steps=40)
    [event] = told(tmp_path / "act", "rolled_back")
    assert (event["step"], event["data"]) == (0, "passed")  # 20 steps are more than the 8 of an epoch
    assert not all(map(torch.equal, bits(again), bits(plain)))


def test_gradients_that_stay_non_finite_end_the_run(tmp_path: Path, monkeypatch) -> None:
    ordered(monkeypatch, {})

    def poisoned(model, batch):
        return cross_entropy(model, batch) * (torch.nan if model.training and batch[0].isnan().any() else 1.0)

    good, bad = data()[:4], [(torch.full((32, 10), torch.nan), y) for _, y in data()]
    _, run = train(tmp_path / "run", "act", loss=poisoned, batches=good + bad * 40)
    assert run.step == 4
    assert "100 updates in a row" in run.stopping


def test_the_interval_keeps_to_the_share_within_bounds() -> None:
    around = Surroundings(
        steps=10_000, view=pytest.fail, in_force=dict, healthy=lambda _: (), able=frozenset,
        event=pytest.fail, warn=pytest.fail, quiet=True,
    )  # fmt: skip
    acting, advising = Navigator("act", around), Navigator("advise", around)
    for steered in (acting, advising):
        steered._seconds = [5.0, 0.02, 0.02, 0.02]  # the first look imports
        assert steered.settle(0.1, 0.005) == 10
        assert steered.settle(10.0, 0.1) == 10
    assert acting.settle(1e-3, 1e-5) == 200  # a second in all: fifty looks
    assert acting.settle(4e-3, 1e-5) == 100  # 5 % of the time, also where the share is smaller
    assert acting.settle(1e-3, 2e-4) == 100
    assert advising.settle(1e-4, 1e-6) == 20_000  # its share, however few looks that are


def test_looks_grow_rarer_as_the_log_grows_in_a_run_that_acts() -> None:
    around = Surroundings(
        steps=None, view=pytest.fail, in_force=dict, healthy=lambda _: (), able=frozenset,
        event=lambda *_, **__: None, warn=pytest.fail, quiet=True,
    )  # fmt: skip
    acting, advising = Navigator("act", around), Navigator("advise", around)
    looks = {mode.mode: [step for step in range(1, 100_001) if mode.due(step)] for mode in (acting, advising)}
    assert looks["act"][:60] == [*range(20, 1000, 20), *range(1000, 1440, 40)]
    gaps = {step: after - step for step, after in pairwise(looks["act"])}
    assert [gaps[step] for step in (1960, 2000, 4000, 8000, 16_000, 99_200)] == [40, 80, 160, 320, 640, 640]
    assert looks["advise"] == list(range(20, 100_001, 20))  # it waits by the clock instead


@pytest.mark.parametrize(("fixed", "interval"), [(0.0, 20), (0.001, 40), (0.0015, 80), (0.1, 80)])
def test_looks_yield_to_what_is_measured_at_every_step(tmp_path: Path, monkeypatch, fixed, interval) -> None:
    """Half of what is left of 2 % of 0.1 s, of a quarter of it at least, for looks of 0.02 s."""
    monkeypatch.setattr(Instruments, "step_seconds", lambda _: (0.1, fixed))
    monkeypatch.setattr(Navigator, "seconds", property(lambda _: 0.02))
    train(tmp_path / "run", "advise", steps=101)
    [event] = told(tmp_path / "run", "calibration")
    assert event["navigator"]["interval"] == interval


def test_a_look_that_took_longer_is_waited_for_longer_where_nothing_is_acted_on(monkeypatch) -> None:
    around = Surroundings(
        steps=1000, view=pytest.fail, in_force=dict, healthy=lambda _: (), able=frozenset,
        event=lambda *_, **__: None, warn=pytest.fail, quiet=True,
    )  # fmt: skip
    monkeypatch.setattr(Navigator, "_look", lambda self, step: (time.sleep(0.05), Table({"loss": ([1], [1.0])}))[1])
    steered = Navigator("advise", around)
    steered._seconds = [0.001]
    steered.interval = steered.settle(0.1, 1e-3)
    assert steered.due(10)
    steered.consult(10)
    assert not steered.due(20)  # 0.05 s at 1 % of 0.1 s: 50 steps
    assert steered.due(120)


def test_its_price_is_counted_and_said(tmp_path: Path) -> None:
    train(tmp_path / "run", "advise", steps=120)
    [event] = told(tmp_path / "run", "calibration")
    told_of = event["navigator"]
    assert told_of["mode"] == "advise"
    assert told_of["interval"] >= 10
    assert event["overhead"] >= told_of["seconds"] / told_of["interval"] / event["step_seconds"]


def test_a_slow_look_shows_in_the_overhead(tmp_path: Path, monkeypatch) -> None:
    ordered(monkeypatch, {})
    look = navigator.Navigator._look
    monkeypatch.setattr(navigator.Navigator, "_look", lambda self, step: (time.sleep(0.05), look(self, step))[1])
    _, run = train(tmp_path / "run", "advise", steps=60)
    assert run._live._spent > 3 * 0.05


def test_bad_mode(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="'off', 'advise' or 'act'"):
        train(tmp_path / "run", "on")
    assert not (tmp_path / "run").exists()


def worker(folder, rank):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/meet")
    shards = [(x.chunk(2)[rank], y.chunk(2)[rank]) for x, y in data()]
    model, _ = train(f"{folder}/run", "act", rate=3.0, batches=shards, ddp=True)
    torch.save([p.detach() for p in model.parameters()], f"{folder}/weights{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_act_at_the_same_step(tmp_path: Path) -> None:
    code = f"import runpy; runpy.run_path({__file__!r})['worker']({str(tmp_path)!r}, %d)"
    processes = [subprocess.Popen([sys.executable, "-c", code % rank]) for rank in range(2)]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    one, other = (torch.load(tmp_path / f"weights{rank}") for rank in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert any(d["status"] == "taken" for d in told(tmp_path / "run", "decision"))
    rates = dynaxx.open_run(tmp_path / "run")["lr.max"].values
    assert np.min(rates) < 3.0
