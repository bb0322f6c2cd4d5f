import sysconfig
import time
from pathlib import Path

import pytest

from dynaxx.errors import BadInput
from dynaxx.tasks._stdlib import in_validation, read, sources, standard_library

KEPT = ("abc.py", "argparse.py", "json/decoder.py", "unittest/case.py", "idlelib/run.py", "this.py", "testing.py")
LEFT_OUT = (
    "test/test_os.py",  # 3.12 and later keep all tests here
    "test/support/os_helper.py",
    "unittest/test/test_case.py",  # 3.11
    "lib2to3/tests/test_parser.py",
    "distutils/tests/test_core.py",
    "ctypes/test/test_funcs.py",
    "idlelib/idle_test/test_run.py",
    "site-packages/numpy/core.py",
    "dist-packages/apt/cache.py",
    "__pycache__/abc.py",
    "_sysconfigdata__linux_x86_64-linux-gnu.py",
    "lib-dynload/_bz2.so",
    "LICENSE.txt",
)


@pytest.fixture
def library(tmp_path):
    for path in KEPT + LEFT_OUT:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(f"# {path}\r\n".encode())
    return tmp_path


def test_tests_packages_and_generated_files_are_left_out(library):
    assert sources(library) == sorted(KEPT)


def test_files_are_joined_in_the_order_of_their_paths(library):
    (library / "zzz_held_out.py").touch()
    held_out = next(name for i in range(1000) if in_validation(name := f"zz{i}.py"))
    (library / held_out).write_bytes(b"x = 1\n")
    text = read(library)
    train = [path for path in [*sorted(KEPT), "zzz_held_out.py"] if not in_validation(path)]
    expected = b"".join((f"# {path}\n".encode() if path in KEPT else b"") + b"\0" for path in train)
    assert text.train.numpy().tobytes() == expected
    assert text.validation.numpy().tobytes().endswith(b"x = 1\n\0")
    assert text.files == len(KEPT) + 2
    before = text.digest
    (library / held_out).write_bytes(b"x = 2\n")
    assert read(library).digest != before
    assert len(before) == 32


def test_the_split_of_a_file_never_changes():
    # Literals: a run's validation text is the same in every version of Dynaxx.
    assert [i for i in range(100) if in_validation(f"module_{i}.py")] == [7, 62, 63]
    share = sum(in_validation(f"package_{i}/x.py") for i in range(20_000)) / 20_000
    assert share == pytest.approx(0.05, abs=0.006)  # four standard deviations of a fair draw


def test_a_library_without_source(tmp_path):
    with pytest.raises(BadInput, match=r"'stdlib-lm' needs the source files.*Found 0 in .*Use an interpreter"):
        read(tmp_path)


def test_the_library_of_this_interpreter():
    root = Path(sysconfig.get_path("stdlib"))
    started = time.process_time()
    text = read(root)
    assert time.process_time() - started < 2
    paths = sources(root)
    assert {"os.py", "json/decoder.py", "asyncio/events.py"} <= set(paths)
    assert not [path for path in paths if {"test", "tests", "idle_test", "site-packages"} & set(path.split("/"))]
    total = len(text.train) + len(text.validation)
    assert total == sum(len((root / path).read_bytes().replace(b"\r\n", b"\n")) + 1 for path in paths)
    assert 6e6 < total < 30e6
    assert 0.02 < len(text.validation) / total < 0.10
    assert int((text.train == 0).sum() + (text.validation == 0).sum()) == text.files == len(paths)
    assert standard_library() is standard_library()
    assert standard_library().digest == text.digest
