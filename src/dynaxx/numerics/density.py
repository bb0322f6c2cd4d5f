"""The spectral density of an operator by stochastic Lanczos quadrature: probes that share one Krylov space."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dynaxx.core.chart import Estimate
from dynaxx.errors import BadInput
from dynaxx.numerics.operator import Operator
from dynaxx.numerics.orthogonal import orthonormal

Vector = Float[np.ndarray, " m"]
SINGLE = 8.0
"""What the share of one eigenvector exceeds by chance once in a million over four probes (mean of χ² of one degree),
once in 3000 over two. At 4, now and then an outlier kept four times its weight: over 16 seeds on a digits net the mean
eigenvalue spread 15 times as much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Density:
    """μ = (1/n) Σᵢ δ(λ − λᵢ) as weights on nodes, one row of weights for each probe.

    Args:
        nodes: Ritz values, ascending, shape (m,).
        weights: Shape (probes, m); each row sums to one.
        residuals: ‖Au − θu‖ of each node's Ritz vector; an eigenvalue lies within that of the node. Shape (m,).
        vectors: Ritz vectors of the outermost nodes, as many from the bottom as from the top, in the nodes' order;
            orthonormal, shape (at most 2 × keep, n).
        n: Dimension of the space.
        rounding: Eigenvalues below this size cannot be told from zero.
        check: Largest relative difference between the first two moments and those of the first products themselves;
            more than 1e-3 in float32 means that orthogonality was lost.
        products: Vectors that were multiplied.
    """

    nodes: Vector
    weights: Float[np.ndarray, "probes m"]
    residuals: Vector
    vectors: Float[Tensor, "kept n"]
    n: int
    rounding: float
    check: float
    products: int

    @property
    def lowest(self) -> Estimate:
        """The smallest Ritz value; an eigenvalue lies within the bound, and λ_min is not above it."""
        return Estimate(value=float(self.nodes[0]), error=float(self.residuals[0]), bound=True)

    @property
    def highest(self) -> Estimate:
        """The largest Ritz value; an eigenvalue lies within the bound, and λ_max is not below it."""
        return Estimate(value=float(self.nodes[-1]), error=float(self.residuals[-1]), bound=True)

    def moment(self, k: int) -> Estimate:
        """The mean of λᵏ over all eigenvalues, tr Aᵏ / n.

        Args:
            k: 0 gives 1, 1 the mean eigenvalue, 2 ‖A‖²_F / n.

        Returns:
            The mean over probes and its standard error.
        """
        return _over_probes(self.weights @ self.nodes**k)

    @property
    def negative_mass(self) -> Estimate:
        """The share of eigenvalues below zero, those within the resolution of zero left out.

        A cluster of zeros that has not converged stands a little beside zero: as many nodes as there are probes, on
        either side, with weights far above the others'. Those within their residual of zero are left out too. What they
        and the two nodes next to zero may hold on the other side, of each weight no more than r²/(r² + θ²) (Cantelli
        1928), adds half of itself to the spread over probes: anything in an interval deviates by half of it at most.
        """
        weight, places = self.weights.mean(0), np.arange(len(self.nodes)) - int((self.nodes < 0).sum())
        heavy = weight > SINGLE * np.median(weight)
        zeros = heavy & (places >= -len(self.weights)) & (places < len(self.weights))
        resolution = np.where(zeros, np.maximum(self.residuals, self.rounding), self.rounding)
        mass = _over_probes(self.weights[:, self.nodes < -resolution].sum(1))
        unsure = (zeros | (places == -1) | (places == 0)) & (self.residuals > self.rounding)
        squares = self.residuals[unsure] ** 2
        hidden = weight[unsure] @ (squares / (squares + self.nodes[unsure] ** 2))
        return Estimate(value=mass.value, error=math.hypot(mass.error or 0.0, float(hidden) / 2))

    @property
    def effective_rank(self) -> Estimate:
        """(Σ|λ|)² / Σλ²: r where r eigenvalues are equal in size and the others zero."""
        first, second = np.abs(self.nodes), self.nodes**2

        def rank(weights: np.ndarray) -> float:
            m2 = float(weights @ second)
            return self.n * float(weights @ first) ** 2 / m2 if m2 > 0 else 0.0

        count = len(self.weights)
        value = rank(self.weights.mean(0))
        if count == 1:
            return Estimate(value=value)
        left = np.array([rank(np.delete(self.weights, j, axis=0).mean(0)) for j in range(count)])  # jackknife
        return Estimate(value=value, error=float(np.sqrt((count - 1) * left.var())))

    @property
    def condition(self) -> Estimate:
        """max|λ| / min|λ|, estimated from the nodes: for a definite operator, at least this; at most 1/rounding."""
        size = np.abs(self.nodes)
        least = max(float(size.min()), self.rounding)
        return Estimate(value=float(size.max()) / least if least > 0 else math.nan)

    def smooth(
        self, grid: Float[np.ndarray, " points"], width: float
    ) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
        """The density convolved with a normal distribution, and its standard error over probes.

        Args:
            grid: Where, in units of eigenvalues.
            width: Standard deviation of the normal distribution, in the same units.

        Returns:
            Density and error at the grid, in shares per unit of eigenvalue.
        """
        if not width > 0:
            raise BadInput(f"Density.smooth(width=...) must be more than 0. Got {width}.")
        kernel = np.exp(-((self.nodes[:, None] - grid) ** 2) / (2 * width**2)) / (math.sqrt(2 * math.pi) * width)
        curves = self.weights @ kernel
        count = len(curves)
        error = curves.std(0, ddof=1) / math.sqrt(count) if count > 1 else np.full(len(grid), np.nan)
        return curves.mean(0), error


