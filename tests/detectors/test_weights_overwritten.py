import numpy as np
import pytest

from dynaxx.detectors.weights_overwritten import WeightsOverwritten
from dynaxx.errors import NotApplicable

LABELS = ("a", "b", "c")


def log(rng, every=1, steps=200):
    """A walk of three layers with updates of 1 % of their size, and the norms that result."""
    updates = 0.03 * (1 + 0.1 * rng.random((steps, 3)))
    norms = 3 + np.cumsum(updates * rng.choice((-1, 1), (steps, 3)), axis=0) * 0.3
    gradients = np.exp(0.2 * rng.standard_normal((steps, 3)))
    at = np.arange(every, steps + 1, every)
    return {
        "parameter_norm": (at, norms[at - 1], LABELS),
        "update_norm": (at, updates[at - 1], LABELS),
        "grad_norm": (np.arange(1, steps + 1), gradients, LABELS),
    }


def look(make_log, columns, events=()):
    return WeightsOverwritten().detect(make_log(columns, events=list(events)))


@pytest.mark.parametrize("every", [1, 4])
def test_a_flip_that_no_update_shows(make_log, rng, every):
    columns = log(rng, every)
    at, norms, _ = columns["parameter_norm"]
    norms[at >= 101, 1] = np.sqrt(norms[at >= 101, 1] ** 2 + 40**2)
    columns["grad_norm"][1][101:] *= 1000  # what the flip does from the next step on
    found = look(make_log, columns)
    assert found.layers == ("b",)
    assert abs(found.onset - 101) < every
    assert found.causes[0].name == "weights_overwritten"
    assert found.causes[0].remedies[0].action.name == "rollback"


def test_a_flip_that_was_measured_as_an_update(make_log, rng):
    columns = log(rng)
    columns["parameter_norm"][1][100:, 1] = 40
    columns["update_norm"][1][100, 1] = 39.9
    assert look(make_log, columns).onset == 101


def test_a_diverging_step_is_none(make_log, rng):
    columns = log(rng)
    columns["parameter_norm"][1][100:] *= 50
    columns["update_norm"][1][100] = 150
    assert look(make_log, columns) is None
    one = log(rng)  # one layer alone, but pushed by its gradient
    one["parameter_norm"][1][100:, 0] = 40
    one["update_norm"][1][100, 0], one["grad_norm"][1][100, 0] = 39, 1000
    assert look(make_log, one) is None


def test_ordinary_walks_and_the_sessions_own_acts(make_log, rng):
    columns = log(rng)
    assert look(make_log, columns) is None
    columns["parameter_norm"][1][100:, 1] = 40
    assert look(make_log, columns, [{"kind": "receipt", "step": 101}]) is None


def test_columns_by_different_layers(make_log, rng):
    columns = log(rng)
    columns["update_norm"] = (*columns["update_norm"][:2], ("a", "b", "d"))
    with pytest.raises(NotApplicable, match="same layers"):
        look(make_log, columns)
