"""Compiled models: what can be measured is right and neutral, and what cannot is said exactly."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

pytestmark = [  # torch's own, while it compiles
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),
]

OUTSIDE = (
    "activations, batch sizes and forward times, because no forward of the watched model in training mode was seen: "
)
IN_PLACE = "activations, batch sizes and forward times, because the model was compiled in place after watch: "
BEFORE = (
    "activations, because the model was compiled before watch: call watch between torch.compile and the first forward"
)
PARTS = "activations, because parts of the model were compiled after watch: watch the compiled model"
ROUNDED = "activations, because the model is compiled and computes in 16 bits: "


class Net(nn.Sequential):
    """Torch compiles forwards of a user's own, not those of its containers."""

    def __init__(self):
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))

    def forward(self, x):
        for module in self:
            x = module(x)
        return x


def compiled_then_watched(model, watch, backend, x):
    called = torch.compile(model, backend=backend)
    return called, watch(called)


def compiled_in_place_then_watched(model, watch, backend, x):
    model.compile(backend=backend)
    return model, watch(model)


def part_compiled_then_watched(model, watch, backend, x):
    model[3] = torch.compile(model[3], backend=backend)
    return model, watch(model)


def watched_then_compiled(model, watch, backend, x):
    run = watch(model)
    return torch.compile(model, backend=backend), run


def watched_then_compiled_in_place(model, watch, backend, x):
    run = watch(model)
    model.compile(backend=backend)
    return model, run


def watched_then_part_compiled(model, watch, backend, x):
    run = watch(model)
    model[3] = torch.compile(model[3], backend=backend)
    return model, run


def watched_after_the_first_compiled_forward(model, watch, backend, x):
    called = torch.compile(model, backend=backend)
    called(x)
    return called, watch(called)


CASES = [
    (compiled_then_watched, None),
    pytest.param(compiled_in_place_then_watched, None, marks=pytest.mark.slow),
    pytest.param(part_compiled_then_watched, None, marks=pytest.mark.slow),
    (watched_then_compiled, OUTSIDE),
    pytest.param(watched_then_compiled_in_place, IN_PLACE, marks=pytest.mark.slow),
    pytest.param(watched_then_part_compiled, PARTS, marks=pytest.mark.slow),
    pytest.param(watched_after_the_first_compiled_forward, BEFORE, marks=pytest.mark.slow),
]


def make_loop(data, order, backend="eager", dtype=None, steps=4, evaluate=False):
    def loop(watch, book):
        torch._dynamo.reset()
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        batches = data(steps)
        called, run = order(model, lambda m: watch(m, optimizer), backend, batches[0][0])
        for x, y in batches:
            with nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype):
                out = called(x)
            loss = functional.cross_entropy(out.float(), y)
            loss.backward()
            book.take_step(model, optimizer)
            run.log(loss=loss)
            book.note("mean", out.detach().float().mean())
            if evaluate:
                called.eval()
                with torch.no_grad():
                    called(100 * x)
                called.train()
        return model, optimizer

    return loop


@pytest.mark.parametrize(("order", "said"), CASES)
def test_every_order_of_compile_and_watch(both, agrees, data, order, said):
    view, book = both(make_loop(data, order))
    agrees(view, book)
    assert view["grad_norm"].labels == ("0", "3")  # of a part compiled before watch without a trace of its wrapper
    missing = view.events("self_test")[0]["missing"]
    assert len(missing) == (0 if said is None else 1)
    if said is None:
        activations = view["activations.mean"]
        assert activations.steps.tolist() == [1, 2, 3, 4]
        np.testing.assert_allclose(activations.entry("3").values, book.values["mean"], rtol=1e-5, atol=1e-7)
        assert np.isfinite(activations.values).all()
    else:
        assert missing[0].startswith(said)
        assert not any(name.startswith("activations") for name in view.columns)  # no rows of nothing
    if said in (None, PARTS, BEFORE):
        assert view["effective_batch"].values.tolist() == [5.0] * 4
        assert view["logit_norm"].steps.tolist() == [1, 2, 3, 4]
    else:
        assert "effective_batch" not in view.columns
    assert view["loss"].steps.tolist() == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("order", [compiled_then_watched, compiled_in_place_then_watched, part_compiled_then_watched])
def test_evaluation_is_not_looked_into(both, agrees, data, order):
    view, book = both(make_loop(data, order, evaluate=True))
    agrees(view, book)
    np.testing.assert_allclose(view["activations.mean"].entry("3").values, book.values["mean"], rtol=1e-5, atol=1e-7)
    assert view["effective_batch"].values.tolist() == [5.0] * 4


@pytest.mark.slow
def test_inductor_is_not_disturbed(both, agrees, data):
    view, book = both(make_loop(data, compiled_then_watched, backend="inductor"))
    agrees(view, book)
    np.testing.assert_allclose(view["activations.mean"].entry("3").values, book.values["mean"], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_inductor_in_sixteen_bits_is_not_looked_into(both, agrees, data):
    view, book = both(make_loop(data, compiled_then_watched, backend="inductor", dtype=torch.bfloat16))
    agrees(view, book)
    assert view.events("self_test")[0]["missing"][0].startswith(ROUNDED)
    assert not any(name.startswith("activations") for name in view.columns)


@pytest.mark.slow
def test_a_compiled_optimizer_step(both, agrees, data):
    def loop(watch, book):
        torch._dynamo.reset()
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-2))
        watch(model, optimizer)
        step = torch.compile(optimizer.step, backend="eager")
        for x, y in data(4):
            functional.cross_entropy(model(x), y).backward()
            book.backward_done(model)
            book.before_step(model)
            step()
            book.after_step(model)
            optimizer.zero_grad()
        return model, optimizer

    view, book = both(loop)
    agrees(view, book)
    assert view.events("self_test")[0]["missing"] == []


@pytest.mark.slow
def test_the_whole_training_step_compiled(both, agrees, data):
    def loop(watch, book):
        torch._dynamo.reset()
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watch(model, optimizer)

        @torch.compile(backend="eager")
        def losses(x, y):
            return functional.cross_entropy(model(x), y)

        for x, y in data(3):
            losses(x, y).backward()
            book.take_step(model, optimizer)
        return model, optimizer

    view, book = both(loop)
    agrees(view, book)
    assert view.events("self_test")[0]["missing"][0].startswith(OUTSIDE)


@pytest.mark.slow
def test_taps_are_switched_with_the_cadence_without_a_trace(both, agrees, data):
    """Between measured steps the compiled graph is the one without taps; both compute the same bits."""

    def loop(watch, book):
        torch._dynamo.reset()
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        called = torch.compile(model, backend="aot_eager")
        run = watch(called, optimizer)
        for i, (x, y) in enumerate(data(8)):
            if i == 2 and hasattr(run, "_instruments"):
                run._instruments.settle({i.name: 3 for i in run._instruments.instruments})
            functional.cross_entropy(called(x), y).backward()
            book.backward_done(model)
            optimizer.step()
            optimizer.zero_grad()
        return model, optimizer

    view, book = both(loop)
    agrees(view, book)
    assert view["activations.mean"].steps.tolist() == [1, 2, 3, 6]
