"""Targeted dropout: the smallest weights or units drop out, so that a net learns to do without them."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from dynaxx.core.methods import Perturber
from dynaxx.core.parameters import bare_name, is_sharded
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.perturb._common import Kept, Noise, trainable

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Modules with one row of weights per output unit."""


class TargetedDropout(Perturber):
    """Targeted dropout: of each output unit's weights the γ smallest in magnitude are zero with probability α each.

    With `of="units"` whole units are: the γ of a layer whose rows have the smallest norms. What is kept is not scaled
    up. Dropped weights get no gradient in that step and come back after it from a copy. Its purpose is a net that can
    be pruned: within `pruned()` all candidates are zero.

    Covered are the weights of Linear and Conv1d to Conv3d. Not covered: biases, embeddings, transposed convolutions,
    recurrent layers, the packed projections of MultiheadAttention, sharded parameters. One mask holds for a whole step,
    all micro-batches included; the paper draws one per forward.

    Args:
        model: The model.
        share: γ, the candidates among the weights or units. The paper varies it; half is where it begins to matter.
        probability: α, with which a candidate drops out.
        of: "weights" or "units".
        exclude: Paths of modules to leave alone, such as the output layer, whose units are the classes.
        seed: Of the masks, which depend on (seed, step, name) alone.

    Raises:
        BadInput: A number is out of its range, a path is none, or there is no layer to drop from.
        NotApplicable: Weights are sharded.

    Reference: Gomez et al. 2019, "Learning Sparse Networks Using Targeted Dropout".
    """

    memory: ClassVar[str] = "1.25 × the weights it covers"

    def __init__(
        self,
        model: nn.Module,
        *,
        share: float = 0.5,
        probability: float = 0.5,
        of: Literal["weights", "units"] = "weights",
        exclude: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        for name, value in (("share", share), ("probability", probability)):
            if not 0 <= value <= 1:
                raise BadInput(f"TargetedDropout({name}=...) must be between 0 and 1. Got {value!r}.")
        if of not in ("weights", "units"):
            raise BadInput(f"TargetedDropout(of=...) must be 'weights' or 'units'. Got {of!r}.")
        trainable("TargetedDropout", model)
        self._weights = _covered(model, exclude)
        self._share, self._probability, self._of = share, probability, of
        self._noise = Noise(seed)
        self._step = 0
        self._begun = False
        self._kept: Kept | None = None
        self._masks: dict[str, Tensor] = {}

    def begin(self) -> None:
        """Draw the masks, and drop what they say."""
        self._undo()
        self._begun = True
        self._kept = Kept([p.detach() for p in self._weights.values()])
        with torch.no_grad():
            for name, p in self._weights.items():
                generator = self._noise.generator(self._step, name, p)
                draws = torch.rand(
                    p.shape if self._of == "weights" else p.shape[:1], device=p.device, generator=generator
                )
                drop = draws < self._probability
                self._masks[name] = ~(self._candidates(p) & (drop if self._of == "weights" else _column(drop, p)))
                p.masked_fill_(~self._masks[name], 0.0)  # a product would keep NaN and signs of zero

    def ascend(self) -> bool:
        """Weights that were dropped have no gradient."""
        with torch.no_grad():
            for name, mask in self._masks.items():
                gradient = self._weights[name].grad
                if gradient is not None:
                    gradient.masked_fill_(~mask, 0.0)
        return False

    def restore(self) -> None:
        """The weights as they were."""
        self._undo()
        self._step += self._begun
        self._begun = False

    @contextmanager
    def pruned(self) -> Generator[None]:
        """All candidates zero, as the net is meant to be used; the weights come back bit for bit."""
        kept = Kept([p.detach() for p in self._weights.values()])
        try:
            with torch.no_grad():
                for p in self._weights.values():
                    p.masked_fill_(self._candidates(p), 0.0)
            yield
        finally:
            kept.put_back()

    def state_dict(self) -> dict[str, Any]:
        """Steps so far."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._step = int(state["step"])

    def _candidates(self, weight: Tensor) -> Tensor:
        """The ⌊γ n⌋ smallest of each row's n weights, or of the n rows, as a mask."""
        rows = weight.detach().abs().flatten(1)
        if self._of == "units":
            return _column(_smallest(rows.square().sum(1, keepdim=True).T, self._share)[0], weight)
        return _smallest(rows, self._share).view_as(weight)

    def _undo(self) -> None:
        self._masks.clear()
        if self._kept is not None:
            self._kept.put_back()
            self._kept = None


def _smallest(rows: Tensor, share: float) -> Tensor:
    """A mask of the ⌊share·n⌋ smallest entries of each row."""
    count = int(share * rows.shape[1] + 1e-9)  # 0.29 · 100 is 28.999…
    chosen = rows.topk(count, dim=1, largest=False).indices
    return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, chosen, True)


def _column(rows: Tensor, like: Tensor) -> Tensor:
    return rows.view(-1, *[1] * (like.dim() - 1)).expand_as(like)


def _covered(model: nn.Module, exclude: Sequence[str]) -> dict[str, Tensor]:
    layers = {bare_name(path): m for path, m in model.named_modules() if isinstance(m, LAYERS)}
    unknown = [path for path in exclude if path not in layers]
    if unknown:
        raise BadInput(
            f"TargetedDropout(exclude=...) must name Linear or Conv modules. Got {unknown[0]!r}; "
            f"there are {', '.join(layers)}."
        )
    found = {path: m.weight for path, m in layers.items() if path not in exclude and m.weight.requires_grad}
    if not found:
        raise BadInput("TargetedDropout(model): there is no trainable Linear or Conv layer to drop weights from.")
    if any(is_sharded(weight) for weight in found.values()):
        raise NotApplicable("TargetedDropout: weights are sharded, and a unit's smallest are found among all of them.")
    return found
