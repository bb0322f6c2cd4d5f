"""Models of every shape: outputs of any kind, several forwards, failing ones, scripted and checkpointed ones."""

import types
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

import dynaxx

QUICK = {
    "test_outputs_of_every_kind": ["dataclass", "nested"],
    "test_inputs_of_every_kind": ["dict"],
    "test_activation_checkpointing": ["False-True"],
}


@dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor


class Pair(NamedTuple):
    hidden: torch.Tensor
    logits: torch.Tensor


KINDS = {
    "dict": lambda h, z: {"hidden": h, "logits": z},
    "tuple": lambda h, z: (z, h),
    "named_tuple": Pair,
    "dataclass": lambda h, z: Output(logits=z, hidden=h),
    "namespace": lambda h, z: types.SimpleNamespace(hidden=h, logits=z),
    "nested": lambda h, z: ([{"out": z}], h),
}


class Returning(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.body, self.head, self.kind = nn.Linear(6, 8), nn.Linear(8, 3), kind

    def forward(self, x, *, scale=1.0):
        hidden = functional.relu(self.body(x)) * scale
        return KINDS[self.kind](hidden, self.head(hidden))


def logits(out):
    if isinstance(out, dict):
        return out["logits"]
    if isinstance(out, tuple) and not isinstance(out, Pair):
        return out[0][0]["out"] if isinstance(out[0], list) else out[0]
    return out.logits


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_of_every_kind(both, agrees, data, kind):
    def loop(watch, book):
        model = Returning(kind)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

        def loss(batch):
            z = logits(model(batch[0], scale=2.0))
            book.note("norm", z.norm(dim=-1).mean())
            book.note("largest", z.abs().max())
            return functional.cross_entropy(z, batch[1])

        return book.train(model, optimizer, watch, data(3), loss)

    view, book = both(loop)
    agrees(view, book)
    np.testing.assert_allclose(view["logit_norm"].values, book.values["norm"], rtol=1e-6)
    np.testing.assert_allclose(view["logit_norm.max"].values, book.values["largest"], rtol=1e-6)
    assert view["activations.mean"].labels == ("body", "head", "relu")
    assert view["effective_batch"].values.tolist() == [5.0] * 3


@pytest.mark.parametrize("kind", ["keywords", "dict", "list", "numbers_first"])
def test_inputs_of_every_kind(both, data, kind):
    class Taking(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 3)

        def forward(self, inputs=None, extra=None):
            x = {"keywords": lambda: extra, "dict": lambda: inputs["x"], "list": lambda: inputs[0]}
            return self.head(x.get(kind, lambda: extra)())

    def loop(watch, book):
        model = Taking()
        call = {
            "keywords": lambda x: model(extra=x),
            "dict": lambda x: model({"name": "a", "x": x}),
            "list": lambda x: model([x, 3]),
            "numbers_first": lambda x: model(7, x),
        }[kind]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return book.train(model, optimizer, watch, data(2), lambda b: functional.cross_entropy(call(b[0]), b[1]))

    view, _ = both(loop)
    assert view["effective_batch"].values.tolist() == [5.0] * 2


def test_several_forwards_before_one_backward(both, agrees, small, data):
    def loop(watch, book):
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def loss(batch):
            first, second = model(batch[0]), model(batch[0] + 0.1)
            return functional.cross_entropy(first, batch[1]) + (first - second).square().mean()

        return book.train(model, optimizer, watch, data(3), loss)

    view, book = both(loop)
    agrees(view, book)
    assert view["effective_batch"].values.tolist() == [10.0] * 3


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.fail = None

    def forward(self, x):
        x = functional.relu(self.body(x))
        if self.fail is not None:
            raise self.fail
        return self.head(x)


@pytest.mark.parametrize("error", [ValueError("a bad batch"), torch.OutOfMemoryError("too large")])
def test_a_forward_that_fails_and_is_caught(both, agrees, data, error):
    def loop(watch, book):
        model = Failing()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        run = watch(model, optimizer)
        for i, (x, y) in enumerate(data(7)):
            model.fail = error if i in (0, 1, 4) else None
            try:
                loss = functional.cross_entropy(model(x), y)
            except type(error):
                continue
            loss.backward()
            book.backward_done(model)
            optimizer.step()
            optimizer.zero_grad()
            run.log(loss=loss)
        assert not any(module._forward_hooks for module in (model.body, model.head))
        return model, optimizer

    view, book = both(loop)
    agrees(view, book)
    assert view["effective_batch"].values.tolist() == [5.0] * 4
    assert view["loss"].steps.tolist() == [1, 2, 3, 4]


def test_a_users_hook_that_fails_before_ours(both, agrees, data):
    def loop(watch, book):
        model = Failing()
        state = {"fail": True}

        def check(module, args):
            if state["fail"]:
                raise ValueError("bad input")

        model.register_forward_pre_hook(check)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        watch(model, optimizer)
        for i, (x, y) in enumerate(data(5)):
            state["fail"] = i in (0, 2)
            try:
                loss = functional.cross_entropy(model(x), y)
            except ValueError:
                continue
            loss.backward()
            book.backward_done(model)
            optimizer.step()
            optimizer.zero_grad()
        return model, optimizer

    view, book = both(loop)
    agrees(view, book)
    assert view["effective_batch"].values.tolist() == [5.0] * 3


def test_a_model_that_returns_nothing(both, agrees, data):
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 3)

        def forward(self, x, y):
            self.loss = functional.cross_entropy(self.head(x), y)

    def loop(watch, book):
        model = Keeping()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def loss(batch):
            try:
                raise KeyError  # an error being handled is not one of the forward's
            except KeyError:
                pass
            model(*batch)
            value, model.loss = model.loss, None
            return value

        return book.train(model, optimizer, watch, data(3), loss)

    view, book = both(loop)
    agrees(view, book)
    assert view["effective_batch"].values.tolist() == [5.0] * 3


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("whole", [False, True])
def test_scripted_models_take_no_hooks(both, agrees, data, whole):
    def loop(watch, book):
        model = nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 3)))
        if whole:
            model = torch.jit.script(model)
        else:
            model[1] = torch.jit.script(model[1])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return book.train(model, optimizer, watch, data(3), lambda b: functional.cross_entropy(model(b[0]), b[1]))

    view, book = both(loop)
    agrees(view, book)
    if whole:
        assert "no forward of the watched model in training mode was seen" in view.events("self_test")[0]["missing"][0]
    else:
        assert view["activations.mean"].labels == ("0",)
        assert view["effective_batch"].values.tolist() == [5.0] * 3


