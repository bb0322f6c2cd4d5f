"""The empirical neural tangent kernel of a network on some examples, and how kernels compare."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from dynaxx.core.batches import split
from dynaxx.core.objective import Objective
from dynaxx.core.task import derive_seed
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.numerics.space import Space

Outputs = Callable[[nn.Module, Any], Tensor]
"""`outputs(model, batch)` → the network's outputs, one row per example."""
ENTRIES = 2**27
"""Entries of the Jacobian kept at a time by default: half a gigabyte in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TangentKernel:
    """K = J Jᵀ, J the Jacobian of the outputs by the parameters.

    Args:
        matrix: Shape (examples · outputs, examples · outputs), the outputs of an example side by side.
        examples: Number of examples.
        outputs: Outputs per example; 1 for the pseudo-kernel.
        backwards: Backward passes of one example each that it took.
    """

    matrix: Float[np.ndarray, "rows rows"]
    examples: int
    outputs: int
    backwards: int

    def by_example(self) -> Float[np.ndarray, "examples examples"]:
        """Σ_c K[(i, c), (j, c)]: one entry for each pair of examples."""
        n, c = self.examples, self.outputs
        return np.einsum("icjc->ij", self.matrix.reshape(n, c, n, c))


def tangent_kernel(
    objective: Objective,
    *,
    examples: int = 64,
    pseudo: bool = False,
    outputs: Outputs | None = None,
    entries: int = ENTRIES,
) -> TangentKernel:
    """K = J Jᵀ on the first examples of an objective's batches, by one backward for each output of each example.

    The pseudo-kernel takes the sum of the outputs in place of each (Mohamadi, Bae and Sutherland 2023): one backward
    per example, whatever the number of classes.

    Args:
        objective: The model, the point, and the batches the examples are taken from, one by one.
        examples: Most examples.
        pseudo: Of the sum of the outputs.
        outputs: Gives the outputs; None: what the model returns when the loss calls it.
        entries: Entries of J kept at a time. Where J is larger, its parts are taken again for each pair of them.

    Returns:
        The kernel, symmetric, in units of output² per weight².

    Raises:
        BadInput: There is nothing to capture, or a number of outputs that varies between examples.
        NotApplicable: The model looks at the whole batch (batch statistics) or is sharded.
    """
    if examples < 1 or entries < 1:
        raise BadInput(f"tangent_kernel(examples, entries) must be positive. Got {examples} and {entries}.")
    if objective.sharded:
        raise NotApplicable("tangent_kernel: parameters are sharded. Gather the model on one rank.")
    if objective.mode != "evaluation" and any(isinstance(m, _BatchNorm) for m in objective.model.modules()):
        raise NotApplicable(
            "tangent_kernel: examples are taken one by one, which batch statistics forbid. Take mode='evaluation'."
        )
    singles = _singles(objective, examples)
    rows = _Rows(objective, singles, pseudo, outputs)
    first = rows.of(0)
    c = first.shape[0]
    size = max(1, min(len(singles), entries // first.numel()))
    starts = range(0, len(singles), size)
    n = len(singles)
    matrix = np.empty((n * c, n * c))
    for i in starts:
        one = rows.block(i, size, c, first)
        here = slice(i * c, i * c + len(one))
        matrix[here, here] = (one @ one.T).cpu().numpy()
        for j in range(0, i, size):
            other = rows.block(j, size, c, first)
            there = slice(j * c, j * c + len(other))
            matrix[here, there] = (one @ other.T).cpu().numpy()
            matrix[there, here] = matrix[here, there].T
    return TangentKernel(matrix=(matrix + matrix.T) / 2, examples=n, outputs=c, backwards=rows.backwards)


def _singles(objective: Objective, examples: int) -> list[Any]:
    found: list[Any] = []
    for batch in objective.batches:
        found += split(batch, 1)
        if len(found) >= examples:
            break
    return found[:examples]


class _Rows:
    """Rows of the Jacobian, for one example at a time."""

    def __init__(self, objective: Objective, singles: list[Any], pseudo: bool, outputs: Outputs | None) -> None:
        self._objective = objective
        self._singles = singles
        self._pseudo = pseudo
        self._outputs = outputs or (lambda _, batch: captured(objective, batch))
        self._space = Space(objective.parameters, objective.names)
        self.backwards = 0

    def block(self, start: int, size: int, c: int, first: Tensor) -> Tensor:
        """The rows of some examples, shape (examples · c, n)."""
        parts: list[Tensor] = []
        for i in range(start, min(start + size, len(self._singles))):
            parts.append(first if i == 0 else self.of(i))
            if parts[-1].shape[0] != c:
                raise BadInput(
                    f"tangent_kernel: example {i} has {parts[-1].shape[0]} outputs, the first has {c}. "
                    "Take pseudo=True, or examples of one size."
                )
        return torch.cat(parts)

    def of(self, i: int) -> Tensor:
        """The rows of an example, shape (c, n)."""
        with self._objective.prepared(), torch.enable_grad():
            torch.manual_seed(derive_seed("tangent kernel", i))
            out = self._outputs(self._objective.model, self._singles[i])
            if not out.requires_grad:
                raise BadInput("tangent_kernel: the outputs have no gradient. Leave out .detach() and torch.no_grad().")
            flat = out.sum().reshape(1) if self._pseudo else out.reshape(-1)
            return torch.stack(list(self._gradients(flat)))

    def _gradients(self, flat: Tensor) -> Iterator[Tensor]:
        for k in range(len(flat)):
            self.backwards += 1
            last = k + 1 == len(flat)
            found = torch.autograd.grad(
                flat[k], self._objective.parameters, retain_graph=not last, materialize_grads=True
            )
            yield self._space.flatten(found)


def captured(objective: Objective, batch: Any) -> Tensor:
    """What the model returns when the loss calls it.

    Args:
        objective: The loss and the model; only within `prepared`.
        batch: One batch.

    Returns:
        The outputs, with their graph.

    Raises:
        BadInput: The loss does not call the model exactly once, or the model does not return a tensor.
    """
    found: list[Any] = []

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        del module, inputs
        found.append(output)

    handle = objective.model.register_forward_hook(look)
    try:
        objective.loss_fn(objective.model, batch)
    finally:
        handle.remove()
    if len(found) != 1 or not isinstance(found[0], Tensor):
        what = f"called it {len(found)} times" if len(found) != 1 else f"got a {type(found[0]).__name__} from it"
        raise BadInput(
            f"tangent_kernel needs a loss that calls the model once and a tensor that it returns. The loss {what}. "
            "Give outputs=lambda model, batch: ..."
        )
    return found[0]


def drift(kernel: np.ndarray, reference: np.ndarray) -> float:
    """‖K − K₀‖/‖K₀‖ in Frobenius norm.

    Args:
        kernel: K.
        reference: K₀, of the same shape.

    Returns:
        The ratio.
    """
    return float(np.linalg.norm(kernel - reference) / np.linalg.norm(reference))


def alignment(kernel: np.ndarray, other: np.ndarray, *, centred: bool = False) -> float:
    """⟨K, K'⟩/(‖K‖ ‖K'‖) (Cristianini et al. 2001), in [0, 1] for positive matrices; centred: Cortes et al. 2012.

    Args:
        kernel: K, shape (m, m).
        other: K', shape (m, m).
        centred: Take the mean out of rows and columns of both first.

    Returns:
        The cosine; NaN where a matrix is zero.

    Example:
        >>> round(alignment(np.eye(2), np.ones((2, 2))), 6)
        0.707107
    """
    if centred:
        kernel, other = _centred(kernel), _centred(other)
    size = float(np.linalg.norm(kernel) * np.linalg.norm(other))
    return float((kernel * other).sum()) / size if size > 0 else float("nan")


def effective_rank(values: np.ndarray) -> float:
    """exp(−Σ p ln p), p the share of each eigenvalue in their sum (Roy and Vetterli 2007).

    Args:
        values: Eigenvalues; negative ones, which are rounding, count as zero.

    Returns:
        Between 1 and their number.

    Example:
        >>> round(effective_rank(np.array([1.0, 1.0, 0.0])), 6)
        2.0
    """
    p = np.clip(values, 0.0, None)
    p = p[p > 0] / p.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def _centred(matrix: np.ndarray) -> np.ndarray:
    return matrix - matrix.mean(0) - matrix.mean(1)[:, None] + matrix.mean()
