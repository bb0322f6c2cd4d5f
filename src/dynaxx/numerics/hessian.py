"""The Hessian of an objective as an operator; the way to multiply by it is chosen and checked once per model."""

import math
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable
from weakref import WeakKeyDictionary, ref

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dynaxx.core.objective import Objective
from dynaxx.core.parameters import local
from dynaxx.errors import BadInput, DynaxxWarning
from dynaxx.numerics.explain import explaining, marked, missing
from dynaxx.numerics.operator import Operator
from dynaxx.numerics.products.double_backward import DoubleBackward
from dynaxx.numerics.products.finite_difference import STEP, FiniteDifference
from dynaxx.numerics.products.linearized import Linearized
from dynaxx.numerics.space import Space

HessianMode = Literal["auto", "double_backward", "linearize", "finite_difference", "one_sided"]
CHECKED_EXAMPLES = 32
"""Examples of the check: it asks whether the derivatives are right, not how large they are."""
NUDGE = 1e-2
"""How far off the point the check is made, in root mean squares of the weights."""
AGREEMENT = 1e-2
"""Largest relative difference in float64: differences of gradients across kinks (ReLU) stay below 1e-3, the known wrong
second derivatives (forward over a layer normalisation) begin at 3 %."""
SHRINKS = (1.0, 1e-2, 1e-3)
"""Steps of the differences: one kink crossed in the longest is an error of any size, in the shortest it is rare. Wrong
derivatives disagree at every step."""
DIFFERENCES = "Differences of gradients are used; in float32 they add some 0.1 % to every error stated."
"""3e-3 of the weights' norm is the step: of its truncation and of rounding some 1e-4 to 1e-3 is left."""
ROUNDINGS = 10.0
"""A difference of so many times the rounding estimated from one vector is rounding still."""
NARROW_AGREEMENT = 5e-2
"""The same where the loss cannot be taken in float64 and rounding enters the differences."""


