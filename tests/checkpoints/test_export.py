import json

import pytest
import torch
from safetensors.torch import load_file, load_model
from torch import nn

from dynaxx.averaging.ema import Ema
from dynaxx.checkpoints import CheckpointStore, capture
from dynaxx.checkpoints.archive import archive
from dynaxx.checkpoints.export import export
from dynaxx.checkpoints.places import LocalPlace
from dynaxx.checkpoints.remote import RemotePlace
from dynaxx.errors import BadInput, CorruptData, NotApplicable


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.tensor([True, False]))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Tied()


@pytest.fixture
def run(tmp_path, model):
    CheckpointStore(tmp_path / "run" / "checkpoints").save(10, capture(model, None))
    return tmp_path / "run"


def test_a_model_loads_it_back(run, tmp_path, model):
    done = export(run, tmp_path / "out")
    assert done.files == ("model.safetensors",)
    assert done.tied == {"head.weight": "embed.weight"}
    other = Tied()
    load_model(other, tmp_path / "out" / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    assert other.head.weight is other.embed.weight
    assert done.step == 10
    assert done.tensors == len(model.state_dict()) - 1
    assert done.bytes == 4 * (28 + 4 * 4) + 8 + 2
    assert not list((tmp_path / "out").glob(".*"))


def test_shards_and_their_index(run, tmp_path, model):
    done = export(run, tmp_path / "out", largest=60)
    index = json.loads((tmp_path / "out" / done.files[-1]).read_text())
    assert len(done.files) > 3
    found = {}
    for name in done.files[:-1]:
        part = load_file(tmp_path / "out" / name)
        assert sum(t.numel() * t.element_size() for t in part.values()) <= 60 or len(part) == 1
        found |= part
    assert index["weight_map"].keys() == found.keys() == model.state_dict().keys() - {"head.weight"}
    assert index["metadata"]["total_size"] == done.bytes
    for key, name in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "out" / name)[key], model.state_dict()[key])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtypes_round_floats_alone(run, tmp_path, model, dtype):
    export(run, tmp_path / "out", dtype=dtype)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(found["embed.weight"], model.embed.weight.to(getattr(torch, dtype)))
    assert found["norm.num_batches_tracked"].dtype == torch.int64
    assert found["mask"].dtype == torch.bool


def test_what_does_not_fit_is_refused_and_nothing_written(tmp_path):
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    net = nn.Linear(1, 1)
    nn.init.constant_(net.weight, 70_000.0)
    store.save(1, capture(net, None))
    with pytest.raises(BadInput, match="7e\\+04, beyond the largest float16"):
        export(tmp_path / "run", tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()
    export(tmp_path / "run", tmp_path / "out", dtype="bfloat16")


def test_averages_in_the_checkpoint(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    net[0].bias.requires_grad_(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    ema = Ema(net, half_life=2).attach(optimizer)
    for _ in range(5):
        net(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    store.save(5, capture(net, optimizer, extra={"averager": ema}))
    export(tmp_path / "run", tmp_path / "plain")
    export(tmp_path / "run", tmp_path / "averaged", averaged=True)
    plain, averaged = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "averaged"))
    assert plain.keys() == averaged.keys()
    for name, tensor in ema.averages().items():
        assert torch.equal(averaged[name], tensor)
        assert not torch.equal(averaged[name], plain[name])
    assert torch.equal(averaged["0.bias"], net[0].bias)


def test_without_averages_it_says_so(run, tmp_path):
    with pytest.raises(NotApplicable, match="averaged"):
        export(run, tmp_path / "out", averaged=True)


def test_archived_and_remote_ones(run, tmp_path, model):
    place = LocalPlace(run / "checkpoints")
    (info,) = place.list()
    archive(place, info)
    place.remove(info)
    assert export(run, tmp_path / "cold").step == 10
    cold = load_file(tmp_path / "cold" / "model.safetensors")
    assert torch.equal(cold["embed.weight"], model.embed.weight.bfloat16())
    assert torch.equal(cold["norm.running_var"], model.norm.running_var)
    there = RemotePlace(f"memory://{tmp_path}/exported")
    there.save(3, capture(model, None))
    assert export(there.name, tmp_path / "far", at=3).step == 3


def test_bad_input_is_named(run, tmp_path):
    export(run, tmp_path / "out")
    for options, words in [
        ({"folder": tmp_path / "out"}, "is there already"),
        ({"dtype": "int8"}, "float32, float16, bfloat16"),
        ({"at": 11}, "Steps there: 10"),
        ({"largest": 0}, "at least 1 byte"),
        ({"source": tmp_path / "nowhere"}, "no such folder"),
        ({"source": tmp_path}, "holds no checkpoints"),
    ]:
        with pytest.raises(BadInput, match=words):
            export(**{"source": run, "folder": tmp_path / "new", **options})
    assert not (tmp_path / "new").exists()


def test_a_damaged_one_is_not_exported(run, tmp_path, model):
    (file,) = (run / "checkpoints").glob("*/tensors.safetensors")
    data = bytearray(file.read_bytes())
    data[data.index(model.embed.weight.detach().numpy().tobytes())] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptData, match="embed"):
        export(run, tmp_path / "out", at=10)
    assert not (tmp_path / "out").exists()
