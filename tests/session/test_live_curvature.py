"""Live curvature beside a training: it changes nothing, keeps to its budget, and goes on after a resume."""

import json
import random

import numpy as np
import pytest
import torch
from torch import nn

import dynaxx
from dynaxx.errors import BadInput, DynaxxWarning
from dynaxx.session.cadence import PRICING, SLOWEST, cadences
from dynaxx.session.probe_loss import BYTES, EXAMPLES, ProbeLoss

SIGNALS = ["sharpness", "stability_margin", "trace", "directional_curvature", "gradient_noise"]
SIGNALS += ["grad_norm", "effective_batch"]
CURVATURE = SIGNALS[:5]


class Net(nn.Module):
    """Statistics in buffers, dropout, a layer in a mode of its own."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(0.3))
        self.head = nn.Linear(12, 3)
        self.calls = 0

    def forward(self, x):
        return self.head(self.body(x))


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def data(batches=8, size=32):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(batches, size, 6, generator=generator)
    return list(zip(x, (x[..., 0] > 0).long() + (x[..., 1] > 1).long(), strict=True))


@pytest.fixture
def often(monkeypatch):
    """Dear signals at every third step, so that short runs have many measurements."""
    monkeypatch.setattr("dynaxx.session.instruments.PRICING", 3)


def train(
    folder, steps, *, loss=loss_fn, signals=SIGNALS, save_at=0, loader=None, make=None, wrap=lambda m: m, **options
):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    net = Net()
    model = wrap(net)
    optimizer = (make or (lambda p: torch.optim.AdamW(p, lr=1e-2)))(model.parameters())
    run = None
    if folder is not None:
        run = dynaxx.watch(model, optimizer, folder, loss=loss, signals=signals, quiet=True, **options)
    done, trace = 0 if run is None else run.step, []
    loader = data() if loader is None else loader
    while done < steps:
        for batch in loader if run is None else run.batches(loader):
            value = loss_fn(model, batch)
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            trace.append([p.detach().clone() for p in [*model.parameters(), *model.buffers()]])
            trace[-1] += [p.grad.clone() for p in model.parameters()]
            trace[-1] += [torch.rand(1), torch.tensor(np.random.rand()), torch.tensor(random.random())]  # noqa: NPY002
            optimizer.zero_grad()
            done += 1
            if done == save_at:
                run.save()
            if done >= steps:
                break
    if run is not None:
        run.close()
    return trace, model, run


def equal(one, other):
    return all(a.equal(b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def columns(folder):
    view = dynaxx.open_run(folder)
    wanted = [name for name in view.columns if name.split(".")[0] in CURVATURE]
    return {name: (view[name].steps.tolist(), view[name].values) for name in wanted}


def test_the_training_is_the_same_bit_for_bit(tmp_path, often):
    bare, net, _ = train(None, 20)
    watched, other, _ = train(tmp_path / "run", 20)
    assert equal(bare, watched)
    assert not equal(bare[:-1], watched[1:])
    assert [m.training for m in net.modules()] == [m.training for m in other.modules()]
    found = columns(tmp_path / "run")
    assert {name.split(".")[0] for name in found} == set(CURVATURE)
    for name, (steps, values) in found.items():
        assert steps == [3, 6, 9, 12, 15, 18], name
        assert np.isfinite(values[1:]).all(), name
    batch = dynaxx.open_run(tmp_path / "run")["effective_batch"]
    assert set(batch.values.tolist()) == {32.0}, "forwards of our own are not counted"


def test_it_is_the_curvature_of_the_first_batch_as_trained(tmp_path, often):
    """Dropout and batch statistics are those of training: the dense Hessian on the first batch, at the last weights."""
    from dynaxx.core.objective import Objective
    from dynaxx.numerics.hessian import Hessian

    _, net, _ = train(tmp_path / "run", 12)
    steps, values = columns(tmp_path / "run")["sharpness"]
    assert steps[-1] == 12
    net.train()
    dense = Hessian(Objective(net, loss_fn, data()[:1], mode="as is")).dense()
    truth = float(torch.linalg.eigvalsh(dense.double())[-1])
    assert values[-1] == pytest.approx(truth, rel=1e-2)
    net.eval()
    other = float(torch.linalg.eigvalsh(Hessian(Objective(net, loss_fn, data()[:1])).dense().double())[-1])
    assert abs(other - truth) > 0.02 * truth


@pytest.mark.parametrize("at", [5, 9])
def test_a_resumed_run_logs_the_same(tmp_path, often, at):
    train(tmp_path / "whole", 18)
    train(tmp_path / "cut", at + 2, save_at=at)
    _, _, run = train(tmp_path / "cut", 18, resume=True)
    assert run.resumed_from.step == at
    whole, cut = columns(tmp_path / "whole"), columns(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    for name, (steps, values) in whole.items():
        assert steps == cut[name][0]
        np.testing.assert_array_equal(values, cut[name][1], err_msg=name)


def test_without_a_loss_it_says_what_to_give(tmp_path):
    train(tmp_path / "run", 2, loss=None)
    (report,) = dynaxx.open_run(tmp_path / "run").events("self_test")
    for name in ("sharpness", "trace", "directional_curvature"):
        assert "loss=loss_fn" in report["not_applicable"][name]
    assert columns(tmp_path / "run") == {}


def test_without_a_batch_it_says_what_to_give(tmp_path):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with dynaxx.watch(model, optimizer, tmp_path / "run", loss=loss_fn, signals=SIGNALS, quiet=True) as run:
        for _ in range(100):
            loss_fn(model, data(1)[0]).backward()
            optimizer.step()
    (report,) = run.view().events("self_test")
    for name in CURVATURE:
        assert "probe_batch=" in report["not_applicable"][name]


def test_a_batch_may_be_given(tmp_path, often):
    train(tmp_path / "run", 6, probe_batch=data()[0], loader=data()[::-1])
    train(tmp_path / "other", 6, loader=data()[::-1])
    assert columns(tmp_path / "run")["sharpness"][1][0] != columns(tmp_path / "other")["sharpness"][1][0]


@pytest.mark.parametrize("bad", [{"loss": 3}, {"loss": None, "probe_batch": (1, 2)}])
def test_bad_arguments(tmp_path, bad):
    with pytest.raises(BadInput, match=r"watch\("):
        train(tmp_path / "run", 1, **bad)


def test_a_loss_that_fails_is_said_once_and_the_training_goes_on(tmp_path, often):
    def wrong(model, batch):
        raise TypeError("no such batch")

    with pytest.warns(DynaxxWarning, match="no such batch"):
        watched, _, _ = train(tmp_path / "run", 8, loss=wrong, signals=["sharpness"])
    assert equal(train(None, 8)[0], watched)


def test_where_the_loss_is_not_finite_it_waits(tmp_path, often, recwarn):
    """A spike passes; a signal that was retired for it would be gone for the rest of the run."""
    calls = {"bad": True}

    def spiking(model, batch):
        return loss_fn(model, batch) * (float("nan") if calls["bad"] else 1.0)

    torch.manual_seed(1)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names = ["sharpness", "trace"]
    with dynaxx.watch(model, optimizer, tmp_path / "run", loss=spiking, signals=names, quiet=True) as run:
        for _ in range(2):
            for batch in run.batches(data()):
                loss_fn(model, batch).backward()
                optimizer.step()
                calls["bad"] = run.step < 8
    assert not [w for w in recwarn if issubclass(w.category, DynaxxWarning)]
    assert columns(tmp_path / "run")["sharpness"][0] == [9, 12, 15]


def test_the_loop_s_own_changes_to_a_batch_do_not_reach_the_probe(tmp_path, often):
    mine = ProbeLoss(Net(), loss_fn)
    batch = data(1)[0]
    mine.offer(batch)
    before = mine.objective().value()
    batch[0].zero_()
    mine.offer(data()[1])
    assert mine.objective().value() == before


def test_the_probe_batch_is_small():
    mine = ProbeLoss(Net(), loss_fn)
    mine.offer((torch.zeros(1000, 6), torch.zeros(1000, dtype=torch.long)))
    assert len(mine.state_dict()["batch"][0]) == EXAMPLES
    wide = ProbeLoss(Net(), loss_fn)
    wide.offer(torch.zeros(8, BYTES // 8))  # 4 bytes each: twice what a half of the batch may take
    assert wide.state_dict()["batch"].shape[0] == 2


def test_a_batch_that_no_checkpoint_holds_is_not_put_into_one():
    mine = ProbeLoss(Net(), loss_fn)
    mine.offer((torch.zeros(4, 6), object()))
    assert mine.reason is None
    assert mine.state_dict() == {}
    given = ProbeLoss(Net(), loss_fn, torch.zeros(4, 6))
    assert given.state_dict() == {}


def test_a_batch_that_cannot_be_copied_is_a_reason_and_no_error():
    class Odd(list):
        def __init__(self):
            super().__init__([torch.zeros(2)])

    mine = ProbeLoss(Net(), loss_fn)
    mine.offer(Odd())
    assert "cannot be copied" in mine.reason
    assert "probe_batch=" in mine.reason


def test_sharded_parameters_are_not_applicable():
    mine = ProbeLoss(Net(), loss_fn, data()[0], sharded=True)
    assert "split over ranks" in mine.never
    assert mine.objective() is None


def test_dear_signals_have_half_of_the_room_and_the_rest_of_the_others():
    costs = {"cheap": 1e-3, "sharpness": 1.0, "trace": 4.0}
    plan = cadences(costs, 0.0, 1.0, 0.02, dear={"sharpness", "trace"})
    assert plan["cheap"] == cadences({"cheap": 1e-3}, 0.0, 1.0, 0.01)["cheap"] == 1
    spent = sum(cost / plan[name] for name, cost in costs.items())
    assert spent <= 0.02
    assert (plan["sharpness"], plan["trace"]) == (128, 512)  # 256 and 512 by the rule, 1/256 of 0.019 is left for one
    exact = cadences({"sharpness": 1.0, "trace": 4.0}, 0.0, 1.0, 3 / 64, dear={"sharpness", "trace"})
    assert exact == {"sharpness": 64, "trace": 128}


def test_what_rounding_leaves_of_the_room_is_used():
    costs = {"sharpness": 10.7, "margin": 9.5, "trace": 11.0, "noise": 1.1}  # a small transformer's, in gradients
    plan = cadences(costs, 0.0, 1.0, 0.004, dear=set(costs))
    spent = sum(cost / plan[name] for name, cost in costs.items())
    assert 0.004 - min(cost / plan[name] for name, cost in costs.items()) < spent <= 0.004
    assert plan == {"sharpness": 8192, "margin": 8192, "trace": 16384, "noise": 2048}  # by rounding 16384 thrice, 4096


def test_dear_signals_have_no_slowest_cadence():
    plan = cadences({"cheap": 1.0, "sharpness": 1e3}, 0.0, 1.0, 0.02, dear={"sharpness"})
    assert plan["cheap"] == 128
    assert plan["sharpness"] > 100 * SLOWEST
    assert 1e3 / plan["sharpness"] <= 0.02


def test_the_budget_sets_the_cadence(tmp_path):
    train(tmp_path / "run", 140)
    (calibration,) = dynaxx.open_run(tmp_path / "run").events("calibration")
    rows = {row["name"]: row for row in calibration["signals"]}
    dear = sum(rows[name]["seconds"] / rows[name]["cadence"] for name in CURVATURE)
    assert dear <= 0.02 * calibration["step_seconds"]
    for name in CURVATURE:
        assert columns(tmp_path / "run")[name][0] == [PRICING, 2 * PRICING, 3 * PRICING]


def test_a_task_gives_its_loss_by_itself(tmp_path, often):
    from dynaxx.session.train import train as train_task
    from dynaxx.tasks.digits import Digits

    train_task(Digits(), tmp_path / "run", name="digits", steps=7, quiet=True)
    assert columns(tmp_path / "run")["sharpness"][0] == [3, 6]
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "sharpness" in manifest["signals"]
