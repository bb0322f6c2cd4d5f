"""Whatever is changed in a checkpoint is found before anything of it is used."""

import json
import random

import pytest
import torch

from dynaxx.checkpoints import pieces
from dynaxx.checkpoints.durable import digest
from dynaxx.checkpoints.manifest import _SEAL, NAME, STATE, TENSORS
from dynaxx.errors import BadInput, CorruptData, DynaxxWarning

FILES = (NAME, STATE, TENSORS)


def content(step):
    generator = torch.Generator().manual_seed(step)
    return {
        "weight": torch.randn(32, 8, generator=generator),
        "moment": torch.randn(32, 8, generator=generator, dtype=torch.float64),
        "step": step,
        "note": f"step {step}",
    }


def flip(path, position, bit=0):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize("file", FILES)
def test_every_flipped_bit_is_found(store, file):
    info = store.save(1, content(1))
    good = (info.path / file).read_bytes()
    draw = random.Random(0)
    positions = {0, len(good) - 1, *(draw.randrange(len(good)) for _ in range(200))}
    for position in positions:
        flip(info.path / file, position, draw.randrange(8))
        with pytest.raises(CorruptData, match=file.replace(".", r"\.")):
            store.load(info)
        with pytest.raises(CorruptData):
            store.verify(info)
        (info.path / file).write_bytes(good)
    store.verify(info)


@pytest.mark.parametrize("file", FILES)
def test_every_truncation_and_extension_is_found_without_reading_the_data(store, file):
    info = store.save(1, content(1))
    good = (info.path / file).read_bytes()
    for size in {*(len(good) * k // 16 for k in range(16)), len(good) - 1}:
        (info.path / file).write_bytes(good[:size])
        with pytest.raises(CorruptData):
            store.verify(info, deep=False)
        with pytest.raises(CorruptData):
            store.load(1)
    (info.path / file).write_bytes(good + b"\n")
    with pytest.raises(CorruptData):
        store.verify(info, deep=False)
    (info.path / file).unlink()
    with pytest.raises(CorruptData, match="missing"):
        store.load(1)


@pytest.mark.parametrize("file", FILES)
def test_files_swapped_between_checkpoints_are_found(store, file):
    a, b = (store.save(step, content(step)) for step in (1, 2))
    assert (a.path / TENSORS).stat().st_size == (b.path / TENSORS).stat().st_size
    (a.path / file).rename(store.folder / "aside")
    (b.path / file).rename(a.path / file)
    (store.folder / "aside").rename(b.path / file)
    for info in (a, b):
        with pytest.raises(CorruptData):
            store.load(info)


def test_renamed_checkpoint_is_found(store):
    info = store.save(1, content(1))
    other = info.path.with_name(info.path.name.replace("0000000001", "0000000009"))
    info.path.rename(other)
    with pytest.raises(CorruptData, match="belongs to"):
        store.load(9)


def test_corrupted_tensor_is_named(store):
    info = store.save(1, content(1))
    flip(info.path / TENSORS, -1)
    with pytest.raises(CorruptData, match=r"tensors\.safetensors.*'weight'"):
        store.verify(1)


def test_latest_falls_back_over_corrupted_ones(store, identical):
    infos = [store.save(step, content(step)) for step in (1, 2, 3)]
    flip(infos[2].path / TENSORS, 900)
    (infos[1].path / NAME).unlink()
    with pytest.warns(DynaxxWarning) as caught:
        state, info = store.load()
    assert identical(state, content(1))
    assert info.passed_over == (infos[2].path.name, infos[1].path.name)
    assert [name in str(w.message) for name, w in zip(info.passed_over, caught, strict=True)] == [True, True]
    assert sorted(p.name for p in (store.folder / "quarantine").iterdir()) == sorted(info.passed_over)
    assert [i.step for i in store.list()] == [1]
    assert store.load()[1].passed_over == ()


def test_corrupted_one_asked_for_by_name_stays_where_it_is(store):
    info = store.save(1, content(1))
    flip(info.path / STATE, 3)
    with pytest.raises(CorruptData, match=r"state\.json"):
        store.load(1)
    assert info.path.exists()


def test_all_corrupted(store):
    info = store.save(1, content(1))
    flip(info.path / STATE, 3)
    with pytest.warns(DynaxxWarning), pytest.raises(CorruptData, match=info.path.name):
        store.load()


def test_list_names_what_it_cannot_list(store):
    a, b = (store.save(step, content(step)) for step in (1, 2))
    flip(a.path / NAME, 10)
    with pytest.warns(DynaxxWarning, match=a.path.name):
        assert [i.id for i in store.list()] == [b.id]


def reseal(path, change):
    """A manifest that is consistent with itself, as somebody hostile would make it."""
    body = json.loads(path.read_bytes())
    del body["xxh3_128"]
    change(body)
    text = json.dumps(body).removesuffix("}").encode()
    path.write_bytes(text + _SEAL.format(digest(text)).encode())


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["files"].update({"../../secret": m["files"][STATE]}),
        lambda m: m["files"].pop(STATE),
        lambda m: m.pop("tensors"),
        lambda m: m["tensors"][TENSORS]["weight"].update(shape=[1 << 50]),
        lambda m: m["tensors"][TENSORS]["weight"].update(shape=[-32, -8]),
        lambda m: m["tensors"][TENSORS]["weight"].update(dtype="object"),
        lambda m: m["tensors"][TENSORS].pop("weight"),
        lambda m: m["tensors"][TENSORS]["weight"].update(shape=[1 << 70]),
        lambda m: m["tensors"][TENSORS]["weight"].update(shape=[8, 32]),
        lambda m: m["tensors"][TENSORS]["weight"].update(offsets=[0, -1]),
        lambda m: m["tensors"][TENSORS]["weight"].update(offsets=[0]),
        lambda m: m["tensors"][TENSORS]["weight"].update(offsets=[8, 0]),
        lambda m: m["tensors"].update({"/etc/passwd": m["tensors"].pop(TENSORS)}),
        lambda m: m["tensors"].update({"shard-00000.safetensors/../../x": m["tensors"].pop(TENSORS)}),
        lambda m: m.update(tensors=[]),
        lambda m: m.update(origin="yesterday"),
        lambda m: m["files"][TENSORS].update(xxh3_128="0" * 32),
        lambda m: m.update(step="one"),
        lambda m: m.update(step=2),
        lambda m: m.update(facts={"$pickle": "x"}),
    ],
)
def test_hostile_manifests_are_refused(store, change):
    info = store.save(1, content(1))
    reseal(info.path / NAME, lambda m: None)
    store.verify(info)
    reseal(info.path / NAME, change)
    with pytest.raises(CorruptData):
        store.load(info)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"{", b"\xff"], ids=["nested", "cut", "not text"])
