import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from dynaxx.core.objective import Objective
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.numerics.permutation import Part, Symmetry
from dynaxx.numerics.symmetry import checked, outputs, state, symmetry, verify


def entropy(model, batch):
    out = model(batch[0])
    return functional.cross_entropy(out.reshape(-1, out.shape[-1]), batch[1].reshape(-1))


class Convolutional(nn.Module):
    """Convolutions with batch normalisation and a flatten before the head."""

    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.two, self.head = nn.Conv2d(6, 5, 3, padding=1), nn.Linear(5 * 16, 4)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.norm(self.one(x))), 2)
        return self.head(functional.gelu(self.two(x)).flatten(1))


class Residual(nn.Module):
    """One stream of channels through a block, a depthwise convolution and a group normalisation."""

    def __init__(self):
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.second = nn.Conv2d(8, 7, 3, padding=1), nn.BatchNorm2d(7)
        self.outer, self.depth = nn.Conv2d(7, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8)
        self.norm, self.head = nn.GroupNorm(2, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = functional.relu(self.first(self.stem(x)))
        x = x + self.outer(functional.relu(self.second(self.inner(x))))
        return self.head(self.norm(self.depth(x)).mean((2, 3)))


class Language(nn.Module):
    """A decoder with joint query-key-value weights, tied embeddings and learned positions."""

    def __init__(self, vocabulary=11, width=12, heads=3):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Parameter(torch.randn(9, width))
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.joint, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 20), nn.Linear(20, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        x = self.tokens(ids) + self.positions[: ids.shape[1]]
        parts = self.joint(self.norms[0](x)).split(x.shape[-1], dim=-1)
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in parts)
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        x = x + self.down(functional.silu(self.up(self.norms[1](x))))
        return self.head(self.norms[2](x))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.head = nn.Embedding(11, 8), nn.Linear(8, 4)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, ids):
        return self.head(self.layers(self.tokens(ids)).mean(1))


IMAGES = (lambda: torch.randn(4, 3, 8, 8), lambda: torch.randint(0, 4, (4,)))
TOKENS = (lambda: torch.randint(0, 11, (2, 7)), lambda: torch.randint(0, 11, (2, 7)))
CASES = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 9), nn.LayerNorm(9), nn.Tanh(), nn.Linear(9, 4)),
        (lambda: torch.randn(5, 6), lambda: torch.randint(0, 4, (5,))),
        {8: 1, 9: 1},
    ),
    "convolutional": (Convolutional, IMAGES, {6: 1, 5: 1}),
    "residual": (Residual, IMAGES, {2: 1, 4: 1, 7: 1}),  # the stream: 2 groups of 4 channels
    "language": (Language, TOKENS, {12: 1, 3: 1, 4: 1, 20: 1}),
    "encoder": (Encoder, (TOKENS[0], lambda: torch.randint(0, 4, (2,))), {8: 1, 2: 2, 4: 2, 16: 2}),
}
"""Model, batch, and how many groups of each size there are."""


def case(name, seed=0):
    torch.manual_seed(seed)
    make, batch, sizes = CASES[name]
    return Objective(make(), entropy, [tuple(part() for part in batch)]), sizes


@pytest.mark.parametrize("name", CASES)
def test_the_groups_are_found_and_leave_the_function_unchanged(name):
    objective, sizes = case(name)
    found = symmetry(objective)
    assert sorted(found.groups.values()) == sorted(size for size, times in sizes.items() for _ in range(times))
    assert verify(objective, found) < 1e-5
    wide = objective.in_float64()
    tensors = {**state(wide), **wide._wide}  # the buffers in float64 too
    wide.batches = [tuple(t.double() if t.is_floating_point() else t for t in wide.batches[0])]
    before = outputs(wide, tensors)
    moved = found.apply(tensors, found.random(3))
    assert len(before) > 1
    assert any(not torch.equal(moved[name], tensors[name]) for name in tensors)
    for one, two in zip(before, outputs(wide, moved), strict=True):
        assert float((one - two).abs().max()) < 1e-12


