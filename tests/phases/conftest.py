"""A small transformer on synthetic text of order 2, and a loop over it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dynaxx.tasks._transformer import Transformer


class Text:
    """A source whose next letter depends on the last two; 16 letters."""

    letters = 16

    def __init__(self, seed=0, length=32):
        draw = torch.Generator().manual_seed(1000 + seed)
        logits = 2.5 * torch.randn(self.letters, self.letters, self.letters, generator=draw)
        self.table = logits.softmax(-1)
        self.length = length

    def batch(self, number, size=16):
        draw = torch.Generator().manual_seed(number)
        found = torch.randint(self.letters, (size, self.length + 1), generator=draw)
        for t in range(2, self.length + 1):
            rows = self.table[found[:, t - 2], found[:, t - 1]]
            found[:, t] = torch.multinomial(rows, 1, generator=draw)[:, 0]
        return found

    @staticmethod
    def loss(model, batch):
        return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


@pytest.fixture
def text():
    return Text


@pytest.fixture
def transformer():
    def build(seed=0, width=32):
        torch.manual_seed(seed)
        model = Transformer(width=width, depth=2, heads=2, context=32)
        # Letters that never occur have no gradient to speak of, but Adam moves their rows as far as any.
        model.embedding = nn.Embedding(Text.letters, width)
        model.head = nn.Linear(width, Text.letters, bias=False)
        nn.init.normal_(model.embedding.weight, std=0.5)
        nn.init.normal_(model.head.weight, std=0.5 * width**-0.5)
        return model

    return build


@pytest.fixture
def net():
    """A small net with matrices, vectors and no embedding; quick enough for everything but transformers."""

    def build(seed=0):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))

    return build


@pytest.fixture
def train():
    """One step, deterministic by number; returns the loss and how far the weights went."""

    def step(model, optimizer, number):
        draw = torch.Generator().manual_seed(number)
        x, y = torch.randn(12, 6, generator=draw), torch.randint(3, (12,), generator=draw)
        before = [p.detach().clone() for p in model.parameters()]
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = torch.stack([(p.detach() - b).norm() for p, b in zip(model.parameters(), before, strict=True)])
        return float(loss.detach()), float(moved.norm())

    return step
