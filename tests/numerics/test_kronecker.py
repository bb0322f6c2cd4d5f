import torch

from dynaxx.numerics.kronecker import (
    carried,
    eigenpairs,
    permuted,
    quotients,
    repaired,
    rotated,
    tracked,
    unrotated,
)
from dynaxx.numerics.polar import newton_schulz


def orthogonal(count, n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(count, n, n, generator=g, dtype=torch.float64))[0]


def symmetric(count, n, seed=0, rank=None):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, n, rank or 2 * n, generator=g, dtype=torch.float64)
    return x @ x.mT


def test_rotation_is_the_kronecker_product_on_the_vector():
    x, left, right = torch.randn(3, 4, 5, dtype=torch.float64), orthogonal(3, 4), orthogonal(3, 5, 1)
    dense = torch.stack([torch.kron(a, b) for a, b in zip(left, right, strict=True)])
    expected = (dense.mT @ x.flatten(1)[..., None])[..., 0].view_as(x)
    torch.testing.assert_close(rotated(x, left, right), expected)
    torch.testing.assert_close(unrotated(rotated(x, left, right), left, right), x)
    torch.testing.assert_close(rotated(x, None, right), x @ right)
    torch.testing.assert_close(unrotated(x, left, None), left @ x)


def test_the_hadamard_rule_is_the_diagonal_of_the_rotated_covariance():
    v, left, right = torch.rand(2, 4, 3, dtype=torch.float64), orthogonal(2, 4), orthogonal(2, 3, 1)
    found = carried(v, left, right)
    for i in range(2):
        turn = torch.kron(left[i], right[i])
        torch.testing.assert_close(found[i].flatten(), (turn.T @ v[i].flatten().diag() @ turn).diagonal())
    torch.testing.assert_close(found.sum((1, 2)), v.sum((1, 2)))
    assert found.min() >= 0


def test_eigenpairs_are_sorted_and_one_failure_leaves_the_others_alone(monkeypatch):
    factors = symmetric(3, 5)
    values, vectors, done = eigenpairs(factors)
    torch.testing.assert_close(vectors @ values.diag_embed() @ vectors.mT, factors)
    assert bool((values.diff(dim=-1) <= 0).all())
    assert bool(done.all())
    truth = torch.linalg.eigh

    def fails(matrix):
        if matrix.dim() == 3 or torch.equal(matrix, factors[1]):
            raise torch.linalg.LinAlgError("did not converge")
        return truth(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    again, _, done = eigenpairs(factors)
    assert done.tolist() == [True, False, True]
    torch.testing.assert_close(again[[0, 2]], values[[0, 2]])


def test_tracking_converges_to_the_eigenbasis():
    factors = symmetric(2, 6)
    values, vectors, _ = eigenpairs(factors)
    basis = torch.eye(6, dtype=torch.float64).expand(2, 6, 6)
    for _ in range(600):
        basis, _, done = tracked(factors, basis)
    assert bool(done.all())
    torch.testing.assert_close(
        (basis.mT @ vectors).abs(), torch.eye(6, dtype=torch.float64).expand(2, 6, 6), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(quotients(factors, basis), values)


def test_tracking_keeps_old_directions_where_there_is_nothing():
    """A factor of rank 2 says nothing of the other four directions: they span what they spanned."""
    factors = symmetric(1, 6, rank=2).float()
    _, vectors, _ = eigenpairs(factors)
    basis, order, done = tracked(factors, vectors)
    assert bool(done.all())
    torch.testing.assert_close(basis.mT @ basis, torch.eye(6)[None], atol=1e-5, rtol=0)
    overlap = (vectors[0].gather(-1, order.expand(6, 6)).T @ basis[0]).abs()
    torch.testing.assert_close(overlap.diagonal(), torch.ones(6), atol=1e-3, rtol=0)


def test_order_says_which_axis_each_one_continues():
    factors = torch.diag(torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64))[None]
    _, order, _ = tracked(factors, torch.eye(3, dtype=torch.float64)[None])
    assert order.tolist() == [[1, 2, 0]]


def test_entries_follow_their_axes():
    second = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    left, right = torch.tensor([[2, 0, 1], [0, 2, 1]]), torch.tensor([[3, 1, 0, 2], [1, 0, 3, 2]])
    found, rows, columns = permuted(second, left, right), permuted(second, left, None), permuted(second, None, right)
    for k in range(2):
        assert torch.equal(found[k], second[k][left[k]][:, right[k]])
        assert torch.equal(rows[k], second[k][left[k]])
        assert torch.equal(columns[k], second[k][:, right[k]])


def test_tracking_is_one_qr_of_the_sorted_product():
    """In float64, where the lift that keeps old directions is below the tolerance."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(2, 6, 6, generator=generator, dtype=torch.float64)
    factors, basis = half @ half.mT, torch.linalg.qr(torch.randn(2, 6, 6, generator=generator, dtype=torch.float64))[0]
    found, order, done = tracked(factors, basis)
    product = factors @ basis
    along = (basis * product).sum(-2)
    assert torch.equal(order, along.argsort(descending=True))
    assert bool(done.all())
    for k in range(2):
        torch.testing.assert_close(found[k], torch.linalg.qr(product[k][:, order[k]])[0], rtol=1e-10, atol=1e-10)


def test_repair_leaves_what_is_known_and_nothing_below_rounding():
    values = torch.tensor([[2.0, 1e-3, -1e-9, 0.0]])
    found = repaired(values)
    assert torch.equal(found[:, :2], values[:, :2])
    assert found[0, 2:].tolist() == [4 * torch.finfo(torch.float32).eps * 2] * 2
    assert repaired(torch.zeros(1, 2)).min() > 0


def test_newton_schulz_keeps_directions_and_flattens_singular_values():
    x = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(newton_schulz(x, dtype=torch.float32), full_matrices=False)
    assert s.min() > 0.6
    assert s.max() < 1.3
    a, _, b = torch.linalg.svd(x, full_matrices=False)
    assert ((u @ v) - (a @ b)).abs().max() < 0.05 + (u @ s.diag_embed() @ v - a @ b).abs().max()
    assert torch.equal(newton_schulz(torch.zeros(1, 2, 2)), torch.zeros(1, 2, 2, dtype=torch.bfloat16))
    torch.testing.assert_close(
        newton_schulz(x.mT, dtype=torch.float32), newton_schulz(x, dtype=torch.float32).mT, atol=1e-5, rtol=1e-4
    )
