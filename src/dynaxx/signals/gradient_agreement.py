"""What successive gradients say: their cosine, cancellation between layers, and how heavy the tails of noise are."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx.core.contracts import Signal
from dynaxx.core.events import Event, Need, StepView
from dynaxx.core.parameters import Layout, flat_real
from dynaxx.core.records import Column, Cost, Measurement
from dynaxx.numerics.gradient_noise import cancellation
from dynaxx.numerics.reductions import layer_sums
from dynaxx.numerics.sketch import Sketch
from dynaxx.signals._tails import PAIRS, nothing, tailed

SKETCH = Sketch()

_COSINE = Column(
    name="gradient_agreement",
    about=f"cosine between the gradients of this and the last measured step, from a sketch of {SKETCH.size} numbers",
)
_CANCELLATION = Column(
    name="gradient_agreement.cancellation",
    about="1 − |Σ c| / Σ |c| of the layers' first-order loss changes c = ⟨gradient, update⟩; 1 is full cancellation",
)
_TAILS = (
    Column(
        name="gradient_agreement.tail_index",
        about=f"stable tail index of gradient noise, from {PAIRS} differences of measured steps: 2 for finite variance",
    ),
    Column(name="gradient_agreement.tail_null", about="the same of Gaussian noise of their covariance"),
    Column(name="gradient_agreement.tail_p", about="share of Gaussian noise whose tail index is as small"),
)


class GradientAgreement(Signal[dict[str, Any]]):
    """cos(g_t, g_s), s the measured step before t, and 1 − |Σ_l c_l| / Σ_l |c_l| with c_l = ⟨g_l, Δθ_l⟩ of layer l.

    Gradients are those that the optimizer used, so clipped where the loop clips. Near 1 they repeat each other, near 0
    they are noise or turn fast, below 0 the step overshoots. The sketch's error is 1/√4096 = 0.016.
    """

    at = Event.STEP_END
    needs = frozenset({Need.UPDATE})
    cost = Cost(sweeps=7.0)  # the sketch; a dot product

    def init(self, model: nn.Module, layout: Layout) -> dict[str, Any]:
        """No gradient yet; it stays in the checkpoints."""
        del model, layout
        return {"last": None, "tails": nothing()}

    def measure(self, state: dict[str, Any], step: StepView) -> tuple[dict[str, Any], Sequence[Measurement]]:
        """One pass over gradients and update."""
        pairs = list(zip(step.parameters, step.gradients, strict=True))
        gradients = [torch.zeros_like(p) if g is None else g.to_dense() if g.is_sparse else g for p, g in pairs]
        now = SKETCH(gradients, step.layout)
        parts = [  # the sign of the update is of no account here
            torch.dot(flat_real(g).float(), flat_real(u).float()) for g, u in zip(gradients, step.undo, strict=True)
        ]
        values = [Measurement(column=_CANCELLATION, value=cancellation(layer_sums(parts, step.layout)))]
        if state["last"] is not None:
            cosine = torch.nn.functional.cosine_similarity(now, state["last"], dim=0)
            values.append(Measurement(column=_COSINE, value=cosine))
        tails, found = tailed(state["tails"], _unclipped(now, step))
        if found is not None:
            values += [Measurement(column=column, value=value) for column, value in zip(_TAILS, found, strict=True)]
        return {"last": now, "tails": tails}, values


def _unclipped(sketch: Tensor, step: StepView) -> Tensor:
    """As it was before clipping by the total norm, which would cut the tails."""
    if step.clip is None:
        return sketch
    total, threshold = step.clip
    return sketch / torch.clamp(threshold / (total + 1e-6), max=1.0)
