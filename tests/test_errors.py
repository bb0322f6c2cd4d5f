"""Errors cross processes whole, as a pool of workers hands them back."""

import pickle

from dynaxx.errors import UnknownName


def test_an_unknown_name_comes_back_from_another_process():
    error = UnknownName("task", "digit", ["digits", "diabetes"])
    back = pickle.loads(pickle.dumps(error))  # noqa: S301  (our own bytes)
    assert str(back) == str(error)
    assert back.nearest == ("digits",)
