"""Pruning, archive and expiry on a local folder: what is kept, and what a kill at any file operation leaves."""

import os
import shutil
import signal
import sys
import traceback
import warnings

import pytest
import torch

from dynaxx.checkpoints import CheckpointStore, capture, restore
from dynaxx.checkpoints.archive import archive, weights_only
from dynaxx.checkpoints.health import mark, verdicts
from dynaxx.checkpoints.places import LocalPlace
from dynaxx.checkpoints.policy_words import policy
from dynaxx.checkpoints.pruning import pin, prune, unpin
from dynaxx.errors import BadInput, DynaxxWarning


def content(step):
    generator = torch.Generator().manual_seed(step)
    weights = {"weight": torch.randn(16, 8, generator=generator), "bias": torch.randn(8, generator=generator)}
    return {"model": {"state": weights}, "moments": torch.randn(16, 8, generator=generator), "step": step}


def filled(folder, steps, health="healthy"):
    place = LocalPlace(folder)
    for step in steps:
        info = place.save(step, content(step), facts={"val_loss": 1 / step})
        if health:
            mark(place, info, health, "as the test wants it")
    return place


def steps(infos):
    return [info.step for info in infos]


def damage(info):
    file = info.path / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_what_no_policy_keeps_goes(tmp_path):
    place = filled(tmp_path / "checkpoints", range(10, 80, 10))
    said = prune(place, policy("last:2,every:30"), dry_run=True)
    assert steps(place.list()) == list(range(10, 80, 10))
    done = prune(place, policy("last:2,every:30"))
    assert steps(place.list()) == steps(done.kept) == steps(said.kept) == [10, 30, 60, 70]
    assert steps(done.removed) == steps(said.removed) == [20, 40, 50]
    assert not any((place.folder / "trash").iterdir())
    assert set(verdicts(place)) == {info.id for info in place.list()}
    again = prune(place, policy("last:2,every:30"))
    assert (again.removed, again.kept) == ((), done.kept)


@pytest.mark.parametrize(("words", "kept"), [("last:1", [30, 40]), ("best:1:val_loss:max", [10, 40])])
def test_two_healthy_ones_stay_whatever_the_policy_says(tmp_path, words, kept):
    place = filled(tmp_path / "checkpoints", (10, 20, 30, 40))
    done = prune(place, policy(words))
    assert steps(place.list()) == kept
    (reason,) = done.why.values()
    assert "last two" in reason


def test_the_healthy_stay_where_newer_ones_are_suspect(tmp_path):
    place = filled(tmp_path / "checkpoints", (10, 20, 30))
    filled(tmp_path / "checkpoints", (40, 50, 60), health="suspect")
    prune(place, policy("last:2"))
    assert steps(place.list()) == [20, 30, 50, 60]


def test_a_damaged_one_does_not_count_as_healthy(tmp_path):
    place = filled(tmp_path / "checkpoints", (10, 20, 30, 40))
    damage(place.list()[-1])
    prune(place, policy("last:1"))
    assert steps(place.list()) == [20, 30, 40]


@pytest.mark.parametrize(
    ("others", "kept"),
    [
        ("probation", [10, 20, 30, 40]),  # they may prove healthy
        ("suspect", [20, 40]),  # the healthy one, and the policy's own: what is suspect does not pile up
        ("bad", [20, 40]),
    ],
)
def test_with_one_healthy_one_the_young_stay_and_the_suspect_go(tmp_path, others, kept):
    place = filled(tmp_path / "checkpoints", (10, 20, 30, 40), health=others)
    mark(place, place.find(20), "healthy", "")
    done = prune(place, policy("last:1"))
    assert steps(place.list()) == kept
    assert done.refused == ""


def test_with_none_healthy_two_whole_ones_stay(tmp_path):
    place = filled(tmp_path / "checkpoints", (10, 20, 30, 40), health="suspect")
    damage(place.find(30))
    prune(place, policy("last:1"))
    assert steps(place.list()) == [20, 40]


def test_where_fewer_than_two_are_whole_nothing_goes(tmp_path):
    place = filled(tmp_path / "checkpoints", (10, 20, 30))
    for step in (10, 30):
        damage(place.find(step))
    with pytest.warns(DynaxxWarning, match="only 1 of the 3"):
        done = prune(place, policy("last:1"))
    assert steps(place.list()) == [10, 20, 30]
    assert "only 1 of the 3" in done.refused


def test_where_nobody_judges_whole_ones_count(tmp_path):
    place = filled(tmp_path / "checkpoints", (10, 20, 30, 40), health=None)
    prune(place, policy("last:2"))
    assert steps(place.list()) == [30, 40]


def test_pins_hold_until_taken_away(tmp_path):
    place = filled(tmp_path / "checkpoints", (10, 20, 30, 40))
    pin(place, place.list()[0], "the paper's figure")
    done = prune(place, policy("last:2"))
    assert steps(place.list()) == [10, 30, 40]
    assert done.why[place.list()[0].id] == "pinned: the paper's figure"
    unpin(place, place.list()[0])
    prune(place, policy("last:2"))
    assert steps(place.list()) == [30, 40]
    with pytest.raises(BadInput, match="say why"):
        pin(place, place.list()[0], "")


