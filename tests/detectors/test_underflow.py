import numpy as np
import pytest
import torch

from dynaxx.detectors.underflow import Underflow
from dynaxx.errors import NotApplicable

STEPS = 100


@pytest.fixture
def run(make_log, facts_of):
    def run(underflow=0.0, **more):
        columns = {"precision.underflow": np.broadcast_to(underflow, (STEPS, 3)), **more}
        return make_log(columns, manifest=facts_of(3))

    return run


def rounded(scale, dtype=torch.float16):
    """Zeros and largest entries of normal gradients that went through a format at a loss scale."""
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(STEPS, 3, 200, generator=generator) * 0.01
    through = ((gradients * scale).to(dtype).float() / scale).numpy()
    return {"grad_zeros": (through == 0).mean(axis=2), "grad_max": np.abs(through).max(axis=2)}


def test_entries_below_the_smallest_normal_are_found(run):
    found = Underflow().detect(run(0.7))
    assert found.causes[0].name == "underflow"
    assert found.evidence[0].value == pytest.approx(0.7)
    assert Underflow().detect(run(0.3)) is None


def test_gradients_that_went_through_half_precision_show_the_grid(run):
    scale = 1e-6  # its grid, 2⁻²⁴/1e-6, is six standard deviations: all but zeros
    lost = rounded(2e-6)
    found = Underflow().detect(run(**lost))
    assert found.evidence[1].value == pytest.approx(2.0**-24 / 2e-6, rel=1e-3)
    assert found.severity == "warning"
    assert Underflow().detect(run(**rounded(1.0))) is None
    assert Underflow().detect(run(**rounded(scale, torch.bfloat16))) is None, "its range is that of float32"


def test_zeros_of_dead_units_are_another_matter(run, rng):
    ordinary = {"grad_zeros": np.full((STEPS, 3), 0.8), "grad_max": rng.lognormal(-3, 0.5, (STEPS, 3))}
    assert Underflow().detect(run(**ordinary)) is None


def test_a_low_scale_explains_it(run):
    found = Underflow().detect(run(0.8, **{"precision.loss_scale": np.full(STEPS, 16.0)}))
    assert "loss_scale_stuck" in [cause.name for cause in found.causes[:2]]


def test_a_short_log_is_not_applicable(make_log):
    with pytest.raises(NotApplicable, match="rows"):
        Underflow().detect(make_log({"precision.underflow": np.zeros((3, 2))}))
