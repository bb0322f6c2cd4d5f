import pytest
import torch

from dynaxx.numerics.orthogonal import cleared, orthonormal
from dynaxx.numerics.space import Space


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_are_nearly_dependent_become_orthonormal(dtype):
    """Condition 1e5: one pass of Gram–Schmidt is off by 1e-2 in float32."""
    eps = torch.finfo(dtype).eps
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(50, 4, generator=generator, dtype=dtype))[0].T.contiguous()
    common = torch.randn(50, generator=generator, dtype=dtype)
    rows = common + 1e-4 * torch.randn(6, 50, generator=generator, dtype=dtype) + 10 * basis[:1]
    new, coefficients = orthonormal(Space.plain(50, dtype), rows, basis)
    every = torch.cat([basis, new])
    assert new.shape == (6, 50)
    torch.testing.assert_close(every @ every.T, torch.eye(10, dtype=dtype), atol=20 * eps, rtol=0)
    torch.testing.assert_close(coefficients.T.to(dtype) @ every, rows, atol=100 * eps, rtol=0)


def test_what_adds_nothing_is_dropped():
    rows = torch.randn(5, 9, generator=torch.Generator().manual_seed(1))
    rows[2], rows[4] = rows[0] - 3 * rows[1], 0.0
    new, coefficients = orthonormal(Space.plain(9, torch.float32), rows)
    assert new.shape == (3, 9)
    torch.testing.assert_close(coefficients.T.float() @ new, rows, atol=1e-5, rtol=0)
    again, _ = orthonormal(Space.plain(9, torch.float32), rows, new)
    assert again.shape == (0, 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_cleared_has_no_part_along_the_basis(dtype):
    """The rest is 1e-4 of the row: one pass leaves 1e-4 / ε of it along the basis."""
    eps = torch.finfo(dtype).eps
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(50, 4, generator=generator, dtype=dtype))[0].T.contiguous()
    rows = 1e4 * torch.randn(3, 4, generator=generator, dtype=dtype) @ basis
    rows = rows + torch.randn(3, 50, generator=generator, dtype=dtype)
    rest, parts = cleared(Space.plain(50, dtype), rows, basis)
    assert float((rest @ basis.T).abs().max()) < 50 * eps * float(rest.norm(dim=1).min())
    torch.testing.assert_close(parts @ basis + rest, rows, atol=1e5 * eps, rtol=0)
