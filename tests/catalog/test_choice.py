"""An entry with its options, as it is written on the command line and in plans."""

import pytest

from dynaxx import catalog
from dynaxx.errors import BadInput
from dynaxx.landscape.flatness import Flatness


def test_reads_numbers_words_and_tuples():
    found = catalog.choice("probes", "spectrum:of=fisher,probes=3")
    assert (found.name, dict(found.options)) == ("spectrum", {"of": "fisher", "probes": 3})


def test_an_integer_is_widened_where_a_float_is_asked_for():
    found = catalog.choice("probes", "flatness:radius=1")
    assert type(found.options["radius"]) is float
    assert isinstance(found.build(), Flatness)


def test_what_it_prints_reads_back():
    found = catalog.choice("probes", "spectrum:of=fisher,probes=3")
    assert catalog.choice("probes", str(found)) == found
    assert str(catalog.choice("probes", "spectrum")) == "spectrum"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("flatness:radiu=1", "'radius'"),
        ("flatnes", "'flatness'"),
        ("flatness:radius", "name:option=value"),
        ("flatness:radius=word", "must be float"),
        ("flatness:steps=1.5", "must be int"),
        ("flatness:radius=1+x", "number"),
        ("flatness:**x", "name:option=value"),
        ("flatness:radius=(", "name:option=value"),
    ],
)
def test_says_what_is_wrong(text: str, said: str):
    with pytest.raises(BadInput, match=said):
        catalog.choice("probes", text)
