"""The same on a local S3-compatible server, through s3fs; skipped where s3fs and moto are not installed."""

import socket
from datetime import timedelta

import pytest
import torch

from dynaxx.checkpoints import CheckpointStore
from dynaxx.checkpoints.health import last_healthy, mark
from dynaxx.checkpoints.mirror import Mirror
from dynaxx.checkpoints.policy_words import policy
from dynaxx.checkpoints.pruning import prune
from dynaxx.checkpoints.remote import RemotePlace
from dynaxx.errors import BadInput, CorruptData, DynaxxWarning, NotSaved

pytest.importorskip("s3fs", reason="pip install s3fs")
moto = pytest.importorskip("moto.server", reason="pip install 'moto[server]'")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def server():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def there(server, request, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")  # moto takes any
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    import s3fs

    bucket = request.node.name.split("[")[0].replace("_", "-")[:60].strip("-")
    fs = s3fs.S3FileSystem(endpoint_url=server)
    fs.makedirs(bucket, exist_ok=True)
    return lambda: RemotePlace(f"s3://{bucket}/run/checkpoints", waits=(0.1,), endpoint_url=server)


def content(step):
    generator = torch.Generator().manual_seed(step)
    return {"model": {"state": {"weight": torch.randn(64, 64, generator=generator)}}, "step": step}


@pytest.fixture
def local(tmp_path):
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    for step in (10, 20, 30, 40):
        store.save(step, content(step), facts={"val_loss": 1 / step})
    return store


def test_mirror_load_and_verify(there, local, identical):
    with Mirror(local, there()) as mirror:
        mirror.catch_up()
    assert [(i.step, i.id, i.facts) for i in there().list()] == [(i.step, i.id, i.facts) for i in local.list()]
    for info in there().list():
        there().verify(info)
    assert identical(there().load()[0], content(40))
    assert identical(there().load(20)[0], content(20))


def test_the_commit_is_exclusive(there, local):
    """If-None-Match: * on the manifest, answered by 412."""
    (info, *_) = local.list()
    place = there()
    place.upload(info.path)
    bucket = place._bucket
    seal = bucket.read(f"{info.path.name}/manifest.json")
    bucket.create(f"{info.path.name}/manifest.json", seal)  # our own: success
    with pytest.raises(OSError, match="another object"):
        bucket.create(f"{info.path.name}/manifest.json", b"{}")
    assert bucket.read(f"{info.path.name}/manifest.json") == seal
    bucket.write(f"{info.path.name}/manifest.json", b"{}")
    with pytest.raises(NotSaved):
        there().upload(info.path)


def test_half_uploaded_ones_are_invisible_and_swept(there, local):
    (info, *_) = local.list()
    place = there()
    for file in ("tensors.safetensors", "state.json"):
        place._bucket.upload(info.path / file, f"{info.path.name}/{file}")
    assert there().list() == ()
    assert there().sweep() == ()
    assert there().sweep(timedelta(0)) == (info.path.name,)
    assert place._bucket.names() == []


def test_a_changed_object_is_found_and_passed_over(there, local, identical):
    for info in local.list():
        there().upload(info.path)
    newest = there().list()[-1]
    data = bytearray(there()._bucket.read(f"{newest.path.name}/tensors.safetensors"))
    data[-5] ^= 4
    there()._bucket.write(f"{newest.path.name}/tensors.safetensors", bytes(data))
    with pytest.raises(CorruptData, match=r"tensors\.safetensors"):
        there().verify(newest)
    with pytest.warns(DynaxxWarning, match="passed over"):
        assert identical(there().load()[0], content(30))


def test_archive_and_expiry(there, local, identical):
    for info in local.list():
        place = there()
        mark(place, place.upload(info.path), "healthy", "by its record")
    assert last_healthy(there()).step == 40
    done = prune(there(), policy("last:2"), cold=policy("newer:20"))
    assert [i.step for i in done.archived] == [20]
    assert [i.step for i in there().list()] == [30, 40]
    state, info = there().archive.load()
    assert identical(state["model"]["state"]["weight"], content(20)["model"]["state"]["weight"].bfloat16())
    assert info.size < there().list()[0].size
    prune(there(), policy("last:2"), cold=policy("newer:5"))
    assert there().archive.list() == ()
    assert sorted(there().notes("health")) == sorted(i.id for i in there().list())
    assert set(there()._bucket.names()) == {"notes", *(i.path.name for i in there().list())}


@pytest.mark.parametrize("wrong", ["closed", "bucket"])
def test_what_cannot_be_reached_is_said_in_one_line(server, there, wrong):
    from dynaxx.checkpoints.opening import open_place

    options = {"waits": (), "endpoint_url": "http://127.0.0.1:9" if wrong == "closed" else server}
    if wrong == "bucket":
        with pytest.raises(BadInput, match="holds no checkpoints"):
            open_place("s3://there-is-none/run", **options)
        with pytest.raises(NotSaved):
            RemotePlace("s3://there-is-none/run", **options).save(1, content(1))
        return
    options["config_kwargs"] = {"retries": {"max_attempts": 0}, "connect_timeout": 1}
    with pytest.raises(BadInput, match=r"cannot be read.*credentials and a connection"):
        open_place("s3://bucket/run", **options)
