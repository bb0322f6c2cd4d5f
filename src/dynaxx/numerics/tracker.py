"""The largest eigenpairs of an operator that changes slowly, measured again and again from where they were last."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dynaxx.core.records import Cost
from dynaxx.errors import BadInput
from dynaxx.numerics.lanczos import Eigenpairs, eigenpairs
from dynaxx.numerics.operator import Operator

EASY = 4
"""Products per eigenvalue, beyond those of the starts, up to which a measurement was easy."""
STRICT = 0.48
"""Share of the tolerance that is asked for after a hard one: where eigenvalues are close, errors come near the bound,
while elsewhere they are a fiftieth of it."""
FURTHER = 2
"""Further vectors to start from after a hard one: at the edge of stability, for 10 products in all, the median error is
then 6e-4 to 1.0e-3 in seven of eight runs (1.4e-3 in the other); with one it is above 1e-3 in four of six, with none or
three in two of four. The gradient in place of one gains nothing."""


class CurvatureTracker:
    """Follows λ₁ ≥ … ≥ λₖ along a training.

    Each measurement starts from the last vectors and `extra` further ones, so that an eigenvalue is seen when it
    overtakes; where the last one was hard (at the edge of stability the top eigenvectors turn quickly and are close),
    from `FURTHER` more. Memory: about two rows of the space for each of `max_products`.

    Args:
        operator: Follows the weights by itself, as `Hessian` does; it may be replaced between measurements by another
            on the same space, as a preconditioned one has to be.
        k: How many eigenvalues.
        extra: How many vectors besides; 0 saves their products and may miss an overtaking.
        tolerance: On the bound of a value's error, relative. Errors are far smaller: at 0.01 below 1e-3 in the
            median of each of eight runs, for 3.6 products at every 50 steps and 6.4 at every 100; at 0.016 in four of
            six.
        max_products: At most so many a measurement; the first, which starts from nothing, has ten times that.

    Raises:
        BadInput: k or the limits do not fit.
    """

    def __init__(
        self, operator: Operator, *, k: int = 1, extra: int = 1, tolerance: float = 1e-2, max_products: int = 10
    ) -> None:
        if k < 1 or extra < 0 or k > operator.space.numel:
            raise BadInput(f"CurvatureTracker(k=..., extra=...) must be at least 1 and 0. Got {k} and {extra}.")
        if max_products < k + extra + 1:
            raise BadInput(
                f"CurvatureTracker(max_products=...) must exceed k + extra = {k + extra}. Got {max_products}."
            )
        self.operator = operator
        self.k, self.extra = k, extra
        self.tolerance, self.max_products = tolerance, max_products
        self.converged = False
        """Whether all values of the last measurement are within the tolerance."""
        self.measurements = 0
        self.products = 0
        """Vectors multiplied so far."""
        self._warm: Tensor | None = None
        self._hard = False

    @property
    def cost(self) -> Cost:
        """What all measurements took."""
        return Cost(products=float(self.products))

    def measure(self, hints: Float[Tensor, "h n"] | None = None) -> Eigenpairs:
        """The eigenpairs now.

        Args:
            hints: Further rows to start from where the kept vectors may be blind (after a change of the data, say): the
                gradient, the last update. Each costs a product.

        Returns:
            The pairs, `converged` or as far as the products went.

        Raises:
            BadInput: A hint has another length, or a product is not finite.
        """
        space, warm = self.operator.space, self._warm
        if hints is not None and hints.shape[1] != space.n:
            raise BadInput(f"CurvatureTracker.measure(hints) needs rows of {space.n} entries. Got {hints.shape[1]}.")
        tolerance, limit = self.tolerance * (STRICT if self._hard else 1.0), self.max_products
        if warm is None:
            start, limit = None, 10 * limit
        else:
            start = warm if self._hard else warm[: self.k + self.extra]
            start = (start if hints is None else torch.cat([start, hints.to(warm)]))[: limit - 1]
        found = eigenpairs(
            self.operator, self.k, tolerance=tolerance, start=start, spare=self.extra + FURTHER, max_products=limit,
            basis=None if start is None else min(space.numel, limit + self.k + 2), seed=self.measurements,
        )  # fmt: skip
        self._hard = start is not None and (
            not bool(found.converged.all()) or found.products > start.shape[0] + EASY * self.k
        )
        within = found.bounds <= self.tolerance * found.values.abs()
        found = replace(found, converged=found.converged | within)
        self._warm = torch.cat([found.vectors, found.spare])
        self.converged = bool(found.converged.all())
        self.measurements += 1
        self.products += found.products
        return found

    def state_dict(self) -> dict[str, Any]:
        """The warm start and the counters: tensors and numbers."""
        return {
            "warm": self._warm,
            "hard": self._hard,
            "converged": self.converged,
            "measurements": self.measurements,
            "products": self.products,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Args:
            state: What `state_dict` returned.

        Raises:
            BadInput: It is of a space of another dimension.
        """
        space, warm = self.operator.space, state["warm"]
        if warm is not None and warm.shape[1] != space.n:
            raise BadInput(
                f"CurvatureTracker.load_state_dict(state): vectors have {warm.shape[1]} entries, the operator's space "
                f"{space.n}. Start afresh after a change of the model or of the sharding."
            )
        self._warm = None if warm is None else warm.to(space.device, space.dtype)
        self._hard, self.converged = bool(state["hard"]), bool(state["converged"])
        self.measurements, self.products = int(state["measurements"]), int(state["products"])
