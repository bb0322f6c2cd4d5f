"""A byte-level transformer language model on the source text of Python's own standard library."""

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dynaxx.core.task import Split, Task, derive_seed
from dynaxx.errors import BadInput
from dynaxx.tasks._batches import Minibatches, permutation
from dynaxx.tasks._schedule import warmup_cosine
from dynaxx.tasks._stdlib import Text, standard_library
from dynaxx.tasks._transformer import Transformer

Windows = tuple[torch.Tensor, torch.Tensor]

VALIDATION_WINDOWS = 64
"""Spread evenly over the validation text; few, because a run looks at them fifty times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Size:
    width: int
    depth: int
    heads: int
    context: int
    batch_size: int
    steps: int
    learning_rate: float
    threads: int | None = None


# tiny reaches 2.3 bits per byte in a minute. It has one thread because, measured on two cores, a step takes 39 ms on
# one; on two, 30 ms while the machine is idle, but 215-270 ms while another process keeps one core busy.
_SIZES = {
    "tiny": _Size(width=96, depth=3, heads=3, context=128, batch_size=8, steps=1000, learning_rate=5e-3, threads=1),
    "small": _Size(width=192, depth=4, heads=4, context=256, batch_size=8, steps=2500, learning_rate=3e-3),
    "medium": _Size(width=384, depth=6, heads=6, context=256, batch_size=4, steps=10_000, learning_rate=1.5e-3),
}


class StdlibLM(Task):
    """Predict each next byte of Python source text.

    A batch is (inputs, targets), both int64 of shape (batch, context); targets are the inputs one byte later.
    """

    sizes = tuple(_SIZES)

    def __init__(self, size: str | None = None) -> None:
        super().__init__(size)
        assert self.size is not None
        self._chosen = _SIZES[self.size]
        self.width = self._chosen.width
        self.steps = self._chosen.steps
        self.batch_size = self._chosen.batch_size
        self.threads = self._chosen.threads

    @property
    def text(self) -> Text:
        """The bytes of both splits."""
        return standard_library()

    def scaled(self, width: int) -> Self:
        """The same with residual stream and MLPs of another width, and heads as wide as before, so as many as fit.

        Args:
            width: Features per position; rounded down to a multiple of twice the number of heads.

        Returns:
            The task of that width.

        Raises:
            BadInput: Fewer than 2 features.
        """
        if width < 2:
            raise BadInput(f"StdlibLM.scaled({width}): a transformer has at least 2 features per position.")
        heads = max(1, round(width / (self._chosen.width // self._chosen.heads)))
        other = type(self)(self.size)
        other.width = width - width % (2 * heads)
        other._chosen = replace(self._chosen, width=other.width, heads=heads)
        return other

    def model(self) -> nn.Module:
        """A decoder-only transformer: 0.4 M (tiny), 1.9 M (small) or 10.8 M (medium) parameters."""
        chosen = self._chosen
        return Transformer(width=chosen.width, depth=chosen.depth, heads=chosen.heads, context=chosen.context)

    def optimizer(self, model: nn.Module) -> Optimizer:
        """AdamW; weight decay 0.1 on matrices only."""
        matrices = [p for p in model.parameters() if p.dim() >= 2]
        vectors = [p for p in model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self._chosen.learning_rate, betas=(0.9, 0.99), fused=True)

    def scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """Linear warm-up over 4 % of the steps, then half a cosine to 5 % of the peak."""
        return warmup_cosine(optimizer, steps=self.steps, warmup=max(1, self.steps // 25), final=0.05)

    def batches(self, split: Split, seed: int) -> Sequence[Windows]:
        """Train: every window of the text once, at an offset and in an order drawn from the seed.

        Validation: the same windows, whatever the seed.
        """
        context = self._chosen.context
        if split == "train":
            data, batch_size = self.text.train, self.batch_size
            starts = context * permutation(len(data) // context - 1, seed) + derive_seed(seed, "offset") % context
        else:
            # 16 windows at a time stay in the cache; their mean does not depend on the training batch size.
            data, batch_size = self.text.validation, 16
            windows = (len(data) - 1) // context
            starts = torch.arange(VALIDATION_WINDOWS) * windows // VALIDATION_WINDOWS * context
        span = torch.arange(context + 1)

        def gather(rows: torch.Tensor) -> Windows:
            window = data[rows[:, None] + span].long()
            return window[:, :-1], window[:, 1:]

        return Minibatches(gather, starts, batch_size)

    def loss(self, model: nn.Module, batch: Windows) -> torch.Tensor:
        """Mean cross-entropy per byte, in nats."""
        inputs, targets = batch
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    def metrics(self, model: nn.Module, batch: Windows) -> Mapping[str, torch.Tensor]:
        """Bits per byte, loss / ln 2; a uniform guess has 8."""
        return {"bits_per_byte": self.loss(model, batch) / math.log(2)}

    def weight(self, batch: Windows) -> float:
        """The number of predicted bytes."""
        return float(batch[1].numel())

    def facts(self) -> Mapping[str, str | int | float]:
        """The interpreter's version, and the size and hash of its library's text."""
        text = self.text
        return {
            "data": "source text of Python's standard library",
            "python": platform.python_version(),
            "files": text.files,
            "train_bytes": len(text.train),
            "validation_bytes": len(text.validation),
            "xxh3_128": text.digest,
        }