def test_hostile_trees_are_refused(store, text):
    info = store.save(1, content(1))
    (info.path / STATE).write_bytes(text)
    reseal(info.path / NAME, lambda m: m["files"].update({STATE: {"bytes": len(text), "xxh3_128": digest(text)}}))
    with pytest.raises(CorruptData, match="does not follow the format"):
        store.load(info)


def test_links_are_not_followed(store, tmp_path):
    info = store.save(1, content(1))
    (info.path / STATE).rename(tmp_path / "elsewhere")
    (info.path / STATE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptData, match="not a regular file"):
        store.load(info)


def test_later_format_is_not_taken_for_corruption(store):
    info = store.save(1, content(1))
    reseal(info.path / NAME, lambda m: m.update(format=3))
    with pytest.raises(BadInput, match="Update Dynaxx"):
        store.load()
    assert info.path.exists()


def test_the_first_format_is_read(store, identical):
    info = store.save(1, content(1))

    def older(m):
        m.update(format=1, tensors=m["tensors"][TENSORS])
        del m["origin"]

    reseal(info.path / NAME, older)
    assert identical(store.load()[0], content(1))


def test_unreadable_medium_is_corruption(store, monkeypatch):
    infos = [store.save(step, content(step)) for step in (1, 2)]
    real_read = pieces.read_capped

    def broken(file, *args):
        if infos[1].path.name in str(file):
            raise OSError(5, "Input/output error")
        return real_read(file, *args)

    monkeypatch.setattr(pieces, "read_capped", broken)
    with pytest.warns(DynaxxWarning, match="Input/output error"):
        assert store.load()[1].step == 1