@runtime_checkable
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
            "one_sided" (one gradient, error of order 1e-3), or "auto". Under FSDP2 all but "linearize"; where the loss
            itself computes on DTensors, double backward alone, unchecked.
        check: Compare the way with another one, once per model, loss and mode.
        batched: Whether rows are multiplied in one vectorised backward (double backward alone); None: whichever is
            quicker the first time, which makes the last bits depend on the clock.
        keep_graph: Whether the graph of a single (micro)batch waits for the next product (double backward alone), as
            long as it fits in memory. A gradient of time less for each further product, and, on a transformer, 3.6
            instead of 2.8 of memory.

    Raises:
        BadInput: The loss has no second derivative and the mode asks for one.

    Example:
        >>> quadratic = nn.Linear(2, 1, bias=False)
        >>> loss = lambda model, batch: (model.weight.square() * batch).sum() / 2
        >>> Hessian(Objective(quadratic, loss, [torch.tensor([[3.0, 1.0]])])).dense()
        tensor([[3., 0.],
                [0., 1.]])
    """

    def __init__(
        self,
        objective: Objective,
        *,
        mode: HessianMode = "auto",
        check: bool = True,
        batched: bool | None = None,
        keep_graph: bool = True,
    ) -> None:
        super().__init__(Space(objective.parameters, objective.names))
        self.objective = objective
        self._local = objective.local()
        self.check: Check | None = None
        self._product = self._choose(mode, keep_graph)
        if isinstance(self._product, DoubleBackward):
            self._product.batched = bool(batched) and not objective.sharded
        self._versions = self._version()
        self._batched = False if objective.sharded else batched  # collectives have no vectorised backward
        if check and not self._on_dtensors():
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
        with explaining(self._local):
            return product(rows)

    @contextmanager
    def opened(self) -> Generator[None]:
        """The objective is prepared once for all products within, where they are taken by double backward."""
        with self._product.opened() if isinstance(self._product, DoubleBackward) else nullcontext():
            yield

    def _on_dtensors(self) -> bool:
        """Whether parameters are sharded and the loss itself computes on DTensors."""
        return self._local.sharded

    def _choose(self, mode: HessianMode, keep_graph: bool) -> Product:
        objective, space = self._local, self.space
        if self.objective.sharded and mode == "linearize":
            raise BadInput(
                "Hessian(mode='linearize') cannot trace collectives. Take mode='auto' for sharded parameters."
            )
        if self._on_dtensors():
            if mode not in ("auto", "double_backward"):
                raise BadInput(f"Hessian(mode={mode!r}) does not know losses on DTensors. Take mode='double_backward'.")
            from dynaxx.numerics.products.sharded import Sharded  # imports torch.distributed

            return Sharded(objective, space)
        ways: dict[str, Callable[[], Product]] = {
            "double_backward": lambda: DoubleBackward(objective, space, keep=keep_graph),
            "linearize": lambda: Linearized(objective, space),
            "finite_difference": lambda: FiniteDifference(objective, space),
            "one_sided": lambda: FiniteDifference(objective, space, sides=1),
        }
        if mode != "auto" and mode not in ways:
            raise BadInput(f"Hessian(mode=...) must be auto, {', '.join(ways)}. Got {mode!r}.")
        return ways["double_backward" if mode == "auto" else mode]()

    def _verified(self, mode: HessianMode) -> Check:
        key = (_identity(self.objective.loss_fn), mode, self.objective.mode, self.objective.names)
        known = _CHECKS.setdefault(self.objective.model, {})
        if key not in known:
            known[key] = self._compare(mode)
        check = known[key]
        if check.mode != self._product.name:
            self._product = FiniteDifference(self._local, self.space)
        return check

    def _compare(self, mode: HessianMode) -> Check:
        try:
            check = compare(self.objective, type(self._product))
        except BadInput as error:
            if mode != "auto":
                raise
            note = f"{error} {DIFFERENCES}"
            return Check(mode="finite_difference", against="none", error=float("nan"), passed=True, note=note)
        if not math.isfinite(check.error):
            self.objective.explain_not_finite()
        if check.passed:
            return check
        note = (
            f"Products by {check.mode} differ from differences of gradients by {check.error:.1%}: an operation of the "
            "model has a wrong second derivative."
        )
        if mode == "auto":
            note += f" {DIFFERENCES}"
        warnings.warn(note, DynaxxWarning, stacklevel=4)
        used = "finite_difference" if mode == "auto" else check.mode
        return Check(mode=used, against=check.against, error=check.error, passed=False, note=note)

    def _tuned(self, product: DoubleBackward, rows: Tensor) -> Tensor:
        """Rows one by one; from the next call on all in one vectorised backward, if that is quicker and agrees."""
        product.batched = False
        with explaining(self._local):
            first = product(rows[:1])  # builds the graph, which neither way is to be charged with
            start = self._clock()
            single = torch.cat([first, product(rows[1:])])
            middle = self._clock()
        product.batched = True
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                together = product(rows)
        except (RuntimeError, UserWarning):  # an operation without a batching rule: refused, or run row by row and said
            self._batched = False
        else:
            quicker = (self._clock() - middle) / len(rows) < (middle - start) / (len(rows) - 1)
            self._batched = quicker and self._alike(together, single)
        product.batched = self._batched
        return single

    def _clock(self) -> float:
        """Seconds, once the device has done its work."""
        if self.space.device.type != "cpu":
            torch.accelerator.synchronize(self.space.device)
        return time.perf_counter()

    def _alike(self, a: Tensor, b: Tensor) -> bool:
        """Whether rows differ by no more than the order of summation may make of them, √rounding of the longest."""
        allowed = torch.finfo(a.dtype).eps ** 0.5 * self.space.norms(b).max()
        return bool((self.space.norms(a - b) <= allowed).all())

    def _version(self) -> int:
        """What changes with the weights: in place, by their version; by `.data = …`, by where they lie."""
        held = self.objective.parameters
        return hash(tuple((p._version, local(p.detach()).data_ptr()) for p in held))  # pyright: ignore[reportPrivateUsage]


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
    space, narrow = Space(objective.parameters, objective.names), objective.local()
    try:
        wide = narrow.in_float64(CHECKED_EXAMPLES)
        _nudge(wide, space.in_float64())
        return _compared(wide, space.in_float64(), way, AGREEMENT)
    except BadInput:
        raise
    except (RuntimeError, TypeError):  # the loss makes tensors of a fixed type
        return _compared(narrow, space, way, NARROW_AGREEMENT)


def _nudge(objective: Objective, space: Space) -> None:
    """Move off the point a little: fresh biases of 0 put units on their kinks, where differences do not settle.

    Whether an operation's derivatives are right does not depend on where they are looked at.
    """
    size = float(space.norms(space.flatten(objective.parameters)[None])[0]) / max(1, space.numel) ** 0.5
    move = space.random(1, seed=1)[0] * (NUDGE * (size or 1.0))
    with torch.no_grad():
        for parameter, part in zip(objective.parameters, space.split(move), strict=True):
            parameter += part.to(parameter.dtype)


def _compared(objective: Objective, space: Space, way: Callable[[Objective, Space], Product], allowed: float) -> Check:
    product = way(objective, space)
    others: list[Product] = [DoubleBackward(objective, space)]
    if not isinstance(product, FiniteDifference):
        others = [FiniteDifference(objective, space, shrink=shrink) for shrink in SHRINKS]
    row = space.random(1, seed=0)
    row /= space.norms(row)[:, None]
    error = math.inf
    with explaining(objective):
        a = product(row)
        apart: list[Tensor] = []
        for other in others:
            b = other(row)
            apart.append(a - b)
            size, difference = (float(norm) for norm in space.norms(torch.cat([b, a - b])))
            found = difference / size if size > 0 else difference
            error = found if math.isnan(found) else min(error, found)
            if not error > allowed:
                break
    passed = error <= allowed or (math.isfinite(error) and _is_rounding(apart[0], objective, space, row, product))
    if not passed and (operation := marked(objective)):
        raise missing(operation, "it is marked once_differentiable")
    return Check(mode=product.name, against=others[0].name, error=error, passed=passed)


def _is_rounding(difference: Tensor, objective: Objective, space: Space, row: Tensor, product: Product) -> bool:
    """Whether two ways differ by no more than rounding does to differences of gradients, as it will where H = 0.

    Rounding grows as the step shrinks, and a derivative does not: what a difference changes by when its step is cut to
    a thousandth is a thousand times the rounding of the whole step. Nor is it less than that of the gradient itself.
    """
    sides, short = product.sides if isinstance(product, FiniteDifference) else 2, SHRINKS[-1]
    whole, cut = (FiniteDifference(objective, space, sides=sides, shrink=s)(row) for s in (1.0, short))
    held = [space.flatten(parts) for parts in (objective.gradient(), objective.parameters)]
    rows = torch.cat([short * (cut - whole), difference, torch.stack(held)])
    seen, size, slope, length = (float(norm) for norm in space.norms(rows))
    resolved = torch.finfo(space.dtype).eps * slope / (STEP[space.dtype][sides - 1] * (length or 1.0))
    return size <= ROUNDINGS * max(seen, resolved)


def _identity(function: Any) -> Any:
    """What tells a loss function from another one, and does not keep it alive."""
    function = getattr(function, "__func__", function)
    try:
        found = ref(function)
        hash(found)
    except TypeError:
        return id(function)
    return found
