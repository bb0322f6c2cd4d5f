"""Checkpoints on an object store that fails, loses replies, or whose client dies at any request."""

from datetime import timedelta
from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from dynaxx.checkpoints import CheckpointStore
from dynaxx.checkpoints.archive import archive
from dynaxx.checkpoints.health import mark
from dynaxx.checkpoints.mirror import Mirror
from dynaxx.checkpoints.places import LocalPlace
from dynaxx.checkpoints.policy_words import policy
from dynaxx.checkpoints.pruning import prune
from dynaxx.checkpoints.remote import RemotePlace
from dynaxx.errors import BadInput, CorruptData, DynaxxWarning, NotSaved

URL = "faulty://bucket/run/checkpoints"


class Killed(BaseException):
    """The process is gone: nothing after this instant happened."""


class Unavailable(OSError):
    """503, slow down."""


class FaultyStore(MemoryFileSystem):
    """The requests of an object store (no rename, no append), counted; `plan` sees each before it is carried out.

    `plan(n, request, path)` may raise; `after(n, request, path)` may raise once the request was carried out.
    """

    protocol = "faulty"
    store = {}  # noqa: RUF012  (as in the class it is)
    pseudo_dirs = [""]  # noqa: RUF012
    cachable = False
    requests: list = []  # noqa: RUF012

    @staticmethod
    def plan(n, request, path):
        """Nothing fails."""

    @staticmethod
    def after(n, request, path):
        """Nothing fails."""

    @classmethod
    def reset(cls):
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        cls.calm()

    @classmethod
    def calm(cls):
        cls.plan = cls.after = staticmethod(lambda n, request, path: None)
        cls.requests.clear()

    def _counted(self, request, path, do):
        n = len(self.requests)
        self.requests.append((request, path))
        type(self).plan(n, request, path)
        result = do()
        type(self).after(n, request, path)
        return result

    def put_file(self, lpath, rpath, **kwargs):
        return self._counted("put", rpath, lambda: super(FaultyStore, self).put_file(lpath, rpath, **kwargs))

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        return self._counted("put", path, lambda: super(FaultyStore, self).pipe_file(path, value, mode=mode, **kwargs))

    def cat_file(self, path, *args, **kwargs):
        return self._counted("get", path, lambda: super(FaultyStore, self).cat_file(path, *args, **kwargs))

    def get_file(self, rpath, lpath, **kwargs):
        return self._counted("get", rpath, lambda: super(FaultyStore, self).get_file(rpath, lpath, **kwargs))

    def ls(self, path, detail=True, **kwargs):
        return self._counted("list", path, lambda: super(FaultyStore, self).ls(path, detail=detail, **kwargs))

    def _rm(self, path):
        return self._counted("delete", path, lambda: super(FaultyStore, self)._rm(path))

    def rm(self, path, recursive=False, maxdepth=None):
        """One request per object, in the least helpful order: the manifest, whose name comes first, last."""
        if not recursive:
            return self.rm_file(path)
        found = self.find(path)
        if not found:
            raise FileNotFoundError(path)
        for each in reversed(found):
            self.rm_file(each)
        return None

    def rm_file(self, path):
        return self._counted("delete", path, lambda: super(FaultyStore, self).rm_file(path))


fsspec.register_implementation("faulty", FaultyStore, clobber=True)


@pytest.fixture(autouse=True)
def bucket():
    FaultyStore.reset()
    yield FaultyStore
    FaultyStore.reset()


def content(step):
    generator = torch.Generator().manual_seed(step)
    return {"model": {"state": {"weight": torch.randn(8, 8, generator=generator)}}, "step": step}


def there():
    """As another process sees it, without patience."""
    return RemotePlace(URL, waits=())


def objects():
    return {path.partition("checkpoints/")[2]: bytes(file.getvalue()) for path, file in FaultyStore.store.items()}


def flip(path, position=-1):
    file = next(f for name, f in FaultyStore.store.items() if name.endswith(path))
    data = bytearray(file.getvalue())
    data[position] ^= 1
    file.seek(0)
    file.write(bytes(data))


@pytest.fixture
def local(tmp_path):
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    for step in (10, 20, 30):
        store.save(step, content(step), facts={"val_loss": 1 / step})
    return store


