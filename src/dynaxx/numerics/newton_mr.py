"""Searches for critical points: steps that solve H d = −g in a Krylov subspace, damped as far as needed."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dynaxx.core.displaced import Displaced
from dynaxx.errors import BadInput
from dynaxx.numerics.hessian import Hessian
from dynaxx.numerics.krylov import Krylov, krylov
from dynaxx.numerics.space import Space

Method = Literal["newton_mr", "saddle_free"]
WORTH = 0.01
"""Share of the decrease that the model promised at which a step is taken; below a quarter damping grows, above three
quarters it falls (Nocedal and Wright 2006, §4.1)."""
TRIALS = 30
CUT = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Curvature below this share of the largest is taken for zero in the pseudo-inverse; some hundred roundings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How a search went; the point it ended at is where the objective stands.

    Args:
        losses: The loss at each iterate.
        gradient_norms: ‖∇L‖ at each iterate.
        ended: "converged", "stalled" (no damping brought a decrease) or "iterations".
        products: Curvature products taken.
        gradients: Gradients taken.
        forwards: Losses taken.
    """

    losses: tuple[float, ...]
    gradient_norms: tuple[float, ...]
    ended: str
    products: int
    gradients: int
    forwards: int


def newton_mr_step(basis: Krylov, damping: float, cut: float) -> np.ndarray:
    """The minimiser of ‖Hd + g‖² + ν²‖d‖² in the subspace; for ν = 0 the shortest one of ‖Hd + g‖.

    That is the step of MINRES-QLP (Choi, Paige and Saunders 2011), damped as by Levenberg and Marquardt.

    Args:
        basis: Started at g.
        damping: ν, in units of curvature.
        cut: Singular values of T̲ below this share of the largest are taken for zero.

    Returns:
        Its coefficients, shape (m,).
    """
    left, sizes, right = np.linalg.svd(basis.matrix, full_matrices=False)
    kept = sizes > cut * sizes.max(initial=0.0)
    inverse = np.where(kept, sizes / np.where(kept, sizes**2 + damping**2, 1.0), 0.0)
    return -basis.norm * (left[0] * inverse) @ right


def saddle_free_step(basis: Krylov, damping: float, cut: float) -> np.ndarray:
    """−(|H| + ν)⁻¹g in the subspace (Dauphin et al. 2014), which leaves saddles along their negative directions.

    Args:
        basis: Started at g.
        damping: ν, in units of curvature.
        cut: Eigenvalues below this share of the largest are taken for zero.

    Returns:
        Its coefficients, shape (m,).
    """
    values, vectors = basis.ritz()
    sizes = np.abs(values)
    kept = sizes > cut * sizes.max(initial=0.0)
    inverse = np.where(kept, 1 / np.where(kept, sizes + damping, 1.0), 0.0)
    return -basis.norm * (vectors * inverse) @ vectors[0]


def search(
    point: Displaced,
    hessian: Hessian,
    *,
    method: Method = "newton_mr",
    iterations: int = 100,
    subspace: int = 100,
    tolerance: float = 1e-8,
) -> Search:
    """Move to a critical point near by.

    "newton_mr" (Roosta et al. 2018) makes ‖∇L‖ fall at every step and so is drawn by saddles as by minima;
    "saddle_free" makes the loss fall and ends in minima. The damping ν of a step grows until the step keeps what its
    quadratic model promised: where H is nearly singular that goes further than shortening the step.

    It has converged where ‖∇L‖ ≤ τ ‖H‖ ‖θ‖: the gradient is what a shift of the weights by a share τ along the stiffest
    direction makes. ‖θ‖ is that of the start where it was larger, for the origin too may be critical.

    Args:
        point: Where to begin; moved to where the search ends.
        hessian: Its Hessian.
        method: "newton_mr" or "saddle_free".
        iterations: Most steps.
        subspace: Most products of a step, and vectors kept.
        tolerance: τ.

    Returns:
        How it went.

    Raises:
        BadInput: A number is not positive.
    """
    if not (iterations >= 1 and subspace >= 1 and tolerance > 0):
        raise BadInput(
            f"search(iterations, subspace, tolerance) must be positive. Got {iterations}, {subspace} and {tolerance}."
        )
    walk = _Walk(point, hessian, method)
    length = float(walk.place.norm())
    for _ in range(iterations):
        if walk.slope == 0.0:
            return walk.over("converged")
        with hessian.opened():
            basis = krylov(hessian, walk.gradient, subspace)
        stiffest = float(np.abs(np.linalg.eigvalsh(basis.matrix[:-1])).max())
        if walk.slope <= tolerance * stiffest * max(length, float(walk.place.norm())):
            return walk.over("converged")
        if not walk.step(basis, stiffest):
            return walk.over("stalled")
    return walk.over("iterations")


