import numpy as np
import torch

from dynaxx.numerics.krylov import krylov
from dynaxx.numerics.operator import Dense


def matrix(n, seed=0):
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (a + a.T) / 2


def test_the_relation_between_basis_and_matrix():
    a, b = matrix(30), torch.arange(1.0, 31.0, dtype=torch.float64)
    basis = krylov(Dense(a), b, 12)
    q = basis.rows
    assert torch.allclose(q @ q.T, torch.eye(12, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(q @ a @ q.T, torch.as_tensor(basis.matrix[:-1]), atol=1e-11)
    rest = a @ q.T - q.T @ torch.as_tensor(basis.matrix[:-1])
    assert np.isclose(float(rest.norm()), basis.matrix[-1, -1])
    assert torch.allclose(basis.vector(np.eye(12)[0]) * basis.norm, b)


def test_all_steps_give_the_whole_spectrum():
    a = matrix(25)
    values, _ = krylov(Dense(a), torch.ones(25, dtype=torch.float64), 40).ritz()
    assert np.allclose(values, np.linalg.eigvalsh(a.numpy()), atol=1e-10)


def test_it_ends_where_the_subspace_is_invariant():
    basis = krylov(Dense(torch.diag(torch.tensor([3.0, 3.0, 1.0, 1.0]))), torch.ones(4), 4)
    assert len(basis.rows) == 2
    assert basis.matrix[-1, -1] == 0
    assert np.allclose(basis.ritz()[0], [1, 3], atol=1e-6)


def test_a_wide_spectrum_has_no_ghosts():
    values = torch.cat([torch.linspace(0, 1, 58, dtype=torch.float64), torch.tensor([1e4, 1e6], dtype=torch.float64)])
    found, _ = krylov(Dense(torch.diag(values)), torch.ones(60, dtype=torch.float64), 60).ritz()
    assert (found > 2).sum() == 2
