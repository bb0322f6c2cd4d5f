"""Gradient accumulation, and to which step a logged value belongs."""

import numpy as np
import pytest
import torch
from torch.nn import functional

import dynaxx

MICRO = 4


def test_four_micro_batches_make_one_step(both, agrees, small, data):
    def loop(watch, book):
        model = small()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        run = watch(model, optimizer)
        for i, (x, y) in enumerate(data(3 * MICRO)):
            loss = functional.cross_entropy(model(x), y)
            (loss / MICRO).backward()
            book.note("loss", loss)
            run.log(loss=loss)
            if (i + 1) % MICRO == 0:
                book.take_step(model, optimizer)
        return model, optimizer

    view, book = both(loop)
    agrees(view, book)
    assert view["loss"].steps.tolist() == [1, 2, 3]
    np.testing.assert_allclose(view["loss"].values, np.reshape(book.values["loss"], (3, MICRO)).mean(1), rtol=1e-6)
    assert view["effective_batch"].values.tolist() == [5 * MICRO] * 3


def test_ragged_micro_batches_and_an_unfinished_last_one(both, agrees, small, data):
    def loop(watch, book):
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        watch(model, optimizer)
        batches = [*data(2, batch=5), *data(1, batch=2, seed=2), *data(1, batch=4, seed=3)]
        for i, (x, y) in enumerate(batches):
            functional.cross_entropy(model(x), y).backward()
            if i in (0, 2):  # one batch, then two; the last accumulation never becomes a step
                book.take_step(model, optimizer)
        return model, optimizer

    view, book = both(loop)
    agrees(view, book)
    assert view["effective_batch"].values.tolist() == [5, 7]


@pytest.mark.parametrize(
    "where", ["before_forward", "after_forward", "after_backward", "after_step", "after_zero_grad"]
)
def test_the_step_that_a_logged_value_belongs_to(tmp_path, small, data, where):
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True)
    for i, (x, y) in enumerate(data(3)):
        for place in ("before_forward", "after_forward", "after_backward", "after_step", "after_zero_grad"):
            if place == "after_forward":
                loss = functional.cross_entropy(model(x), y)
            elif place == "after_backward":
                loss.backward()
            elif place == "after_step":
                optimizer.step()
            elif place == "after_zero_grad":
                optimizer.zero_grad()
            if place == where:
                run.log(i=i)
    run.close()
    first = 0 if where == "before_forward" else 1  # the step just finished, until the next training forward
    assert run.view()["i"].steps.tolist() == [first, first + 1, first + 2]
    assert run.view()["i"].values.tolist() == [0.0, 1.0, 2.0]


def test_evaluation_between_steps_belongs_to_the_step_just_finished(both, small, data):
    def loop(watch, book):
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = watch(model, optimizer)
        for x, y in data(4):
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.log(loss=loss)
            model.eval()
            with torch.no_grad():
                val_loss = functional.cross_entropy(model(x), y)
            model.train()
            run.log(val_loss=val_loss)
            book.note("val_loss", val_loss)
        return model, optimizer

    view, book = both(loop)
    assert view["val_loss"].steps.tolist() == [1, 2, 3, 4]
    assert view["loss"].steps.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(view["val_loss"].values, book.values["val_loss"], rtol=1e-6)
    assert view["effective_batch"].values.tolist() == [5] * 4
