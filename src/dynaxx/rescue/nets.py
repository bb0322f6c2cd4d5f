"""The four small tasks of the suite, each drawn anew from a seed: perceptron, convolutions, LSTM and transformer."""

import math
import random
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dynaxx.core.task import Split, Task, derive_seed
from dynaxx.errors import UnknownName
from dynaxx.rescue._chain import SYMBOLS, entropy, sequences
from dynaxx.tasks._batches import Minibatches, permutation
from dynaxx.tasks._schedule import warmup_cosine
from dynaxx.tasks._stdlib import standard_library
from dynaxx.tasks._transformer import Transformer
from dynaxx.tasks.digits import Digits

Pair = tuple[torch.Tensor, torch.Tensor]
STEPS = 400
"""Optimizer steps of a run: enough for each net to get within sight of its floor, few enough for hundreds of runs."""
VALIDATION = 256
"""Examples (or windows) that a run is judged on; one batch."""


class SmallTask(Task):
    """A net on data without download; sizes, activation, optimizer, batch and rate are drawn from the seed.

    Drawn, so that no threshold can be tuned to points; matched seeds give twins that differ in the planted fault alone.

    Args:
        seed: Of the draw, not of the run.
    """

    steps = STEPS
    threads = 1

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.draw = random.Random(derive_seed(seed, type(self).__name__))
        self.rate = 1e-3
        self.warmup = self.draw.choice((0.0, 0.05, 0.1))
        self.decay = self.draw.choice(("constant", "cosine"))

    def around(self, value: float) -> float:
        """A value up to 1.5 times larger or smaller, uniform in its logarithm.

        Args:
            value: The middle.

        Returns:
            The draw.
        """
        return value * 1.5 ** self.draw.uniform(-1, 1)

    def scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """Warm-up, then constant or half a cosine to a twentieth, as drawn."""
        final = 0.05 if self.decay == "cosine" else 1.0
        return warmup_cosine(optimizer, steps=self.steps, warmup=round(self.warmup * self.steps), final=final)

    def loss(self, model: nn.Module, batch: Pair) -> torch.Tensor:
        """Mean cross-entropy over all predictions, in nats."""
        inputs, targets = batch
        return F.cross_entropy(model(inputs).flatten(0, targets.dim() - 1), targets.flatten())

    def metrics(self, model: nn.Module, batch: Pair) -> Mapping[str, torch.Tensor]:
        """The share of right predictions."""
        inputs, targets = batch
        return {"accuracy": (model(inputs).argmax(-1) == targets).float().mean()}


class Perceptron(SmallTask):
    """Digits by a perceptron with two to four hidden layers, and Adam or AdamW."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.hidden = self.draw.choice((48, 64, 96))
        self.depth = self.draw.choice((2, 3, 4))
        self.activation = self.draw.choice((nn.ReLU, nn.GELU, nn.Tanh))
        self.batch_size = self.draw.choice((32, 48, 64))
        self.rate = self.around(3e-3)
        self.kind = self.draw.choice((torch.optim.Adam, torch.optim.AdamW))

    def model(self) -> nn.Module:
        """Linear layers and activations, initialised as torch does."""
        widths = [64] + [self.hidden] * self.depth
        body = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), self.activation())]
        return nn.Sequential(*body, nn.Linear(self.hidden, 10))

    def optimizer(self, model: nn.Module) -> Optimizer:
        """Adam or AdamW, as drawn."""
        return self.kind(model.parameters(), lr=self.rate)

    def batches(self, split: Split, seed: int) -> Sequence[Pair]:
        """Images as vectors, standardised."""
        return _digits(split, seed, self.batch_size, flat=True)


class Convolutions(SmallTask):
    """Digits by two convolutions, with batch normalisation or without, and SGD with momentum."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.channels = self.draw.choice((8, 12))
        self.normalised = self.draw.random() < 0.5
        self.batch_size = self.draw.choice((32, 48, 64))
        self.rate = self.around(0.08 if self.normalised else 0.03)

    def model(self) -> nn.Module:
        """Two convolutions, pooling, a linear layer."""
        c = self.channels
        return nn.Sequential(
            *self._convolution(1, c), nn.MaxPool2d(2), *self._convolution(c, 2 * c), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(8 * c, 32), nn.ReLU(), nn.Linear(32, 10),
        )  # fmt: skip

    def optimizer(self, model: nn.Module) -> Optimizer:
        """SGD with momentum 0.9 and weight decay 5e-4."""
        return torch.optim.SGD(model.parameters(), lr=self.rate, momentum=0.9, weight_decay=5e-4)

    def batches(self, split: Split, seed: int) -> Sequence[Pair]:
        """Images, standardised."""
        return _digits(split, seed, self.batch_size, flat=False)

    def _convolution(self, inputs: int, outputs: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=not self.normalised)
        return [convolution, *([nn.BatchNorm2d(outputs)] if self.normalised else []), nn.ReLU()]