def test_what_is_uploaded_is_loaded_from_the_url(local, identical):
    for info in local.list():
        there().upload(info.path)
    infos = there().list()
    assert [(i.step, i.id, i.facts, i.size) for i in infos] == [(i.step, i.id, i.facts, i.size) for i in local.list()]
    state, info = there().load()
    assert identical(state, content(30))
    assert info.step == 30
    assert identical(there().load(10)[0], content(10))
    assert identical(there().load(infos[1])[0], content(20))
    assert there().load(30, only=("step",))[0] == {"step": 30}
    for info in infos:
        there().verify(info)
    with pytest.raises(BadInput, match="Steps there: 10, 20, 30"):
        there().load(11)


def test_the_same_files_as_in_a_local_store(local, tmp_path):
    """So that any copying tool moves a run: what is downloaded object by object is a store."""
    for info in local.list():
        there().upload(info.path)
    for name, data in objects().items():
        path = tmp_path / "copied" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    copied = CheckpointStore(tmp_path / "copied")
    assert [i.id for i in copied.list()] == [i.id for i in local.list()]
    for info in copied.list():
        copied.verify(info)


def test_data_first_and_the_manifest_last_and_once(local):
    (first, *_) = local.list()
    there().upload(first.path)
    puts = [path.rpartition("/")[2] for request, path in FaultyStore.requests if request == "put"]
    assert puts[-1] == "manifest.json"
    assert sorted(puts) == ["manifest.json", "state.json", "tensors.safetensors"]
    FaultyStore.calm()
    there().upload(first.path)
    assert not [request for request, _ in FaultyStore.requests if request == "put"]


def test_an_upload_killed_at_any_request_leaves_nothing_visible_or_everything(local, identical):
    (info, *_) = local.list()
    n = 0
    while True:
        FaultyStore.reset()

        def kill(at, request, path, n=n):
            if at == n:
                raise Killed

        FaultyStore.plan = staticmethod(kill)
        try:
            there().upload(info.path)
        except Killed:
            FaultyStore.calm()
            assert there().list() == ()
            if n % 2:  # with and without a sweep of what the kill left, which may still be somebody's upload
                assert there().sweep() == ()
                there().sweep(timedelta(0))
                assert objects() == {}
            there().upload(info.path)
            assert identical(there().load()[0], content(10))
        else:
            break
        n += 1
    assert n >= 4, "every request must have been hit"


def test_a_put_that_arrives_cut_is_sent_again_or_refused(local, monkeypatch):
    (info, *_) = local.list()
    cut = [2]

    def put_file(self, lpath, rpath, **kwargs):
        data = Path(lpath).read_bytes()
        cut[0] -= 1
        MemoryFileSystem.pipe_file(self, rpath, data[:-1] if cut[0] >= 0 else data)

    monkeypatch.setattr(FaultyStore, "put_file", put_file)
    with pytest.raises(NotSaved, match="bytes arrived"):
        there().upload(info.path)
    assert there().list() == ()
    cut[0] = 2
    RemotePlace(URL, waits=(0.0, 0.0)).upload(info.path)
    there().verify(there().list()[0])


def test_passing_errors_are_waited_out(local, identical):
    (info, *_) = local.list()

    def every_other(n, request, path):
        if n % 2 == 0:
            raise Unavailable(503, "slow down")

    FaultyStore.plan = staticmethod(every_other)
    RemotePlace(URL, waits=(0.0,)).upload(info.path)
    patient = RemotePlace(URL, waits=(0.0, 0.0))
    assert identical(patient.load()[0], content(10))


def test_lasting_errors_are_said_and_leave_nothing_visible(local):
    (info, *_) = local.list()

    def down(n, request, path):
        if request == "put":
            raise Unavailable(503, "slow down")

    FaultyStore.plan = staticmethod(down)
    with pytest.raises(NotSaved, match="slow down"):
        RemotePlace(URL, waits=(0.0, 0.0)).upload(info.path)
    assert len([1 for request, _ in FaultyStore.requests if request == "put"]) == 3
    FaultyStore.calm()
    assert there().list() == ()


def test_a_lost_reply_to_the_commit_is_success(local):
    """The manifest was written and the reply lost: the retry finds it there (412) and sees that it is its own."""
    (info, *_) = local.list()
    lost = []

    def lose(n, request, path):
        if request == "put" and path.endswith("manifest.json") and not lost:
            lost.append(path)
            raise Unavailable(503, "gone away")

    FaultyStore.after = staticmethod(lose)
    RemotePlace(URL, waits=(0.0,)).upload(info.path)
    assert lost
    assert [i.id for i in there().list()] == [info.id]


