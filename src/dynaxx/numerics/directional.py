"""Curvature along one direction, by one product."""

import math

from jaxtyping import Float
from torch import Tensor

from dynaxx.core.chart import Estimate
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.numerics.operator import Operator


def directional_curvature(operator: Operator, gradient: Float[Tensor, " n"]) -> Estimate:
    """gᵀHg/‖g‖², at most λ₁: what a small gradient step feels of the curvature. One product.

    Along the gradient it rises before Adam's loss spikes, when λ₁ of the Hessian alone does not tell.

    Args:
        operator: H.
        gradient: g, shape (n,); any direction will do.

    Returns:
        The curvature in units of H, exact but for rounding.

    Raises:
        NotApplicable: g is zero.
        BadInput: g or Hg is not finite.

    Example:
        >>> import torch
        >>> from dynaxx.numerics.operator import Dense
        >>> str(directional_curvature(Dense(torch.diag(torch.tensor([3.0, 1.0]))), torch.tensor([1.0, 1.0])))
        '2'
    """
    space, row = operator.space, gradient[None]
    norm = float(space.norms(row)[0])
    if norm == 0:
        raise NotApplicable(
            "directional_curvature(operator, gradient): the gradient is zero, so there is no direction."
        )
    unit = row / norm  # so that the squares of a small gradient do not underflow
    value = float(space.gram(unit, operator(unit))[0, 0]) if math.isfinite(norm) else math.nan
    if not math.isfinite(value):
        raise BadInput(
            "directional_curvature(operator, gradient): the gradient or its product is not finite. "
            "Look for NaN or infinity in the weights or the batches."
        )
    return Estimate(value=value, about="curvature along the gradient, gᵀHg/‖g‖²")
