"""Layer-wise decayed rates: which layer a parameter is in, for models of several shapes."""

import pytest
import torch
from torch import nn

from dynaxx.errors import BadInput
from dynaxx.optim._layer_decay import layer_decay


def rates(model, decay=0.5):
    return {
        name: group["lr"] for group in layer_decay(model, 1.0, decay, weight_decay=0.0) for name, _ in group["params"]
    }


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(3))
        self.embed = nn.Embedding(5, 4)
        self.encoder = nn.Module()
        self.encoder.blocks = nn.ModuleList(nn.TransformerEncoderLayer(4, 2, 8) for _ in range(2))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight


def test_blocks_are_layers_and_what_is_tied_is_of_the_first():
    found = rates(Transformer())
    assert found["position"] == found["embed.weight"] == 0.25
    assert {v for k, v in found.items() if k.startswith("encoder.blocks.0")} == {0.5}
    assert {v for k, v in found.items() if k.startswith("encoder.blocks.1")} == {1.0}
    assert found["norm.weight"] == 1.0
    assert "head.weight" not in found


def test_nested_lists_and_norms():
    block = lambda: nn.ModuleDict({"conv": nn.Conv2d(2, 2, 1), "bn": nn.BatchNorm2d(2)})  # noqa: E731
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Sequential(block(), block()), nn.Linear(2, 1))
    found = rates(model)
    assert found["0.weight"] == found["1.weight"] == 1 / 8
    assert found["2.0.conv.weight"] == found["2.0.bn.bias"] == 1 / 4
    assert found["2.1.conv.weight"] == 1 / 2
    assert found["3.weight"] == 1


def test_groups_go_into_any_optimizer_and_skip_the_frozen():
    model = Transformer()
    model.embed.requires_grad_(False)
    model.position.requires_grad_(False)
    groups = layer_decay(model, 0.1, 0.5, weight_decay=0.3)
    optimizer = torch.optim.AdamW(groups)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.1]
    assert optimizer.param_groups[0]["weight_decay"] == 0.3
    assert optimizer.param_groups[0]["param_names"][0].startswith("encoder.blocks.0")
    held = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert held == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert set(rates(nn.Linear(2, 2)).values()) == {1.0}
    assert len(layer_decay(nn.MultiheadAttention(4, 2), 0.1)) == 1


def test_bad_input():
    with pytest.raises(BadInput, match="rate"):
        layer_decay(nn.Linear(1, 1), 0.0)
    with pytest.raises(BadInput, match="decay"):
        layer_decay(nn.Linear(1, 1), 0.1, 1.5)
    with pytest.raises(BadInput, match="no parameter requires a gradient"):
        layer_decay(nn.Linear(1, 1).requires_grad_(False), 0.1)
