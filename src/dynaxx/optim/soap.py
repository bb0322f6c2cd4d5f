"""SOAP: Adam in the slowly turning eigenbasis of Shampoo's factors."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from dynaxx.numerics.kronecker import carried, permuted, rotated, unrotated
from dynaxx.optim import _many as many
from dynaxx.optim import _options as options
from dynaxx.optim._kronecker import KroneckerEigen, in_parameter_basis
from dynaxx.optim._stack import Stack
from dynaxx.optim._tiles import Tile


class SOAP(KroneckerEigen):
    """Adam on the coordinates of the gradient in the eigenbases of L = E[G Gᵀ] and R = E[Gᵀ G] (Vyas et al. 2024).

    M ← β₁ M + (1 − β₁) G, V ← β₂ V + (1 − β₂) (Q_Lᵀ G Q_R)², W ← (1 − ηλ) W − η Q_L [Q_Lᵀ M̂ Q_R / (√V̂ + ε)] Q_Rᵀ.

    The first gradient gives the bases only. They are refreshed behind the step, every `every` steps.

    Args:
        params: Parameters, named parameters or groups; all options but `memory_limit` may differ between groups.
        lr: η; the paper's 3e-3.
        betas: β₁ and β₂, that of V and of the factors; the paper's 0.95.
        eps: ε, outside the root and behind the bias correction.
        weight_decay: λ, decoupled.
        every: Steps between refreshes; the paper's 10, at 1 its results are best and its steps most expensive.
        block_size: Most rows and columns of a block: 256, at which a decomposition takes 2–4 ms on one CPU core and
            beyond which its cube is felt.
        max_dim: Longest side that is rotated; the paper's 10 000.
        decomposition: "qr": track the bases by one orthogonal iteration; "eigh": in full, at twice the time.
        carry: What V does when the bases turn. "permute": its entries follow the order of the axes, as in the authors'
            code (with "eigh" they stay with the rank of the eigenvalue); "hadamard": it is carried into the new bases,
            which spreads it. On digits (three rates × three seeds, 200 annealed steps, every 10) "permute"
            had the lower training loss in all nine pairs (0.0026 to 0.0035 at the best rate), and the lower validation
            loss in eight.
        memory_limit: Most bytes of state; more is refused at once.

    Raises:
        BadInput: An option breaks its rule; a parameter is complex or sharded; the state would exceed the limit.

    Example:
        >>> weight = torch.nn.Parameter(torch.eye(2))
        >>> optimizer = SOAP([weight], lr=0.1, weight_decay=0.0)
        >>> for _ in range(2):
        ...     weight.grad = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
        ...     optimizer.step()
        >>> weight.detach().diagonal()
        tensor([0.9000, 0.9000])
    """

    memory = "2 × parameters + 2 (m² + n²) a block of m × n"
    lag: ClassVar[int] = 1
    rules: ClassVar[dict[str, options.Rule]] = {
        **KroneckerEigen.rules, "carry": options.one_of("hadamard", "permute")
    }  # fmt: skip

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        weight_decay: float = KroneckerEigen.weight_decay,
        *,
        every: int = 10,
        block_size: int = 256,
        max_dim: int = 10_000,
        decomposition: str = "qr",
        carry: str = "permute",
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "every": every,
                "block_size": block_size, "max_dim": max_dim, "decomposition": decomposition, "carry": carry,
                "memory_limit": memory_limit,
            },
        )  # fmt: skip

    def _entries(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        del group
        return ("exp_avg_sq",)

    def _extra(self, tile: Tile) -> dict[str, tuple[int, ...]]:
        del tile
        return {}

    def _advance(self, stack: Stack, group: dict[str, Any]) -> None:
        if stack.step >= self.lag:
            beta1, beta2 = group["betas"]
            # Both bias corrections go into the rate and ε: a pass over the entries less for each.
            share = math.sqrt(1 - beta2**stack.step)
            direction = self._direction(stack, beta2, group["eps"] * share)
            stack.move(direction, float(group["lr"]) * share / (1 - beta1**stack.step))
        self._learn(stack, group, 1 - group["betas"][1])
        if stack.step == 0:
            self._refresh(stack, group, exact=True)
        elif stack.step % group["every"] == 0:
            self._turn(stack, group)

    def _direction(self, stack: Stack, beta2: float, eps: float) -> Tensor:
        left, right = stack.bases()
        gradients = stack.split(rotated(stack.gradient, left, right))
        second = stack.views("exp_avg_sq")
        many.mul_(second, beta2)
        many.addcmul_(second, gradients, gradients, 1 - beta2)
        divisors = many.sqrt(second)
        many.add_(divisors, eps)
        direction = rotated(stack.entries("exp_avg"), left, right)
        many.div_(stack.split(direction), divisors)
        return unrotated(direction, left, right)

    def _learn(self, stack: Stack, group: dict[str, Any], weight: float) -> None:
        del group
        learn_grams(stack, weight)

    def _turn(self, stack: Stack, group: dict[str, Any]) -> None:
        last = self._refresh(stack, group, exact=False)
        second = stack.entries("exp_avg_sq")
        if group["carry"] == "hadamard":
            turns = {side: old.mT @ stack.basis(side) for side, (old, _) in last.items()}
            second = carried(second, turns.get("left"), turns.get("right"))
        else:
            orders = {side: order for side, (_, order) in last.items() if order is not None}
            if not orders:  # nothing was sorted anew, so every moment is in its place
                return
            second = permuted(second, orders.get("left"), orders.get("right"))
        for view, part in zip(stack.views("exp_avg_sq"), stack.split(second), strict=True):
            view.copy_(part)

    def _second(self, stack: Stack, group: dict[str, Any], steps: int) -> Tensor:
        return in_parameter_basis(stack.entries("exp_avg_sq"), stack) / (1 - group["betas"][1] ** steps)

    def _divisor(self, stack: Stack, group: dict[str, Any], steps: int) -> Tensor:
        return (stack.entries("exp_avg_sq") / (1 - group["betas"][1] ** steps)).sqrt() + group["eps"]

    def _settle(self, stack: Stack, group: dict[str, Any], second: Tensor, steps: int) -> None:
        second = carried(second, *stack.bases()) * (1 - group["betas"][1] ** steps)
        for view, part in zip(stack.views("exp_avg_sq"), stack.split(second), strict=True):
            view.copy_(part)


def learn_grams(stack: Stack, weight: float) -> None:
    """Take Gram matrices into the factors, L ← (1 − w) L + w G Gᵀ and R ← (1 − w) R + w Gᵀ G.

    Args:
        stack: Blocks with their gradients.
        weight: w.
    """
    for i, gradient in enumerate(stack.gradient.split(stack.counts)):
        for side in stack.sides:
            rows = gradient if side == "left" else gradient.mT
            stack.each(side)[i].baddbmm_(rows, rows.mT, beta=1 - weight, alpha=weight)