def test_another_checkpoint_of_that_name_is_never_written_over(local):
    """412 Precondition Failed: the name is taken by other bytes."""
    (info, *_) = local.list()
    there().upload(info.path)
    flip(f"{info.path.name}/manifest.json", 20)
    with pytest.raises(NotSaved, match="another object of that name"):
        there().upload(info.path)


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_flipped_bit_is_found_and_the_next_one_is_loaded(local, file, identical):
    for info in local.list():
        there().upload(info.path)
    newest = local.list()[-1]
    flip(f"{newest.path.name}/{file}")
    with pytest.warns(DynaxxWarning, match="not listed" if file == "manifest.json" else "passed over"):
        state, info = there().load()
    assert identical(state, content(20))
    assert info.passed_over == (() if file == "manifest.json" else (newest.path.name,))
    with pytest.raises(CorruptData):
        there().verify(newest)
    assert not there().is_sound(newest)
    if file != "manifest.json":
        there().verify(newest, deep=False)  # the sizes are right: that is all it asks


@pytest.mark.parametrize("deep", [True, False])
def test_a_missing_object_is_found(local, deep):
    info = there().upload(local.list()[0].path)
    del FaultyStore.store[next(name for name in FaultyStore.store if name.endswith("state.json"))]
    with pytest.raises(CorruptData, match=r"state\.json is missing"):
        there().verify(info, deep)
    with pytest.raises(CorruptData, match=r"state\.json is missing"):
        there().load(info)


def test_when_all_are_damaged_it_is_said(local):
    there().upload(local.list()[0].path)
    flip("tensors.safetensors")
    with pytest.warns(DynaxxWarning), pytest.raises(CorruptData, match="Every checkpoint"):
        there().load()
    with pytest.raises(BadInput, match="holds no checkpoint"):
        RemotePlace("faulty://bucket/elsewhere").load()


def test_a_damaged_local_one_is_not_uploaded(local):
    (info, *_) = local.list()
    file = info.path / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptData):
        there().upload(info.path)
    assert objects() == {}


def test_saves_are_numbered_on(identical):
    for step in (5, 5, 3):
        there().save(step, content(step))
    assert [(i.step, i.id[:6]) for i in there().list()] == [(3, "000003"), (5, "000001"), (5, "000002")]
    assert identical(there().load()[0], content(5))


def test_removal_killed_at_any_request_shows_it_whole_or_not_at_all(local):
    (info, *_) = local.list()
    for n in range(100):
        FaultyStore.reset()
        there().upload(info.path)
        FaultyStore.requests.clear()

        def kill(at, request, path, n=n):
            if at == n:
                raise Killed

        FaultyStore.plan = staticmethod(kill)
        try:
            there().remove(info)
        except Killed:
            FaultyStore.calm()
            for seen in there().list():
                there().verify(seen)
            there().sweep(timedelta(0))
            assert len(objects()) in (0, 3)
        else:
            FaultyStore.calm()
            assert objects() == {}
            assert n >= 3
            return
    raise AssertionError("the removal never came through")


def populate(steps):
    place = there()
    infos = {step: place.save(step, content(step), facts={"val_loss": 1 / step}) for step in steps}
    for info in infos.values():
        mark(place, info, "healthy", "")
    FaultyStore.requests.clear()
    return infos


def prune_killed(first, stride, identical):
    """Four full ones: two stay, one goes to the archive, one expires; the client dies at every so-many-th request."""
    kept, frozen = {30, 40}, {20}
    infos = populate((10, 20, 30, 40))
    before = {path: bytes(file.getvalue()) for path, file in FaultyStore.store.items()}
    for n in range(first, 1000, stride):
        FaultyStore.reset()
        for path, data in before.items():
            MemoryFileSystem.pipe_file(FaultyStore(), path, data)

        def kill(at, request, path, n=n):
            if at == n:
                raise Killed

        FaultyStore.plan = staticmethod(kill)
        try:
            prune(there(), policy("last:2"), cold=policy("newer:20"))
        except Killed:
            through = False
        else:
            through = True
        FaultyStore.calm()
        full, cold = there().list(), there().archive.list()
        assert kept <= {info.step for info in full}
        assert frozen <= {info.step for info in (*full, *cold)}
        for place, seen in ((there(), full), (there().archive, cold)):
            for info in seen:
                place.verify(info)
        prune(there(), policy("last:2"), cold=policy("newer:20"))
        assert {info.step for info in there().list()} == kept
        assert [info.step for info in there().archive.list()] == [20]
        state, info = there().archive.load()
        assert info.facts["of"] == infos[20].id
        assert identical(state["model"]["state"]["weight"], content(20)["model"]["state"]["weight"].bfloat16())
        if through:
            assert n > 30
            return
    raise AssertionError("the pruning never came through")


def test_pruning_killed_at_some_requests_loses_nothing_that_is_kept(identical):
    prune_killed(3, 11, identical)


