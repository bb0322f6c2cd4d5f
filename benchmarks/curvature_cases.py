"""Networks with batches that curvature is measured on, the same for Dynaxx and its peers."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dynaxx.core.objective import Objective

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A network with a batch.

    Args:
        name: What it is.
        model: The network, in evaluation mode.
        batch: Inputs and labels.
        limit: What a product may cost, in gradients.
    """

    name: str
    model: nn.Module
    batch: Batch
    limit: float

    @property
    def objective(self) -> Objective:
        """The cross-entropy at the network's weights."""
        return Objective(self.model, loss, [self.batch])


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


class Transformer(nn.Module):
    """Two blocks of width 128 over 32 positions, classified at the mean position."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, 128)
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True, activation="gelu")
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(128, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of shape (batch, 256)."""
        return self.head(self.blocks(self.embed(tokens)).mean(1))


def product_cases() -> list[Case]:
    torch.manual_seed(0)
    mlp = nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )  # fmt: skip
    cnn = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    return [
        Case(name="MLP 784-512-512-10, batch 256", model=mlp.eval(), limit=1.6,
             batch=(torch.randn(256, 784), torch.randint(0, 10, (256,)))),
        Case(name="CNN on 3×16×16, batch 64", model=cnn.eval(), limit=2.1,
             batch=(torch.randn(64, 3, 16, 16), torch.randint(0, 10, (64,)))),
        Case(name="transformer width 128, 2 blocks, 8×32", model=Transformer().eval(), limit=2.6,
             batch=(torch.randint(0, 256, (8, 32)), torch.randint(0, 256, (8,)))),
    ]  # fmt: skip


def digits(standardised: bool = True) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32)
    x = (x - x.mean(0)) / (x.std(0) + 1e-6) if standardised else x / 16
    return x, torch.tensor(data.target)


def digits_cnn() -> Case:
    """The CNN of 151 306 parameters after 100 steps of SGD, batch 512."""
    x, y = digits(standardised=False)
    x = x.view(-1, 1, 8, 8)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    train(model, x, y, steps=100, rate=0.1)
    return Case(name="digits CNN, 151 306 parameters, batch 512", model=model, batch=(x[:512], y[:512]), limit=0)


def digits_mlp(steps: int) -> Case:
    """A net of 910 parameters whose whole Hessian can be had, after gradient descent on 500 examples."""
    x, y = (part[:500] for part in digits(standardised=False))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, (x, y)).backward()
        optimizer.step()
    model.zero_grad()
    return Case(name=f"digits MLP, 910 parameters, step {steps}", model=model, batch=(x, y), limit=0)


def train(model: nn.Module, x: Tensor, y: Tensor, *, steps: int, rate: float) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(0, len(y), (128,), generator=generator)
        optimizer.zero_grad()
        loss(model, (x[rows], y[rows])).backward()
        optimizer.step()
    model.eval()
    model.zero_grad()
