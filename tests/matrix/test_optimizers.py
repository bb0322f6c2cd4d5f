"""Optimizers wrapped, subclassed, rebuilt, doubled, or stepped from elsewhere."""

import gc
import re
import threading
import weakref

import numpy as np
import pytest
import torch
from torch.nn import functional

import dynaxx
from dynaxx.errors import BadInput, DynaxxWarning

QUICK = {
    "test_all_of_torch_optim": ["Adafactor", "Muon"],
    "test_wrappers_and_subclasses": ["property", "optimizer", "parent"],
    "test_what_is_no_optimizer_is_refused": ["sgd"],
}


class Wrapper:
    """As Accelerate wraps: an object of its own that holds the optimizer and may do nothing in a step."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.sync = True

    def step(self):
        if self.sync:
            self.optimizer.step()

    def zero_grad(self):
        if self.sync:
            self.optimizer.zero_grad()

    def state_dict(self):
        return self.optimizer.state_dict()


class Property:
    """As Lightning wraps: the optimizer is behind a property."""

    def __init__(self, optimizer):
        self._optimizer = optimizer

    @property
    def optimizer(self):
        return self._optimizer

    def step(self):
        self._optimizer.step()

    def zero_grad(self):
        self._optimizer.zero_grad()

    def state_dict(self):
        return self._optimizer.state_dict()


class Subclassed(torch.optim.Optimizer):
    """A wrapper that is an optimizer itself and shares the groups: torch fires its hooks and the inner one's."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        super().__init__([{"params": [p for g in optimizer.param_groups for p in g["params"]]}], {})

    def step(self, closure=None):
        return self.optimizer.step(closure)


class Decayed(torch.optim.SGD):
    """A subclass whose step calls its parent's: torch fires the hooks of one step twice."""

    def step(self, closure=None):
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.mul_(0.99)
        return super().step(closure)


def plain(optimizer):
    torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)  # makes torch put hooks into SGD.step itself
    return optimizer


WRAPPERS = {
    "wrapper": lambda ps: Wrapper(torch.optim.AdamW(ps, lr=1e-2)),
    "twice": lambda ps: Wrapper(Wrapper(torch.optim.AdamW(ps, lr=1e-2))),
    "property": lambda ps: Property(torch.optim.AdamW(ps, lr=1e-2)),
    "optimizer": lambda ps: Subclassed(torch.optim.AdamW(ps, lr=1e-2)),
    "parent": lambda ps: plain(Decayed(ps, lr=0.1)),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrappers_and_subclasses(both, agrees, small, data, kind):
    def loop(watch, book):
        model = small()
        optimizer = WRAPPERS[kind](model.parameters())
        watch(model, optimizer)
        for x, y in data(12):
            functional.cross_entropy(model(x), y).backward()
            book.take_step(model, optimizer)
        return model, optimizer

    agrees(*both(loop))


def test_a_wrapper_that_leaves_steps_out_for_accumulation(both, agrees, small, data):
    def loop(watch, book):
        model = small()
        optimizer = Wrapper(torch.optim.AdamW(model.parameters(), lr=1e-2))
        watch(model, optimizer)
        for i, (x, y) in enumerate(data(6)):
            optimizer.sync = i % 2 == 1
            functional.cross_entropy(model(x), y).backward()
            if optimizer.sync:
                book.backward_done(model)
            optimizer.step()
            optimizer.zero_grad()
        return model, optimizer

    view, book = both(loop)
    agrees(view, book)
    assert view["effective_batch"].values.tolist() == [10.0] * 3


@pytest.mark.parametrize("thing", ["sgd", None, torch.nn.Linear(1, 1), object()])
def test_what_is_no_optimizer_is_refused(tmp_path, small, thing):
    with pytest.raises(BadInput, match=r"watch\(optimizer=...\) must be a torch.optim.Optimizer or a wrapper of one"):
        dynaxx.watch(small(), thing, tmp_path / "run")


def test_an_optimizer_made_anew_is_noticed(tmp_path, small, data):
    model = small()
    old = torch.optim.SGD(model.parameters(), lr=0.1)
    run = dynaxx.watch(model, old, tmp_path / "run", quiet=True)
    new = torch.optim.AdamW(model.parameters(), lr=1e-2)
    said = re.escape(
        "Another optimizer (AdamW) has updated the watched model 10 times while the watched one (SGD) did not step, so "
        "nothing is measured. If the optimizer was made anew, close this run and watch the new one."
    )

    def train():
        for x, y in data(12):
            functional.cross_entropy(model(x), y).backward()
            new.step()
            new.zero_grad()

    with pytest.warns(DynaxxWarning, match=said):
        train()
    run.close()
    assert len(run.view().events("warning")) == 1
    assert run.step == 0


def test_a_run_goes_when_its_optimizer_and_model_go(tmp_path, small, data):
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True)
    x, y = data(1)[0]
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    gone = [weakref.ref(thing) for thing in (run, run._live, run._hooks, model, optimizer)]
    del run, model, optimizer
    gc.collect()
    assert [reference() for reference in gone] == [None] * 5
    assert dynaxx.open_run(tmp_path / "run").attempts[-1].status == "finished"