@pytest.mark.slow
def test_pruning_killed_at_any_request_loses_nothing_that_is_kept(identical):
    prune_killed(0, 1, identical)


def test_the_archive_of_an_object_store_expires():
    populate((10, 20, 30, 40, 50))
    prune(there(), policy("last:2"), cold=policy("newer:30"))
    assert [info.step for info in there().list()] == [40, 50]
    assert [info.step for info in there().archive.list()] == [20, 30]
    there().save(60, content(60))
    mark(there(), there().list()[-1], "healthy", "")
    done = prune(there(), policy("last:2"), cold=policy("newer:30"))
    assert [info.step for info in done.expired] == [20]
    assert [info.step for info in there().archive.list()] == [30, 40]
    assert set(there().notes("health")) == {
        info.facts.get("of", info.id) for info in (*there().list(), *there().archive.list())
    }


def test_a_mirror_follows_and_reports(local, identical):
    with Mirror(local, there()) as mirror:
        mirror.catch_up()
        assert mirror.flush(30)
        assert mirror.pending == 0
        mark(local, local.list()[0], "healthy", "by its record")
        mirror.offer(local.save(40, content(40)))
        assert mirror.close(30)
    assert [info.step for info in there().list()] == [10, 20, 30, 40]
    assert identical(there().load()[0], content(40))
    assert len(there().notes("health")) == 1
    assert mirror.uploaded == 4


def test_a_mirror_keeps_to_its_policy(local):
    with Mirror(local, there(), keep=policy("last:2")) as mirror:
        mirror.catch_up()
    assert [info.step for info in there().list()] == [20, 30]


def test_what_a_mirror_cannot_bring_is_said_and_brought_later(local):
    def down(n, request, path):
        if request == "put":
            raise Unavailable(503, "slow down")

    mirror = Mirror(local, RemotePlace(URL, waits=()))
    FaultyStore.plan = staticmethod(down)
    mirror.offer(local.list()[0])
    assert mirror.flush(30)
    assert "slow down" in mirror.problems[0]
    FaultyStore.calm()
    mirror.offer(local.list()[1])
    assert mirror.flush(30)
    assert [info.step for info in there().list()] == [20]
    mirror.catch_up()
    assert mirror.flush(30)
    assert [info.step for info in there().list()] == [10, 20, 30]
    with pytest.warns(DynaxxWarning, match="slow down"):
        assert not mirror.close(30)


def test_one_that_is_pruned_before_its_turn_is_said(local):
    (first, *_) = local.list()
    mirror = Mirror(local, there())
    local.remove([first])
    mirror.offer(first)
    mirror.flush(30)
    assert len(mirror.problems) == 1
    with pytest.warns(DynaxxWarning, match="1 checkpoints are not in"):
        mirror.close(30)


def test_adoption_brings_a_remote_one_home_under_its_name(local, tmp_path, identical):
    for info in local.list():
        there().upload(info.path)
    home = LocalPlace(tmp_path / "home" / "checkpoints")
    copy = home.adopt(there(), there().list()[1])
    assert (copy.step, copy.id) == (20, local.list()[1].id)
    assert identical(home.load()[0], content(20))
    flip(f"{local.list()[0].path.name}/tensors.safetensors")
    with pytest.raises(CorruptData):
        home.adopt(there(), there().list()[0])
    assert [info.step for info in home.list()] == [20]
    assert not list((home.folder / ".staging").iterdir())


def test_an_archived_one_keeps_its_identity(local):
    place = LocalPlace(local)
    info = local.list()[1]
    cold = archive(place, info)
    assert archive(place, info).id == cold.id  # found again, not written twice
    assert len(place.archive.list()) == 1


@pytest.mark.parametrize("url", ["nowhere://x", "s3://bucket/x"])
def test_a_url_that_cannot_be_opened_is_bad_input(url):
    if url.startswith("s3"):
        try:
            import s3fs  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("s3fs is installed")
    with pytest.raises(BadInput, match=url):
        RemotePlace(url)


def test_a_folder_behind_a_url_is_made(tmp_path, identical):
    place = RemotePlace(f"file://{tmp_path}/new/checkpoints", waits=())
    info = place.save(5, content(5))
    mark(place, info, "healthy", "")
    assert identical(LocalPlace(tmp_path / "new" / "checkpoints").load()[0], content(5))
    assert len(LocalPlace(tmp_path / "new" / "checkpoints").notes("health")) == 1
    prune(place, policy("last:1"))
    assert [i.step for i in place.list()] == [5]
