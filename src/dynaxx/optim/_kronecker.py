"""What SOAP, KL-Shampoo and Shampoo share: Kronecker factors by block, their eigenbases, and the step around them."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from dynaxx.errors import BadInput
from dynaxx.numerics.kronecker import carried, eigenpairs, tracked
from dynaxx.numerics.stability_rules import Rule, Ruled, Scaling
from dynaxx.optim import _many as many
from dynaxx.optim import _options as options
from dynaxx.optim._adam import adam_step, blank_moments
from dynaxx.optim._eigenbasis import EigenBasis
from dynaxx.optim._groups import group_of
from dynaxx.optim._method import Stepping
from dynaxx.optim._stack import Stack, Work, stacks
from dynaxx.optim._state import tensor_bytes, wide
from dynaxx.optim._tiles import Tile, Tiling, tiling
from dynaxx.optim._transport import Transportable, completed

TOLERATED = 3
"""Decompositions in a row that may fail, the last basis being kept (as Meta's Distributed Shampoo has it, 2023)."""
SMALLEST = 8
"""Smallest block that the message about memory offers: below it the factors are hardly more than a diagonal."""


class KroneckerEigen(Transportable, Ruled, Stepping):
    """An optimizer that steps in the eigenbases of E[G Gᵀ] and E[Gᵀ G], block by block of every matrix.

    Tensors of more dimensions are laid out as matrices, long sides cut (`optim/_tiles.py`); vectors and scalars take
    Adam. Moments and factors are float32 at least, whatever the weights are. Groups must share no state, so each
    option may differ between groups.

    A subclass names its options, its state besides the first moment and the bases, and gives `_advance`.
    """

    lag: ClassVar[int] = 0
    """Gradients that a block only learns its bases from, before it moves."""
    prior: ClassVar[int] = 0
    """Gradients that the factors' first values count for when they are bootstrapped."""
    rules: ClassVar[dict[str, options.Rule]] = {
        "lr": options.NOT_NEGATIVE,
        "betas": options.SHARES,
        "eps": options.NOT_NEGATIVE,
        "weight_decay": options.NOT_NEGATIVE,
        "every": options.COUNT,
        "block_size": options.COUNT,
        "max_dim": options.COUNT,
        "decomposition": options.one_of("qr", "eigh"),
        "memory_limit": options.optional(options.COUNT),
    }

    weight_decay: ClassVar[float] = 0.01
    """The default: SOAP's and Meta's."""

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        options.check_whole(type(self).__name__, group, why="a Kronecker factor")
        self._check_memory(group["memory_limit"])

    def planned_bytes(self) -> int:
        """Memory that the state will take, from the shapes alone: made once on the meta device."""
        return self._planned({})

    def _step_group(self, group: dict[str, Any]) -> None:
        plain: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []
        works: list[Work] = []
        for name, parameter, gradient in options.dense_gradients(type(self).__name__, group):
            state = self._state_of(parameter, group)
            tiles = _tiles(parameter, group)
            if not tiles.tiles:
                plain.append((parameter, gradient, state))
                continue
            matrix = gradient.to(wide(parameter.dtype)).reshape(tiles.rows, tiles.columns)
            works.append(Work(name, parameter, matrix, state, tiles, int(state["step"])))
        rate = float(group["lr"])
        adam_step(plain, group, group["betas"], rate)
        moving = [work for work in works if work.step >= self.lag]
        if moving:
            if group["weight_decay"]:
                many.mul_([w.parameter for w in moving], 1 - rate * group["weight_decay"])
            first = [work.matrix("exp_avg") for work in moving]
            many.lerp_(first, [work.gradient for work in moving], 1 - group["betas"][0])
        for stack in stacks(works):
            self._advance(stack, group)
        for work in works:
            work.state["step"].add_(1)

    @abstractmethod
    def _advance(self, stack: Stack, group: dict[str, Any]) -> None:
        """Move blocks by their direction, and learn from their gradients; the first moment has seen them."""

    @abstractmethod
    def _learn(self, stack: Stack, group: dict[str, Any], weight: float) -> None:
        """Take the gradients into the factors, with a weight against what they hold."""

    @abstractmethod
    def _extra(self, tile: Tile) -> dict[str, tuple[int, ...]]:
        """Shapes of a tile's state besides factors and bases, by key."""

    @abstractmethod
    def _entries(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """Keys of parameter-shaped state besides the first moment."""

    @abstractmethod
    def _second(self, stack: Stack, group: dict[str, Any], steps: int) -> Tensor:
        """Bias-corrected second moments in the parameter's basis, shape (blocks, m, n)."""

    @abstractmethod
    def _settle(self, stack: Stack, group: dict[str, Any], second: Tensor, steps: int) -> None:
        """Take over second moments in the parameter's basis, the factors being means over gradients."""

    @abstractmethod
    def _divisor(self, stack: Stack, group: dict[str, Any], steps: int) -> Tensor:
        """What the last update divided the first moment by, in coordinates of the eigenbases, shape (blocks, m, n)."""

    def _rotates(self, group: Mapping[str, Any], steps: int) -> bool:
        """Whether that is in coordinates of the eigenbases, and not yet of the parameter."""
        del group, steps
        return True

    # ------------------------------------------------------------------------------------------------ eigenbases

    def _refresh(self, stack: Stack, group: dict[str, Any], *, exact: bool) -> dict[str, tuple[Tensor, Tensor | None]]:
        """New eigenbases; returns the last ones by side, and which old axis each new one continues where QR tells."""
        last: dict[str, tuple[Tensor, Tensor | None]] = {}
        for side in stack.sides:
            factors, old = stack.all(side), stack.basis(side)
            if exact or group["decomposition"] == "eigh":
                _, new, done = eigenpairs(factors)
                order = None
            else:
                new, order, done = tracked(factors, old)
            if not bool(done.all()):  # waits for the device, every `every` steps
                self._refuse_non_finite(stack, factors)
                if order is not None:
                    new[~done], done[~done] = eigenpairs(factors[~done])[1:]
                    order = None
                new = torch.where(done[:, None, None], new, old)
            self._tolerate(stack, done)
            stack.turn(side, new)
            last[side] = old, order
        return last

    def _refuse_non_finite(self, stack: Stack, factors: Tensor) -> None:
        bad = [
            piece.work.name
            for piece, part in zip(stack.pieces, factors.split(stack.counts), strict=True)
            if not bool(part.isfinite().all())
        ]
        if bad:
            raise BadInput(
                f"{type(self).__name__}.step(): the Kronecker factor of {bad[0]} is not finite, so one of its last "
                "gradients was not. Resume from the last checkpoint, and skip non-finite gradients or lower the rate."
            )

    def _tolerate(self, stack: Stack, done: Tensor) -> None:
        for piece, part in zip(stack.pieces, done.split(stack.counts), strict=True):
            failures = piece.work.state[f"failures_{piece.number}"]
            if bool(part.all()):
                failures.zero_()
            elif int(failures.add_(1)) > TOLERATED:
                raise BadInput(
                    f"{type(self).__name__}.step(): the Kronecker factor of {piece.work.name} could not be decomposed "
                    f"{TOLERATED + 1} times in a row. Lower the learning rate, or give this parameter to adamw."
                )

    # ------------------------------------------------------------------------------------------------ state

    def _state_of(self, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        state = cast(dict[str, Tensor], self.state[parameter])
        if not state:
            state.update(self._blank(parameter, group, parameter.device))
        return state

    def _blank(self, parameter: Tensor, group: Mapping[str, Any], device: torch.device | str) -> dict[str, Tensor]:
        state = blank_moments(parameter, device)
        tiles = _tiles(parameter, group).tiles
        if not tiles:
            return state
        dtype = wide(parameter.dtype)
        kept = self._entries(group)
        state.update({key: torch.zeros(parameter.shape, dtype=dtype, device=device) for key in kept})
        if "exp_avg_sq" not in kept:
            del state["exp_avg_sq"]
        for i, tile in enumerate(tiles):
            for side, size, turned in (("left", tile.m, tile.rows), ("right", tile.n, tile.columns)):
                if turned:
                    state[f"{side}_{i}"] = torch.zeros(tile.blocks, size, size, dtype=dtype, device=device)
                    unit = torch.eye(size, dtype=dtype, device=device)
                    state[f"{side}_axes_{i}"] = unit.expand(tile.blocks, size, size).clone()
            for key, shape in self._extra(tile).items():
                state[f"{key}_{i}"] = torch.zeros(shape, dtype=dtype, device=device)
            state[f"failures_{i}"] = torch.zeros((), dtype=torch.int64, device=state["step"].device)
        return state

    def _planned(self, changed: Mapping[str, Any]) -> int:
        return sum(
            tensor_bytes(self._blank(p, {**group, **changed}, "meta"))
            for group in self.param_groups
            for p in group["params"]
        )

    def _check_memory(self, limit: int | None) -> None:
        if limit is None or (planned := self._planned({})) <= limit:
            return
        size = max(group["block_size"] for group in self.param_groups)
        fits = None
        while size > SMALLEST and fits is None:
            size //= 2
            fits = size if self._planned({"block_size": size}) <= limit else None
        remedy = f"block_size={fits} would fit" if fits else "No block size fits: lower max_dim, or use adamw"
        raise BadInput(
            f"{type(self).__name__}(memory_limit={limit}): the state would take {planned:,} bytes, "
            f"and must not exceed the limit. {remedy}."
        )

    # ------------------------------------------------------------------------------------------------ transport

    @torch.no_grad()
    def moments(self, parameter: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Both moments in the parameter's basis, the second by the Hadamard rule.

        Args:
            parameter: One of the optimizer's.

        Returns:
            Bias-corrected copies; None before the first update.
        """
        group, _ = group_of(self, parameter)
        state = cast(dict[str, Tensor], self.state.get(parameter, {}))
        tiles = _tiles(parameter, group)
        steps = int(state["step"]) - (self.lag if tiles.tiles else 0) if state else 0
        if steps < 1:
            return None, None
        beta1, beta2 = group["betas"]
        first = state["exp_avg"] / (1 - beta1**steps)
        if not tiles.tiles:
            return first, state["exp_avg_sq"] / (1 - beta2**steps)
        second = _gathered(state, tiles, lambda stack: self._second(stack, group, steps))
        return first, second

    @torch.no_grad()
    def adopt(
        self,
        parameter: Tensor,
        first: Tensor | None,
        second: Tensor | None,
        steps: int,
        gradients: Sequence[Tensor] | None = None,
    ) -> None:
        """Take over moments; the bases are those of the mean Gram matrices of the gradients.

        Arguments are those of `Transportable.adopt`.
        """
        group, index = group_of(self, parameter)
        tiles = _tiles(parameter, group)
        name = options.parameter_name(group, index)
        if tiles.tiles and not gradients:
            raise BadInput(
                f"{type(self).__name__}.adopt(gradients=None): {name} has Kronecker factors, "
                "which gradients are needed for. Give 8 to 32."
            )
        first, second = completed(type(self).__name__, first, second, steps, gradients)
        beta1, beta2 = group["betas"]
        state = self._blank(parameter, group, parameter.device)
        state["exp_avg"].copy_(first).mul_(1 - beta1**steps)
        state["step"].fill_(steps + (self.lag if tiles.tiles else 0))
        if not tiles.tiles:
            state["exp_avg_sq"].copy_(second).mul_(1 - beta2**steps)
        for i, gradient in enumerate(gradients or () if tiles.tiles else ()):
            matrix = gradient.to(state["exp_avg"].dtype).reshape(tiles.rows, tiles.columns)
            for stack in stacks([Work(name, parameter, matrix, state, tiles, i)]):
                self._learn(stack, group, 1 / (i + 1 + self.prior))
        if tiles.tiles:
            matrix = second.to(state["exp_avg"].dtype).reshape(tiles.rows, tiles.columns)
            for stack in stacks([Work(name, parameter, matrix, state, tiles, steps)]):
                self._refresh(stack, group, exact=True)
                self._settle(stack, group, stack.gradient, steps)
        self.state[parameter] = state

    # ------------------------------------------------------------------------------------------------ stability

    def stability_rule(self, group: dict[str, Any]) -> Rule:
        """How a group is updated: as by Adam, but for a P that is diagonal in the eigenbases (Vyas et al. 2024).

        Bases that were refreshed behind the last step are those of the next one.

        Args:
            group: One of the optimizer's.

        Returns:
            The rule.
        """
        beta1, beta2 = group["betas"]

        @torch.no_grad()
        def scaling(state: dict[str, Any]) -> Scaling | None:
            tiles = _tiles(state["exp_avg"], group) if state else Tiling(0, 0, ())
            steps = int(state["step"]) - (self.lag if tiles.tiles else 0) if state else 0
            if steps < 1:
                return None
            share = 1 - beta1**steps
            if not tiles.tiles:
                return Scaling(share * ((state["exp_avg_sq"] / (1 - beta2**steps)).sqrt() + group["eps"]))
            divisor = _gathered(state, tiles, lambda stack: self._divisor(stack, group, steps))
            return Scaling(share * divisor, EigenBasis(state, tiles) if self._rotates(group, steps) else None)

        formula = "λ₁(ηP⁻¹H) < (2 + 2β₁)/(1 − β₁), P diagonal in the eigenbases of the Kronecker factors"
        return Rule((1 - beta1) / (1 + beta1), type(self).__name__, formula, scaling, decoupled=True)


def _tiles(parameter: Tensor, group: Mapping[str, Any]) -> Tiling:
    return tiling(tuple(parameter.shape), group["block_size"], group["max_dim"])


def _gathered(state: dict[str, Tensor], tiles: Tiling, found: Callable[[Stack], Tensor]) -> Tensor:
    """What is found for each block of a parameter, in the blocks' places and of the parameter's shape."""
    first = state["exp_avg"]
    whole = torch.empty_like(first)
    matrix = whole.view(tiles.rows, tiles.columns)
    for stack in stacks([Work("", first, first.view(matrix.shape), state, tiles, int(state["step"]))]):
        for piece, part in zip(stack.pieces, stack.split(found(stack)), strict=True):
            piece.tile.view(matrix).copy_(part)
    return whole


def in_parameter_basis(second: Tensor, stack: Stack) -> Tensor:
    """Second moments out of the eigenbases by the Hadamard rule.

    Args:
        second: By axis of the eigenbases, shape (blocks, m, n).
        stack: Gives the bases.

    Returns:
        By entry of the parameter.
    """
    left, right = stack.bases()
    return carried(second, None if left is None else left.mT, None if right is None else right.mT)
