"""The tracker on matrices that turn, cross and repeat; on a training run it is in test_edge_of_stability.py."""

import pytest
import torch

from dynaxx.errors import BadInput
from dynaxx.numerics.operator import Dense, Operator
from dynaxx.numerics.space import Space
from dynaxx.numerics.tracker import CurvatureTracker


class Turning(Operator):
    """Eigenvalues and a basis that turns by `angle` in every plane (i, i + 1) at each move."""

    def __init__(self, values, angle=0.0):
        super().__init__(Space.plain(len(values)))
        generator = torch.Generator().manual_seed(0)
        self.values = torch.tensor(values, dtype=torch.float64)
        self.basis, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator).double())
        skew = torch.diag(torch.full((len(values) - 1,), angle).double(), 1)
        self.turn = torch.linalg.matrix_exp(skew - skew.T)

    def apply(self, rows):
        return ((rows @ self.basis) * self.values) @ self.basis.T

    def move(self):
        self.basis = self.basis @ self.turn


BULK = torch.linspace(0.5, -0.5, 197).tolist()


def test_follows_a_turning_basis_for_few_products():
    operator = Turning([3.0, 2.0, 1.0, *BULK], angle=0.03)
    tracker = CurvatureTracker(operator)
    tracker.measure()
    cold = tracker.products
    for _ in range(20):
        operator.move()
        found = tracker.measure()
        assert tracker.converged
        assert float(found.values[0]) == pytest.approx(3.0, rel=1e-2)
        assert abs(float(found.values[0]) - 3.0) <= float(found.bounds[0]) + 1e-12
    assert tracker.products - cold <= 4 * 20
    assert tracker.products == operator.products == tracker.cost.products
    assert tracker.measurements == 21


@pytest.mark.parametrize("k", [1, 2])
def test_sees_an_eigenvalue_overtake(k):
    operator = Turning([3.0, 2.0, 1.0, *BULK])
    tracker = CurvatureTracker(operator, k=k)
    for third in torch.linspace(2.0, 5.0, 12).tolist():
        operator.values[1] = third
        found = tracker.measure()
        truth = operator.values.sort(descending=True).values[:k]
        assert torch.allclose(found.values, truth, rtol=5e-3)


def test_a_hint_shows_what_no_kept_vector_can():
    """Bottom becomes top between two measurements, unconnected to the kept vectors; the gradient points at it."""
    operator = Turning([3.0, 2.0, 1.0, *BULK], angle=0.0)
    tracker = CurvatureTracker(operator)
    tracker.measure()
    operator.values[-1] = 9.0
    found = tracker.measure(operator.basis[:, -1:].T + 0.01)
    assert float(found.values[0]) == pytest.approx(9.0, rel=1e-3)


def test_state_goes_on_bit_for_bit_and_is_tensors_and_numbers():
    operator = Turning([3.0, 2.8, 1.0, *BULK], angle=0.05)
    first = CurvatureTracker(operator)
    first.measure()
    operator.move()
    state = first.state_dict()
    assert all(isinstance(v, torch.Tensor | bool | int | float | None) for v in state.values())
    second = CurvatureTracker(operator)
    second.load_state_dict(state)
    for _ in range(3):
        a, b = first.measure(), second.measure()
        assert torch.equal(a.values, b.values)
        assert torch.equal(a.vectors, b.vectors)
        operator.move()
    assert first.state_dict().keys() == second.state_dict().keys()
    assert (first.products, first.measurements) == (second.products, second.measurements)
    fresh = CurvatureTracker(operator)
    fresh.load_state_dict(CurvatureTracker(operator).state_dict())
    fresh.measure()
    assert fresh.converged


def test_stops_at_its_limit_and_says_so():
    operator = Turning([1.0, 0.999, *BULK], angle=0.7)
    tracker = CurvatureTracker(operator, max_products=5, tolerance=1e-6)
    tracker.measure()
    operator.move()
    before = operator.products
    found = tracker.measure(torch.ones(3, 199, dtype=torch.float64))
    assert operator.products - before == found.products <= 5
    assert not tracker.converged


def test_the_operator_may_be_replaced():
    tracker = CurvatureTracker(Turning([3.0, 2.0, 1.0, *BULK]))
    tracker.measure()
    tracker.operator = Turning([6.0, 4.0, 2.0, *(2 * b for b in BULK)])
    assert float(tracker.measure().values[0]) == pytest.approx(6.0, rel=5e-3)


def test_small_spaces():
    tracker = CurvatureTracker(Dense(torch.diag(torch.tensor([2.0, -1.0]))))
    for _ in range(3):
        assert float(tracker.measure(torch.ones(1, 2)).values[0]) == pytest.approx(2.0)
    tracker = CurvatureTracker(Dense(torch.zeros(1, 1)))
    for _ in range(3):
        assert tracker.measure().values.tolist() == [0.0]
        assert tracker.converged


def test_what_does_not_fit_is_refused():
    operator = Dense(torch.eye(4))
    for bad in ({"k": 0}, {"k": 5}, {"extra": -1}, {"max_products": 2}):
        with pytest.raises(BadInput, match="CurvatureTracker"):
            CurvatureTracker(operator, **bad)
    tracker = CurvatureTracker(operator)
    with pytest.raises(BadInput, match="rows of 4 entries"):
        tracker.measure(torch.ones(1, 5))
    tracker.measure()
    with pytest.raises(BadInput, match="Start afresh"):
        CurvatureTracker(Dense(torch.eye(6))).load_state_dict(tracker.state_dict())
