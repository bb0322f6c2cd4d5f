"""Eigenpairs at the ends of a spectrum, by products alone: thick-restart band Lanczos with warm starts."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dynaxx.errors import BadInput
from dynaxx.numerics.operator import Operator
from dynaxx.numerics.orthogonal import cleared

Which = Literal["largest", "smallest", "both", "magnitude"]
"""Which eigenvalues: algebraically largest, smallest (most negative), k of each, or largest in magnitude."""
RESIDUAL = 3.0
"""A converged pair's residual is at most so many tolerances too: a small basis may not show how near the next
eigenvalue is, and r²/gap alone then stopped with 1.4 % of error where 0.1 % was asked for (at 1 of 15 points of a
training run)."""

ROUNDING = 10.0
"""Bounds are no less than so many roundings of the largest Ritz value: a product is that of A + E with ‖E‖ of a few
roundings of ‖A‖, which no residual by the recurrence shows, and by Weyl's inequality E moves an eigenvalue by up to
‖E‖. Dense float32 matrices of up to 400 rows show 0.8 at most over 36 of them; deep networks round more often."""

COLD = 16
"""Fewest products from a random start: one that is nearly orthogonal to the top vector (1 in 6 at two of five points of
a trained net) seems to have converged after 9, at the second eigenvalue, 4 % lower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Eigenpairs:
    """Eigenvalues with vectors, and what is known of their errors.

    Args:
        values: Shape (k,), float64 on the host, the most wanted first; for "both" (2k,), largest to smallest.
        vectors: Shape (k, n), orthonormal rows on the operator's device.
        residuals: r = ‖Av − θv‖ by the recurrence, exact but for rounding; some eigenvalue surely lies within r of θ.
        bounds: On |λ − θ|: min(r, r²/gap), the gap to the other Ritz values less their residuals, and no less than
            the rounding of a product. The gap to an eigenvalue that no Ritz value shows yet is unknown: 5 of 120 errors
            on random spectra were larger.
        converged: Whether the bound is within the tolerance.
        spare: Ritz vectors next in order, for the next warm start; shape (at most `spare`, n).
        products: Vectors that were multiplied.
        basis: Largest number of basis vectors, the memory that it took.
        lowest: Smallest Ritz value, which λ_min does not exceed: below 0 it proves negative curvature, at no product
            more. It is far above λ_min where the search began at the largest end.
    """

    values: Float[Tensor, " k"]
    vectors: Float[Tensor, "k n"]
    residuals: Float[Tensor, " k"]
    bounds: Float[Tensor, " k"]
    converged: Bool[Tensor, " k"]
    spare: Float[Tensor, "m n"]
    products: int
    basis: int
    lowest: float


