"""Eigenpairs against dense decompositions: every end of the spectrum, clusters, starts, zero, degenerate, refusals."""

import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynaxx.errors import BadInput
from dynaxx.numerics.lanczos import eigenpairs
from dynaxx.numerics.operator import Dense, Operator
from dynaxx.numerics.space import Space


def symmetric(values, dtype=torch.float64, seed=0):
    """A matrix with these eigenvalues, in a random basis."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.as_tensor(values, dtype=torch.float64)
    basis, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    matrix = (basis * values) @ basis.T
    return ((matrix + matrix.T) / 2).to(dtype), basis


BULK = torch.linspace(-2, 2, 294).tolist()
SPECTRUM = torch.tensor([10.0, 9.5, 7.0, *BULK, -4.0, -15.0, -20.0], dtype=torch.float64)
ENDS = {
    "largest": [10.0, 9.5, 7.0],
    "smallest": [-20.0, -15.0, -4.0],
    "both": [10.0, 9.5, 7.0, -4.0, -15.0, -20.0],
    "magnitude": [-20.0, -15.0, 10.0],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("which", ENDS)
def test_values_vectors_and_residuals_are_those_of_the_dense_matrix(which, dtype):
    matrix, _ = symmetric(SPECTRUM, dtype)
    found = eigenpairs(Dense(matrix), 3, which=which, tolerance=1e-5)
    assert found.converged.all()
    assert torch.allclose(found.values, torch.tensor(ENDS[which], dtype=torch.float64), rtol=1e-5, atol=0)
    v = found.vectors
    rounding = 1e-13 if dtype == torch.float64 else 1e-5
    assert torch.allclose(v @ v.T, torch.eye(len(v), dtype=dtype), atol=rounding)
    residuals = (v @ matrix - found.values.to(dtype)[:, None] * v).norm(dim=1).double()
    assert torch.allclose(residuals, found.residuals, atol=20 * rounding)


def test_largest_never_gives_a_large_negative_one():
    """The edge-of-stability code asks ARPACK for 'LM' and would report −20 as sharpness."""
    matrix, _ = symmetric(SPECTRUM)
    assert float(eigenpairs(Dense(matrix)).values[0]) == pytest.approx(10.0, rel=1e-3)
    assert float(eigenpairs(Dense(matrix), which="smallest").values[0]) == pytest.approx(-20.0, rel=1e-3)


def test_an_eigenvalue_lies_within_the_residual_and_nearly_always_within_the_bound():
    beyond = 0
    for seed in range(40):
        values = torch.randn(200, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
        matrix, _ = symmetric(values, seed=seed)
        found = eigenpairs(Dense(matrix), 3, tolerance=1e-2, seed=seed)
        truth = values.sort(descending=True).values[:3]
        assert found.converged.all()
        assert (found.bounds <= found.residuals.clamp_min(1e-14 * float(values.abs().max()))).all()
        assert (found.values <= truth + 1e-12).all()  # Ritz values lie within the spectrum
        nearest = (values[None] - found.values[:, None]).abs().min(dim=1).values
        assert (nearest <= found.residuals + 1e-12).all()
        beyond += int(((found.values - truth).abs() > found.bounds + 1e-12).sum())
    assert beyond <= 6  # of 120: where the next eigenvalue was too near for the basis to show it


def test_products_are_counted_limited_and_fewer_than_arpacks():
    matrix, _ = symmetric(torch.cat([torch.tensor([30.0, 25.0, 20.0, 15.0, 12.0]), torch.rand(1995)]).double())
    operator = Dense(matrix)
    found = eigenpairs(operator, 5)
    assert found.products == operator.products
    calls = 0

    def product(v):
        nonlocal calls
        calls += 1
        return matrix.numpy() @ v

    arpack = scipy.sparse.linalg.LinearOperator(matrix.shape, matvec=product, dtype=float)
    scipy.sparse.linalg.eigsh(arpack, k=5, which="LA", tol=1e-3)
    assert found.products <= 0.85 * calls
    short = eigenpairs(Dense(matrix), 5, max_products=6)
    assert short.products == 6
    assert not short.converged.all()


def test_a_small_basis_restarts_and_is_kept_to():
    matrix, _ = symmetric(SPECTRUM)
    found = eigenpairs(Dense(matrix), 2, tolerance=1e-8, basis=7, max_products=400)
    assert found.basis == 7
    assert found.products > 14  # at least one restart
    assert found.converged.all()
    assert torch.allclose(found.values, torch.tensor([10.0, 9.5], dtype=torch.float64), rtol=1e-8)


def test_a_warm_start_saves_products():
    matrix, basis = symmetric(SPECTRUM)
    cold = eigenpairs(Dense(matrix), 3)
    generator = torch.Generator().manual_seed(1)
    near = basis.T[:3] + 1e-3 * torch.randn(3, 300, generator=generator, dtype=torch.float64) / 300**0.5
    warm = eigenpairs(Dense(matrix), 3, start=near)
    assert warm.products <= 4
    assert cold.products >= 16
    assert torch.allclose(warm.values, torch.tensor([10.0, 9.5, 7.0], dtype=torch.float64), rtol=1e-3)


def test_starts_may_repeat_vanish_and_have_any_length():
    matrix, basis = symmetric(SPECTRUM)
    rows = torch.stack([1e6 * basis.T[0], basis.T[0], torch.zeros(300).double(), 1e-6 * basis.T[1]])
    found = eigenpairs(Dense(matrix), 2, start=rows)
    assert found.products == 2
    assert torch.allclose(found.values, torch.tensor([10.0, 9.5], dtype=torch.float64))
    assert eigenpairs(Dense(matrix), 1, start=torch.zeros(1, 300).double()).values[0] == pytest.approx(10.0, rel=1e-3)


def test_spare_vectors_are_the_next_ones():
    matrix, basis = symmetric(SPECTRUM)
    found = eigenpairs(Dense(matrix), 1, tolerance=1e-6, spare=2)
    assert found.spare.shape == (2, 300)
    assert (found.spare * basis.T[1:3]).sum(1).abs().min() > 0.99


def test_zero_identity_and_degenerate_operators():
    found = eigenpairs(Dense(torch.zeros(5, 5)), 3)
    assert found.values.tolist() == [0.0, 0.0, 0.0]
    assert found.converged.all()
    assert torch.allclose(found.vectors @ found.vectors.T, torch.eye(3), atol=1e-6)
    assert torch.allclose(eigenpairs(Dense(2 * torch.eye(40)), 4).values, torch.full((4,), 2.0).double())
    twice = torch.diag(torch.tensor([3.0, 3.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64))
    assert torch.allclose(eigenpairs(Dense(twice), 6).values, twice.diagonal())
    assert eigenpairs(Dense(torch.full((1, 1), -7.0))).values.tolist() == [-7.0]


class Flat(Operator):
    """A rank-one operator on a large space."""

    def apply(self, rows):
        out = torch.zeros_like(rows)
        out[:, 0] = 4.0 * rows[:, 0]
        return out


def test_rank_one_in_a_large_space():
    found = eigenpairs(Flat(Space.plain(5000, torch.float32)), 2)
    assert torch.allclose(found.values, torch.tensor([4.0, 0.0]).double(), atol=1e-5)
    assert found.converged.all()


@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12), k=st.integers(1, 2), seed=st.integers(0, 9))
def test_small_matrices_of_any_spectrum(values, k, seed):
    matrix, _ = symmetric(values, seed=seed)
    found = eigenpairs(Dense(matrix), k, tolerance=1e-9, seed=seed)
    truth = torch.linalg.eigvalsh(matrix).flip(0)[:k]
    assert torch.allclose(found.values, truth, atol=1e-6 * max(1e-3, float(matrix.norm())))


def test_the_same_seed_gives_the_same_bits_and_no_global_stream_moves():
    matrix, _ = symmetric(SPECTRUM, torch.float32)
    before = torch.get_rng_state()
    first, second = eigenpairs(Dense(matrix), 2), eigenpairs(Dense(matrix), 2)
    assert torch.equal(first.vectors, second.vectors)
    assert torch.equal(before, torch.get_rng_state())


def test_what_does_not_fit_is_refused():
    operator = Dense(torch.eye(4))
    for k in (0, 5):
        with pytest.raises(BadInput, match="between 1 and the number of parameters, 4"):
            eigenpairs(operator, k)
    with pytest.raises(BadInput, match="over 2"):
        eigenpairs(operator, 3, which="both")
    with pytest.raises(BadInput, match="basis"):
        eigenpairs(Dense(torch.eye(40)), 4, basis=5)
    with pytest.raises(BadInput, match="max_products"):
        eigenpairs(operator, 3, max_products=2)
    matrix = torch.eye(4)
    matrix[1, 1] = float("nan")
    with pytest.raises(BadInput, match="not finite"):
        eigenpairs(Dense(matrix))
    with pytest.raises(BadInput, match="not finite"):
        eigenpairs(operator, start=torch.full((1, 4), float("inf")))


@pytest.mark.parametrize("n", [20, 100])
def test_bounds_are_no_less_than_rounding(n):
    """Converged to far below what float32 can tell, the residuals say nothing of the products' own rounding."""
    for seed in range(6):
        matrix = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        matrix = (matrix + matrix.T).float()
        truth = torch.linalg.eigvalsh(matrix.double())
        found = eigenpairs(Dense(matrix), 2, which="both", tolerance=1e-9, max_products=4 * n + 40, basis=min(n, 80))
        errors = (found.values - truth[[-1, -2, 1, 0]]).abs()
        assert (errors <= found.bounds).all()
        assert (found.bounds >= 1e-6 * truth.abs().max()).all()
        assert (found.bounds <= 1e-4 * truth.abs().max()).all()


