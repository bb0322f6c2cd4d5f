import re

import pytest
import torch
from torch import nn

from dynaxx.core.parameters import Layout, bare_name, flat_real, is_compiled, is_sharded, local, own_parameters
from dynaxx.errors import BadInput


class Encoder(nn.Module):
    """Parameters at the root, in a submodule's own right, and tied."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.embed = nn.Embedding(7, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4, bias=False)])
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


def rows(layout):
    return {layer.name: (layer.kind, layer.parameters, layer.numel) for layer in layout.layers}


def test_a_layer_is_a_module_that_owns_parameters_and_a_tied_one_counts_once():
    layout = Layout(Encoder())
    assert rows(layout) == {
        "(root)": ("Encoder", ("scale",), 1),
        "embed": ("Embedding", ("embed.weight",), 28),
        "attention": ("MultiheadAttention", ("attention.in_proj_weight", "attention.in_proj_bias"), 60),
        "attention.out_proj": (
            "NonDynamicallyQuantizableLinear",
            ("attention.out_proj.weight", "attention.out_proj.bias"),
            20,
        ),
        "blocks.0": ("Linear", ("blocks.0.weight", "blocks.0.bias"), 20),
        "blocks.1": ("Linear", ("blocks.1.weight",), 16),
    }
    assert layout.numel == 145
    assert layout.layer_of == (0, 1, 2, 2, 3, 3, 4, 4, 5)
    assert layout.axis.labels == tuple(rows(layout))
    assert layout.axis.weights == (1.0, 28.0, 60.0, 20.0, 20.0, 16.0)
    assert layout.index(torch.device("cpu")).tolist() == list(layout.layer_of)
    assert layout.index(torch.device("cpu")) is layout.index(torch.device("cpu"))


def test_frozen_entries_are_counted_apart():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    assert [(layer.numel, layer.trainable) for layer in Layout(model).layers] == [(8, 2), (6, 6)]


@pytest.mark.parametrize(
    ("grouping", "names"),
    [
        (r"^blocks\.(\d+)", ["(root)", "embed", "attention", "attention.out_proj", "0", "1"]),
        (r"^\w+", ["scale", "embed", "attention", "blocks"]),
        (lambda name: "big" if name.startswith("attention") else "rest", ["rest", "big"]),
    ],
)
def test_layers_may_be_grouped(grouping, names):
    layout = Layout(Encoder(), grouping)
    assert [layer.name for layer in layout.layers] == names
    assert sum(layer.numel for layer in layout.layers) == 145
    for i, row in enumerate(layout.layer_of):
        assert layout.names[i] in layout.layers[row].parameters


def test_parameters_can_be_layers_of_their_own():
    layout = Layout(Encoder(), "parameters")
    assert tuple(layer.name for layer in layout.layers) == layout.names
    assert {layer.kind for layer in layout.layers} == {"group"}
    assert layout.layer_of == tuple(range(9))


@pytest.mark.parametrize(
    ("model", "grouping", "message"),
    [
        (nn.ReLU(), None, r"watch(model=ReLU): the model has no parameters"),
        (nn.Linear(1, 1), "(", r"watch(layers='(') is not a regular expression"),
        (nn.Linear(1, 1), 3, r"must be a regular expression or a callable from name to layer. Got 3"),
        (nn.Linear(1, 1), lambda name: None, r"It returned None for 'weight'"),
        (nn.Linear(1, 1), lambda name: "", r"It returned '' for 'weight'"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(model, grouping, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        Layout(model, grouping)


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("fc.weight", "fc.weight"),
        ("_orig_mod.fc.weight", "fc.weight"),
        ("module.fc.weight", "fc.weight"),
        ("module._orig_mod.fc.weight", "fc.weight"),
        ("_orig_mod.module.fc.weight", "fc.weight"),
        ("encoder._orig_mod.fc.weight", "encoder.fc.weight"),
        ("encoder._checkpoint_wrapped_module.fc", "encoder.fc"),
        ("_fsdp_wrapped_module.a._fsdp_wrapped_module.b", "a.b"),
        ("encoder.module.fc", "encoder.module.fc"),
        ("my_orig_mod.weight", "my_orig_mod.weight"),
        ("module", ""),
        ("", ""),
    ],
)
def test_wrappers_leave_no_trace_in_names(name, bare):
    assert bare_name(name) == bare


class Wrapper(nn.Module):
    """Stands in for DistributedDataParallel: the model is its attribute `module`."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def test_a_wrapped_model_has_the_layout_of_the_bare_one():
    bare = rows(Layout(Encoder()))
    wrapped = Layout(Wrapper(torch.compile(Encoder(), backend="eager")))
    assert rows(wrapped) == bare
    part = Encoder()
    part.blocks[0] = torch.compile(part.blocks[0], backend="eager")
    assert rows(Layout(part)) == bare