def test_what_is_not_moved_along_is_found_out():
    """Each single axis left behind is seen, also the gains and statistics of a fresh normalisation, all equal."""
    for name in ("mlp", "convolutional", "residual", "language"):
        objective, _ = case(name)
        found = symmetry(objective)
        for tensor, axes in found.axes.items():
            for i, axis in enumerate(axes):
                if all(part.group is None for part in axis):
                    continue
                fixed = tuple(Part(group=None, size=part.size) for part in axis)
                broken = {**found.axes, tensor: (*axes[:i], fixed, *axes[i + 1 :])}
                with pytest.raises(NotApplicable, match="changes the outputs"):
                    verify(objective, Symmetry(groups=found.groups, axes=broken))


def test_the_model_is_as_it_was():
    objective, _ = case("convolutional")
    model = objective.model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    stream = torch.get_rng_state()
    verify(objective, symmetry(objective))
    assert model.training
    assert model.norm.training
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not model._forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_a_recurrent_network_says_which_operation_stands_against_it():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.cells(x)[0][:, -1])

    objective = Objective(Recurrent(), entropy, [(torch.randn(2, 5, 3), torch.tensor([0, 1]))])
    with pytest.raises(NotApplicable, match=r"cells\.weight_ih_l0.*in 'cells'"):
        symmetry(objective)


def test_units_whose_order_matters_stay():
    class Ordered(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x):
            x = torch.cumsum(self.a(x), dim=-1)
            x = self.b(x) * torch.arange(6.0)
            return self.d(torch.cat([self.c(x)[:, :2], self.c(x)[:, 2:]], dim=1))

    objective = Objective(Ordered(), entropy, [(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))])
    with pytest.raises(NotApplicable, match=r"a.weight\[0\]: cumsum"):
        symmetry(objective)


def test_unused_and_frozen_parameters():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle, self.head = nn.Linear(3, 5), nn.Linear(7, 7), nn.Linear(5, 2)
            self.used.weight.requires_grad_(False)

        def forward(self, x):
            return self.head(self.used(x).relu())

    objective = Objective(Idle(), entropy, [(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))])
    found = symmetry(objective)
    assert list(found.groups.values()) == [5]
    assert found.reasons["idle.weight[0]"] == "it is not used"


def test_a_symmetry_by_hand():
    objective, _ = case("mlp")
    names = {"0.weight": ("h", None), "0.bias": ("h",), "2.weight": (None, "h")}
    assert checked(objective, names).groups == {"h": 8}
    with pytest.raises(NotApplicable, match=r"group 'h' \(0.weight, 0.bias\)"):
        checked(objective, {k: v for k, v in names.items() if k != "2.weight"})
    with pytest.raises(BadInput, match="each axis"):
        checked(objective, {"0.weight": ("h",)})
    with pytest.raises(BadInput, match="each axis"):
        checked(objective, {"9.weight": ("h", None)})
    with pytest.raises(BadInput, match="6 units here and 8 elsewhere"):
        checked(objective, {"0.weight": ("h", "h")})
    with pytest.raises(BadInput, match="multiply to its length, 8"):
        checked(objective, {"0.bias": ([("h", 3), (None, 2)],)})
    with pytest.raises(BadInput, match="no group"):
        checked(objective, {"0.weight": (None, None)})


def test_products_are_moved_factor_by_factor():
    s = Symmetry.of({"w": ([("a", 2), ("b", 3)], None)}, {"w": (6, 2)})
    w = torch.arange(12.0).reshape(6, 2)
    moved = s.moved("w", w, {"a": torch.tensor([1, 0]), "b": torch.tensor([2, 0, 1])})
    expected = [3 * a + b for a in (1, 0) for b in (2, 0, 1)]
    assert torch.equal(moved, w[expected])
    assert math.prod(part.size for part in s.factors("w")) == w.numel()