def test_fine_tuning_in_evaluation_mode(both, agrees, small, data):
    def loop(watch, book):
        model = small().eval()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return book.train(model, optimizer, watch, data(3), lambda b: functional.cross_entropy(model(b[0]), b[1]))

    view, book = both(loop)
    agrees(view, book)
    assert view["effective_batch"].values.tolist() == [5.0] * 3
    assert view.events("self_test")[0]["missing"] == []


def test_evaluation_mode_at_watch_then_training(both, small, data):
    """The model was evaluated before the watch; later evaluations, even with gradients, are not training."""

    def loop(watch, book):
        model = small().eval()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = watch(model, optimizer)
        for x, y in data(3):
            model.train()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            model.eval()
            run.log(val_loss=functional.cross_entropy(model(x), y))
        return model, optimizer

    view, _ = both(loop)
    assert view["effective_batch"].values.tolist() == [5.0] * 3
    assert view["val_loss"].steps.tolist() == [1, 2, 3]


def test_evaluation_mode_later_is_said(tmp_path, small, data, capsys):
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = dynaxx.watch(model, optimizer, tmp_path / "run")
    model.eval()
    for x, y in data(2):
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    run.close()
    assert "because no forward of the watched model in training mode was seen" in capsys.readouterr().err
    assert run.view()["grad_norm"].steps.tolist() == [1, 2]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("early_stop", [False, True])
def test_activation_checkpointing(both, agrees, small, data, whole, early_stop):
    def loop(watch, book):
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def forward(x):
            if whole:
                return checkpoint(model, x, use_reentrant=False)
            return model(x)

        if not whole:
            original = model[0].forward
            model[0].forward = lambda x: checkpoint(original, x, use_reentrant=False)
        with set_checkpoint_early_stop(early_stop):
            return book.train(model, optimizer, watch, data(3), lambda b: functional.cross_entropy(forward(b[0]), b[1]))

    view, book = both(loop)
    agrees(view, book)
    assert view["effective_batch"].values.tolist() == [5.0] * 3  # what is computed once more is no further example


def test_a_look_that_fails_does_not_fail_the_forward(tmp_path, small, data, monkeypatch):
    from dynaxx.errors import DynaxxWarning
    from dynaxx.signals.activations import ActivationTap

    def broken(self, inputs, output):
        raise ValueError("a shape nobody thought of")

    monkeypatch.setattr(ActivationTap, "__call__", broken)
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True)

    def train():
        for x, y in data(3):
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

    with pytest.warns(DynaxxWarning, match=r"signal 'activations' failed and is off.*training goes on.*nobody thought"):
        train()
    run.close()
    view = run.view()
    assert len(view.events("warning")) == 1
    assert view["logit_norm"].steps.tolist() == [1, 2, 3]  # the others go on
    assert not any(name.startswith("activations") for name in view.columns)


def test_an_unfinished_use_of_function_modes_around_the_model(both, agrees, small, data):
    """Modes of the user's, entered around the model, are on the stack before and after as they were."""
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    class Dispatching(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    def loop(watch, book):
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def loss(batch):
            with Counting(), Dispatching():
                return functional.cross_entropy(model(batch[0]), batch[1])

        return book.train(model, optimizer, watch, data(4), loss)

    agrees(*both(loop))
