"""Mixed precision: what a gradient scaler scales is measured unscaled, and what it leaves out is no step."""

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

import dynaxx

QUICK = {
    "test_norms_are_unscaled": ["True-False", "False-True"],
    "test_updates_left_out_are_no_steps": ["True-True", "False-False"],
    "test_accumulation_under_a_scaler": ["True"],
    "test_autocast_without_a_scaler": ["dtype0"],
}
ADAMW = {"lr": 1e-2}


def amp_loop(small, data, *, fused, clip=False, overflow=(), registered=True, steps=6, accumulate=1):
    """A loop under a CPU gradient scaler; `overflow` are the batches whose loss is made to overflow in the backward."""

    def loop(watch, book):
        model = small()
        optimizer = torch.optim.AdamW(model.parameters(), **ADAMW, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
        run = watch(model, optimizer, **({"scaler": scaler} if registered else {}))
        for i, (x, y) in enumerate(data(steps * accumulate)):
            with torch.autocast("cpu", dtype=torch.float16):
                loss = functional.cross_entropy(model(x), y)
            spoilt = loss * 1e38 if i in overflow else loss  # finite itself; scaled it is not, nor are its gradients
            scaler.scale(spoilt / accumulate).backward()
            run.log(loss=loss)
            if (i + 1) % accumulate:
                continue
            scale = scaler.get_scale()
            taken = not any(j in overflow for j in range(i + 1 - accumulate, i + 1))
            if taken:
                book.backward_done(model, factor=1 / scale)
                book.note("scale", scale)
            if clip:
                scaler.unscale_(optimizer)
                total = clip_grad_norm_(model.parameters(), 0.5)
                if taken:
                    book.note("coefficient", min(1.0, 0.5 / (float(total) + 1e-6)))
            book.before_step(model)
            scaler.step(optimizer)
            if taken:
                book.after_step(model)
            scaler.update()
            optimizer.zero_grad()
        return model, optimizer, scaler

    return loop


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_norms_are_unscaled(both, agrees, small, data, fused, clip):
    view, book = both(amp_loop(small, data, fused=fused, clip=clip))
    agrees(view, book)
    assert view["precision.loss_scale"].values.tolist() == book.values["scale"] == [1024.0] * 3 + [2048.0] * 3
    assert view["precision.skipped"].values.tolist() == [0.0] * 6
    assert view["precision.underflow"].values.shape == (6, 3)
    if clip:
        np.testing.assert_allclose(view["clip_coefficient"].values, book.values["coefficient"], rtol=1e-6)
        assert view["clip_coefficient"].values.min() < 1
    effective = np.array(book.updates) / np.array(book.gradients)
    if clip:
        effective /= np.array(book.values["coefficient"])[:, None]
    np.testing.assert_allclose(view["optimizer_state.effective_step"].values, effective, rtol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_updates_left_out_are_no_steps(both, agrees, small, data, fused, clip):
    view, book = both(amp_loop(small, data, fused=fused, clip=clip, overflow=(0, 2, 3)))
    agrees(view, book)
    assert len(book.gradients) == 3
    assert view["precision.skipped"].steps.tolist() == [1, 2, 3]
    assert view["precision.skipped"].values.tolist() == [1.0, 2.0, 0.0]
    assert view["precision.loss_scale"].values.tolist() == book.values["scale"] == [512.0, 128.0, 128.0]
    left_out = view.events("update_left_out")
    assert [event["step"] for event in left_out] == [0, 1, 1]
    assert {event["why"] for event in left_out} == {"gradients overflowed under the gradient scaler"}
    # A batch whose update was left out is logged with the step that its parameters belong to: the one still to come.
    assert view["loss"].steps.tolist() == [1, 2, 3]
    assert view["effective_batch"].values.tolist() == [5.0, 5.0, 5.0]


def test_a_run_that_begins_with_overflows_only(both, small, data):
    view, _ = both(amp_loop(small, data, fused=False, overflow=(0, 1, 2), steps=3))
    assert "grad_norm" not in view.columns
    assert [event["step"] for event in view.events("update_left_out")] == [0, 0, 0]


@pytest.mark.parametrize("fused", [False, True])
def test_accumulation_under_a_scaler(both, agrees, small, data, fused):
    view, book = both(amp_loop(small, data, fused=fused, overflow=(3,), steps=3, accumulate=2))
    agrees(view, book)
    assert view["precision.skipped"].values.tolist() == [0.0, 1.0]
    assert view["effective_batch"].values.tolist() == [10.0, 10.0]


def test_a_fused_optimizer_says_what_was_skipped_without_the_scaler(both, agrees, small, data):
    view, book = both(amp_loop(small, data, fused=True, overflow=(1,), registered=False))
    agrees(view, book)
    assert view["precision.skipped"].values.tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]
    assert view["precision.loss_scale"].values.tolist() == book.values["scale"]


def test_skipped_steps_that_cannot_be_seen_are_said_to_be_missing(both, agrees, small, data):
    view, book = both(amp_loop(small, data, fused=False, overflow=(1,), registered=False))
    agrees(view, book)
    assert "precision.skipped" not in view.columns  # unknown is not zero
    assert view.events("self_test")[0]["missing"] == [
        "updates that a gradient scaler leaves out, because it is not known: call watch(..., scaler=scaler)"
    ]


def test_clipping_without_unscaling_is_measured_unscaled(both, agrees, small, data):
    def loop(watch, book):
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        watch(model, optimizer, scaler=scaler)
        for x, y in data(3):
            scaler.scale(functional.cross_entropy(model(x), y)).backward()
            book.backward_done(model, factor=1 / 256)
            total = clip_grad_norm_(model.parameters(), 64.0)  # the threshold is meant for scaled gradients here
            book.note("coefficient", min(1.0, 64.0 / (float(total) + 1e-6)))
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return model, optimizer, scaler

    view, book = both(loop)
    agrees(view, book)
    np.testing.assert_allclose(view["clip_coefficient"].values, book.values["coefficient"], rtol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_underflow_is_counted_in_scaled_units(both, fused):
    tiny = torch.finfo(torch.float16).tiny

    def loop(watch, book):
        model = torch.nn.Linear(4, 1, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        watch(model, optimizer, scaler=scaler)
        with torch.autocast("cpu", dtype=torch.float16):
            model(torch.ones(1, 4))  # only so that the compute dtype is known
        scaler.scale(model.weight.sum()).backward()
        # Scaled gradients: one far under, one just over the smallest normal, one zero, one large.
        model.weight.grad = torch.tensor([[tiny / 4, tiny * 4, 0.0, 1.0]])
        scaler.step(optimizer)
        scaler.update()
        return model, optimizer, scaler

    view, _ = both(loop)
    assert view["precision.underflow"].values.tolist() == [[0.25]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_without_a_scaler(both, agrees, small, data, dtype):
    def loop(watch, book):
        model = small()
        optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
        watch(model, optimizer)
        for x, y in data(4):
            with torch.autocast("cpu", dtype=dtype):
                loss = functional.cross_entropy(model(x), y)
            loss.backward()
            book.take_step(model, optimizer)
        return model, optimizer

    agrees(*both(loop))


def test_a_disabled_scaler_is_no_scaler(both, agrees, small, data):
    def loop(watch, book):
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        watch(model, optimizer, scaler=scaler)
        for x, y in data(3):
            scaler.scale(functional.cross_entropy(model(x), y)).backward()
            scaler.unscale_(optimizer)
            book.backward_done(model)
            clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return model, optimizer

    view, book = both(loop)
    agrees(view, book)
    assert "precision.loss_scale" not in view.columns


def test_two_watches_share_a_scaler_and_end_in_any_order(tmp_path, small, data):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    models = [small(), small()]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in models]
    runs = [
        dynaxx.watch(m, o, tmp_path / str(i), scaler=scaler, quiet=True)
        for i, (m, o) in enumerate(zip(models, optimizers, strict=True))
    ]

    def step(spoil):
        for model, optimizer, (x, y) in zip(models, optimizers, data(2), strict=True):
            loss = functional.cross_entropy(model(x), y)
            scaler.scale(loss * 1e38 if spoil else loss).backward()
            scaler.step(optimizer)
            optimizer.zero_grad()
        scaler.update()

    step(spoil=False)
    step(spoil=True)
    runs[0].close()
    step(spoil=True)
    step(spoil=False)
    runs[1].close()
    assert "step" not in vars(scaler)
    step(spoil=False)
    assert [run.step for run in runs] == [1, 2]
    assert [len(run.view().events("update_left_out")) for run in runs] == [1, 2]


def test_a_copied_scaler_steps_on_its_own(tmp_path, small, data):
    import copy
    import pickle

    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    run = dynaxx.watch(model, optimizer, tmp_path / "run", scaler=scaler, quiet=True)
    for twin in (copy.deepcopy(scaler), pickle.loads(pickle.dumps(scaler))):  # noqa: S301
        assert twin.step.__func__ is torch.amp.GradScaler.step
        assert twin.step.__self__ is twin
    run.close()
