"""`dynaxx checkpoints` as a user meets it: what is printed, JSON, exit codes, one clear line for bad input."""

import json
import subprocess
import sys

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import load_file

from dynaxx.checkpoints import CheckpointStore
from dynaxx.checkpoints.health import illness, mark
from dynaxx.cli import BAD_INPUT, DONE, FAILED, run
from dynaxx.runlog.manifest import write_manifest


@pytest.fixture
def first(tmp_path):
    """A run's folder with four checkpoints."""
    folder = tmp_path / "runs" / "first"
    write_manifest(folder, {"steps": 100, "facts": {"seed": 0, "order_seed": 0}})
    store = CheckpointStore(folder / "checkpoints")
    for step in (10, 20, 30, 40):
        weight = torch.full((4, 4), float(step))
        info = store.save(step, {"model": {"state": {"weight": weight}}, "extra": {}}, facts={"val_loss": 1 / step})
        mark(store, info, "healthy", "")
    return folder


@pytest.fixture
def dynaxx(capsys):
    """The command, its exit code, what it printed, and what it printed as JSON."""

    def call(*words, code=DONE):
        capsys.readouterr()
        assert run(["checkpoints", *map(str, words)]) == code
        printed = capsys.readouterr()
        if code == BAD_INPUT:
            assert printed.err.startswith("Error: ")
            assert "Traceback" not in printed.err
            assert len(printed.err.strip().splitlines()) == 1
            return printed.err
        return json.loads(printed.out) if "--json" in words else printed.out

    return call


