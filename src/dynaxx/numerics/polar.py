"""The nearest semi-orthogonal matrix, by Newton–Schulz iterations without a decomposition."""

import torch
from jaxtyping import Float
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Steepest at zero of the quintics that keep [0, 1] within some 30 % of 1 (Jordan 2024), not convergent to 1."""


def newton_schulz(
    matrices: Float[Tensor, "b m n"],
    steps: int = 5,
    coefficients: tuple[float, float, float] = COEFFICIENTS,
    dtype: torch.dtype = torch.bfloat16,
) -> Float[Tensor, "b m n"]:
    """Singular values brought near 1, directions kept: X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X from X / ‖X‖.

    Args:
        matrices: Shape (b, m, n).
        steps: Iterations; 5 bring singular values above 0.001 of the norm to 0.7–1.2.
        coefficients: a, b, c.
        dtype: Of the iterations; bfloat16 suffices, as the result is not exact anyway.

    Returns:
        Shape (b, m, n) in `dtype`; zero matrices stay zero.

    Example:
        >>> found = newton_schulz(torch.diag(torch.tensor([3.0, 0.5]))[None], dtype=torch.float32)
        >>> bool((torch.linalg.svdvals(found) - 1).abs().max() < 0.35)
        True
    """
    a, b, c = coefficients
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / x.flatten(1).norm(dim=1).clamp_min(1e-7)[:, None, None]
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