def eigenpairs(
    operator: Operator,
    k: int = 1,
    *,
    which: Which = "largest",
    tolerance: float = 1e-3,
    start: Float[Tensor, "s n"] | None = None,
    max_products: int | None = None,
    basis: int | None = None,
    spare: int = 0,
    seed: int = 0,
) -> Eigenpairs:
    """Eigenpairs of a symmetric operator at an end of its spectrum.

    AV = VT + GᵀC with an orthonormal basis V and as many further directions G as there were starts; every step
    multiplies the one direction of G that the least accurate wanted pair asks for. From one start that is Lanczos'
    recurrence with full orthogonalisation in two passes; a full basis shrinks to its best Ritz vectors (thick restart,
    Wu and Simon 2000), among them those that have converged. Small matrices are in float64 on the host, which waits for
    the device once a product. An eigenvector to which no start has any component is found by rounding alone, late.

    Args:
        operator: Symmetric; vectors stay on its device and its shards.
        k: How many.
        which: At which end.
        tolerance: On the bound of a value, relative to that value.
        start: Rows in whose span the vectors are looked for first, of any length; None: one random row.
        max_products: Stop after so many, converged or not; None: 100 + 20 k.
        basis: At most so many vectors are kept, plus as many as there are starts; None: max(20, 3 k + 10).
        spare: Further Ritz vectors to hand out.
        seed: Of random rows.

    Returns:
        The pairs; check `converged`.

    Raises:
        BadInput: k, the starts, the basis or the limit do not fit, or a product is not finite.

    Example:
        >>> from dynaxx.numerics.operator import Dense
        >>> found = eigenpairs(Dense(torch.diag(torch.tensor([1.0, -5.0, 3.0], dtype=torch.float64))))
        >>> round(found.values.item(), 9)
        3.0
    """
    space, before = operator.space, operator.products
    wanted = 2 * k if which == "both" else k
    if k < 1 or wanted > space.numel:
        raise BadInput(
            f"eigenpairs(k=...) must be between 1 and the number of parameters, {space.numel}"
            f"{' over 2' if which == 'both' else ''}. Got {k}."
        )
    rows = space.random(1, seed=seed) if start is None else start
    size = min(space.numel, max(20, 3 * wanted + 10, rows.shape[0] + wanted) if basis is None else basis)
    if size < min(space.numel, max(wanted + 2, rows.shape[0])):
        raise BadInput(
            f"eigenpairs(basis=...) must hold the starts ({rows.shape[0]}) and 2 more than the wanted {wanted}. "
            f"Got {basis}."
        )
    limit = 100 + 20 * wanted if max_products is None else max_products
    if limit < max(wanted, rows.shape[0]):
        raise BadInput(
            f"eigenpairs(max_products=...) must suffice for the wanted {wanted} and the starts ({rows.shape[0]}). "
            f"Got {max_products}."
        )
    least = min(space.numel, COLD) if start is None else 0
    band = _Band(operator, size, rows, seed)
    with operator.opened():
        band.multiply(band.open)
        while True:
            values, mixing, residuals = band.ritz()
            order = _ranked(values, which)
            best = order[:wanted]
            bounds = _bounds(values, residuals, alone=len(values) <= wanted)
            floor = band.rounding ** (2 / 3) * abs(values).max()
            done = bounds <= np.maximum(tolerance * abs(values), floor)
            done &= residuals <= np.maximum(RESIDUAL * tolerance * abs(values), floor)
            spent = operator.products - before
            complete = spent >= least and len(best) == wanted and done[best].all()
            if complete or spent >= limit or band.size >= space.numel:
                break
            if band.size == size:
                band.restart(mixing[:, order[: wanted + (size - wanted) // 2]], values[order])
                continue
            band.aim(mixing[:, best[np.argmax(np.where(done, -1.0, bounds)[best])]])
            band.multiply(1)
    if which == "both":
        best = np.sort(best)[::-1]
    vectors = band.vectors(mixing[:, np.concatenate([best, order[wanted : wanted + spare]])])
    return Eigenpairs(
        values=torch.tensor(values[best]),
        vectors=vectors[: len(best)],
        residuals=torch.tensor(residuals[best]),
        bounds=torch.tensor(np.maximum(bounds[best], ROUNDING * band.rounding * abs(values).max())),
        converged=torch.tensor(done[best]),
        spare=vectors[len(best) :],
        products=spent,
        basis=size,
        lowest=float(values.min()),
    )


class _Band:
    """AV = VT + GᵀC: V is `rows[:size]`, the open directions G, orthonormal and orthogonal to V, are the next `open`.

    Moving the first row of G into V is free, since they share one block of memory; its couplings C[:, 0] are then the
    new column of T, and what its product has outside V and G is a new row of G.
    """

    def __init__(self, operator: Operator, size: int, start: Tensor, seed: int) -> None:
        space = operator.space
        self.operator = operator
        self.rows = torch.empty(size + start.shape[0] + 1, space.n, dtype=space.dtype, device=space.device)
        self.rounding = float(torch.finfo(space.dtype).eps)
        self.size = self.open = 0
        self.inner: Any = np.zeros((0, 0))
        self.coupling: Any = np.zeros((0, 0))
        self._seed = seed
        for row in start.to(self.rows) / space.norms(start.to(self.rows)).clamp_min(1e-30)[:, None]:
            self._open(row)
        if not self.open:
            self._open_random()

    def ritz(self) -> tuple[Any, Any, Any]:
        """Ritz values in rising order, the mixing of basis vectors (columns), residual norms."""
        values, mixing = np.linalg.eigh(self.inner)
        return values, mixing, np.linalg.norm(mixing.T @ self.coupling, axis=1)

    def vectors(self, mixing: Any) -> Tensor:
        """Basis vectors mixed by the columns given."""
        return torch.tensor(mixing.T).to(self.rows) @ self.rows[: self.size]

    def aim(self, mixing: Any) -> None:
        """Turn G so that its first row is the residual of a Ritz vector; a random one where G is empty."""
        if not self.open:
            self._open_random()
        residual = self.coupling.T @ mixing
        norm = np.linalg.norm(residual)
        if self.open == 1 or norm == 0:
            return
        mirror = residual / norm
        mirror *= -np.copysign(1.0, mirror[0])  # so that nothing cancels in the next line
        mirror[0] -= 1.0
        mirror *= np.sqrt(2) / np.linalg.norm(mirror)
        self.coupling = self.coupling - np.outer(self.coupling @ mirror, mirror)
        directions = self.rows[self.size : self.size + self.open]
        weights = torch.tensor(mirror).to(self.rows)
        directions -= torch.outer(weights, weights @ directions)

    def multiply(self, count: int) -> None:
        """Move the first rows of G into the basis, multiplied in one call."""
        for product in self.operator(self.rows[self.size : self.size + count]):
            at = self.size
            row, parts, norm = self._orthogonal(product)
            inner = np.zeros((at + 1, at + 1))
            inner[:at, :at] = self.inner
            inner[:at, at] = inner[at, :at] = self.coupling[:, 0]
            inner[at, at] = parts[at]
            self.inner = inner
            self.coupling = np.vstack([self.coupling[:, 1:], parts[at + 1 :]])
            self.size, self.open = at + 1, self.open - 1
            if norm > 10 * self.rounding * np.hypot(norm, np.linalg.norm(parts)):
                self._append(row, norm)
                self.coupling[at, -1] = norm

    def restart(self, mixing: Any, values: Any) -> None:
        """Keep some Ritz vectors alone; the relation holds on, as G stays."""
        keep = mixing.shape[1]
        kept, directions = self.vectors(mixing), self.rows[self.size : self.size + self.open].clone()
        self.rows[:keep], self.rows[keep : keep + self.open] = kept, directions
        self.inner = np.diag(values[:keep])
        self.coupling = mixing.T @ self.coupling
        self.size = keep

    def _orthogonal(self, row: Tensor) -> tuple[Tensor, Any, float]:
        """What a row has outside V and G, its parts along them, and the norm of the rest."""
        space = self.operator.space
        rest, parts = cleared(space, row[None], self.rows[: self.size + self.open])
        numbers = torch.cat([parts[0], space.norms(rest)]).cpu().double().numpy()  # waits for the device
        if not np.isfinite(numbers).all():
            raise BadInput(
                f"eigenpairs(operator={type(self.operator).__name__}): a start or a product is not finite. "
                "Look for NaN or infinity in the weights, the batches or the starts."
            )
        return rest[0], numbers[:-1], float(numbers[-1])

    def _append(self, row: Tensor, norm: float) -> None:
        self.rows[self.size + self.open] = row / norm
        self.open += 1
        self.coupling = np.hstack([self.coupling, np.zeros((len(self.coupling), 1))])

    def _open(self, row: Tensor) -> None:
        """A further direction to look into, unless what is there holds it already."""
        row, _, norm = self._orthogonal(row)
        if norm > self.rounding**0.5:
            self._append(row, norm)

    def _open_random(self) -> None:
        space, before = self.operator.space, self.open
        while self.open == before:
            self._seed += 1
            row = space.random(1, seed=self._seed)
            self._open(row[0] / space.norms(row)[0])


def _ranked(values: Any, which: Which) -> Any:
    """Indices of rising values, the most wanted first."""
    if which == "magnitude":
        return np.argsort(-abs(values), kind="stable")
    rising = np.arange(len(values))
    if which == "both":
        return np.stack([rising[::-1], rising], axis=1).reshape(-1)[: len(values)]
    return rising if which == "smallest" else rising[::-1]


def _bounds(values: Any, residuals: Any, *, alone: bool) -> Any:
    """min(r, r²/gap); with no unwanted Ritz value to measure the gap by, r."""
    if alone:
        return residuals
    gaps = abs(values[:, None] - values[None]) - residuals[None]
    np.fill_diagonal(gaps, np.inf)
    gap = gaps.min(axis=1)
    return np.where(gap > residuals, residuals**2 / np.where(gap > 0, gap, 1.0), residuals)