def density(operator: Operator, *, probes: int = 4, steps: int = 60, keep: int = 0, seed: int = 0) -> Density:
    """Stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017) in the block Krylov space of all probes together.

    tr f(A) / n ≈ mean over random signs w of wᵀf(A)w / n, with f(A) taken within span{Aʲw}: polynomials of degree up to
    2 steps − 1 are exact for each probe, and every probe is resolved by the nodes of all. The same run gives both edges
    with bounds. Every block is cleared of all others twice.

    It takes probes × steps products and holds as many vectors. Where that space is invariant it ends early and each
    probe's quadrature is exact; where it is the whole one, so is the density.

    Args:
        operator: A, symmetric.
        probes: Random vectors; their spread is the uncertainty, so at least 2 for there to be one.
        steps: Products with each.
        keep: How many Ritz vectors of each end to keep, to start `eigenpairs` from or to take out of a trace.
        seed: Of the probes.

    Returns:
        The density.

    Raises:
        BadInput: Less than one probe or step, or a product is not finite.

    Example:
        >>> from dynaxx.numerics.operator import Dense
        >>> found = density(Dense(torch.diag(torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64))))
        >>> found.nodes.round(6).tolist(), found.weights[0].round(6).tolist()
        ([1.0, 2.0, 4.0, 8.0], [0.25, 0.25, 0.25, 0.25])
    """
    if probes < 1 or steps < 1:
        raise BadInput(f"density(probes=..., steps=...) must be at least 1. Got {probes} and {steps}.")
    before, space = operator.products, operator.space
    start = space.random(probes, seed=seed, kind="rademacher")
    with operator.opened():
        krylov = _Krylov(operator, start, steps)
    nodes, mixing = np.linalg.eigh(krylov.inner)
    weights = (krylov.start.T @ mixing[: len(krylov.start)]) ** 2
    check = _check(weights, nodes, krylov)
    residuals = np.linalg.norm(krylov.outward @ mixing[-krylov.outward.shape[1] :], axis=0)
    rounding = 100 * torch.finfo(space.dtype).eps * float(np.abs(nodes).max())
    weights = _settled(weights / weights.sum(1, keepdims=True), nodes, residuals, rounding, space.numel)
    ends = np.unique(np.r_[: min(keep, len(nodes)), max(0, len(nodes) - keep) : len(nodes)])
    return Density(
        nodes=nodes,
        weights=weights,
        residuals=residuals,
        vectors=_mixed(krylov.rows, mixing[:, ends].T),
        n=space.numel,
        rounding=rounding,
        check=check,
        products=operator.products - before,
    )


