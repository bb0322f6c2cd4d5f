"""What a layer saw and what came back to it: the two sides of its gradient, taken by hooks and summed by example."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LAYERS = (nn.Linear, nn.Conv2d, nn.Embedding)


def capturable(module: nn.Module, largest: int) -> bool:
    """Whether K-FAC knows the layer, and its sides are short enough.

    Args:
        module: Any.
        largest: Longest side of a factor.

    Returns:
        True for a Linear, an Embedding, or a Conv2d of one group with zero padding by numbers, with a trainable weight.
    """
    if type(module) not in LAYERS or not module.get_parameter("weight").requires_grad:
        return False
    if isinstance(module, nn.Embedding):
        return not module.sparse and module.max_norm is None and not module.scale_grad_by_freq
    if isinstance(module, nn.Conv2d) and (
        module.groups != 1 or isinstance(module.padding, str) or module.padding_mode != "zeros"
    ):
        return False
    weight = module.get_parameter("weight")
    return max(weight.shape[0], weight[0].numel() + 1) <= largest


class Capture:
    """A layer's inputs and output gradients since they were last asked for, reduced to sums.

    Args:
        name: Path of the module.
        module: The layer.
        sharing: "expand": every position of a sequence or image counts as an example of its own; "reduce": inputs are
            averaged and gradients summed over positions first (Eschenhagen et al. 2023).
        loss_per: What the loss is a mean over: "example", or "position" (tokens) for linear layers and embeddings.
        mean: Whether the loss is a mean over those; else a sum.
    """

    def __init__(self, name: str, module: nn.Module, sharing: str, loss_per: str, mean: bool) -> None:
        self.name, self.module = name, module
        self.sharing, self.loss_per, self.mean = sharing, loss_per, mean
        self.listening = True
        self.basis: tuple[Tensor, Tensor] | None = None
        self.clear()
        module.register_forward_hook(self)

    def clear(self) -> None:
        """Forget what was seen."""
        self.inputs: Tensor | None = None
        self.outputs: Tensor | None = None
        self.second: Tensor | None = None
        self.backwards = 0

    @property
    def weight(self) -> nn.Parameter:
        """The layer's weight."""
        return self.module.get_parameter("weight")

    @property
    def bias(self) -> nn.Parameter | None:
        """The layer's bias where it is trained with the weight."""
        bias = None if isinstance(self.module, nn.Embedding) else self.module.bias
        return bias if isinstance(bias, nn.Parameter) and bias.requires_grad else None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """The forward hook: keep the input until the gradient of the output comes."""
        del module
        if torch.is_grad_enabled() and output.requires_grad:
            seen: Tensor = args[0].detach()
            output.register_hook(lambda gradient: self._take(seen, gradient.detach()))

    def _take(self, seen: Tensor, gradient: Tensor) -> None:
        if not self.listening:
            return
        examples = gradient.shape[0]
        if isinstance(self.module, nn.Embedding):
            terms = gradient[..., 0].numel() if self.loss_per == "position" else examples
            table = torch.zeros_like(self.weight, dtype=torch.float32)
            squares = gradient.float().square().reshape(-1, gradient.shape[-1]) * (terms if self.mean else 1)
            self.second = _sum(self.second, table.index_add_(0, seen.reshape(-1), squares))
            self.backwards += 1
            return
        a, g = self._rows(seen.float(), gradient.float())
        positions = a.shape[1]
        shared = self.loss_per == "position" and not isinstance(self.module, nn.Conv2d)
        terms = examples * (positions if shared else 1) if self.mean else 1
        if self.basis is not None:
            self.second = _sum(self.second, _squares(a, g, self.basis) * terms)
        if self.sharing == "reduce":
            a, g = a.mean(1), g.sum(1)
        a, g = a.flatten(0, -2), g.flatten(0, -2)
        self.inputs = _sum(self.inputs, a.T @ a / len(a))
        self.outputs = _sum(self.outputs, g.T @ g * terms)
        self.backwards += 1

    def _rows(self, seen: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and gradients by example and position, shapes (N, T, in) and (N, T, out); with ones for the bias."""
        if isinstance(self.module, nn.Conv2d):
            conv = self.module
            size: Sequence[int] = conv.kernel_size
            patches = functional.unfold(seen, size, conv.dilation, conv.padding, conv.stride)  # pyright: ignore[reportArgumentType]
            a, g = patches.mT, gradient.flatten(2).mT
        else:
            a = seen.reshape(len(seen), -1, seen.shape[-1])
            g = gradient.reshape(len(gradient), -1, gradient.shape[-1])
        if self.bias is not None:
            a = torch.cat([a, a.new_ones(*a.shape[:2], 1)], -1)
        return a, g


def _squares(a: Tensor, g: Tensor, basis: tuple[Tensor, Tensor]) -> Tensor:
    """Σₙ (Q_Gᵀ ∇Wₙ Q_A)² over examples: EKFAC's second moments. Costs one product of out × in an example."""
    each = torch.bmm((g @ basis[1]).mT, a @ basis[0])
    return each.square().sum(0)


def _sum(before: Tensor | None, now: Tensor) -> Tensor:
    return now if before is None else before + now
