"""What every test of checkpoints needs: equality to the last bit, types and order included."""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dynaxx.checkpoints import CheckpointStore, decode, encode

sys.path.insert(0, str(Path(__file__).parent))  # for `_sharded_cases`, which is a script of its own too


def _raw(tensor):
    tensor = tensor.detach().cpu().contiguous()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor).contiguous()
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def _identical(a, b):
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(_raw(a), _raw(b))
        )
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack(">d", a) == struct.pack(">d", b)
    if isinstance(a, complex):
        return _identical(a.real, b.real) and _identical(a.imag, b.imag)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return len(a) == len(b) and all(_identical(k, m) and _identical(a[k], b[m]) for k, m in zip(a, b, strict=True))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_identical, a, b))
    return a == b


@pytest.fixture(scope="session")
def identical():
    return _identical


def _through(state):
    """To bytes and back, in memory."""
    tensors, tree = encode(state)
    return decode({name: t.clone() for name, t in tensors.items()}, json.loads(json.dumps(tree)))


@pytest.fixture(scope="session")
def through():
    return _through


def _train(model, optimizer, steps=3, scheduler=None):
    losses = []
    for _ in range(steps):
        loss = (model(torch.randn(6, 4)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="session")
def train():
    return _train


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "run" / "checkpoints")
