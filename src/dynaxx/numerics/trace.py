"""The trace of an operator and its squared Frobenius norm by random products, each with a standard error."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dynaxx.core.chart import Estimate
from dynaxx.core.task import derive_seed
from dynaxx.errors import BadInput
from dynaxx.numerics.lanczos import Eigenpairs
from dynaxx.numerics.operator import Operator
from dynaxx.numerics.orthogonal import orthonormal
from dynaxx.numerics.space import Space

TraceMethod = Literal["auto", "xtrace", "hutch++", "hutchinson", "deflated"]
LEAST = {"auto": 2, "xtrace": 4, "hutch++": 6, "hutchinson": 2, "deflated": 2}
"""Products below which a method has no two samples to take an error from."""
CHUNK = 8
"""Probes multiplied in one call: enough for a vectorised product to pay, few enough to hold."""
SHARED = 2**0.5
"""Factor on the standard error of leave-one-out values, which are not independent: they share all vectors but one. Over
flat, decaying and outlying spectra their plain error was 0.64 to 1.0 times the true one."""


ENOUGH = 30
"""Products from which XTrace is better than Hutchinson on what known eigenvectors leave: by a fifth there and by two
fifths at 90 with ten of them known, by two thirds and more with three; below 20 it is no better with ten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """What the same products tell of an operator A.

    Args:
        trace: tr A = Σᵢ λᵢ.
        squared_norm: ‖A‖²_F = Σᵢ λᵢ².
        method: How: "exact" where the budget covers the whole space.
        products: Vectors that were multiplied.
    """

    trace: Estimate
    squared_norm: Estimate
    method: str
    products: int


def trace(
    operator: Operator, budget: int, *, method: TraceMethod = "auto", known: Eigenpairs | None = None, seed: int = 0
) -> Estimate:
    """The trace of a symmetric operator, unbiased, with its standard error; see `traces`.

    Args:
        operator: A.
        budget: Products that may be taken.
        method: See `traces`.
        known: Eigenpairs of A; see `traces`.
        seed: Of the random vectors.

    Returns:
        The estimate.

    Example:
        >>> from dynaxx.numerics.operator import Dense
        >>> trace(Dense(torch.diag(torch.arange(5.0))), budget=5).value
        10.0
    """
    return traces(operator, budget, method=method, known=known, seed=seed).trace


def traces(
    operator: Operator, budget: int, *, method: TraceMethod = "auto", known: Eigenpairs | None = None, seed: int = 0
) -> Traces:
    """Σᵢ aᵢᵢ and ‖A‖²_F of a symmetric operator, unbiased, with standard errors.

    - "hutchinson": mean of xᵀAx over random signs x, of variance 2(‖A‖²_F − Σ aᵢᵢ²) a probe (Hutchinson 1990).
    - "hutch++": a third of the products finds the range, a third its exact part, the rest probes the complement
      (Meyer, Musco, Musco and Woodruff 2021).
    - "xtrace": every vector serves both to find the range and, left out of it, to probe the complement (Epperly, Tropp
      and Webber 2024); 5 to 20 times less error than Hutchinson's where a few eigenvalues stand out, the same where
      none does. It holds 2 × budget vectors.
    - "deflated": the known eigenvectors' part exactly; on the complement Hutchinson, from `ENOUGH` products XTrace.

    Errors come from the spread of the samples: with few of them, take quantiles of Student's distribution. They are no
    smaller than the rounding of the vectors' type.

    Args:
        operator: A.
        budget: Products that may be taken; where they cover the whole space the result is exact.
        method: One of the above; "auto": "deflated" where eigenpairs are known, else "xtrace".
        known: Eigenpairs of A at this point, for "deflated": orthonormal vectors with their Rayleigh quotients.
        seed: Of the random vectors.

    Returns:
        Both estimates.

    Raises:
        BadInput: The budget is too small, the method has no such name, or "deflated" is given no eigenpairs.
    """
    if method not in LEAST:
        raise BadInput(f"trace(method=...) must be one of {', '.join(LEAST)}. Got {method!r}.")
    if budget < LEAST[method]:
        raise BadInput(f"trace(budget=...) must be at least {LEAST[method]} products for {method}. Got {budget}.")
    if method == "deflated" and known is None:
        raise BadInput("trace(method='deflated') needs eigenpairs. Give known=eigenpairs(operator, ...).")
    before, space = operator.products, operator.space
    with operator.opened():
        if space.n == space.numel <= budget:
            method_used, found = "exact", _exact(operator)
        elif known is not None and method in ("auto", "deflated"):
            method_used, found = "deflated", _deflated(operator, budget, seed, known)
        elif method == "hutch++":
            method_used, found = method, _hutchpp(operator, budget, seed)
        elif method == "hutchinson" or budget < LEAST["xtrace"]:
            method_used, found = "hutchinson", _with_rest(operator, budget, seed)
        else:
            method_used, found = "xtrace", _xtrace(operator, budget, seed)
    rounded = [_rounded(estimate, space.dtype) for estimate in found]
    return Traces(trace=rounded[0], squared_norm=rounded[1], method=method_used, products=operator.products - before)


def probes(space: Space, count: int, seed: int) -> Iterator[Float[Tensor, "k n"]]:
    """Vectors of random signs, a few at a time.

    Args:
        space: Where.
        count: How many in all.
        seed: Chooses them.

    Yields:
        At most `CHUNK` rows at a time.
    """
    for i, start in enumerate(range(0, count, CHUNK)):
        rows = min(CHUNK, count - start)
        yield space.random(rows, seed=derive_seed(seed, "probes", i), kind="rademacher")


