import random
import sys

import numpy as np
import pytest
import torch
from torch import nn

from dynaxx.checkpoints.codec import decode, encode
from dynaxx.core.isolation import RandomState, evaluation, isolated_random, numpy_words


def draw():
    """Numbers from every global stream, with the odd normal that NumPy and Python keep for the next call."""
    return (
        torch.rand(3).tolist(),
        torch.randn(1).tolist(),
        np.random.standard_normal(1).tolist(),  # noqa: NPY002
        np.random.rand(2).tolist(),  # noqa: NPY002
        random.gauss(0, 1),
        random.random(),
    )


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)
    np.random.seed(2)  # noqa: NPY002
    random.seed(3)
    draw()  # leaves cached normals behind


def test_streams_go_on_as_they_would_have():
    state = RandomState.capture()
    first, second = draw(), draw()
    assert first != second
    state.restore()
    assert (draw(), draw()) == (first, second)


def test_capturing_draws_nothing():
    state = RandomState.capture()
    expected = draw()
    state.restore()
    for _ in range(3):
        RandomState.capture()
    assert draw() == expected


def test_a_state_that_was_stored_restores_exactly():
    state = RandomState.capture()
    expected = draw()
    fields = {"cpu": state.cpu, "cuda": state.cuda, "numpy": state.numpy, "python": state.python}
    RandomState(**decode(*encode(fields))).restore()
    assert draw() == expected


def test_words_tell_whether_numpy_has_drawn():
    words = numpy_words()
    assert words == numpy_words()
    RandomState.capture(numpy=False).restore()
    assert words == numpy_words()
    key, position = np.random.get_state()[1:3]  # noqa: NPY002
    assert words == key.astype(np.uint32).tobytes() + int(position).to_bytes(4, sys.byteorder)
    np.random.rand()  # noqa: NPY002
    moved = numpy_words()
    assert moved != words
    RandomState.capture(numpy=False).restore()
    assert numpy_words() == moved, "what was not captured is left alone"
    own = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(0))
        assert numpy_words() is None
    finally:
        np.random.set_bit_generator(own)


def test_what_is_drawn_within_is_undone_even_after_an_error():
    state = RandomState.capture()
    expected = draw()
    state.restore()
    with isolated_random():
        draw()
        torch.manual_seed(99)
    with pytest.raises(ZeroDivisionError), isolated_random():
        assert draw()[-1] / 0
    assert draw() == expected


class Model(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.Sequential(nn.BatchNorm1d(3)))


def modes(model):
    return [module.training for module in model.modules()]


def test_evaluation_puts_every_mode_back_and_changes_no_buffer():
    model = Model()
    model[3].eval()  # a part that is frozen in evaluation mode
    model[3].training = True  # and one whose own mode differs from its child's
    before, buffers = modes(model), {name: b.clone() for name, b in model.named_buffers()}
    assert before == [True, True, True, True, True, False]
    state = RandomState.capture()
    expected = draw()
    state.restore()
    with evaluation(model):
        assert modes(model) == [False] * 6
        assert not torch.is_grad_enabled()
        x = torch.randn(4, 3)
        assert model(x).equal(model(x))  # no dropout
    assert modes(model) == before
    assert torch.is_grad_enabled()
    assert all(b.equal(buffers[name]) for name, b in model.named_buffers())
    assert draw() == expected


def test_evaluation_cleans_up_after_an_error():
    model = Model()
    model[1].eval()
    before = modes(model)
    with pytest.raises(ZeroDivisionError), evaluation(model):
        assert 1 / 0
    assert modes(model) == before
    assert torch.is_grad_enabled()
