"""Promises are judged by the log alone, and receipts add up to what is in force."""

import math

import numpy as np

from dynaxx.core.navigation import Promise, history, kept
from dynaxx.core.records import Action, Receipt
from dynaxx.runlog import Table


def log(values: list[float]) -> Table:
    return Table({"loss": (np.arange(1, len(values) + 1), values)})


def test_a_promise_is_judged_when_its_steps_are_over():
    promise = Promise(column="loss", below=0.6, steps=8)
    falling = [1.0] * 10 + [0.9, 0.8, 0.7, 0.6, 0.55, 0.5, 0.5, 0.4]
    assert kept(promise, log(falling[:17]), since=10) is None
    assert kept(promise, log(falling), since=10) == (True, 0.45)  # the last quarter: steps 17 and 18
    assert kept(Promise(column="loss", below=0.4, steps=8), log(falling), since=10) == (False, 0.45)
    assert kept(Promise(column="loss", above=0.4, steps=8), log(falling), since=10) == (True, 0.45)


def test_a_value_that_is_not_finite_breaks_it():
    good, figure = kept(Promise(column="loss", below=2.0, steps=4), log([1.0, 1.0, 1.0, 1.0, math.nan]), since=1) or (
        True,
        0.0,
    )
    assert not good
    assert math.isnan(figure)


def test_an_absent_column_cannot_be_judged():
    assert kept(Promise(column="val_loss", below=1.0, steps=2), log([1.0] * 9), since=1) is None


def test_receipts_add_up():
    cut, clip = Action(name="learning_rate", arguments={"factor": 0.5}), Action(name="gradient_clip")
    receipts = [
        Receipt(action=cut, step=1, status="begun"),
        Receipt(action=clip, step=2, status="begun"),
        Receipt(action=cut, step=3, status="ended"),
        Receipt(action=Action(name="stop"), step=4, status="refused"),
    ]
    assert history(receipts) == {"gradient_clip": clip}
