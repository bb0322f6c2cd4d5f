"""The Hessian of an objective as an operator; the way to multiply by it is chosen and checked once per model."""

import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dynaxx.core.objective import Objective
from dynaxx.errors import BadInput, DynaxxWarning
from dynaxx.numerics.operator import Operator
from dynaxx.numerics.products.double_backward import DoubleBackward
from dynaxx.numerics.products.finite_difference import FiniteDifference
from dynaxx.numerics.products.linearized import Linearized
from dynaxx.numerics.space import Space

HessianMode = Literal["auto", "double_backward", "linearize", "finite_difference", "one_sided"]
CHECKED_EXAMPLES = 32
"""Examples of the check: it asks whether the derivatives are right, not how large they are."""
AGREEMENT = 1e-2
"""Largest relative difference in float64: differences of gradients across kinks (ReLU) stay below 1e-3, the known wrong
second derivatives (forward over a layer normalisation) begin at 3 %."""
NARROW_AGREEMENT = 5e-2
"""The same where the loss cannot be taken in float64 and rounding enters the differences."""


class Product(Protocol):
    """A way to multiply by the Hessian of an objective."""

    name: str
    builds: int

    def reset(self) -> None:
        """Forget what depends on the weights."""

    def __call__(self, rows: Tensor) -> Tensor:
        """Multiply each row."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """How a way to multiply compared with another.

    Args:
        mode: The way that is used.
        against: The way it was compared with.
        error: ‖difference‖ / ‖product‖ on one random vector.
        passed: Whether they agree.
        note: What a reader must know; empty where all is well.
    """

    mode: str
    against: str
    error: float
    passed: bool
    note: str = ""


_CHECKS: "WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], Check]]" = WeakKeyDictionary()


class Hessian(Operator):
    """∇²L of an objective. It follows the weights: a product after they changed is taken where they are.

    Args:
        objective: The loss and the point.
        mode: "double_backward" (exact; the default where it works), "linearize" (exact; for hundreds of products at one
            point), "finite_difference" (two gradients a product, for operations without a second derivative),
            "one_sided" (one gradient, error of order 1e-3), or "auto". Sharded parameters have a way of their own.
        check: Compare the way with another one, once per model, loss and mode.

    Raises:
        BadInput: The loss has no second derivative and the mode asks for one.

    Example:
        >>> quadratic = nn.Linear(2, 1, bias=False)
        >>> loss = lambda model, batch: (model.weight.square() * batch).sum() / 2
        >>> Hessian(Objective(quadratic, loss, [torch.tensor([[3.0, 1.0]])])).dense()
        tensor([[3., 0.],
                [0., 1.]])
    """

    def __init__(self, objective: Objective, *, mode: HessianMode = "auto", check: bool = True) -> None:
        super().__init__(Space(objective.parameters, objective.names))
        self.objective = objective
        self.check: Check | None = None
        self._product = self._choose(mode)
        self._versions = self._version()
        self._batched: bool | None = None
        if check and not objective.sharded:
            self.check = self._verified(mode)

    @property
    def mode(self) -> str:
        """The way products are taken."""
        return self._product.name

    @property
    def builds(self) -> int:
        """Gradients (or traces) taken besides the products themselves."""
        return self._product.builds

    def update(self) -> None:
        """Forget what was kept of the last point. Called for you where weights change through torch's operations."""
        self._product.reset()
        self._versions = self._version()

    def apply(self, rows: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """The products at the current weights."""
        if self._version() != self._versions:
            self.update()
        product = self._product
        if isinstance(product, DoubleBackward) and rows.shape[0] > 1 and self._batched is None:
            return self._tuned(product, rows)
        try:
            return product(rows)
        except (RuntimeError, NotImplementedError) as error:
            raise _explained(error) from error

    def _choose(self, mode: HessianMode) -> Product:
        objective, space = self.objective, self.space
        if objective.sharded:
            from dynaxx.numerics.products.sharded import Sharded  # imports torch.distributed

            return Sharded(objective, space)
        ways: dict[str, Callable[[], Product]] = {
            "double_backward": lambda: DoubleBackward(objective, space),
            "linearize": lambda: Linearized(objective, space),
            "finite_difference": lambda: FiniteDifference(objective, space),
            "one_sided": lambda: FiniteDifference(objective, space, sides=1),
        }
        if mode != "auto" and mode not in ways:
            raise BadInput(f"Hessian(mode=...) must be auto, {', '.join(ways)}. Got {mode!r}.")
        return ways["double_backward" if mode == "auto" else mode]()

    def _verified(self, mode: HessianMode) -> Check:
        loss = getattr(self.objective.loss_fn, "__func__", self.objective.loss_fn)
        key = (id(loss), mode, self.objective.mode, self.objective.names)
        known = _CHECKS.setdefault(self.objective.model, {})
        if key not in known:
            known[key] = self._compare(mode)
        check = known[key]
        if check.mode != self._product.name:
            self._product = FiniteDifference(self.objective, self.space)
        return check

    def _compare(self, mode: HessianMode) -> Check:
        try:
            check = compare(self.objective, type(self._product))
        except BadInput as error:
            if mode != "auto":
                raise
            return Check(mode="finite_difference", against="none", error=float("nan"), passed=True, note=str(error))
        if check.passed:
            return check
        note = (
            f"Products by {check.mode} differ from differences of gradients by {check.error:.1%}: an operation of the "
            "model has a wrong second derivative."
        )
        if mode == "auto":
            note += " Differences of gradients are used."
        warnings.warn(note, DynaxxWarning, stacklevel=4)
        used = "finite_difference" if mode == "auto" else check.mode
        return Check(mode=used, against=check.against, error=check.error, passed=False, note=note)

    def _tuned(self, product: DoubleBackward, rows: Tensor) -> Tensor:
        """Rows one by one, or all in one vectorised backward: whichever is quicker the first time."""
        try:
            one = product(rows[:1])  # builds the graph, which neither is to be charged with
            start = time.perf_counter()
            single = torch.cat([one, product(rows[1:])])
            middle = time.perf_counter()
        except (RuntimeError, NotImplementedError) as error:
            raise _explained(error) from error
        self._batched = False
        if self.space.device.type != "cpu":
            torch.cuda.synchronize(self.space.device) if self.space.device.type == "cuda" else None
            middle = time.perf_counter()
        try:
            product.batched = True
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # an operation without a batching rule runs row by row, and says so
                product(rows)
            took = time.perf_counter() - middle
            self._batched = took / rows.shape[0] < (middle - start) / max(1, rows.shape[0] - 1)
        except (RuntimeError, NotImplementedError, UserWarning):
            pass
        product.batched = bool(self._batched)
        return single

    def _version(self) -> int:
        return sum(p._version for p in self.objective.parameters)  # pyright: ignore[reportPrivateUsage]


def compare(objective: Objective, way: Callable[[Objective, Space], Product]) -> Check:
    """One product with a random vector, taken two ways on a few examples, in float64 where the loss allows.

    Args:
        objective: The loss and the point.
        way: Makes the way to multiply from an objective and its space.

    Returns:
        The comparison with central differences of gradients (of differences with the exact way).

    Raises:
        BadInput: The loss has no second derivative.
    """
    try:
        return _compared(objective.in_float64(CHECKED_EXAMPLES), way, AGREEMENT)
    except BadInput:
        raise
    except (RuntimeError, TypeError):  # the loss makes tensors of a fixed type
        return _compared(objective, way, NARROW_AGREEMENT)


def _compared(objective: Objective, way: Callable[[Objective, Space], Product], allowed: float) -> Check:
    space = Space(objective.parameters, objective.names)
    product = way(objective, space)
    other = DoubleBackward if isinstance(product, FiniteDifference) else FiniteDifference
    row = space.random(1, seed=0)
    row /= space.norms(row)[:, None]
    try:
        a, b = product(row), other(objective, space)(row)
    except (RuntimeError, NotImplementedError) as error:
        if _without_second_derivative(error):
            raise _explained(error) from error
        raise
    size = float(b.norm())
    error = float((a - b).norm()) / size if size > 0 else float(a.norm())
    return Check(mode=product.name, against=other.name, error=error, passed=error <= allowed)


_OPERATION = re.compile(r"derivative for (\S+) is not implemented|function (\S+) returned|(\w+Backward\w*)")


def _without_second_derivative(error: BaseException) -> bool:
    text = str(error)
    return "is not implemented" in text or "once_differentiable" in text or "does not support double" in text


def _explained(error: BaseException) -> BaseException:
    """An error of torch's that says the loss has no second derivative, in our words; any other as it is."""
    if not _without_second_derivative(error):
        return error
    found = _OPERATION.search(str(error))
    operation = next((g for g in found.groups() if g), "") if found else ""
    which = f"the operation {operation}" if operation else "an operation"
    return BadInput(
        f"Hessian: the loss has no second derivative: {which} has none ({str(error).splitlines()[0]}). "
        "Replace it, or take mode='finite_difference', which needs gradients alone."
    )
