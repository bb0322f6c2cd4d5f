"""Optimizers that call a closure: measured after its first call, with the gradient at the step's starting point."""

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

import dynaxx

QUICK = {"test_closures": ["False-lbfgs_wolfe", "True-adamw"], "test_skip_behind_a_closure": ["adamw"]}


def closure_loop(build, data, make, *, steps=4, clip=False, keyword=False):
    def loop(watch, book):
        model = build()
        model.train()
        optimizer = make(model.parameters())
        run = watch(model, optimizer)
        for x, y in data(steps):
            calls = []

            def closure(x=x, y=y, calls=calls):
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(x), y)
                loss.backward()
                if not calls:
                    book.backward_done(model)
                calls.append(loss)
                if clip:
                    clip_grad_norm_(model.parameters(), 0.2)
                return loss

            book.before_step(model)
            result = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
            book.after_step(model)
            book.note("loss", result)
            run.log(loss=result)
        return model, optimizer

    return loop


OPTIMIZERS = {
    "lbfgs": lambda ps: torch.optim.LBFGS(ps, lr=0.5, max_iter=4),
    "lbfgs_wolfe": lambda ps: torch.optim.LBFGS(ps, line_search_fn="strong_wolfe", max_iter=3),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=1e-2),
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("keyword", [False, True])
def test_closures(both, agrees, small, data, kind, keyword):
    def build():
        model = small()
        model[3].p = 0.0  # line searches need a function that stays the same
        return model

    view, book = both(closure_loop(build, data, OPTIMIZERS[kind], keyword=keyword))
    agrees(view, book, rtol=2e-6)
    assert view["loss"].steps.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(view["loss"].values, book.values["loss"], rtol=1e-6)
    assert view["effective_batch"].values.tolist() == [5.0] * 4  # however often the closure is evaluated


def test_clipping_within_the_closure(both, agrees, small, data):
    view, book = both(closure_loop(small, data, OPTIMIZERS["adamw"], clip=True))
    agrees(view, book)
    assert view["clip_coefficient"].values.max() < 1


@pytest.mark.parametrize("clip", [False, True])
def test_actions_act_behind_the_closure(tmp_path, small, data, clip):
    """A closure's gradients exist only within the step; the rate is scaled before it begins."""

    def train(act, rate, scale):
        torch.manual_seed(0)
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True) if act else None
        if run is not None:
            run.apply("gradient_scale", factor=0.5)
            run.apply("learning_rate", factor=0.5)
        for x, y in data(3):

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(x), y)
                loss.backward()
                if clip:
                    clip_grad_norm_(model.parameters(), 0.25)
                if not act:
                    for parameter in model.parameters():
                        parameter.grad *= scale
                return loss

            optimizer.step(closure)
        if run is not None:
            run.close()
        return model

    for a, b in zip(train(False, 0.05, 0.5).parameters(), train(True, 0.1, 1.0).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_the_rate_reaches_an_optimizer_that_reads_it_before_the_closure(tmp_path, small, data):
    def train(act, rate):
        torch.manual_seed(0)
        model = small()
        optimizer = torch.optim.LBFGS(model.parameters(), lr=rate, max_iter=3)
        run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True) if act else None
        if run is not None:
            run.apply("learning_rate", factor=0.25)
        x, y = data(1)[0]

        def closure():
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        for _ in range(2):
            optimizer.step(closure)
        if run is not None:
            run.close()
        return model

    for a, b in zip(train(False, 0.1).parameters(), train(True, 0.4).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_skip_behind_a_closure(tmp_path, small, data, kind):
    model = small()
    optimizer = OPTIMIZERS[kind](model.parameters())
    run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True)
    run.apply("skip")
    for i, (x, y) in enumerate(data(3)):

        def closure(x=x, y=y, i=i):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y) * (torch.nan if i == 1 else 1)
            loss.backward()
            return loss

        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step(closure)
        assert all(map(torch.equal, before, model.parameters())) == (i == 1)
    run.close()
    assert run.step == 2
    assert run.view()["effective_batch"].values.tolist() == [5.0, 5.0]


def test_a_closure_that_fails(both, agrees, small, data):
    def loop(watch, book):
        model = small()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        run = watch(model, optimizer)
        for i, (x, y) in enumerate(data(5)):

            def closure(i=i, x=x, y=y):
                optimizer.zero_grad()
                if i in (1, 2):
                    raise MemoryError("too large")
                loss = functional.cross_entropy(model(x), y)
                loss.backward()
                book.backward_done(model)
                return loss

            book.before_step(model)
            try:
                loss = optimizer.step(closure)
            except MemoryError:
                continue
            book.after_step(model)
            run.log(loss=loss)
        return model, optimizer

    view, book = both(loop)
    agrees(view, book)
    assert view["loss"].steps.tolist() == [1, 2, 3]


def test_a_rate_is_put_back_when_the_closure_fails(tmp_path, small):
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True)
    run.apply("learning_rate", factor=0.5)

    def closure():
        raise MemoryError("too large")

    with pytest.raises(MemoryError):
        optimizer.step(closure)
    assert optimizer.param_groups[0]["lr"] == 0.1  # at once: a scheduler may be stepped next
    run.close()