def damage(folder, step):
    (file,) = (folder / "checkpoints").glob(f"{step:010d}-*/tensors.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_list(first, dynaxx):
    text = dynaxx("list", first)
    assert [line.split()[0] for line in text.splitlines()] == ["step", "10", "20", "30", "40", "4"]
    assert "val_loss 0.025" in text
    assert "4 full, 0 archived" in text
    rows = dynaxx("list", first / "checkpoints", "--json")["checkpoints"]
    assert [(row["step"], row["tier"], row["health"]) for row in rows] == [
        (step, "full", "healthy") for step in (10, 20, 30, 40)
    ]


def test_list_tells_distances_where_they_were_measured_and_what_is_not_finite(first, dynaxx):
    rows = dynaxx("list", first, "--json")["checkpoints"]
    assert [row["nearest"] for row in rows] == [None] * 4, "to list reads no weights"
    dynaxx("prune", first, "--keep", "last:1,diverse:2")
    store = CheckpointStore(first / "checkpoints")
    lost = store.save(50, {"model": {"state": {"weight": torch.tensor([torch.nan])}}, "extra": {}})
    mark(store, lost, "bad", illness(lost))
    rows = {row["step"]: row for row in dynaxx("list", first, "--json")["checkpoints"]}
    gaps = {step: min(abs(step - other) for other in rows if other not in (step, 50)) for step in rows if step != 50}
    assert len(gaps) >= 3
    for step, gap in gaps.items():  # of 16 equal numbers: ‖θ₁ − θ₂‖ = 4 |Δ|, sketched
        assert rows[step]["nearest"] == pytest.approx(4 * gap, rel=0.1)
    assert rows[50]["nearest"] is None
    line = next(line for line in dynaxx("list", first).splitlines() if line.split()[0] == "50")
    assert "bad" in line
    assert line.endswith("nan in model/state/weight")


def test_verify_says_which_is_damaged(first, dynaxx):
    assert dynaxx("verify", first).count("as it was written") == 4
    damage(first, 30)
    text = dynaxx("verify", first, code=FAILED)
    assert text.count("as it was written") == 3
    assert "weight" in text
    found = dynaxx("verify", first, "--json", code=FAILED)
    assert len(found["sound"]) == 3
    assert next(iter(found["damaged"])).startswith("0000000030")
    assert dynaxx("verify", first, "--shallow").count("as it was written") == 4
    dynaxx("verify", first, "--at", 20)
    dynaxx("verify", first, "--at", 30, code=FAILED)


def test_prune_and_archive(first, dynaxx):
    said = dynaxx("prune", first, "--keep", "last:2", "--archive", "newer:20", "--dry-run")
    assert "nothing was done" in said
    assert len(CheckpointStore(first / "checkpoints").list()) == 4
    done = dynaxx("prune", first, "--keep", "last:2", "--archive", "newer:20", "--json")
    assert {name: [row["step"] for row in done[name]] for name in ("kept", "removed", "archived", "expired")} == {
        "kept": [30, 40],
        "removed": [10, 20],
        "archived": [20],
        "expired": [],
    }
    rows = dynaxx("list", first, "--json")["checkpoints"]
    assert [(row["step"], row["tier"]) for row in rows] == [(20, "archive"), (30, "full"), (40, "full")]
    assert dynaxx("verify", first).count("as it was written") == 3


def test_pins_show_and_hold(first, dynaxx):
    dynaxx("pin", first, "--at", 10, "--why", "figure 3")
    assert "pinned: figure 3" in dynaxx("list", first)
    assert "10 30 40" in dynaxx("prune", first, "--keep", "last:2")
    dynaxx("pin", first, "--at", 10)
    assert "pinned" not in dynaxx("list", first)


def test_branch_and_lineage(first, dynaxx, tmp_path):
    text = dynaxx("branch", first, tmp_path / "runs" / "second", "--at", 20, "--set", "order_seed=7", "--steps", 50)
    assert "from step 20" in text
    manifest = json.loads((tmp_path / "runs" / "second" / "run.json").read_text())
    assert (manifest["steps"], manifest["facts"]) == (50, {"seed": 0, "order_seed": 7})
    made = dynaxx("branch", tmp_path / "runs" / "second", tmp_path / "runs" / "third", "--json")
    assert (made["level"], made["step"]) == ("exact", 20)
    tree = dynaxx("lineage", tmp_path / "runs", "-o", tmp_path / "lineage.png")
    assert "second · exact from step 20" in tree
    assert "third · exact from step 20" in tree
    assert (tmp_path / "lineage.png").stat().st_size > 5000
    runs = dynaxx("lineage", tmp_path / "runs", "--json")["runs"]
    assert [run["name"] for run in runs] == ["first", "second", "third"]
    dynaxx("branch", first, tmp_path / "runs" / "second", code=BAD_INPUT)


def test_export(first, dynaxx, tmp_path):
    dynaxx("export", first, "-o", tmp_path / "out", "--at", 20, "--dtype", "bfloat16")
    (weight,) = load_file(tmp_path / "out" / "model.safetensors").values()
    assert torch.equal(weight, torch.full((4, 4), 20.0, dtype=torch.bfloat16))
    assert dynaxx("export", first, "-o", tmp_path / "b", "--json")["step"] == 40
    dynaxx("export", first, "-o", tmp_path / "b", code=BAD_INPUT)
    dynaxx("export", first, "-o", tmp_path / "c", "--averaged", code=FAILED)


def test_mirror_and_everything_on_the_url(first, dynaxx, tmp_path):
    url = f"memory://{tmp_path}/runs/first"
    assert "4 uploaded" in dynaxx("mirror", first, f"{url}/checkpoints")
    assert dynaxx("mirror", first, f"{url}/checkpoints", "--json")["uploaded"] == 0
    assert "4 full" in dynaxx("list", url)
    assert dynaxx("verify", url).count("as it was written") == 4
    dynaxx("prune", url, "--keep", "last:2")
    assert "2 full" in dynaxx("list", url)
    dynaxx("branch", url, tmp_path / "home")
    dynaxx("export", url, "-o", tmp_path / "out")
    name = next(
        path for path in MemoryFileSystem.store if str(tmp_path) in path and path.endswith("tensors.safetensors")
    )
    MemoryFileSystem.store[name].seek(100)
    MemoryFileSystem.store[name].write(b"x")
    dynaxx("verify", url, code=FAILED)


def test_blend_without_a_judge(first, dynaxx, tmp_path):
    found = dynaxx("blend", first, "--no-judge", "--how", "uniform", "-o", tmp_path / "b.safetensors", "--json")
    assert found["verdict"] == "not evaluated"
    (weight,) = load_file(tmp_path / "b.safetensors").values()
    assert torch.equal(weight, torch.full((4, 4), 25.0))
    assert "--task" in dynaxx("blend", first, code=BAD_INPUT)
    assert ".safetensors" in dynaxx("blend", first, "--no-judge", "-o", tmp_path / "b.bin", code=BAD_INPUT)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["list", "{there}/nowhere"], "no such folder"),
        (["list", "{there}"], "holds no checkpoints"),
        (["list", "nothing://x"], "nothing"),
        (["verify", "{first}", "--at", "11"], "Steps there: 10, 20, 30, 40"),
        (["prune", "{first}", "--keep", "lst:3"], "'last'"),
        (["prune", "{first}", "--keep", "last"], "last:N"),
        (["prune", "{first}"], "--keep"),
        (["branch", "{first}", "{there}/new", "--set", "seed"], "NAME=VALUE"),
        (["branch", "{first}", "{there}/new", "--set", "sed=3"], "no setting sed"),
        (["export", "{first}", "-o", "{there}/new", "--dtype", "int8"], "bfloat16"),
        (["lineage", "{there}"], "holds no run"),
        (["pin", "{first}", "--why", ""], "say why"),
        (["mirror", "{there}/nowhere", "memory://x"], "no such folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(first, dynaxx, tmp_path, words, said):
    there = tmp_path / "empty"
    there.mkdir()
    assert said in dynaxx(*(word.format(first=first, there=there) for word in words), code=BAD_INPUT)
    assert not (there / "new").exists()


def test_help_imports_neither_torch_nor_numpy():
    code = (
        "import sys\n"
        "from dynaxx.cli import run\n"
        "assert run(['checkpoints', '--help']) == 0 and run(['checkpoints', 'prune', '--help']) == 0\n"
        "heavy = {'torch', 'numpy', 'fsspec'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
