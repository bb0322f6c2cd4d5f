import dataclasses

import pytest

from dynaxx.core import records
from dynaxx.core.records import Action, Axis, Column, Cost, Measurement, Receipt

COLUMN = Column(name="grad_norm")
VALUES = [
    Axis(name="layer", labels=("a", "b")),
    COLUMN,
    Measurement(column=COLUMN, value=1.0),
    Cost(sweeps=1.0),
    Action(name="stop"),
    Receipt(action=Action(name="stop"), step=3, status="begun"),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_that_flow_are_frozen_slotted_and_keyword_only(value):
    kind = type(value)
    field = dataclasses.fields(kind)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, None)
    assert "__dict__" not in dir(value)
    with pytest.raises(TypeError, match="positional"):
        kind("x")


def test_every_record_is_among_them():
    kinds = {each for each in vars(records).values() if isinstance(each, type) and each.__module__ == records.__name__}
    assert kinds == {type(value) for value in VALUES}


def test_an_axis_is_as_long_as_its_labels():
    assert len(Axis(name="layer", labels=("a", "b", "c"))) == 3
    assert len(Axis(name="layer", labels=())) == 0
