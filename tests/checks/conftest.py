"""A live point on a small classification problem, made to order."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from dynaxx.core.navigation import LivePoint


def _loss(model: nn.Module, batch: Any) -> torch.Tensor:
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


def _batches(count: int = 8, size: int = 32) -> list[Any]:
    draw = torch.Generator().manual_seed(1)
    centres = 2 * torch.randn(4, 6, generator=draw)
    found = []
    for _ in range(count):
        y = torch.randint(4, (size,), generator=draw)
        found.append((centres[y] + torch.randn(size, 6, generator=draw), y))
    return found


def _net(dropout: float = 0.0, norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    parts = [nn.Linear(6, 24), nn.BatchNorm1d(24) if norm else nn.Identity(), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*parts, nn.Linear(24, 4))


@pytest.fixture
def live() -> Callable[..., LivePoint]:
    """`live(model=…, optimizer=…, batches=…, trained=40)`."""

    def make(
        model: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        batches: list[Any] | None = None,
        trained: int = 20,
        loss: Callable[[nn.Module, Any], torch.Tensor] = _loss,
    ) -> LivePoint:
        model = _net() if model is None else model
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2) if optimizer is None else optimizer
        batches = _batches() if batches is None else batches
        for n in range(trained):
            optimizer.zero_grad()
            loss(model, batches[n % len(batches)]).backward()
            optimizer.step()
        optimizer.zero_grad()
        return LivePoint(
            step=100, model=model, optimizer=optimizer, loss=loss, batches=batches, weight=lambda b: float(len(b[0])),
            device=torch.device("cpu"),
        )  # fmt: skip

    return make


@pytest.fixture
def good_batches() -> Callable[..., list[Any]]:
    return _batches


@pytest.fixture
def net() -> Callable[..., nn.Module]:
    return _net
