import enum
import gc
import json
import random
import warnings
import weakref
from collections import Counter, OrderedDict, defaultdict, namedtuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from dynaxx.checkpoints import decode, encode
from dynaxx.checkpoints.tensorfile import CODES, _bytes
from dynaxx.errors import BadInput, CorruptData, NotApplicable


def through(state):
    """Encode, to bytes and back, decode."""
    tensors, tree = encode(state)
    text = json.dumps(tree, allow_nan=False)
    assert all(t.is_contiguous() and t.device.type == "cpu" and t.dtype in CODES for t in tensors.values())
    copies = {
        name: torch.frombuffer(bytearray(_bytes(t)), dtype=t.dtype).reshape(t.shape) if t.numel() else t.clone()
        for name, t in tensors.items()
    }
    return decode(copies, json.loads(text))


NAN_WITH_PAYLOAD = np.uint64(0x7FF8DEADBEEF0001).view(np.float64).item()


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(2**53),
        2**53 - 1,
        10**6000,  # beyond the digits that Python converts
        -(2**127),
        0.1,
        -0.0,
        5e-324,
        1.7976931348623157e308,
        float("inf"),
        -float("inf"),
        float("nan"),
        NAN_WITH_PAYLOAD,
        complex(float("nan"), -0.0),
        "",
        "ünï\u2028 \x00",
        "\ud83d",
        "\ud83d\ude00",  # two code points that JSON alone would return as one
        b"",
        bytes(range(256)),
        bytearray(b"x"),
        [],
        {},
        (),
        (1, (2.0, [3])),
        {"$tuple": [1]},
        {"$": 1, "b": 2},
        {1: "a", "1": "b", (1, 2): "c", None: "d", 2.5: "e", b"f": "g", True + 1: "h"},
        {float("inf"): 1},
        {"z": 1, "a": 2},
        OrderedDict([("b", 1), ("a", 2)]),
        Counter({3: 2, 1: 5}),
        {1, 2, 3},
        pytest.param(frozenset({"a", (1, 2)}), id="frozenset"),  # its repr has no fixed order
        torch.Size([2, 3]),
        torch.bfloat16,
        torch.device("cuda", 1),
        np.float32(0.1),
        np.int64(-1),
        np.bool_(True),
        np.str_("é"),
        np.str_(""),
        np.datetime64("2024-02-29T12:00"),
        np.complex128(1 - 2j),
        random.Random(3).getstate(),
        np.random.RandomState(3).get_state(),
        np.random.default_rng(3).bit_generator.state,
    ],
    ids=lambda value: repr(value)[:30] if not isinstance(value, int) else f"int of {value.bit_length()} bits",
)
def test_value_comes_back_with_its_type(value, identical):
    assert identical(through({"here": [value]}), {"here": [value]})


def test_defaultdict_comes_back_as_dict():
    back = through(defaultdict(list, {1: [2]}))
    assert type(back) is dict
    assert back == {1: [2]}


@pytest.mark.parametrize("dtype", [*CODES, torch.complex64, torch.complex128, torch.float4_e2m1fn_x2], ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 4)], ids=str)
def test_tensor_of_every_dtype(dtype, shape, identical):
    numel = int(np.prod(shape, dtype=int))
    raw = torch.randint(0, 256, (numel * dtype.itemsize,), dtype=torch.uint8)
    if dtype == torch.bool:
        raw = raw % 2
    tensor = raw.view(dtype).reshape(shape)
    back = through([tensor])[0]
    assert identical(back, tensor)


def test_half_complex(identical):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it experimental
        tensor = torch.tensor([1 + 2j, -0.0 + 1j]).to(torch.complex32)
        assert identical(through(tensor), tensor)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(3.0),
        np.zeros((0, 4), np.float16),
        np.array([True, False]),
        np.array(["a", "ünï"]),
        np.array(["2024-01-01"], "M8[D]"),
        np.arange(10)[::-3],
        np.longdouble([1.1]),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_array(array, identical):
    back = through([array])[0]
    assert identical(back, array)
    assert back.flags.writeable


def test_tied_tensors_are_stored_once_and_come_back_as_one():
    weight = torch.randn(3, 2)
    state = {
        "embed": weight,
        "head": weight.detach(),
        "part": weight[:2],
        "turned": weight.t(),
        "int": weight.view(torch.int32),
    }
    tensors, _ = encode(state)
    assert set(tensors) == {"embed", "part", "turned", "int"}
    back = through(state)
    assert back["embed"] is back["head"]
    back["embed"].zero_()
    assert torch.equal(back["part"], weight[:2])
    assert torch.equal(back["turned"], weight.t())


def test_views_of_one_storage_are_not_taken_for_each_other():
    square = torch.arange(9.0).reshape(3, 3)
    first, second, turned = through([square[0], square[1], square.t()[0]])
    assert torch.equal(first, square[0])
    assert torch.equal(second, square[1])
    assert torch.equal(turned, square[:, 0])


def test_empty_tensors_are_not_tied():
    back = through([torch.empty(0), torch.empty(0)])
    assert back[0] is not back[1]