def mean(samples: Float[Tensor, " k"], plus: float = 0.0, *, widen: float = 1.0) -> Estimate:
    """The mean of independent samples with its standard error.

    Args:
        samples: Shape (k,).
        plus: What is known exactly and added.
        widen: Factor on the error of samples that are not independent.

    Returns:
        The estimate.
    """
    samples = samples.double().cpu()
    return Estimate(value=plus + float(samples.mean()), error=widen * float(samples.std()) / len(samples) ** 0.5)


def _rounded(estimate: Estimate, dtype: torch.dtype) -> Estimate:
    if estimate.error is None:
        return estimate
    return replace(estimate, error=max(estimate.error, 4 * torch.finfo(dtype).eps * abs(estimate.value)))


def _exact(operator: Operator) -> tuple[Estimate, Estimate]:
    matrix = operator.dense().double()
    return Estimate(value=float(matrix.trace())), Estimate(value=float(matrix.square().sum()))


def _with_rest(
    operator: Operator,
    budget: int,
    seed: int,
    basis: Tensor | None = None,
    inside: Tensor | float = 0.0,
    squares: float = 0.0,
) -> tuple[Estimate, Estimate]:
    """A part known exactly, of trace `inside` and squared norm `squares`, and Hutchinson on what a basis leaves."""
    space = operator.space
    forms: list[Tensor] = []
    lengths: list[Tensor] = []
    for rows in probes(space, budget, seed):
        if basis is not None:
            rows = rows - space.gram(rows, basis) @ basis
        image = operator(rows)
        forms.append(space.gram(rows, image).diagonal())
        lengths.append(space.norms(image).double().square())
    return mean(torch.cat(forms), float(inside)), mean(torch.cat(lengths), squares)


class _Complement(Operator):
    """(1 − P) A (1 − P) with the projector P on the span of orthonormal rows; products are counted by A."""

    def __init__(self, inner: Operator, basis: Tensor) -> None:
        super().__init__(inner.space)
        self._inner, self._basis = inner, basis

    def apply(self, rows: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """Project, multiply, project."""
        return self._outside(self._inner(self._outside(rows)))

    def _outside(self, rows: Tensor) -> Tensor:
        return rows - self.space.gram(rows, self._basis) @ self._basis


def _deflated(operator: Operator, budget: int, seed: int, known: Eigenpairs) -> tuple[Estimate, Estimate]:
    """Ritz pairs' part exactly, whatever their residuals r: ‖A‖² = Σθ² + 2Σr² + ‖(1 − P) A (1 − P)‖²."""
    inside, squares, apart = (float(v.sum()) for v in (known.values, known.values.square(), known.residuals.square()))
    if budget < ENOUGH:
        return _with_rest(operator, budget, seed, known.vectors, inside, squares + apart)
    trace, norm = _xtrace(_Complement(operator, known.vectors), budget, seed)
    return replace(trace, value=trace.value + inside), replace(norm, value=norm.value + squares + 2 * apart)


def _hutchpp(operator: Operator, budget: int, seed: int) -> tuple[Estimate, Estimate]:
    space = operator.space
    sketch = space.random(budget // 3, seed=derive_seed(seed, "sketch"), kind="rademacher")
    basis, _ = orthonormal(space, operator(sketch))
    image = operator(basis)
    inside, squares = space.gram(basis, image).double().trace(), space.norms(image).double().square().sum()
    return _with_rest(operator, budget - len(sketch) - len(basis), seed, basis, inside, float(squares))


def _xtrace(operator: Operator, budget: int, seed: int) -> tuple[Estimate, Estimate]:
    """Each vector ωᵢ in turn is left out of the basis Q of the images and probes what Q₍ᵢ₎ leaves.

    Q₍ᵢ₎ = Q(I − sᵢsᵢᵀ) with sᵢ the normalised i-th column of R⁻ᵀ, so all leave-one-out values follow from small
    matrices. In the basis Q, ωᵢ has coordinates W, Aωᵢ has R, and A has H; AQ has the Gram matrix G.
    """
    space, count = operator.space, budget // 2
    omega = space.random(count, seed=seed, kind="rademacher")
    images = operator(omega)
    basis, r = orthonormal(space, images)
    second = operator(basis)
    small = [space.gram(a, b).double().cpu() for a, b in ((basis, omega), (basis, second), (second, second))]
    w, h, g = small[0], (small[1] + small[1].T) / 2, small[2]
    # With a dropped row the other images span the range already: leaving one out takes nothing away.
    s = torch.linalg.inv(r).T if len(basis) == count else torch.zeros_like(r)
    s = torch.nn.functional.normalize(s, dim=0)
    v = w - s * (s * w).sum(0)
    forms = space.gram(omega, images).double().cpu().diagonal() - 2 * (v * r).sum(0) + (v * (h @ v)).sum(0)
    lengths = r.square().sum(0) - 2 * (v * (h @ r)).sum(0) + (v * (g @ v)).sum(0)
    inside = h.trace() - (s * (h @ s)).sum(0)
    squares = g.trace() - (s * (g @ s)).sum(0)
    return mean(inside + forms, widen=SHARED), mean(squares + lengths, widen=SHARED)
