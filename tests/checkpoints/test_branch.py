"""A branch goes on bit for bit where nothing is changed, and both runs know of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dynaxx import catalog, open_run
from dynaxx.checkpoints import CheckpointStore
from dynaxx.checkpoints.archive import archive
from dynaxx.checkpoints.branch import branch
from dynaxx.checkpoints.health import settle
from dynaxx.checkpoints.places import LocalPlace
from dynaxx.checkpoints.policy_words import policy
from dynaxx.checkpoints.pruning import prune
from dynaxx.checkpoints.remote import RemotePlace
from dynaxx.errors import BadInput, CorruptData, RunFolderExists
from dynaxx.session.train import train

TASKS = Path(__file__).parents[1] / "survey" / "fleet_tasks.py"


def run(folder, **options):
    options = {"steps": 30, "signals": ("lr", "update_norm"), "checkpoints": 6, "keep": "last:20", **options}
    return train(catalog.task(f"{TASKS}:Noisy"), folder, name="Noisy", quiet=True, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(folder)
    return folder


@pytest.fixture
def first(whole, tmp_path):
    """A copy to write notes into."""
    import shutil

    return Path(shutil.copytree(whole, tmp_path / "runs" / "first"))


def last_state(folder):
    return CheckpointStore(folder / "checkpoints").load()[0]


def test_it_goes_on_bit_for_bit(first, tmp_path, identical):
    made = branch(first, tmp_path / "runs" / "second", at=15)
    assert (made.level, made.step, made.changed) == ("exact", 15, ())
    outcome = run(made.run, resume=True)
    assert outcome.step == 30
    ours, twin = last_state(Path(made.run)), last_state(first)
    for part in ("model", "optimizer", "scheduler", "extra", "random"):
        assert identical(ours[part], twin[part]), part
    a, b = open_run(made.run), open_run(first)
    np.testing.assert_array_equal(np.asarray(a["loss"]), np.asarray(b["loss"])[15:])
    assert a["loss"].steps[0] == 16
    assert a.manifest["branch"]["checkpoint"] == made.checkpoint
    assert a.manifest["facts"] == b.manifest["facts"]


def test_the_branch_point_is_the_same_checkpoint_in_both(first, tmp_path):
    made = branch(first, tmp_path / "runs" / "second", at=15)
    here, there = CheckpointStore(first / "checkpoints"), CheckpointStore(Path(made.run) / "checkpoints")
    (copy,) = there.list()
    (original,) = [info for info in here.list() if info.step == 15]
    assert (copy.id, copy.step, copy.facts, copy.size) == (original.id, 15, original.facts, original.size)
    (note,) = LocalPlace(here).notes("branches").values()
    assert (note["run"], note["checkpoint"]) == (made.run, original.id)
    assert made.origin == str(first)


def test_a_branch_point_stays_while_its_branch_lives(first, tmp_path):
    made = branch(first, tmp_path / "runs" / "second", at=15)
    settle(LocalPlace(first / "checkpoints"), step=1000)
    done = prune(LocalPlace(first / "checkpoints"), policy("last:2"))
    assert [info.step for info in done.kept] == [15, 25, 30]
    assert "branched from it" in done.why[made.checkpoint]
    import shutil

    shutil.rmtree(made.run)
    done = prune(LocalPlace(first / "checkpoints"), policy("last:2"))
    assert [info.step for info in done.kept] == [25, 30]


def test_other_settings_are_recorded_and_trained_with(first, tmp_path):
    made = branch(first, tmp_path / "second", at=15, steps=40, facts={"order_seed": 7})
    assert made.changed == ("order_seed", "steps")
    with pytest.raises(BadInput, match="order_seed"):
        run(made.run, resume=True, steps=40, horizon=40)
    with pytest.raises(BadInput, match="no setting sed"):
        branch(first, tmp_path / "third", facts={"sed": 7})
    assert not (tmp_path / "third").exists()


def test_from_the_archive_it_is_a_warm_start_and_says_so(first, tmp_path):
    place = LocalPlace(first / "checkpoints")
    info = place.find(15)
    archive(place, info)
    place.remove(info)
    made = branch(first, tmp_path / "second", at=15)
    assert made.level == "warm"
    assert made.checkpoint == info.id
    assert CheckpointStore(Path(made.run) / "checkpoints").list() == ()
    outcome = run(made.run, resume=True, start=made.start)
    assert outcome.step == 30  # from step 0 on, with the weights of step 15
    assert open_run(made.run).attempts[0].start_step == 0


def test_from_a_url(first, tmp_path, identical):
    there = RemotePlace(f"memory://{tmp_path}/checkpoints")
    local = LocalPlace(first / "checkpoints")
    there.upload(local.find(15).path)
    made = branch(there.name, tmp_path / "second", steps=30)
    outcome = run(made.run, resume=True)
    assert outcome.step == 30
    assert identical(last_state(Path(made.run))["model"], last_state(first)["model"])
    assert len(there.notes("branches")) == 1


def test_nothing_is_made_of_what_cannot_be(first, tmp_path):
    branch(first, tmp_path / "second")
    with pytest.raises(RunFolderExists):
        branch(first, tmp_path / "second")
    with pytest.raises(BadInput, match="Steps there: 5, 10"):
        branch(first, tmp_path / "a" / "b", at=7)
    info = LocalPlace(first / "checkpoints").find(15)
    file = info.path / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptData):
        branch(first, tmp_path / "a" / "b", at=15)
    assert not (tmp_path / "a").exists()
    assert len(LocalPlace(first / "checkpoints").notes("branches")) == 1


def test_the_record_is_plain_json(first, tmp_path):
    branch(first, tmp_path / "second", at=15)
    manifest = json.loads((tmp_path / "second" / "run.json").read_text())
    assert manifest["branch"]["origin"] == str(first)
    assert manifest["steps"] == 30
    assert torch.is_tensor(last_state(tmp_path / "second")["optimizer"]["state"][0]["momentum_buffer"])
