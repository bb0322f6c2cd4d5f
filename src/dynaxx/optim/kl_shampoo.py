"""KL-Shampoo: whitening by the Kronecker product nearest to the gradients' covariance, without a second moment."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from dynaxx.numerics.kronecker import rotated, unrotated
from dynaxx.optim._kronecker import KroneckerEigen, in_parameter_basis
from dynaxx.optim._stack import Stack
from dynaxx.optim._tiles import Tile
from dynaxx.optim._values import measure_values, outer_values, scaled, value_shapes, values


class KLShampoo(KroneckerEigen):
    """W ← (1 − ηλ) W − η L^(−1/2) M̂ R^(−1/2), where R ⊗ L tracks E[g gᵀ] in relative entropy (Lin et al. 2025).

    L ← β₂ L + (1 − β₂) G R⁻¹ Gᵀ / n, R ← β₂ R + (1 − β₂) Gᵀ L⁻¹ G / m: each factor sees gradients whitened by the
    other. The inverse is taken in the last bases; eigenvalues follow at every step, as Rayleigh quotients. Both
    factors start as the multiple of the identity that has the first gradient's mean square: the authors' constant 0.1
    makes first steps depend on the scale of the loss.

    Args:
        params: Parameters, named parameters or groups; all options but `memory_limit` may differ between groups.
        lr: η; as SOAP's.
        betas: β₁ and β₂, that of the factors; as SOAP's.
        eps: Least root mean square that a first gradient is taken to have; for vectors, Adam's ε.
        weight_decay: λ, decoupled.
        every: Steps between refreshes of the bases; as SOAP's.
        block_size: Most rows and columns of a block; as SOAP's.
        max_dim: Longest side that is rotated; as SOAP's.
        decomposition: "qr": track the bases by one orthogonal iteration; "eigh": in full, at twice the time.
        memory_limit: Most bytes of state; more is refused at once.

    Raises:
        BadInput: An option breaks its rule; a parameter is complex or sharded; the state would exceed the limit.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
        >>> KLShampoo([weight], lr=0.1).planned_bytes()  # 4 + 4 × 4 + 2 × 4 × 2 + 4 floats, a step and a count
        108
    """

    memory = "1 × parameters + 2 (m² + n²) a block of m × n"
    prior: ClassVar[int] = 1

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        weight_decay: float = KroneckerEigen.weight_decay,
        *,
        every: int = 10,
        block_size: int = 256,
        max_dim: int = 10_000,
        decomposition: str = "qr",
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "every": every,
                "block_size": block_size, "max_dim": max_dim, "decomposition": decomposition,
                "memory_limit": memory_limit,
            },
        )  # fmt: skip

    def _entries(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        del group
        return ()

    def _extra(self, tile: Tile) -> dict[str, tuple[int, ...]]:
        return value_shapes(tile)

    def _advance(self, stack: Stack, group: dict[str, Any]) -> None:
        self._learn(stack, group, 1 - group["betas"][1])
        if stack.step % group["every"] == 0:
            self._refresh(stack, group, exact=stack.step == 0)
            measure_values(stack)
        left, right = stack.bases()
        direction = scaled(rotated(stack.entries("exp_avg"), left, right), stack, -0.5)
        direction = unrotated(direction, left, right)
        stack.move(direction.div_(1 - group["betas"][0] ** (stack.step + 1)), float(group["lr"]))

    def _learn(self, stack: Stack, group: dict[str, Any], weight: float) -> None:
        if stack.step == 0:
            self._seed(stack, group)
        left, right = stack.bases()
        spectra = {"left": values(stack, "left"), "right": values(stack, "right")}  # both from before this gradient
        for side, basis, other, size in (
            ("left", right, "right", stack.tile.n), ("right", left, "left", stack.tile.m),
        ):  # fmt: skip
            if side not in stack.sides:
                continue
            rows = stack.gradient if side == "left" else stack.gradient.mT
            spectrum = spectra[other]
            if basis is not None and spectrum is not None:
                rows = torch.bmm(rows, basis) * spectrum.rsqrt()[:, None, :]
            own = stack.basis(side)
            seen = torch.bmm(own.mT, rows).square().sum(-1) / size
            for i, (part, new) in enumerate(zip(rows.split(stack.counts), seen.split(stack.counts), strict=True)):
                stack.each(side)[i].baddbmm_(part, part.mT, beta=1 - weight, alpha=weight / size)
                stack.each(f"{side}_values")[i].lerp_(new, weight)

    def _seed(self, stack: Stack, group: dict[str, Any]) -> None:
        mean = stack.gradient.square().mean((-2, -1)).clamp_min(max(float(group["eps"]) ** 2, 1e-30))
        share = mean.pow(1 / len(stack.sides))
        for side in stack.sides:
            for i, part in enumerate(share.split(stack.counts)):
                stack.each(side)[i].copy_(stack.each(f"{side}_axes")[i] * part[:, None, None])
                stack.each(f"{side}_values")[i].copy_(part[:, None])

    def _second(self, stack: Stack, group: dict[str, Any], steps: int) -> Tensor:
        del group, steps  # the seed is a full estimate: there is no bias to correct
        return in_parameter_basis(outer_values(stack), stack)

    def _divisor(self, stack: Stack, group: dict[str, Any], steps: int) -> Tensor:
        del group, steps
        return outer_values(stack).sqrt()

    def _settle(self, stack: Stack, group: dict[str, Any], second: Tensor, steps: int) -> None:
        del steps
        measure_values(stack)
        ratio = second.mean((-2, -1)).clamp_min(float(group["eps"]) ** 2) / outer_values(stack).mean((-2, -1))
        share = ratio.pow(1 / len(stack.sides))
        for side in stack.sides:
            for i, part in enumerate(share.split(stack.counts)):
                stack.each(side)[i].mul_(part[:, None, None])
                stack.each(f"{side}_values")[i].mul_(part[:, None])