class _Walk:
    """The iterate: where it is, the loss and the gradient there, and what they cost."""

    def __init__(self, point: Displaced, hessian: Hessian, method: Method) -> None:
        self._point = point
        self._space = Space(point.parameters, point.names)
        self._hessian = hessian
        self._reduce_gradient = method == "newton_mr"
        self._solve = newton_mr_step if self._reduce_gradient else saddle_free_step
        self._damping = 0.0
        self._before = hessian.products
        self._counts = {"gradients": 0, "forwards": 0}
        self._losses: list[float] = []
        self._norms: list[float] = []
        self.place = self._space.flatten(point.parameters)
        self.gradient = self._slope(self.place)
        self._note(self._value(self.place))

    @property
    def slope(self) -> float:
        """‖∇L‖ here."""
        return self._norms[-1]

    def step(self, basis: Krylov, stiffest: float) -> bool:
        """Take one, damped until it brings its share of what the model promised; False: none did."""
        cut = CUT[self.place.dtype]
        for _ in range(TRIALS):
            y = self._solve(basis, self._damping, cut)
            promised = self._promise(basis, y)
            if not promised > 0:
                break
            place = self.place + basis.vector(y)
            value, gradient, merit = self._merit(place)
            ratio = (self._here() - merit) / promised
            if not ratio >= 0.25:  # NaN too
                self._damping = max(4 * self._damping, 1e-6 * stiffest)
            elif ratio > 0.75:
                self._damping /= 16
            if ratio > WORTH and math.isfinite(merit):
                self.place, self.gradient = place, self._slope(place) if gradient is None else gradient
                self._note(value)
                return True
        self._point.move(self._space.split(self.place))
        return False

    def _promise(self, basis: Krylov, y: np.ndarray) -> float:
        """The decrease of the merit in the quadratic model of the loss."""
        image = basis.matrix @ y
        if self._reduce_gradient:
            residual = image.copy()
            residual[0] += basis.norm
            return basis.norm**2 - float(residual @ residual)
        return -basis.norm * float(y[0]) - float(y @ image[:-1]) / 2

    def _here(self) -> float:
        return self.slope**2 if self._reduce_gradient else self._losses[-1]

    def _merit(self, place: Tensor) -> tuple[float, Tensor | None, float]:
        """Loss, gradient where the merit needs it, and merit: ‖∇L‖² or L."""
        value = self._value(place)
        if not self._reduce_gradient or not math.isfinite(value):
            return value, None, value
        gradient = self._slope(place)
        return value, gradient, float(gradient.norm()) ** 2

    def over(self, ended: str) -> Search:
        """The account of the search."""
        return Search(
            losses=tuple(self._losses), gradient_norms=tuple(self._norms), ended=ended,
            products=self._hessian.products - self._before, **self._counts,
        )  # fmt: skip

    def _note(self, value: float) -> None:
        self._losses.append(value)
        self._norms.append(float(self.gradient.norm()))

    def _value(self, place: Tensor) -> float:
        self._counts["forwards"] += 1
        self._point.move(self._space.split(place))
        return self._point.value()

    def _slope(self, place: Tensor) -> Tensor:
        self._counts["gradients"] += 1
        self._point.move(self._space.split(place))
        return self._space.flatten(self._point.gradient())
