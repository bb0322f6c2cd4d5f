"""What kind of point this is: a minimum, a saddle, a maximum, none of them, or one where the gradient is flat."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from dynaxx.core.chart import Estimate
from dynaxx.core.objective import Objective
from dynaxx.numerics.density import density
from dynaxx.numerics.operator import Operator
from dynaxx.numerics.space import Space

Kind = Literal["local minimum", "saddle", "local maximum", "degenerate", "gradient-flat", "not critical"]
DENSE = 2000
"""Up to this dimension the whole Hessian is taken: n products, and an eigenvalue problem of seconds."""
FLAT = 1e-3
"""A gradient that the Hessian shrinks to this share of what it makes of the stiffest direction lies in its kernel; a
convention: Frye et al. (2020) call a point gradient-flat by the same ratio."""

ZERO = {torch.float32: 1e-5, torch.float64: 1e-7}
"""ε by the type of the weights: rounding, and in float64 how far eigenvalues move within the search's tolerance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """Signs of the eigenvalues.

    Args:
        lowest: The smallest eigenvalue.
        highest: The largest one.
        negative: Share of eigenvalues below −ε‖H‖; an error where it is an estimate.
        flat: Share of eigenvalues within ±ε‖H‖; an error where it is an estimate.
        index: Number of negative eigenvalues; None where only their share is known.
    """

    lowest: float
    highest: float
    negative: Estimate
    flat: Estimate
    index: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticalPoint:
    """A point and what kind it is.

    Args:
        kind: The verdict.
        loss: L.
        gradient_norm: ‖∇L‖.
        distance: ‖∇L‖/(‖H‖ ‖θ‖), compared with the tolerance; 0 where the gradient is zero.
        flatness: r = ‖H∇L‖/(‖H‖ ‖∇L‖), in [0, 1]; NaN where the gradient is zero.
        spectrum: Signs of the Hessian's eigenvalues.
    """

    kind: Kind
    loss: float
    gradient_norm: float
    distance: float
    flatness: float
    spectrum: Spectrum


def critical_point(
    objective: Objective,
    hessian: Operator,
    *,
    tolerance: float = 1e-8,
    zero: float | None = None,
    length: float = 0.0,
    steps: int = 80,
    seed: int = 0,
) -> CriticalPoint:
    """Say what kind of point an objective stands at.

    It is critical where ‖∇L‖ ≤ τ‖H‖‖θ‖; then the signs of the eigenvalues beyond ±ε‖H‖ decide, and with none of them
    it is "degenerate". Elsewhere it is "gradient-flat" where r ≤ 10⁻³, for there every search that reduces ‖∇L‖ stalls,
    and "not critical" where not.

    Args:
        objective: The loss and the point.
        hessian: Its Hessian.
        tolerance: τ.
        zero: ε, the share of the largest |λ| within which an eigenvalue counts as zero; None: `ZERO`.
        length: The least that ‖θ‖ counts for, in units of the weights; that of the start of a search.
        steps: Products for each of the probes, where n > 2000 and the spectrum is estimated.
        seed: Of the probes.

    Returns:
        The verdict and what it rests on. Eigenvalues within ±ε‖H‖ leave open whether a minimum is one to higher order.
    """
    space = Space(objective.parameters, objective.names)
    zero = ZERO[space.dtype] if zero is None else zero
    gradient = space.flatten(objective.gradient())
    slope = float(gradient.norm())
    spectrum = signs(hessian, zero=zero, steps=steps, seed=seed)
    size = max(abs(spectrum.lowest), abs(spectrum.highest))
    weights = max(length, float(space.flatten(objective.parameters).norm()))
    flatness = distance = math.nan
    if slope == 0.0:
        distance = 0.0
    elif size > 0.0:
        flatness = float(hessian(gradient[None]).norm()) / (size * slope)
        distance = slope / (size * weights) if weights > 0.0 else math.inf
    if distance <= tolerance:
        kind = _kind(spectrum, zero * size)
    else:
        kind = "not critical" if flatness > FLAT else "gradient-flat"
    return CriticalPoint(
        kind=kind, loss=objective.value(), gradient_norm=slope, distance=distance, flatness=flatness, spectrum=spectrum
    )


def signs(hessian: Operator, *, zero: float | None = None, steps: int = 80, probes: int = 4, seed: int = 0) -> Spectrum:
    """Signs of the eigenvalues: all of them up to n = 2000, beyond by stochastic Lanczos quadrature.

    Args:
        hessian: The operator.
        zero: ε; None: `ZERO`.
        steps: Products for each probe of the quadrature.
        probes: Of the quadrature.
        seed: Of the probes.

    Returns:
        The signs, with standard errors over probes where they are estimated.
    """
    n = hessian.space.numel
    zero = ZERO[hessian.space.dtype] if zero is None else zero
    if n <= DENSE:
        values = torch.linalg.eigvalsh(hessian.dense().double()).cpu().numpy()
        bar = zero * float(np.abs(values).max())
        index = int((values < -bar).sum())
        return Spectrum(
            lowest=float(values[0]), highest=float(values[-1]), index=index,
            negative=Estimate(value=index / n), flat=Estimate(value=float((np.abs(values) <= bar).mean())),
        )  # fmt: skip
    found = density(hessian, probes=probes, steps=steps, seed=seed)
    bar = zero * float(np.abs(found.nodes).max())
    return Spectrum(
        lowest=float(found.nodes.min()), highest=float(found.nodes.max()), index=None,
        negative=_mean(found.weights[:, found.nodes < -bar].sum(1)),
        flat=_mean(found.weights[:, np.abs(found.nodes) <= bar].sum(1)),
    )  # fmt: skip


def _mean(shares: np.ndarray) -> Estimate:
    return Estimate(value=float(np.mean(shares)), error=float(np.std(shares, ddof=1)) / math.sqrt(len(shares)))


def _kind(spectrum: Spectrum, bar: float) -> Kind:
    down, up = spectrum.lowest < -bar, spectrum.highest > bar
    if down and up:
        return "saddle"
    if down:
        return "local maximum"
    return "local minimum" if up else "degenerate"
