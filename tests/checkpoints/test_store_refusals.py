"""What the system refuses costs one checkpoint: said, cleaned up, the earlier ones as they were, the next one saved."""

import contextlib
import errno
import os
import resource
import subprocess
import sys
import warnings

import pytest
import torch

from dynaxx.checkpoints import CheckpointStore
from dynaxx.checkpoints.durable import _beside, write_durably
from dynaxx.checkpoints.manifest import NAME, STATE, TENSORS
from dynaxx.errors import NotSaved


def content(step):
    generator = torch.Generator().manual_seed(step)
    return {"weight": torch.randn(32, 8, generator=generator), "step": step}


def in_child(function):
    """Call it in a fork, for limits and hooks that cannot be taken back; 0 is well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of threads
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def failpoints(number):
    """Arms the n-th file operation from then on to fail with an error number; says whether it came to that."""
    left, hit = None, False

    def count(*_):
        nonlocal left, hit
        if left is not None:
            left -= 1
            if left < 0:
                left, hit = None, True
                raise OSError(number, os.strerror(number))

    sync = os.fsync
    os.fsync = lambda descriptor: (count(), sync(descriptor))
    operations = {"open", "os.rename", "os.mkdir", "os.listdir", "os.scandir", "os.link", "os.truncate"}
    sys.addaudithook(lambda event, _: event in operations and count())

    def arm(n):
        nonlocal left, hit
        left, hit = n, False

    def disarm():
        nonlocal left
        left = None
        return hit

    return arm, disarm


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EROFS], ids=errno.errorcode.get)
def test_every_operation_may_fail(store, identical, how, number):
    store.save(0, content(0))

    def child():
        arm, disarm = failpoints(number)
        step, refused = 1, []
        for n in range(200):
            state = content(step)
            arm(n)
            try:
                info = store.save(step, state) if how == "sync" else store.save_async(step, state).result()
            except NotSaved as error:
                info = None
                refused.append(error.errno)
            hit = disarm()
            if how == "async":
                store.flush()
            assert not list((store.folder / ".staging").iterdir()), n
            for seen in store.list():
                assert identical(store.load(seen)[0], content(seen.step))
            if info is not None:
                assert identical(store.load()[0], state)
                step += 1
            elif store.list()[-1].step == step:  # renamed, and then the sync of the folder failed
                step += 1
            store.save(step, content(step))
            step += 1
            store.prune(keep=2)
            if not hit:
                break
        assert not hit
        assert n > 10
        # An input/output error of a file is answered by a second file, so that fewer saves fail.
        assert set(refused) == {number}
        assert len(refused) >= (3 if number == errno.EIO else 10)

    assert in_child(child) == 0


def test_failed_sync_is_answered_by_a_second_file_and_never_by_a_second_sync(store, monkeypatch, identical):
    real, synced, failed = os.fsync, [], []

    def fsync(descriptor):
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        inode = name, os.fstat(descriptor).st_ino
        assert inode not in failed
        synced.append(name)
        if name == TENSORS:
            failed.append(inode)
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    info = store.save(1, content(1))
    assert synced[-6:-3] == [TENSORS, TENSORS + ".again", STATE]
    assert sorted(path.name for path in info.path.iterdir()) == sorted((NAME, STATE, TENSORS))
    assert identical(store.load()[0], content(1))


def test_disk_that_fails_twice_is_given_up(store, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(NotSaved, match="Input/output error"):
        store.save(1, content(1))
    assert store.list() == ()


def test_no_descriptor_left(store, identical):
    """A real EMFILE, at every number of descriptors that are left."""
    store.save(0, content(0))

    def child():
        taken, refused = [], []
        with contextlib.suppress(OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        for spare in range(8):
            try:
                store.save(spare + 1, content(spare + 1))
            except NotSaved as error:
                refused.append((spare, error.errno))
            os.close(taken.pop())
        assert refused[0] == (0, errno.EMFILE)
        assert len(refused) < 7
        store.save(50, content(50))
        assert not list((store.folder / ".staging").iterdir())
        assert identical(store.load()[0], content(50))

    assert in_child(child) == 0


def test_hashing_needs_no_second_thread(monkeypatch, tmp_path):
    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", start)
    assert _beside(lambda: 5).result() == 5
    assert write_durably(tmp_path / "f", [b"x"], lambda: 6) == 6
    with pytest.raises(ZeroDivisionError):
        write_durably(tmp_path / "g", [b"x"], lambda: 1 // 0)


def test_preflight(store, monkeypatch):
    store.preflight()
    assert store.list() == ()
    assert sorted(path.name for path in store.folder.iterdir()) == [".staging", "trash"]
    assert not list(store.folder.glob("*/*"))
    calls = []
    for name in ("fsync", "rename", "mkdir"):
        real = getattr(os, name)

        def failing(*args, name=name, real=real, **kwargs):
            calls.append(name)
            raise OSError(errno.EROFS, "Read-only file system")

        with monkeypatch.context() as patch:
            patch.setattr(os, name, failing)
            with pytest.raises(NotSaved, match=r"No checkpoint can be saved .*Read-only"):
                store.preflight()
        assert calls.pop() == name
        assert not list(store.folder.glob("*/*"))


def test_preflight_where_a_file_is_in_the_way(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(NotSaved, match="make the folder writable"):
        CheckpointStore(tmp_path / "run" / "checkpoints").preflight()


SMALL = """
import sys, torch
from dynaxx.checkpoints import CheckpointStore
from dynaxx.errors import NotSaved
store = CheckpointStore(sys.argv[1] + "/checkpoints")
store.save(1, {"w": torch.ones(100)})
for save in (store.save, lambda *a: store.save_async(*a).result()):
    try:
        save(2, {"w": torch.ones(1_000_000)})
    except NotSaved as error:
        assert error.errno == 28, error
    else:
        raise SystemExit("it fitted")
    assert not list((store.folder / ".staging").iterdir())
    assert store.load()[1].step == 1
store.save(3, {"w": torch.ones(100)})
"""


@pytest.mark.slow
def test_disk_that_is_really_full(tmp_path):
    """A file system of 3 MiB of its own, where the system lets us mount one."""
    mount = f"mount -t tmpfs -o size=3m none {tmp_path} && exec {sys.executable} -c '{SMALL}' {tmp_path}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no file system of its own here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
