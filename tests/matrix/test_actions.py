"""What the actuator does to a live loop: exactly what it says, for as long as it says, and nothing after."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, ReduceLROnPlateau, SequentialLR, StepLR

import dynaxx
from dynaxx.errors import BadInput

QUICK = {
    "test_learning_rate_factor_under_every_schedule": ["False-lambda", "False-one_cycle", "True-cosine"],
    "test_skip_changes_nothing_at_all": ["non_finite-adamw_fused", "non_finite-sgd_momentum", "always-adamw_foreach"],
    "test_bad_actions_are_refused": ["factor", "learning_rat-"],
}
STEPS = 12


class Recording(torch.optim.SGD):
    """SGD that keeps the rates with which it was really stepped."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.used = []

    def step(self, closure=None):
        loss = super().step(closure)
        self.used.append([float(group["lr"]) for group in self.param_groups])
        return loss


SCHEDULES = {
    "lambda": lambda o: LambdaLR(o, lambda t: 0.9**t),
    "one_cycle": lambda o: OneCycleLR(o, max_lr=[0.1, 0.3], total_steps=STEPS + 1),
    "cosine": lambda o: CosineAnnealingLR(o, T_max=STEPS),
    "step": lambda o: StepLR(o, step_size=2, gamma=0.7),
    "sequential": lambda o: SequentialLR(o, [LambdaLR(o, lambda t: 1.0), CosineAnnealingLR(o, 8)], [4]),
    "plateau": lambda o: ReduceLROnPlateau(o, patience=0, factor=0.5),
}


def scheduled(small, data, schedule, tensor_rate, watch):
    torch.manual_seed(0)
    model = small()
    rate = torch.tensor(0.05) if tensor_rate else 0.05
    groups = [{"params": model[0].parameters()}, {"params": model[4].parameters(), "lr": 0.2}]
    optimizer = Recording(groups, lr=rate)
    scheduler = SCHEDULES[schedule](optimizer)
    run = watch(model, optimizer)
    scheduled_rates = []
    for i, (x, y) in enumerate(data(STEPS)):
        if run is not None and i == 3:
            run.apply("learning_rate", factor=0.5, steps=4)
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(1.0)
        else:
            scheduler.step()
        scheduled_rates.append([float(group["lr"]) for group in optimizer.param_groups])
    return np.array(optimizer.used), np.array(scheduled_rates), copy.deepcopy(scheduler.state_dict()), run


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("tensor_rate", [False, True])
def test_learning_rate_factor_under_every_schedule(tmp_path, small, data, schedule, tensor_rate):
    base, base_after, base_state, _ = scheduled(small, data, schedule, tensor_rate, lambda m, o: None)
    used, after, state, run = scheduled(
        small, data, schedule, tensor_rate, lambda m, o: dynaxx.watch(m, o, tmp_path / "run", quiet=True)
    )
    factor = np.ones((STEPS, 1))
    factor[3:7] = 0.5
    if tensor_rate:  # a product of float32
        np.testing.assert_allclose(used, base * factor, rtol=1e-7)
    else:
        np.testing.assert_array_equal(used, base * factor)
    np.testing.assert_array_equal(after, base_after)  # the schedule never saw the factor
    assert repr(state) == repr(base_state)
    run.close()
    view = run.view()
    np.testing.assert_allclose(view["lr"].values, used, rtol=1e-7)
    assert view["lr.factor"].steps.tolist() == [4, 5, 6, 7]
    assert set(view["lr.factor"].values.tolist()) == {0.5}
    receipts = [event["receipt"] for event in view.events("receipt")]
    assert [(r["status"], r["step"]) for r in receipts] == [("begun", 3), ("ended", 7)]
    assert receipts[1]["detail"] == "after 4 steps"


def test_gradient_clip_is_torchs(tmp_path, small, data):
    models = []
    for mode in ("torch", "dynaxx"):
        torch.manual_seed(0)
        model = small()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        if mode == "dynaxx":
            run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True)
            run.apply("gradient_clip", max_norm=0.2)
        norms = []
        for x, y in data(5):
            functional.cross_entropy(model(x), y).backward()
            norms.append(math.sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters())))
            if mode == "torch":
                clip_grad_norm_(model.parameters(), 0.2)
            optimizer.step()
            optimizer.zero_grad()
        models.append(model)
    run.close()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(run.view()["grad_norm.total"].values, norms, rtol=1e-6)  # measured before the action
    assert run.view()["clip_coefficient"].values.max() < 1


def test_gradient_scale(tmp_path, small, data):
    def train(factor, run=None):
        torch.manual_seed(0)
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if run:
            run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True)
            run.apply("gradient_scale", factor=0.25, steps=3)
        for i, (x, y) in enumerate(data(5)):
            (functional.cross_entropy(model(x), y) * (factor if i < 3 else 1)).backward()
            optimizer.step()
            optimizer.zero_grad()
        return model

    for a, b in zip(train(0.25).parameters(), train(1.0, run=True).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)  # a power of two: exact


OPTIMIZERS = {
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=1e-2, foreach=False),
    "adamw_foreach": lambda ps: torch.optim.AdamW(ps, lr=1e-2, foreach=True),
    "adamw_fused": lambda ps: torch.optim.AdamW(ps, lr=1e-2, fused=True),
    "sgd_momentum": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.1),
    "sgd_fused": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, fused=True),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=1e-2, momentum=0.9),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, lr=1e-2),
    "lion_like": lambda ps: torch.optim.Adamax(ps, lr=1e-2),
}