def test_a_module_named_module_beside_a_twin_of_its_parameter_keeps_its_name():
    model = nn.Linear(2, 1)
    model.module = nn.Linear(3, 1)
    layout = Layout(model)
    assert layout.names == ("weight", "bias", "module.weight", "module.bias")
    assert [(layer.name, layer.numel) for layer in layout.layers] == [("(root)", 3), ("module", 4)]


def test_gradients_and_parameters_are_seen_as_they_stand():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    layout = Layout(model)
    assert layout.local_gradients() == [None] * 4
    model[0](torch.ones(1, 2)).sum().backward()
    seen = layout.local_gradients()
    assert [None if g is None else id(g) for g in seen] == [
        id(model[0].weight.grad),
        id(model[0].bias.grad),
        None,
        None,
    ]
    held = layout.local_parameters()
    assert all(not p.requires_grad for p in held)
    assert [p.data_ptr() for p in held] == [p.data_ptr() for p in model.parameters()]
    assert not layout.sharded
    assert layout.mesh is None


def test_what_needs_no_unpacking_is_told():
    assert Layout(nn.Linear(2, 1)).plain
    assert not Layout(nn.Embedding(3, 2, sparse=True)).plain
    assert not Layout(nn.ParameterList([torch.zeros(2, dtype=torch.complex64)])).plain


def test_a_value_of_the_layout_is_computed_once():
    layout = Layout(nn.Linear(2, 1))
    assert layout.memo("x", lambda: 1) == layout.memo("x", lambda: 2) == 1


def test_compiled_parts_are_found():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert not is_compiled(model)
    assert is_compiled(torch.compile(model, backend="eager"))
    assert not is_compiled(model)
    model[0].compile(backend="eager")
    assert is_compiled(model)


def test_entries_as_one_real_vector():
    z = torch.tensor([[1 + 2j, 3 - 4j]])
    assert flat_real(z).tolist() == [1, 2, 3, -4]
    assert flat_real(z.conj()).tolist() == [1, -2, 3, 4]
    at, values = torch.tensor([[0, 2, 0]]), torch.tensor([[1.0, 2], [3, 4], [5, 6]])
    sparse = torch.sparse_coo_tensor(at, values, (3, 2), check_invariants=True)
    assert flat_real(sparse).tolist() == [6, 8, 3, 4]  # entries at one place are added first
    assert flat_real(torch.arange(4.0).reshape(2, 2).T).tolist() == [0, 2, 1, 3]


def test_a_plain_tensor_is_its_own_part():
    x = torch.ones(2)
    assert local(x) is x
    assert not is_sharded(x)


def test_every_parameter_of_an_optimizer_in_order():
    a, b, c = (nn.Parameter(torch.zeros(n)) for n in (1, 2, 3))
    optimizer = torch.optim.SGD([{"params": [c, a]}, {"params": [b]}], lr=0.1)
    assert [len(p) for p in own_parameters(optimizer)] == [3, 1, 2]


def test_one_wide_type_needs_no_other_for_norms():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert Layout(net).wide
    assert Layout(net.double()).wide
    net[1].float()
    assert not Layout(net).wide
    assert not Layout(net.bfloat16()).wide
    net.float()
    net[0].weight.grad_dtype = torch.bfloat16
    assert not Layout(net).wide
