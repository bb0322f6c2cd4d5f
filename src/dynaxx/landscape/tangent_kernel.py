"""The probe `tangent_kernel`: the empirical tangent kernel, what it is aligned with, and how far it has moved."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynaxx.core.chart import Chart, Estimate
from dynaxx.core.contracts import Probe
from dynaxx.core.displaced import Displaced
from dynaxx.core.objective import Objective
from dynaxx.core.panels import Line, Lines, Panel, Table
from dynaxx.core.parameters import bare_name
from dynaxx.core.records import Cost
from dynaxx.errors import BadInput
from dynaxx.landscape._common import Meter, title
from dynaxx.numerics.tangent_kernel import (
    Outputs,
    TangentKernel,
    alignment,
    drift,
    effective_rank,
)
from dynaxx.numerics.tangent_kernel import (
    tangent_kernel as kernel_of,
)

LAZY, RICH = 0.1, 0.5
"""Drift up to which training is called lazy, and turning from which on rich. The linearised network has drift 0
(Chizat, Oyallon and Bach 2019), and by Weyl's inequality no eigenvalue of K has moved by more than drift · ‖K₀‖. A
kernel that grew without turning has learned no features (Fort et al. 2020). Both numbers are conventions: a tenth and a
half."""

Reference = Chart | nn.Module | Mapping[str, Tensor]


class TangentKernelProbe(Probe):
    """The empirical tangent kernel of some examples, what it is aligned with, and how far it has moved.

    Args:
        examples: Most examples, the first ones of the batches.
        pseudo: Of the sum of the outputs: one backward per example. False: of each output.
        outputs: `outputs(model, batch)` → outputs with one row per example; None: what the model returns to the loss.
        targets: `targets(batch)` → class indices of shape (examples,) or target vectors of shape (examples, classes).
        reference: What drift is measured from: an earlier chart of this probe on the same examples, a model, or weights
            by name.

    Raises:
        BadInput: An option is out of its range.
    """

    def __init__(
        self,
        *,
        examples: int = 64,
        pseudo: bool = True,
        outputs: Outputs | None = None,
        targets: Callable[[Any], Tensor] | None = None,
        reference: Reference | None = None,
    ) -> None:
        if examples < 2:
            raise BadInput(f"tangent_kernel(examples=...) must be at least 2. Got {examples}.")
        self._examples, self._pseudo, self._outputs = examples, pseudo, outputs
        self._targets, self._reference = targets, reference

    def price(self, objective: Objective) -> Cost:
        """For one output per example; with pseudo=False so many backwards for each of them."""
        del objective
        kernels = 2.0 if isinstance(self._reference, nn.Module | Mapping) else 1.0
        return Cost(forwards=kernels, backwards=kernels)

    def run(self, objective: Objective) -> Chart:
        """Measure."""
        meter = Meter(objective)
        found = self._kernel(objective)
        notes = [
            f"On {found.examples} examples, "
            + ("of the sum of the outputs." if self._pseudo else f"{found.outputs} outputs each.")
        ]
        values, eigenvalues = _spectrum(found.matrix)
        self._aligned(objective, found, values, notes)
        before = self._before(objective, found)
        if before is None:
            notes.append("Drift: not applicable without reference=.")
        else:
            moved = _moved(found.matrix, before)
            values |= moved
            notes.append(_reading(moved))
        share = found.examples / objective.weight
        kernels = 2 if isinstance(self._reference, nn.Module | Mapping) else 1
        return Chart(
            probe="tangent_kernel",
            title=title(objective),
            values=values,
            arrays={"kernel": found.matrix, "eigenvalues": eigenvalues},
            panels=_panels(values, eigenvalues, None if before is None else np.linalg.eigvalsh(before)[::-1]),
            cost=meter.cost(forwards=kernels * share, backwards=kernels * share * found.outputs),
            notes=tuple(notes),
        )

    def _kernel(self, objective: Objective) -> TangentKernel:
        return kernel_of(objective, examples=self._examples, pseudo=self._pseudo, outputs=self._outputs)

    def _aligned(
        self, objective: Objective, found: TangentKernel, values: dict[str, Estimate], notes: list[str]
    ) -> None:
        if self._targets is None:
            notes.append("Alignment with the targets: not applicable without targets=.")
            return
        targets = _one_hot(torch.cat([self._targets(batch).detach() for batch in objective.batches]))[: found.examples]
        if len(targets) != found.examples:
            raise BadInput(
                f"tangent_kernel(targets=...) must give a target for each of {found.examples} examples. "
                f"Got {len(targets)}."
            )
        kernel, wanted = found.by_example(), targets @ targets.T
        values["alignment"] = Estimate(value=alignment(kernel, wanted), about="cosine of K and YYᵀ")
        centred = alignment(kernel, wanted, centred=True)
        values["centred_alignment"] = Estimate(value=centred, about="the same, both centred")

    def _before(self, objective: Objective, found: TangentKernel) -> np.ndarray | None:
        """The kernel at the reference."""
        match self._reference:
            case None:
                return None
            case Chart():
                before = self._reference.arrays.get("kernel")
                if before is None or before.shape != found.matrix.shape:
                    shape = None if before is None else before.shape
                    raise BadInput(
                        f"tangent_kernel(reference=chart) needs a kernel of shape {found.matrix.shape}, of this probe "
                        f"on the same examples. Got {shape}."
                    )
                return np.asarray(before)
            case nn.Module():
                weights: Mapping[str, Tensor] = dict(self._reference.named_parameters())
            case _:
                weights = self._reference
        bare = {bare_name(name): tensor for name, tensor in weights.items()}
        missing = [name for name in objective.names if name not in bare]
        if missing:
            raise BadInput(f"tangent_kernel(reference=...) lacks {missing[0]!r}. Give every parameter by name.")
        point = Displaced(objective)
        point.move([bare[name].detach() for name in objective.names])
        return self._kernel(point).matrix


def _one_hot(targets: Tensor) -> np.ndarray:
    if targets.dim() == 1 and not targets.is_floating_point():
        targets = nn.functional.one_hot(targets.long())
    return targets.reshape(len(targets), -1).double().cpu().numpy()


def _spectrum(matrix: np.ndarray) -> tuple[dict[str, Estimate], np.ndarray]:
    eigenvalues = np.linalg.eigvalsh(matrix)[::-1]
    values = {
        "trace": Estimate(value=float(np.trace(matrix)), about="tr K"),
        "largest": Estimate(value=float(eigenvalues[0]), about="λ₁(K)"),
        "effective_rank": Estimate(value=effective_rank(eigenvalues), about=f"exp of the entropy, of {len(matrix)}"),
    }
    return values, eigenvalues.copy()


def _moved(matrix: np.ndarray, before: np.ndarray) -> dict[str, Estimate]:
    cosine = alignment(matrix, before)
    turning = math.sqrt(max(0.0, 1 - cosine**2))
    return {
        "drift": Estimate(value=drift(matrix, before), about="‖K − K₀‖/‖K₀‖"),
        "kernel_distance": Estimate(value=1 - cosine, about="1 − cosine of K and K₀"),
        "turning": Estimate(value=turning, about="least ‖K − cK₀‖/‖K‖: drift that is not growth"),
    }


def _reading(moved: dict[str, Estimate]) -> str:
    drifted, turned = moved["drift"].value, moved["turning"].value
    kind = "lazy" if drifted <= LAZY else "rich" if turned >= RICH else "between lazy and rich"
    return (
        f"Training so far: {kind}; the rule is lazy up to a drift of {LAZY:g}, rich from a turning of {RICH:g} on, by "
        "convention."
    )


def _panels(values: Mapping[str, Estimate], eigenvalues: np.ndarray, before: np.ndarray | None) -> tuple[Panel, ...]:
    x = np.arange(1.0, len(eigenvalues) + 1)
    lines = [Line(label="here", x=x, y=eigenvalues)]
    if before is not None:
        lines.append(Line(label="at the reference", x=x, y=before))
    rows = tuple((name, str(value), value.about) for name, value in values.items())
    return (
        Table(title="Tangent kernel", header=("value", "number", "what it is"), rows=rows),
        Lines(
            title="Spectrum of the tangent kernel", lines=tuple(lines), x_label="eigenvalue", y_label="λ(K)",
            y_scale="log",
        ),
    )  # fmt: skip