class _Krylov:
    """A Qᵀ = Qᵀ T + (what the last block has outside): orthonormal rows Q that span the probes and their images.

    Attributes:
        rows: Q, shape (m, n).
        inner: T, shape (m, m), symmetric.
        start: Coordinates of the probes in the first block.
        outward: Coordinates of the last block's images outside Q.
        forms: wᵀAw and ‖Aw‖² of each probe, from the first products themselves, shape (2, probes).
    """

    def __init__(self, operator: Operator, start: Tensor, steps: int) -> None:
        space = operator.space
        block, coordinates = orthonormal(space, start)
        self.start = coordinates.numpy()
        most = min(len(block) * steps, space.numel)
        held = torch.empty(most, space.n, dtype=space.dtype, device=space.device)
        inner = np.zeros((most, most))
        scale, size = 0.0, 0
        while True:
            old, size = size, size + len(block)
            held[old:size] = block
            image = operator(block)
            scale = max(scale, _longest(operator, image))
            if old == 0:
                self.forms = self._moments(operator, start, coordinates.to(image), image)
            floor = 100 * torch.finfo(image.dtype).eps * scale
            block, parts = orthonormal(space, image, held[:size], floor=floor)
            inner[:size, old:size] = parts[:size].numpy()
            self.outward = parts[size:].numpy()
            block = block[: most - size]
            if len(block) == 0:
                break
            inner[size : size + len(block), old:size] = self.outward[: len(block)]
        inner = inner[:size, :size]
        self.rows, self.inner = held[:size], (inner + inner.T) / 2

    @staticmethod
    def _moments(operator: Operator, start: Tensor, coordinates: Tensor, image: Tensor) -> np.ndarray:
        images, space = coordinates.T @ image, operator.space
        forms = space.gram(start, images).diagonal().double(), space.norms(images).double().square()
        return torch.stack(forms).cpu().numpy()


def _settled(weights: np.ndarray, nodes: np.ndarray, residuals: np.ndarray, rounding: float, n: int) -> np.ndarray:
    """Weights with 1/n for every node that is one eigenvalue; the others share the rest in proportion.

    A node is several eigenvalues in one where it cannot be told from zero, where it comes as often as there are probes
    (they find no more copies of a multiple one), or where it holds more than `SINGLE` times the share of one.
    """
    if len(nodes) == n:
        return np.full_like(weights, 1 / n)
    copies = (np.abs(nodes[:, None] - nodes) <= 10 * rounding).sum(1)
    alone = (residuals <= rounding) & (np.abs(nodes) > 10 * rounding) & (copies < len(weights))
    alone &= n * weights.mean(0) < SINGLE
    rest = np.where(alone, 0.0, weights)
    left = rest.sum(1, keepdims=True)
    if not alone.any() or not (left > 0).all():
        return weights
    return np.where(alone, 1 / n, rest * (1 - alone.sum() / n) / left)


def _mixed(rows: Tensor, mixing: np.ndarray) -> Tensor:
    """Combinations of rows, written over them: a Krylov space may be most of the memory there is."""
    weights = torch.tensor(mixing).to(rows)
    for part in rows.split(1 << 16, dim=1):
        part[: len(weights)] = weights @ part
    return rows[: len(weights)]


def _longest(operator: Operator, rows: Tensor) -> float:
    longest = float(operator.space.norms(rows).max())
    if not math.isfinite(longest):
        raise BadInput(
            f"density(operator={type(operator).__name__}): a product is not finite. "
            "Look for NaN or infinity in the weights or the batches."
        )
    return longest


def _check(weights: np.ndarray, nodes: np.ndarray, krylov: _Krylov) -> float:
    """Moments of the quadrature against those of the first products, relative to ‖A‖_F of the probes."""
    first, second = krylov.forms
    scale = np.sqrt(second * weights.sum(1)) + np.finfo(np.float64).tiny
    differences = [np.abs(weights @ nodes - first) / scale, np.abs(weights @ nodes**2 - second) / (second + 1e-300)]
    return float(np.max(differences))


def _over_probes(samples: np.ndarray) -> Estimate:
    count = len(samples)
    error = float(samples.std(ddof=1)) / math.sqrt(count) if count > 1 else None
    return Estimate(value=float(samples.mean()), error=error)