def test_close_values_come_in_order_and_to_the_tolerance():
    """PyHessian gives 0.4239, 0.4249, 0.4104 for 0.4316, 0.4263, 0.4109; hessian-eigenthings' default steps are 13 %
    low, and its momentum m takes m off the value, 1.9 for 2, flagged as converged.
    """
    close = [0.4316, 0.4263, 0.4109]
    found = eigenpairs(Dense(symmetric([*close, *torch.linspace(0.3, -0.1, 97).tolist()])[0]), 3)
    assert found.converged.all()
    assert found.values.tolist() == pytest.approx(close, rel=1e-3)
    assert float(eigenpairs(Dense(symmetric([2.0, 1.0, 0.5, 0.1])[0])).values[0]) == pytest.approx(2.0, rel=1e-9)


class Diagonal(Operator):
    """Outliers over a bulk of any number of entries; keeps how many rows each call had."""

    def __init__(self, n):
        super().__init__(Space.plain(n))
        self.entries = torch.cat([torch.tensor([5.0, 4.5, 4.0, 3.5]), torch.linspace(-1, 1, n - 4)]).double()
        self.calls = []

    def apply(self, rows):
        self.calls.append(len(rows))
        return rows * self.entries


@pytest.mark.parametrize("n", [100, 10_000])
def test_neither_the_price_of_a_step_nor_the_tolerance_grows(n):
    """centralflows' solver takes 4k products a step where one does, and stops at an error in proportion to n."""
    operator = Diagonal(n)
    start = operator.space.random(3, seed=1)
    found = eigenpairs(operator, 3, tolerance=1e-4, start=start)
    assert operator.calls == [3, *[1] * (len(operator.calls) - 1)]
    assert found.products < 60
    assert found.values.tolist() == pytest.approx([5.0, 4.5, 4.0], rel=1e-4)