def tensors(state):
    return [v.clone() if isinstance(v, torch.Tensor) else v for s in state.values() for v in s.values()]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("when", ["non_finite", "always"])
def test_skip_changes_nothing_at_all(tmp_path, small, data, kind, when):
    torch.manual_seed(0)
    model = small()
    optimizer = OPTIMIZERS[kind](model.parameters())
    run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True)
    moved = []
    for i, (x, y) in enumerate(data(6)):
        spoilt = i in (2, 3)
        if when == "non_finite" and i == 1:
            run.apply("skip", when="non_finite")
        if when == "always" and i == 2:
            run.apply("skip", when="always", steps=2)
        loss = functional.cross_entropy(model(x), y)
        (loss * torch.nan if spoilt and when == "non_finite" else loss).backward()
        before = [*(p.detach().clone() for p in model.parameters()), *tensors(optimizer.state)]
        gradients = [p.grad for p in model.parameters()]
        optimizer.step()
        assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
        after = [*model.parameters(), *tensors(optimizer.state)]
        equal = len(before) == len(after) and all(
            torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(before, after, strict=True)
        )
        moved.append(not equal)
        optimizer.zero_grad()
        run.log(batch=float(i))
    run.close()
    assert moved == [True, True, False, False, True, True]
    view = run.view()
    assert run.step == 4
    assert view["grad_norm"].steps.tolist() == [1, 2, 3, 4]
    assert np.isfinite(view["grad_norm"].values).all()
    left_out = [(event["step"], event["why"]) for event in view.events("update_left_out")]
    assert left_out == [(2, "asked for by the action skip")] * 2
    assert view["batch"].values.tolist() == [0.0, 1.0, 3.0, 5.0]  # batches 2, 3 and 4 were attempts at step 3
    assert view["effective_batch"].values.tolist() == [5.0] * 4
    assert view["precision.skipped"].steps.tolist() == [3]
    assert view["precision.skipped"].values.tolist() == [2.0]


def test_skip_under_a_fused_optimizer_with_a_scaler(tmp_path, small, data):
    torch.manual_seed(0)
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    run = dynaxx.watch(model, optimizer, tmp_path / "run", scaler=scaler, quiet=True)
    for i, (x, y) in enumerate(data(4)):
        if i == 1:
            run.apply("skip", when="always", steps=1)
        scaler.scale(functional.cross_entropy(model(x), y)).backward()
        before = [p.detach().clone() for p in model.parameters()]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        same = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert same == (i == 1)
    run.close()
    assert run.step == 3


def test_actions_in_one_step_act_in_the_order_they_were_given(tmp_path):
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True)
    run.apply("gradient_scale", factor=4.0)
    run.apply("gradient_clip", max_norm=2.0)
    run.apply("learning_rate", factor=0.5)
    start = model.weight.item()
    model(torch.ones(1, 1)).sum().backward()  # gradient 1, scaled to 4, clipped to 2, step 1
    optimizer.step()
    assert start - model.weight.item() == pytest.approx(1.0, rel=1e-6)
    run.lift("learning_rate")
    run.lift("gradient_scale")
    optimizer.zero_grad()
    start = model.weight.item()
    model(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    assert start - model.weight.item() == pytest.approx(1.0, rel=1e-6)
    run.close()
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_stop_ends_the_batches_of_this_and_later_epochs(tmp_path, small, data):
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True)
    for _ in range(3):
        for x, y in run.batches(data(4)):
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            if run.step == 6:
                run.apply("stop", reason="seen enough")
    run.close()
    assert run.step == 6
    assert run.stopping == "seen enough"


def test_an_optimizer_that_fails_within_its_step_gets_its_rate_back(tmp_path, small, data):
    class Failing(torch.optim.SGD):
        fail = False

        def step(self, closure=None):
            if self.fail:
                raise RuntimeError("out of memory")
            return super().step(closure)

    model = small()
    optimizer = Failing(model.parameters(), lr=0.1)
    run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True)
    run.apply("learning_rate", factor=0.5)
    for i, (x, y) in enumerate(data(4)):
        optimizer.fail = i == 1
        functional.cross_entropy(model(x), y).backward()
        try:
            optimizer.step()
        except RuntimeError:
            pass
        optimizer.zero_grad()
    assert optimizer.param_groups[0]["lr"] == 0.1
    run.close()
    assert run.step == 3
    assert run.view()["lr"].values.ravel().tolist() == [0.05] * 3


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        (
            "learning_rate",
            {"factor": 0.0},
            r"apply\('learning_rate', factor=...\) must be positive and finite. Got 0.0",
        ),
        ("learning_rate", {"factor": math.nan}, "must be positive and finite. Got nan"),
        ("gradient_clip", {"max_norm": -1.0}, r"apply\('gradient_clip', max_norm=...\) must be positive"),
        ("gradient_scale", {"factor": math.inf}, "must be finite and not negative. Got inf"),
        ("skip", {"when": "sometimes"}, "must be 'non_finite', 'gross', 'outlier' or 'always'. Got 'sometimes'"),
        ("gradient_clip", {}, "max_norm"),
        ("gradient_clip", {"max_norm": 1.0, "steps": 0}, "steps=...\\) must be at least 1. Got 0"),
        ("learning_rat", {"factor": 0.5}, "Did you mean 'learning_rate'?"),
    ],
)
def test_bad_actions_are_refused(tmp_path, small, name, arguments, said):
    model = small()
    run = dynaxx.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path / "run", quiet=True)
    with pytest.raises(BadInput, match=said):
        run.apply(name, **arguments)
    run.close()
