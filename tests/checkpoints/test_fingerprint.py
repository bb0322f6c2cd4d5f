"""The resume level says what lowered it."""

import pytest
import torch
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import StepLR

from dynaxx.checkpoints import capture, fingerprint, resume_level


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))


def adam(model):
    return Adam(model.parameters(), lr=0.01)


@pytest.fixture
def level_after(through, train):
    def level_after(change=lambda state: None, now=None, **given):
        model = net()
        optimizer = adam(model)
        train(model, optimizer)
        state = through(capture(model, optimizer, **given))
        change(state)
        return resume_level(state, model, optimizer, **(given if now is None else now))

    return level_after


def test_resume_level_says_what_lowered_it(level_after, through):
    assert level_after() == ("exact", ())
    assert level_after(lambda s: s["fingerprint"].update(torch="2.9.0")) == (
        "equivalent",
        (f"torch: 2.9.0 when saved, {torch.__version__} now",),
    )
    assert level_after(lambda s: s["fingerprint"].update({"threads": 64, "world size": 8})) == (
        "equivalent",
        ("threads: 64 when saved, 1 now", "world size: 8 when saved, 1 now"),
    )
    assert level_after(lambda s: s["fingerprint"].pop("compiled")) == (
        "equivalent",
        ("compiled: None when saved, False now",),
    )
    assert level_after(lambda s: s.update(random={1: s["random"][0]})) == (
        "equivalent",
        ("the random streams of rank 0 were not saved",),
    )
    assert level_after(extra={"n": torch.Generator()}, now={}) == (
        "warm",
        ("extra['n'] was saved and is not given: it starts anew",),
    )
    assert level_after(now={"extra": {"n": torch.Generator()}})[1] == (
        "extra['n'] was not registered when the checkpoint was saved: it starts anew",
    )
    assert level_after(scaler=torch.amp.GradScaler("cpu"), now={})[0] == "warm"
    assert level_after(lambda s: s["optimizer"]["param_groups"][0].update(initial_lr=0.1)) == (
        "warm",
        ("a learning-rate scheduler was not registered: it starts anew",),
    )
    half = net()
    state = through(capture(half, adam(half)))
    half.bfloat16()
    level, reasons = resume_level(state, half, adam(half))
    assert level == "warm"
    assert reasons[0] == "0.weight is of another dtype than when saved: values are rounded"


def test_unregistered_scheduler_is_noticed(through):
    model = net()
    optimizer = adam(model)
    StepLR(optimizer, 2)
    state = through(capture(model, optimizer))
    assert resume_level(state, model, optimizer)[0] == "warm"


def test_fingerprint_follows_what_it_names():
    model = net()
    first = fingerprint(model, adam(model))
    assert fingerprint(model, adam(model)) == first
    changes = {
        "threads": (torch.set_num_threads, 2, 1),
        "deterministic algorithms": (torch.use_deterministic_algorithms, True, False),
        "float32 matmul precision": (torch.set_float32_matmul_precision, "medium", "highest"),
        "default dtype": (torch.set_default_dtype, torch.float64, torch.float32),
    }
    for fact, (change, there, back) in changes.items():
        change(there)
        now = fingerprint(model, adam(model))
        change(back)
        assert [k for k in first if now[k] != first[k]] == [fact]
