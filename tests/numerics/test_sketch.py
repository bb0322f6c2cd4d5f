import subprocess
import sys

import pytest
import torch
from torch import nn

from dynaxx.core.parameters import Layout, flat_real
from dynaxx.core.task import derive_seed
from dynaxx.numerics import sketch
from dynaxx.numerics.sketch import Sketch


def layout_of(*sizes, dtype=torch.float32):
    return Layout(nn.ParameterList([torch.zeros(size, dtype=dtype) for size in sizes]))


def split(vector, layout):
    return [
        part.view(p.shape)
        for part, p in zip(vector.split([p.numel() for p in layout.parameters]), layout.parameters, strict=True)
    ]


def by_index(vector, made):
    """The same map from its definition, with the bucket and the sign of every coordinate written out."""
    one, other = made.signs(torch.device("cpu")).to(torch.float64)
    out = torch.zeros(made.size, dtype=torch.float64)
    for i, x in enumerate(vector.tolist()):
        chunk, position = divmod(i, sketch.CHUNK)
        turn = derive_seed(made.seed, chunk)
        sign = one[(position + turn) % sketch.CHUNK] * other[(position + (turn >> 20)) % sketch.CHUNK]
        out[(position + (turn >> 40)) % made.size] += sign * x
    return out


@pytest.mark.parametrize("sizes", [(300,), (1, 63, 64, 65, 107), (130, 130, 40), (0, 5, 0, 295), ()])
@pytest.mark.parametrize("size", [1, 16, 64])
def test_pieces_and_chunk_boundaries_do_not_matter(monkeypatch, sizes, size):
    monkeypatch.setattr(sketch, "CHUNK", 64)
    layout = layout_of(*(sizes or (3, 4)))
    vector = torch.randn(layout.numel, generator=torch.Generator().manual_seed(size))
    for seed in range(3):
        made = Sketch(size=size, seed=seed)
        torch.testing.assert_close(
            made(split(vector, layout), layout).double(), by_index(vector, made), atol=1e-5, rtol=0
        )


def test_the_tables_are_of_both_signs_and_independent():
    tables = Sketch().signs(torch.device("cpu"))
    assert tables.shape == (2, sketch.CHUNK)
    assert tables.dtype == torch.int8
    signs = tables.double()
    assert signs.abs().eq(1).all()
    bound = 5 / sketch.CHUNK**0.5  # five standard deviations
    assert signs.mean(-1).abs().max() < bound
    assert (signs[0] * signs[1]).mean().abs() < bound


def test_it_is_linear():
    layout = layout_of(5000, 7000)
    a, b = (split(torch.randn(12000, generator=torch.Generator().manual_seed(i)), layout) for i in (1, 2))
    made = Sketch()
    both = made([3 * x - y for x, y in zip(a, b, strict=True)], layout)
    torch.testing.assert_close(both, 3 * made(a, layout) - made(b, layout), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n", [1, 63, 64])
def test_vectors_that_fit_keep_their_distances(n):
    layout = layout_of(n // 3, n - n // 3)
    for seed in range(10):
        a, b = (torch.randn(n, generator=torch.Generator().manual_seed(10 * seed + i)) for i in (1, 2))
        made = Sketch(size=64, seed=seed)
        distance = (made(split(a, layout), layout) - made(split(b, layout), layout)).norm()
        assert float(distance) == pytest.approx(float((a - b).norm()), rel=1e-6)


def seeds_table(vector, layout, seeds, size=64):
    tensors = split(vector, layout)
    return torch.stack([Sketch(size=size, seed=seed)(tensors, layout).double().square().sum() for seed in range(seeds)])


@pytest.mark.parametrize("kind", ["random", "constant", "heavy"])
def test_squared_norms_are_unbiased_and_spread_as_stated(monkeypatch, kind):
    """Relative variance of ‖Sx‖² is 2/size, so that of ‖Sx‖ is 1/(2·size), over three chunks.

    The constant vector would be off by half as much again if chunks shared one table of signs.
    """
    monkeypatch.setattr(sketch, "CHUNK", 1024)
    layout = layout_of(1000, 2072)
    vector = torch.randn(3072, generator=torch.Generator().manual_seed(0))
    if kind == "constant":
        vector = torch.ones(3072)
    if kind == "heavy":
        vector = vector**3
    ratio = seeds_table(vector, layout, 1500) / vector.double().square().sum()
    error = float(ratio.std() / len(ratio) ** 0.5)
    assert abs(float(ratio.mean()) - 1) < 4 * error
    spread = float(ratio.sqrt().std())
    assert spread < 1.1 * Sketch(size=64).relative_error
    if kind != "heavy":  # a few large coordinates never collide: the error is then smaller
        assert spread > 0.85 * Sketch(size=64).relative_error


def test_the_stated_error():
    assert Sketch(size=4096).relative_error == pytest.approx(0.011, rel=0.01)


def test_it_is_the_same_in_another_process():
    code = """
import torch
from dynaxx.core.parameters import Layout
from dynaxx.numerics.sketch import Sketch
layout = Layout(torch.nn.ParameterList([torch.zeros(9000)]))
print(Sketch(seed=3)([torch.arange(9000.0)], layout).tolist())
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    layout = layout_of(9000)
    torch.rand(5)  # the global stream plays no part
    here = Sketch(seed=3)([torch.arange(9000.0)], layout)
    assert shown.stdout.strip() == str(here.tolist())
    assert not here.equal(Sketch(seed=4)([torch.arange(9000.0)], layout))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_other_dtypes_are_sketched_in_float32(monkeypatch, dtype):
    monkeypatch.setattr(sketch, "CHUNK", 64)
    layout = layout_of(50, 41, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(p.shape, generator=generator, dtype=torch.complex64 if dtype.is_complex else torch.float32).to(
            dtype
        )
        for p in layout.parameters
    ]
    before = [t.clone() for t in tensors]
    made = Sketch(size=32)
    out = made(tensors, layout)
    assert out.dtype == torch.float32
    vector = torch.cat([flat_real(t).double() for t in tensors])
    torch.testing.assert_close(out.double(), by_index(vector, made), atol=1e-5, rtol=1e-5)
    assert all(t.equal(b) for t, b in zip(tensors, before, strict=True))


def test_what_is_not_contiguous_is_read_in_order():
    layout = layout_of((30, 40))
    x = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).T
    made = Sketch(size=16)
    assert made([x], layout).equal(made([x.contiguous()], layout))