def test_two_optimizers_in_turn_over_one_model(both, small, data):
    """Say, Muon for matrices and AdamW for the rest: the watched one's steps count, the other's part is named."""

    def loop(watch, book):
        model = small()
        first = torch.optim.SGD(model[0].parameters(), lr=0.1)
        second = torch.optim.AdamW([*model[1].parameters(), *model[4].parameters()], lr=1e-2)
        watch(model, first)
        for x, y in data(12):
            functional.cross_entropy(model(x), y).backward()
            book.backward_done(model)
            first.step()
            second.step()
            model.zero_grad()
        return model, first, second

    view, book = both(loop)
    np.testing.assert_allclose(view["grad_norm"].values, np.array(book.gradients), rtol=1e-6)
    missing = view.events("self_test")[0]["missing"]
    assert missing == [
        "4 parameters (1.weight, 1.bias, 4.weight, …) of the model require a gradient but are not in the optimizer"
    ]


def test_a_step_taken_in_another_thread(both, agrees, small, data):
    def loop(watch, book):
        model = small()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        run = watch(model, optimizer)
        for x, y in data(4):
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            book.backward_done(model)
            book.before_step(model)
            thread = threading.Thread(target=optimizer.step)
            thread.start()
            thread.join()
            book.after_step(model)
            optimizer.zero_grad()
            run.log(loss=loss)
        return model, optimizer

    view, book = both(loop)
    agrees(view, book)
    assert view["loss"].steps.tolist() == [1, 2, 3, 4]


OPTIM = torch.optim
ALL = {
    "Adadelta": OPTIM.Adadelta,
    "Adafactor": OPTIM.Adafactor,
    "Adagrad": OPTIM.Adagrad,
    "Adam": lambda ps: OPTIM.Adam(ps, amsgrad=True),
    "Adamax": OPTIM.Adamax,
    "ASGD": OPTIM.ASGD,
    "NAdam": OPTIM.NAdam,
    "RAdam": OPTIM.RAdam,
    "RMSprop": lambda ps: OPTIM.RMSprop(ps, centered=True, momentum=0.9),
    "Rprop": OPTIM.Rprop,
    "SGD": lambda ps: OPTIM.SGD(ps, lr=0.1, nesterov=True, momentum=0.9, maximize=True, weight_decay=0.1),
    "Muon": lambda ps: OPTIM.Muon([p for p in ps if p.dim() == 2], lr=1e-2),
}


@pytest.mark.parametrize("name", ALL)
def test_all_of_torch_optim(both, agrees, small, data, name):
    """Whatever the optimizer, the update is the parameters' real change."""

    def loop(watch, book):
        model = small()
        optimizer = ALL[name](model.parameters())
        watch(model, optimizer)
        for x, y in data(3):
            functional.cross_entropy(model(x), y).backward()
            book.backward_done(model)
            book.before_step(model)
            optimizer.step()
            book.after_step(model)
            model.zero_grad()
        return model, optimizer

    agrees(*both(loop), rtol=2e-6)
