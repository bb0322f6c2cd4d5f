"""Shampoo: gradients between inverse roots of their Gram matrices, the step length grafted from a simpler method."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from dynaxx.errors import BadInput
from dynaxx.numerics.kronecker import rotated, unrotated
from dynaxx.optim import _many as many
from dynaxx.optim import _options as options
from dynaxx.optim._kronecker import KroneckerEigen
from dynaxx.optim._stack import Stack
from dynaxx.optim._tiles import Tile
from dynaxx.optim._values import measure_values, scaled, value_shapes
from dynaxx.optim.soap import learn_grams


class Shampoo(KroneckerEigen):
    """W ← (1 − ηλ) W − η s L̂^(−p) M̂ R̂^(−p), with running means L of G Gᵀ and R of Gᵀ G (Gupta, Koren, Singer 2018).

    s gives each block the norm of the grafted method's step from the same M̂ (Anil et al. 2020; Shi et al. 2023).

    Args:
        params: Parameters, named parameters or groups; all options but `memory_limit` may differ between groups.
        lr: η, that of the grafted method; 1e-3, Adam's.
        betas: β₁ and β₂, that of the factors and of the grafted second moment; Meta's 0.9 and 0.999.
        eps: ε of the grafted method.
        weight_decay: λ, decoupled.
        graft: "adam": length of M̂ / (√V̂ + ε); "rmsprop": the same, V not bias-corrected; "sgd": of M̂; "none": s = 1.
        start: Steps taken by the grafted method alone, as the first factors have little rank; None: `every`, as
            Meta's, and 0 for graft="none".
        power: p; None: 1/4, or 1/2 where one side only is rotated.
        every: Steps between decompositions.
        block_size: Most rows and columns of a block; as SOAP's.
        max_dim: Longest side that is rotated; as SOAP's.
        decomposition: "eigh": in full, since a root is as wrong as its eigenvalues; "qr": tracked.
        memory_limit: Most bytes of state; more is refused at once.

    Raises:
        BadInput: An option breaks its rule; a parameter is complex or sharded; the state would exceed the limit.

    Example:
        >>> weight = torch.nn.Parameter(torch.eye(2))
        >>> weight.grad = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
        >>> Shampoo([weight], lr=0.1, weight_decay=0.0, graft="none").step()  # (G Gᵀ)^(−1/4) G (Gᵀ G)^(−1/4) = 1
        >>> weight.detach().diagonal()
        tensor([0.9000, 0.9000])
    """

    memory = "1 or 2 × parameters + 2 (m² + n²) a block of m × n"
    rules: ClassVar[dict[str, options.Rule]] = {
        **KroneckerEigen.rules,
        "graft": options.one_of("none", "sgd", "adam", "rmsprop"),
        "start": options.optional(("a whole number of at least 0", lambda v: isinstance(v, int) and v >= 0)),
        "power": options.optional(options.POSITIVE),
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = KroneckerEigen.weight_decay,
        *,
        graft: str = "adam",
        start: int | None = None,
        power: float | None = None,
        every: int = 10,
        block_size: int = 256,
        max_dim: int = 10_000,
        decomposition: str = "eigh",
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "graft": graft, "start": start,
                "power": power, "every": every, "block_size": block_size, "max_dim": max_dim,
                "decomposition": decomposition, "memory_limit": memory_limit,
            },
        )  # fmt: skip

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's, with options and parameters checked, and the memory too.

        Args:
            param_group: `params`, and options that differ from the defaults.

        Raises:
            BadInput: An option or parameter breaks a rule, or the state would exceed the memory limit.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["graft"] == "none" and group["start"]:
            self.param_groups.pop()
            raise BadInput(
                f'Shampoo(start={group["start"]}) needs a method to start with, and graft="none" is none. '
                'Give graft="sgd", or start=0.'
            )

    def _entries(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg_sq",) if group["graft"] in ("adam", "rmsprop") else ()

    def _extra(self, tile: Tile) -> dict[str, tuple[int, ...]]:
        return value_shapes(tile)

    def _advance(self, stack: Stack, group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        step = stack.step + 1
        self._learn(stack, group, 1 - beta2)
        if stack.step % group["every"] == 0:
            self._refresh(stack, group, exact=stack.step == 0)
            measure_values(stack, 1 / (1 - beta2**step))
        first = stack.entries("exp_avg") / (1 - beta1**step)
        grafted = self._grafted(first, stack, group)
        if grafted is not None and not self._rotates(group, step):
            direction = grafted
        else:
            direction = self._preconditioned(first, stack, group)
            if grafted is not None:
                direction = direction * _stretch(direction, grafted)
        stack.move(direction, float(group["lr"]))

    def _preconditioned(self, first: Tensor, stack: Stack, group: dict[str, Any]) -> Tensor:
        left, right = stack.bases()
        return unrotated(scaled(rotated(first, left, right), stack, -_power(stack, group)), left, right)

    def _grafted(self, first: Tensor, stack: Stack, group: dict[str, Any]) -> Tensor | None:
        """The step of the grafted method; its second moment has not seen this gradient yet and does here."""
        if group["graft"] in ("none", "sgd"):
            return first if group["graft"] == "sgd" else None
        beta2 = group["betas"][1]
        second, gradients = stack.views("exp_avg_sq"), stack.split(stack.gradient)
        many.mul_(second, beta2)
        many.addcmul_(second, gradients, gradients, 1 - beta2)
        return first / _root(stack, group, stack.step + 1)

    def _learn(self, stack: Stack, group: dict[str, Any], weight: float) -> None:
        del group
        learn_grams(stack, weight)

    def _second(self, stack: Stack, group: dict[str, Any], steps: int) -> Tensor:
        bias = 1 - group["betas"][1] ** steps
        if self._entries(group):
            return stack.entries("exp_avg_sq") / bias
        # The rank-one second moment with the same sums over rows and columns, as Adafactor's (Shazeer, Stern 2018).
        sums = [stack.all(side).diagonal(dim1=-2, dim2=-1) / bias for side in stack.sides]
        if len(sums) == 2:
            left, right = sums
            return left[:, :, None] * right[:, None, :] / left.sum(-1).clamp_min(1e-30)[:, None, None]
        even = sums[0] / (stack.tile.n if stack.tile.rows else stack.tile.m)
        return (even[:, :, None] if stack.tile.rows else even[:, None, :]).expand_as(stack.gradient)

    def _divisor(self, stack: Stack, group: dict[str, Any], steps: int) -> Tensor:
        first = stack.entries("exp_avg")
        root = torch.ones_like(first) if group["graft"] in ("none", "sgd") else _root(stack, group, steps)
        if not self._rotates(group, steps):
            return root
        divisor = scaled(torch.ones_like(first), stack, _power(stack, group))
        if group["graft"] == "none":
            return divisor
        # s is that of the last step, which is that of a mode once the mode has come to prevail.
        return divisor / _stretch(self._preconditioned(first, stack, group), first / root)

    def _rotates(self, group: Mapping[str, Any], steps: int) -> bool:
        return group["graft"] == "none" or steps > _start(group)

    def _settle(self, stack: Stack, group: dict[str, Any], second: Tensor, steps: int) -> None:
        bias = 1 - group["betas"][1] ** steps
        measure_values(stack)
        for side in stack.sides:
            many.mul_(stack.each(side), bias)
        if self._entries(group):
            for view, part in zip(stack.views("exp_avg_sq"), stack.split(second * bias), strict=True):
                view.copy_(part)


def _start(group: Mapping[str, Any]) -> int:
    return group["every"] if group["start"] is None else group["start"]


def _power(stack: Stack, group: Mapping[str, Any]) -> float:
    return 0.5 / len(stack.sides) if group["power"] is None else group["power"]


def _root(stack: Stack, group: Mapping[str, Any], steps: int) -> Tensor:
    """The divisor of the grafted method, which has seen so many gradients."""
    bias = 1 - group["betas"][1] ** steps if group["graft"] == "adam" else 1.0
    return stack.entries("exp_avg_sq").sqrt().div_(math.sqrt(bias)).add_(group["eps"])


def _stretch(direction: Tensor, grafted: Tensor) -> Tensor:
    """What gives directions the length of the grafted ones, s of each block, shape (blocks, 1, 1)."""
    length = direction.flatten(1).norm(dim=1).clamp_min(torch.finfo(direction.dtype).tiny)
    return (grafted.flatten(1).norm(dim=1) / length)[:, None, None]
