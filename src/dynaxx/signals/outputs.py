"""What comes out of the model: number of classes, whether they are normalised, the loss of a guess, the top class."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx.core.contracts import ForwardSignal, Tap
from dynaxx.core.events import Event, StepView
from dynaxx.core.parameters import Layout, widest
from dynaxx.core.records import Column, Cost, Measurement
from dynaxx.core.task import first_tensor

TOLERANCE = 1e-2
"""Of a row's sum: the entries of a softmax in bfloat16 are each off by 0.4 % at most."""

_WIDTH = Column(name="outputs.width", unit="entries", about="entries of an output vector: the classes of a classifier")
_NORMALISED = Column(
    name="outputs.normalised", about="fraction of output vectors that are probabilities: none negative, sum 1"
)
_GUESS = Column(
    name="outputs.guess_loss",
    unit="nat",
    about="mean cross-entropy of the outputs, read as logits, over labels drawn evenly",
)
_SHARE = Column(name="outputs.top_share", about="largest mean probability that a class has over a batch")
_CLASS = Column(name="outputs.top_class", unit="index", about="the class that has it, of the last forward")


class OutputTap(Tap):
    """Adds up statistics of the rows of the output.

    Args:
        device: Where the buffers are.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(6, dtype=widest(device), device=device)

    def __call__(self, inputs: tuple[Any, ...], output: Any) -> None:
        """See one output; a model output with an entry or attribute `logits` is read there, else its first tensor."""
        del inputs
        named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
        x = first_tensor(output) if named is None else named
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2 or x.numel() == 0:
            return
        z = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        guess = torch.logsumexp(z, dim=-1) - z.mean(dim=-1)
        whole = ((z.sum(dim=-1) - 1).abs() <= TOLERANCE) & (z.amin(dim=-1) >= 0)
        count = float(guess.numel())
        softmax = torch.softmax(z, dim=-1).flatten(0, -2).mean(dim=0)
        share, index = torch.where(whole.all(), z.flatten(0, -2).mean(dim=0), softmax).max(dim=0)
        row = torch.stack([guess.new_full((), count), whole.sum().to(guess.dtype), guess.sum(), share * count])
        self.sums[:4].add_(row.to(self.sums))
        self.sums[4:].copy_(torch.stack([torch.full_like(share, float(z.shape[-1])), index.to(share.dtype)]))


class Outputs(ForwardSignal[OutputTap]):
    """Length C of the output vectors z, the share of them that are probabilities, mean(ln Σ exp z − z̄), the top class.

    The third is the cross-entropy of z with labels that know nothing of it: ln C where z is indifferent, more the more
    decided z is. The loss of a classifier's first step is close to it. The top class is the one with the largest mean
    probability over a batch: near 1 where labels are of one class, by turns where the data are sorted.
    """

    at = Event.STEP_END
    cost = Cost()
    unit = "nat"

    def init(self, model: nn.Module, layout: Layout) -> OutputTap:
        """The one tap."""
        del model
        return OutputTap(layout.device)

    def tap(self, state: OutputTap, name: str, module: nn.Module) -> Tap | None:
        """Only the model itself."""
        del module
        return state if name == "" else None

    def measure(self, state: OutputTap, step: StepView) -> tuple[OutputTap, Sequence[Measurement]]:
        """Read the buffers of the forwards since the last measurement; NaN where the model returns no vectors."""
        del step
        normalised, guess, share = (state.sums[1:4] / state.sums[0]).unbind()
        width, index = torch.where(state.sums[0] > 0, state.sums[4:], torch.nan).unbind()
        values = (
            Measurement(column=_WIDTH, value=width),
            Measurement(column=_NORMALISED, value=normalised),
            Measurement(column=_GUESS, value=guess),
            Measurement(column=_SHARE, value=share),
            Measurement(column=_CLASS, value=index),
        )
        state.sums.zero_()
        return state, values
