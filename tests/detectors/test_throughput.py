import numpy as np
import pytest

from dynaxx.detectors.throughput import Throughput
from dynaxx.errors import NotApplicable

STEPS = 100
GIB = 2.0**30


def columns(waiting, total=0.1, memory=None):
    found = {"system.step_seconds": np.full(STEPS, total), "system.data_seconds": np.full(STEPS, waiting)}
    return found | ({} if memory is None else {"system.memory_host": memory})


def test_an_accelerator_that_waits_is_found(make_log):
    found = Throughput().detect(make_log(columns(0.07)))
    assert found.severity == "warning"
    assert found.evidence[0].value == pytest.approx(0.7)
    assert found.causes[0].name == "data_starvation"


def test_a_third_or_the_waits_of_a_tiny_model_are_not(make_log):
    assert Throughput().detect(make_log(columns(0.03))) is None
    assert Throughput().detect(make_log(columns(0.0007, total=0.001))) is None


def test_slow_first_steps_are_not(make_log):
    slow = columns(0.0)
    slow["system.data_seconds"][:15] = 5.0
    assert Throughput().detect(make_log(slow)) is None


def test_memory_that_grows_to_the_end_is_a_leak_and_a_cache_is_not(make_log):
    leak = Throughput().detect(make_log(columns(0.0, memory=np.linspace(2, 8, STEPS) * GIB)))
    assert leak.causes[0].name == "memory_pressure"
    assert leak.evidence[0].value == pytest.approx(4.5 * GIB, rel=0.05)
    cache = np.minimum(np.linspace(2, 14, STEPS), 6) * GIB
    assert Throughput().detect(make_log(columns(0.0, memory=cache))) is None
    assert Throughput().detect(make_log(columns(0.0, memory=np.linspace(2, 2.5, STEPS) * GIB))) is None


def test_a_short_log_is_not_applicable(make_log):
    short = {"system.step_seconds": np.ones(3), "system.data_seconds": np.ones(3)}
    with pytest.raises(NotApplicable, match="rows"):
        Throughput().detect(make_log(short))
