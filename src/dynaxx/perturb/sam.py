"""Sharpness-aware minimisation, plain or adaptive: the gradient from uphill, every k-th step."""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dynaxx.core.arguments import at_least
from dynaxx.core.isolation import RandomState, numpy_words
from dynaxx.core.methods import Perturber
from dynaxx.core.parameters import Layout, some
from dynaxx.core.repeated import begin_repeating, end_repeating
from dynaxx.errors import BadInput
from dynaxx.numerics.reductions import layer_norms, tensor_norms
from dynaxx.perturb._common import Kept, trainable


class Sam(Perturber):
    """Sharpness-aware minimisation: step from w along ∇L(w + ε), ε = ρ T² ∇L(w) / ‖T ∇L(w)‖, T = 1 or |w| + η.

    The norm is over all parameters and all shards. The second pass sees the same batches and random numbers as the
    first; the model's buffers (running statistics) are put back after it, and the weights come back from a copy. A step
    whose first gradient is not finite has no second pass: its gradient stays for the gradient scaler to find. A scaled
    gradient may stay scaled: the scale cancels. Clip after `restore`.

    It costs a second forward and backward, and one wait for the device, in each step that it perturbs. Whether the
    passes draw from NumPy's global stream the first one shows. Where it did not and a later one does, that one step has
    no second pass, and from then on they are repeated, too; under several ranks they are from the beginning.

    Args:
        model: The model as the loop calls it.
        rho: Length of ε, ‖T⁻¹ε‖. 0.05 is the paper's; adaptive: about ten times as large (0.5 to 2); with `every`,
            larger too (0.5 at every fifth step stood for 0.2 at each).
        adaptive: T = |w| + η instead of 1 (ASAM): invariant to a rescaling of weights that the loss does not notice.
        eta: η, 0.01 in the paper.
        every: Perturb each so many-th step only; passes per step are 1 + 1/every.
        start: Steps before the first that may be perturbed. Late starts suffice while the rate is not yet annealed.
        per_rank: Under DistributedDataParallel, take ε from this rank's own gradient, without communication, as the
            paper does; else from the mean over ranks.

    Raises:
        BadInput: A number is out of its range, weights are in half precision, or `per_rank` has no ranks.

    Example:
        `loss = Sam(model, rho=0.5, every=5).around(optimizer, closure)`

    Reference: Foret et al. 2021 (SAM); Kwon et al. 2021 (ASAM); Zhou et al. 2025 (late phase).
    """

    passes: ClassVar[float] = 2.0
    memory: ClassVar[str] = "1 × parameters during a second pass"

    def __init__(
        self,
        model: nn.Module,
        *,
        rho: float = 0.05,
        adaptive: bool = False,
        eta: float = 0.01,
        every: int = 1,
        start: int = 0,
        per_rank: bool = False,
    ) -> None:
        if not at_least("Sam", "rho", rho, 0.0) > 0:
            raise BadInput(f"Sam(rho=...) must be more than 0. Got {rho!r}.")
        half = [n for n, p in trainable("Sam", model).items() if p.dtype.itemsize < 4]
        if half:
            raise BadInput(
                f"Sam(model): {some(half)} in half precision, where small moves vanish. "
                "Keep weights in float32 and use autocast."
            )
        if per_rank and not isinstance(model, nn.parallel.DistributedDataParallel):
            raise BadInput(
                f"Sam(per_rank=True): the model must be a DistributedDataParallel. Got {type(model).__name__}."
            )
        self._model, self._layout = model, Layout(model)
        self._modules = tuple(model.modules())
        self._rho, self._adaptive, self._per_rank = rho, adaptive, per_rank
        self._eta = at_least("Sam", "eta", eta, 0.0)
        self._every, self._start = at_least("Sam", "every", every, 1), at_least("Sam", "start", start, 0)
        self._step = 0
        self._begun = False
        self._random: RandomState | None = None
        self._draws: bool | None = None  # from NumPy's stream, whose copy takes as long as a small net's forward
        self._words: bytes | None = None
        self._kept: Kept | None = None
        self._alone = ExitStack()

    @property
    def due(self) -> bool:
        """Whether the coming step, or the one in progress, is one to be perturbed."""
        past = self._step + 1 - self._start
        return past > 0 and past % self._every == 0

    def begin(self) -> None:
        """Note the random streams where there will be a second pass."""
        self._undo()
        self._begun = True
        if self.due:
            self._words = numpy_words() if self._draws is False and not _several_ranks() else None
            self._random = RandomState.capture(numpy=self._words is None)
            if self._per_rank:
                self._alone.enter_context(cast(Any, self._model).no_sync())

    def ascend(self) -> bool:
        """Go uphill, where the step is due and its gradient is finite and not zero."""
        self._alone.close()
        if self._random is None or not self._repeatable(self._random):
            return False
        with torch.no_grad():
            climb = self._climb()
            # Under per_rank the gradients are not yet reduced: passes must be repeated whatever they hold.
            if climb is None and not self._per_rank:
                return False
            begin_repeating(self._layout.parameters)
            weights, moves, scale = climb or ([], [], 0.0)
            self._kept = Kept(weights, self._modules)
            if weights:
                torch._foreach_add_(weights, moves, alpha=scale)  # pyright: ignore[reportPrivateUsage]
        for parameter in self._layout.parameters:
            parameter.grad = None
        self._random.restore()
        return True

    def restore(self) -> None:
        """Weights and buffers as the first pass left them; the gradients are those of the last pass."""
        self._undo()
        self._step += self._begun
        self._begun = False

    def state_dict(self) -> dict[str, Any]:
        """Steps so far, and whether their passes draw from NumPy's stream."""
        return {"step": self._step, "draws": self._draws}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._step = int(state["step"])
        self._draws = state.get("draws")  # older checkpoints do not say

    def _repeatable(self, before: RandomState) -> bool:
        """Whether the numbers that the first pass has drawn can be drawn again."""
        if self._words is not None:
            self._draws = numpy_words() != self._words
            return not self._draws
        if self._draws is None:
            now = RandomState.capture().numpy
            self._draws = not np.array_equal(now[1], before.numpy[1]) or now[2:] != before.numpy[2:]
        return True

    def _undo(self) -> None:
        self._alone.close()
        self._random = None
        if self._kept is not None:
            end_repeating()
            self._kept.put_back()
            self._kept = None

    def _climb(self) -> tuple[list[Tensor], list[Tensor], float] | None:
        """Weights, what to add to them and times what; None where there is no way up."""
        gradients = [None if g is None else g.to_dense() if g.is_sparse else g for g in self._layout.local_gradients()]
        # Without detaching them where they are whole: gradients are off, and six views cost as much as their norms.
        weights = self._layout.local_parameters() if self._layout.sharded else list(self._layout.parameters)
        moves = gradients
        if self._adaptive:
            shapes = [w.abs().add_(self._eta) for w in weights]
            gradients = [None if g is None else g * t for g, t in zip(gradients, shapes, strict=True)]
            moves = [None if g is None else g * t for g, t in zip(gradients, shapes, strict=True)]
        norms = (layer_norms if self._layout.sharded else tensor_norms)(gradients, self._layout)
        norm = float(torch.linalg.vector_norm(norms))  # waits for the device
        if not math.isfinite(norm) or norm == 0:
            return None
        pairs = [(w, m) for w, m in zip(weights, moves, strict=True) if m is not None]
        return [w for w, _ in pairs], [m for _, m in pairs], self._rho / norm


def _several_ranks() -> bool:
    """Then all must have equally many passes, whatever one of them draws."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