class Recurrent(SmallTask):
    """The next symbol of a noisy chain of order two by an LSTM, and Adam; the floor of the loss is known."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.hidden = self.draw.choice((32, 48))
        self.batch_size = self.draw.choice((32, 48))
        self.rate = self.around(8e-3)

    def model(self) -> nn.Module:
        """Embedding, LSTM, linear layer."""
        return _LSTM(self.hidden)

    def optimizer(self, model: nn.Module) -> Optimizer:
        """Adam."""
        return torch.optim.Adam(model.parameters(), lr=self.rate)

    def batches(self, split: Split, seed: int) -> Sequence[Pair]:
        """Fresh sequences in each epoch, 64 batches long; the same ones for validation."""
        count = 64 * self.batch_size if split == "train" else VALIDATION
        drawn = sequences(count, seed if split == "train" else 1)
        size = self.batch_size if split == "train" else count
        return Minibatches(lambda rows: (drawn[rows, :-1], drawn[rows, 1:]), torch.arange(count), size)


class Attentive(SmallTask):
    """The next byte of Python source by a small transformer, and AdamW."""

    context = 32

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.features = self.draw.choice((32, 48))
        self.batch_size = self.draw.choice((12, 16))
        self.rate = self.around(6e-3)
        self.warmup = self.draw.choice((0.05, 0.1))

    def model(self) -> nn.Module:
        """Two blocks of two heads."""
        return Transformer(width=self.features, depth=2, heads=2, context=self.context)

    def optimizer(self, model: nn.Module) -> Optimizer:
        """AdamW; weight decay 0.1 on matrices only."""
        groups = [
            {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.rate, betas=(0.9, 0.99))

    def batches(self, split: Split, seed: int) -> Sequence[Pair]:
        """Windows of the standard library's text; the same ones for validation."""
        text = standard_library()
        data = text.train if split == "train" else text.validation
        windows = (len(data) - 1) // self.context
        if split == "train":
            starts = self.context * permutation(windows, seed)
        else:
            starts = torch.arange(VALIDATION) * windows // VALIDATION * self.context
        span = torch.arange(self.context + 1)

        def gather(rows: torch.Tensor) -> Pair:
            window = data[rows[:, None] + span].long()
            return window[:, :-1], window[:, 1:]

        return Minibatches(gather, starts, self.batch_size if split == "train" else VALIDATION)

    def weight(self, batch: Pair) -> float:
        """The number of predicted bytes."""
        return float(batch[1].numel())


class _LSTM(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, 16)
        self.lstm = nn.LSTM(16, hidden, batch_first=True)
        self.head = nn.Linear(hidden, SYMBOLS)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embedding(inputs))[0])


NETS: Mapping[str, type[SmallTask]] = {
    "mlp": Perceptron,
    "cnn": Convolutions,
    "lstm": Recurrent,
    "transformer": Attentive,
}
"""The suite's own tasks by name."""


def small_task(net: str, seed: int) -> SmallTask:
    """One of the suite's own tasks.

    Args:
        net: Its name.
        seed: Of the draw.

    Returns:
        The task.

    Raises:
        UnknownName: There is no such net.
    """
    if net not in NETS:
        raise UnknownName("net", net, NETS)
    return NETS[net](seed)


def _digits(split: Split, seed: int, batch_size: int, *, flat: bool) -> Sequence[Pair]:
    images, labels = _standardised(split, flat)
    order = permutation(len(labels), seed) if split == "train" else torch.arange(len(labels))
    return Minibatches(
        lambda rows: (images[rows], labels[rows]), order, batch_size if split == "train" else len(labels)
    )


@cache
def _standardised(split: Split, flat: bool) -> Pair:
    source = Digits()
    source.batch_size = 10**6
    (images, labels), (known, _) = source.batches(split, 0)[0], source.batches("train", 0)[0]
    images = (images - known.mean()) / known.std()
    return (images.flatten(1) if flat else images), labels


def floor(net: str) -> float:
    """The smallest loss that any model can reach, where it is known.

    Args:
        net: A net's name.

    Returns:
        Nats per prediction; NaN where it is unknown.
    """
    return entropy() if net == "lstm" else math.nan
