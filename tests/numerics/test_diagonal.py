import pytest
import torch

from dynaxx.errors import BadInput, UnknownName
from dynaxx.numerics.density import density
from dynaxx.numerics.diagonal import block_traces, diagonal
from dynaxx.numerics.lanczos import eigenpairs
from dynaxx.numerics.operator import Dense, Operator
from dynaxx.numerics.space import Space
from dynaxx.numerics.trace import trace


class Blocks(Operator):
    """A matrix over parameters of sizes 6, 10 and 14."""

    def __init__(self, matrix):
        super().__init__(Space([torch.zeros(2, 3), torch.zeros(10), torch.zeros(14)], ["a.w", "a.b", "c.w"]))
        self.matrix = matrix

    def apply(self, rows):
        return rows @ self.matrix


def matrix(n=30, dtype=torch.float32):
    x = torch.randn(n, n, generator=torch.Generator().manual_seed(3), dtype=dtype)
    return (x + x.T) / 2 + 60 * torch.outer(x[0], x[0]) / n


def test_every_entry_is_within_its_error_and_the_error_is_the_formula():
    a = matrix(dtype=torch.float64)
    found = diagonal(Dense(a), 400)
    apart = (found.values - a.diagonal()) / found.errors
    assert float(apart.abs().max()) < 4.5
    assert 0.6 < float(apart.std()) < 1.5
    variance = (a.square().sum(1) - a.diagonal().square()) / 400
    assert found.errors.square().tolist() == pytest.approx(variance.tolist(), rel=0.4)
    assert found.products == 400


def test_errors_are_calibrated_over_seeds():
    a = matrix(dtype=torch.float64)
    runs = [diagonal(Dense(a), 20, seed=seed) for seed in range(100)]
    inside = torch.stack([(r.values - a.diagonal()).abs() < 2 * r.errors for r in runs])
    assert 0.88 < float(inside.double().mean()) < 0.98


def test_a_diagonal_matrix_is_exact():
    values = torch.arange(1.0, 20)
    found = diagonal(Dense(torch.diag(values)), 2)
    assert found.values.equal(values)
    assert found.errors.eq(0).all()


def test_known_pairs_take_their_part_out_and_do_not_bias():
    a = matrix(dtype=torch.float64)
    pairs = eigenpairs(Dense(a), 1)
    plain, less = (diagonal(Dense(a), 40, known=known) for known in (None, pairs))
    assert float(less.errors.mean()) < 0.75 * float(plain.errors.mean())
    assert float(((less.values - a.diagonal()) / less.errors).abs().max()) < 4.5
    everything = density(Dense(a), keep=30)
    assert everything.vectors.shape == (30, 30)


def test_block_traces_are_those_of_the_blocks_and_sum_to_hutchinsons():
    a = matrix()
    groups = {"a": ("a.w", "a.b"), "c": ("c.w",)}
    found = block_traces(Blocks(a), 300, groups, seed=5)
    assert list(found) == ["a", "c"]
    for name, part in (("a", slice(0, 16)), ("c", slice(16, 30))):
        truth = float(a.diagonal()[part].sum())
        assert abs(found[name].value - truth) < 4 * found[name].error
        assert found[name].error < 0.2 * float(a.norm())
    parts = block_traces(Blocks(a), 29, seed=5)
    assert set(parts) == {"a.w", "a.b", "c.w"}
    whole = block_traces(Blocks(a), 29, {"all": ("a.w", "a.b", "c.w")}, seed=5)["all"]
    assert sum(p.value for p in parts.values()) == pytest.approx(whole.value, rel=1e-5)
    assert trace(Blocks(a), 29, method="hutchinson", seed=5).value == pytest.approx(whole.value, rel=1e-5)


def test_block_traces_with_known_pairs():
    a = matrix()
    pairs = eigenpairs(Blocks(a), 2, which="both")
    errors = []
    for known in (None, pairs):
        found = block_traces(Blocks(a), 60, known=known)
        for name, part in Blocks(a).space.slices().items():
            assert abs(found[name].value - float(a.diagonal()[part].sum())) < 4.5 * found[name].error
        errors.append(sum(e.error for e in found.values()))
    assert errors[1] < 0.75 * errors[0]


def test_bad_input():
    with pytest.raises(BadInput, match="at least 2"):
        diagonal(Dense(torch.eye(3)), 1)
    with pytest.raises(UnknownName, match=r"a\.w"):
        block_traces(Blocks(matrix()), 4, {"x": ("a.v",)})