def test_dense_strides_survive_and_others_become_contiguous():
    base = torch.arange(24.0)
    images = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    turned = torch.randn(3, 4, dtype=torch.complex64).t()
    back = through({"images": images, "turned": turned, "sparse": base[::2], "wide": torch.ones(1).expand(7)})
    assert back["images"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(back["images"], images)
    assert back["turned"].stride() == turned.stride()
    assert torch.equal(back["turned"], turned)
    assert torch.equal(back["sparse"], base[::2])
    assert torch.equal(back["wide"], torch.ones(7))


def test_lazy_conjugate_and_negative_are_resolved():
    z = torch.tensor([1 + 2j, 3 - 4j])
    back = through([z.conj(), z.conj().imag])
    assert torch.equal(back[0], torch.tensor([1 - 2j, 3 + 4j]))
    assert torch.equal(back[1], torch.tensor([-2.0, 4.0]))


def test_parameter_and_gradient_history_are_left_behind():
    p = nn.Parameter(torch.ones(2))
    back = through([p, p * 2])
    assert [type(t) for t in back] == [torch.Tensor] * 2
    assert not any(t.requires_grad for t in back)


def test_names_never_collide():
    state = {
        "a": {"b": torch.zeros(1)},
        "a/b": torch.ones(1),
        1: torch.full((1,), 2.0),
        "1": torch.full((1,), 3.0),
        "__metadata__": torch.full((1,), 4.0),
        "\ud800": torch.full((1,), 5.0),
    }
    tensors, _ = encode(state)
    assert "__metadata__" not in tensors
    assert [t.item() for t in map(through(state).get, list(state)[1:])] == [1, 2, 3, 4, 5]


class Color(enum.IntEnum):
    RED = 1


class Loose(dict):
    pass


Moment = namedtuple("Moment", "mean square")


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (
            {"scheduler": {"lr_lambdas": [len, None]}},
            r"state\['scheduler'\]\['lr_lambdas'\]\[0\] is a function \(len\)",
        ),
        ({"a": lambda: 0}, r"state\['a'\] is a function .*Leave functions out"),
        ([1, object()], r"state\[1\] is an object of class builtins.object"),
        ({"c": Color.RED}, r"state\['c'\] is an object of class .*Color"),
        ({"m": Moment(1, 2)}, r"_asdict"),
        ({"l": Loose()}, r"plain `dict"),
        ({"o": np.array([None])}, r"array of object"),
        ({"o": np.zeros(2, "i4,f4")}, r"array of "),
        ({"o": np.zeros(2, "i4,f4")[0]}, r"object of class numpy.void"),
        ({torch.zeros(1): 1}, "tensor as a key"),
        ({"s": torch.eye(2).to_sparse()}, "sparse"),
        ({"s": torch.empty(2, device="meta")}, "meta tensor"),
        ({"s": nn.UninitializedParameter()}, "first forward"),
    ],
)
def test_what_cannot_be_stored_is_named(state, says):
    with pytest.raises(BadInput, match=says):
        encode(state)


@pytest.mark.filterwarnings("ignore")  # torch deprecates quantized tensors
@pytest.mark.parametrize("dtype", [torch.qint8, torch.qint32])
def test_quantized_tensors_are_refused(dtype):
    with pytest.raises(BadInput, match="Dequantize"):
        encode(torch.quantize_per_tensor(torch.ones(2), 0.1, 0, dtype))


def test_what_contains_itself_is_refused():
    loop = []
    loop.append(loop)
    with pytest.raises(BadInput, match="contains itself"):
        encode(loop)
    deep = {"end": ()}
    for _ in range(99):
        deep = {"in": deep}
    assert through(deep) == deep


class DTensor(torch.Tensor):
    """What `is_sharded` knows it by is its name."""


def test_shard_is_not_applicable():
    with pytest.raises(NotApplicable, match=r"state\['w'\] is a DTensor.*ShardedStore"):
        encode({"w": torch.ones(2).as_subclass(DTensor)})


@pytest.mark.parametrize(
    "tree",
    [
        {"$pickle": "gASVBQ=="},
        {"$tensor": "missing"},
        {"$dtype": "load"},
        {"$array": "t", "dtype": "O", "shape": [1]},
        {"$scalar": "00" * 8, "dtype": "|O"},
        {"$scalar": "00", "dtype": "<f8"},
        {"$array": "t", "dtype": "<f8", "shape": [1000]},
        {"$int": "zz"},
        {"$float": "00"},
        {"$dict": [[[1], 2]]},
        {"$tensor": "t", "order": [0, 1]},
        {"$tensor": "t", "dtype": "complex64"},
    ],
    ids=str,
)
def test_trees_that_no_encoder_wrote_are_refused(tree):
    with pytest.raises(CorruptData):
        decode({"t": torch.zeros(8, dtype=torch.uint8)}, tree)


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(st.characters()),
    st.text(st.characters(categories=["Cs", "Lu"])),
    st.binary(max_size=8),
    st.sampled_from([torch.float8_e5m2, torch.device("cpu")]),
    hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, min_side=0, max_side=3)),
    hnp.arrays(
        st.sampled_from([np.float32, np.int64, np.bool_, np.complex64]),
        hnp.array_shapes(min_dims=0, min_side=0, max_side=3),
    ).map(torch.from_numpy),
)
keys = st.one_of(st.text(), st.integers(), st.tuples(st.integers(), st.text()), st.none(), st.binary(max_size=3))
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(st.sampled_from(["a", "$tuple", "a/b", "b"]), inner, max_size=3).map(OrderedDict),
    ),
    max_leaves=12,
)


@settings(
    max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(state=trees)
def test_any_tree_comes_back(state, identical):
    assert identical(through(state), state)


def test_a_state_is_let_go_of_at_once():
    """What is left to the collector of cycles can be as large as the model, until it happens to run."""
    gc.disable()
    try:
        weight = torch.ones(3)
        tensors, tree = encode({"weight": weight, "pair": (1, [2])})
        state = decode(tensors, tree)
        seen = weakref.ref(weight), weakref.ref(tensors["weight"]), weakref.ref(state["weight"])
        del weight, tensors, tree, state
        assert [held() for held in seen] == [None, None, None]
    finally:
        gc.enable()
