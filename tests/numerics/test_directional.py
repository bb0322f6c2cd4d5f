"""Curvature along a direction: a Rayleigh quotient on matrices, and what it refuses."""

import pytest
import torch

from dynaxx.errors import BadInput, NotApplicable
from dynaxx.numerics.directional import directional_curvature
from dynaxx.numerics.operator import Dense


def test_is_the_rayleigh_quotient_whatever_the_length():
    torch.manual_seed(0)
    a = torch.randn(9, 9, dtype=torch.float64)
    a = a + a.T
    g = torch.randn(9, dtype=torch.float64)
    truth = float(g @ a @ g / (g @ g))
    for scale in (1.0, 1e-100, 1e100):
        operator = Dense(a)
        assert directional_curvature(operator, scale * g).value == pytest.approx(truth, rel=1e-12)
        assert operator.products == 1


def test_refuses_no_direction_and_what_is_not_finite():
    operator = Dense(torch.eye(3, dtype=torch.float64))
    with pytest.raises(NotApplicable, match="gradient is zero"):
        directional_curvature(operator, torch.zeros(3, dtype=torch.float64))
    with pytest.raises(BadInput, match="not finite"):
        directional_curvature(operator, torch.tensor([1.0, float("nan"), 0.0], dtype=torch.float64))
    with pytest.raises(BadInput, match="not finite"):
        directional_curvature(Dense(torch.full((3, 3), float("inf"), dtype=torch.float64)), torch.ones(3).double())