def test_hot_then_archive_then_gone(tmp_path, identical):
    place = filled(tmp_path / "checkpoints", range(10, 70, 10))
    ids = {info.step: info.id for info in place.list()}
    done = prune(place, policy("last:2"), cold=policy("newer:30"))
    assert steps(place.list()) == [50, 60]
    assert steps(done.archived) == steps(place.archive.list()) == [30, 40]
    assert steps(done.removed) == [10, 20, 30, 40]
    for info in place.archive.list():
        state, _ = place.archive.load(info)
        truth = content(info.step)["model"]["state"]
        assert identical(state["model"]["state"]["weight"], truth["weight"].bfloat16())
        assert identical(state["model"]["state"]["bias"], truth["bias"])
        assert info.facts["of"] == ids[info.step]
        assert info.facts["val_loss"] == 1 / info.step
        assert "moments" not in state
    info = place.save(80, content(80))
    mark(place, info, "healthy", "")
    done = prune(place, policy("last:2"), cold=policy("newer:40"))
    assert steps(done.expired) == [30]
    assert steps(place.archive.list()) == [40, 50]
    # Without an archive policy the archive is left as it is, and what leaves is gone.
    prune(place, policy("last:2"))
    assert steps(place.archive.list()) == [40, 50]


def test_an_archived_one_restores_as_a_warm_start_and_says_so(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    net(torch.randn(9, 3))
    optimizer = torch.optim.AdamW(net.parameters())
    place = LocalPlace(tmp_path / "checkpoints")
    info = place.save(7, capture(net, optimizer))
    cold = archive(place, info)
    state, _ = place.archive.load(cold)
    other = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    level, reasons = restore(state, other, torch.optim.AdamW(other.parameters()))
    assert level == "warm"
    assert any("rounded" in reason for reason in reasons)
    assert "only the weights are restored" in reasons
    assert torch.equal(other[0].weight, net[0].weight.bfloat16().float())
    assert torch.equal(other[0].bias, net[0].bias)
    assert torch.equal(other[1].running_var, net[1].running_var)


def test_rounding_is_to_the_nearest_and_keeps_ties_tied():
    weight = torch.randn(50, 50, generator=torch.Generator().manual_seed(0))
    state = {"model": {"state": {"a": weight, "b": weight, "half": weight.half(), "n": torch.ones(2, 2).long()}}}
    kept = weights_only(state)["model"]["state"]
    assert kept["a"] is kept["b"]
    assert kept["half"].dtype == torch.float16
    assert kept["n"].dtype == torch.int64
    assert ((kept["a"].double() - weight.double()).abs() <= weight.double().abs() * 2**-8).all()


def test_an_archive_of_a_damaged_one_is_not_made_and_it_stays(tmp_path):
    place = filled(tmp_path / "checkpoints", (10, 20, 30, 40))
    info = place.list()[1]
    file = info.path / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[data.index(content(20)["model"]["state"]["weight"].numpy().tobytes())] ^= 1
    file.write_bytes(data)
    with pytest.warns(DynaxxWarning, match="cannot be archived"):
        prune(place, policy("last:2"), cold=policy("all"))
    assert steps(place.list()) == [20, 30, 40]
    assert steps(place.archive.list()) == [10]


def test_those_left_behind_go_first(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    infos = [store.save(step, content(step)) for step in (10, 20, 30, 40)]
    store.continue_from(infos[1])
    for step in (25, 35):
        store.save(step, content(step))
    prune(store, policy("last:3"))
    assert steps(store.list()) == [20, 25, 35]


def kill_at_call(n):
    """Let the n-th file operation from now on be the last thing this process does."""
    operations = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir"}
    seen = 0

    def count(event, _):
        nonlocal seen
        if event in operations:  # os.kill is an event too
            seen += 1
            if seen > n:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def prune_and_die(folder, n):
    """In a child; whether it came through."""
    with warnings.catch_warnings():  # newer Pythons warn of threads; the child uses none of the parent's
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            place, keep, cold = LocalPlace(folder), policy("last:2"), policy("newer:20")
            kill_at_call(n)
            prune(place, keep, cold=cold)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def killed_at(template, folder, first, stride, identical):
    for n in range(first, 2000, stride):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template, folder)
        through = prune_and_die(folder, n)
        place = LocalPlace(folder)
        full, cold = place.list(), place.archive.list()  # warnings are errors: nothing visible is damaged
        assert {30, 40} <= set(steps(full))
        assert 20 in steps((*full, *cold))
        for lies, infos in ((place, full), (place.archive, cold)):
            for info in infos:
                lies.verify(info)
        for info in full:
            assert identical(place.load(info)[0], content(info.step))
        prune(place, policy("last:2"), cold=policy("newer:20"))
        assert steps(place.list()) == [30, 40]
        assert steps(place.archive.list()) == [20]
        assert not any((folder / "trash").glob("*"))
        if through:
            assert n > 50, "every operation must have been hit"
            return
    raise AssertionError("the pruning never came through")


@pytest.fixture
def template(tmp_path):
    return filled(tmp_path / "template", (10, 20, 30, 40)).folder


def test_killed_at_some_operations(template, tmp_path, identical):
    killed_at(template, tmp_path / "checkpoints", 5, 13, identical)


@pytest.mark.slow
def test_killed_at_every_operation(template, tmp_path, identical):
    killed_at(template, tmp_path / "checkpoints", 0, 1, identical)
