"""Which checkpoints of a live run stay, what is said of them at the end, and what the log tells of each."""

import errno
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import dynaxx
from dynaxx.checkpoints import CheckpointStore
from dynaxx.checkpoints.branch import branch
from dynaxx.checkpoints.health import last_healthy, verdicts
from dynaxx.checkpoints.places import LocalPlace
from dynaxx.checkpoints.pruning import pin
from dynaxx.checkpoints.retention import Last, Spread
from dynaxx.core.findings import Finding
from dynaxx.errors import BadInput, DynaxxWarning

ILL = Finding(code="D7", name="divergence", title="", severity="critical", spans=((14, 16),))


def begin(folder: Path, *, steps: int | None = 100, **options):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    run = dynaxx.watch(model, optimizer, folder, steps=steps, signals=["lr"], quiet=True, **options)

    def step():
        model(torch.ones(2, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return run, step


def advance(run, step, until: int, *, every: int = 5, **options):
    while run.step < until:
        step()
        if run.step % every == 0:
            run.save(**options)


def steps_in(folder: Path) -> list[int]:
    return [info.step for info in CheckpointStore(folder / "checkpoints").list()]


@pytest.mark.parametrize("navigate", ["off", "advise"])
def test_what_is_pinned_or_branched_from_stays(tmp_path: Path, navigate) -> None:
    run, step = begin(tmp_path / "run", navigate=navigate)
    advance(run, step, 10, keep=2)
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    first, second = store.list()
    pin(store, first, "the figure")
    branch(tmp_path / "run", tmp_path / "other", at=second.id)
    advance(run, step, 90, keep=2)
    run.close()
    kept = steps_in(tmp_path / "run")
    assert kept[:2] == [5, 10]
    assert kept[-2:] == [85, 90]
    assert navigate == "advise" or len(kept) == 4, "without a diagnosis nothing else stays"


def test_what_is_said_of_checkpoints_goes_with_them(tmp_path: Path) -> None:
    run, step = begin(tmp_path / "run", navigate="advise")
    advance(run, step, 95, keep=2)
    run.close()
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    assert verdicts(store).keys() == {info.id for info in store.list()}


@pytest.mark.parametrize(
    ("status", "planned", "findings", "said"),
    [
        ("finished", 18, (), ["healthy", "healthy", "healthy"]),
        ("finished", None, (), ["healthy", "healthy", "healthy"]),
        ("finished", 18, (ILL,), ["suspect", "suspect", "healthy"]),
        ("finished", 19, (), ["probation", "probation", "probation"]),
        ("interrupted", 18, (), ["probation", "probation", "probation"]),
    ],
)
def test_short_runs_do_not_stay_on_probation(tmp_path: Path, status, planned, findings, said) -> None:
    """18 steps are fewer than the probation of 20: only the end of the training can tell."""
    run, step = begin(tmp_path / "run", steps=planned, navigate="advise")
    run.steering.remedies.findings = lambda: findings if run.step >= 16 else ()
    advance(run, step, 10)
    advance(run, step, 18, every=18)
    run.close(status)
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    noted = verdicts(store)
    assert [info.step for info in store.list()] == [5, 10, 18]
    assert [noted[info.id].health for info in store.list()] == said
    if said[-1] == "healthy":
        assert noted[store.list()[-1].id].why == "no alarm until the training ended at step 18"


@pytest.mark.parametrize("navigate", ["off", "advise"])
@pytest.mark.parametrize("wait", [True, False])
def test_what_is_not_finite_is_recorded_ill_and_never_the_last_healthy_one(tmp_path: Path, navigate, wait) -> None:
    """One NaN in a running statistic shows in no gradient, and no finding is there when it is saved."""
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = dynaxx.watch(model, optimizer, tmp_path / "run", steps=100, signals=["lr"], quiet=True, navigate=navigate)
    for step in range(1, 41):
        model(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 15:
            model[1].running_mean[0] = torch.nan
        if step % 10 == 0:
            run.save(keep=1, wait=wait)
    run.close()
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    assert steps_in(tmp_path / "run") == [10, 40], "the latest stays as asked for, and the last one that can be used"
    first, last = store.list()
    assert verdicts(store)[last.id].health == "bad"
    assert verdicts(store)[last.id].why == "nan in model/state/1.running_mean"
    assert last_healthy(store) == first
    assert run.steering.rollbacks.reachable(()) == [first]


def test_a_health_that_cannot_be_noted_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, step = begin(tmp_path / "run", steps=5, navigate="advise")
    advance(run, step, 5)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LocalPlace, "write_note", full)
    with pytest.warns(DynaxxWarning, match="health of the last checkpoints was not noted.*No space"):
        run.close()
    assert dynaxx.open_run(tmp_path / "run").attempts[-1].status == "finished"


def test_the_log_tells_what_was_gone_back_to(tmp_path: Path) -> None:
    run, step = begin(tmp_path / "run")
    for batch in run.batches([0] * 20):
        del batch
        step()
        if run.step in (5, 10):
            run.save()
        if run.step == 12 and not dynaxx.open_run(tmp_path / "run").events("rolled_back"):
            run.rollback(before=10)
    run.close()
    view = dynaxx.open_run(tmp_path / "run")
    [back] = view.events("rolled_back")
    origins = [event["origin"] for event in view.events("checkpoint")]
    assert origins[:2] == [None, None]
    numbers = [event["id"].partition("-")[0] for event in view.events("checkpoint")]
    assert len(origins) > 2
    for origin in origins[2:]:
        assert origin["checkpoint"].endswith(back["id"])
        assert origin["number"] == int(numbers[2]), "the first save after it"


@pytest.mark.parametrize("name", ["id", "of_step", "origin", "step", "time", "attempt", "kind"])
def test_facts_that_the_log_has_itself_are_refused_before_anything_is_written(tmp_path: Path, name) -> None:
    run, step = begin(tmp_path / "run")
    step()
    with run, pytest.raises(BadInput, match=rf"run.save\({name}=...\).*Rename"):
        run.save(**{name: 1})
    assert steps_in(tmp_path / "run") == []


def test_a_resumed_run_knows_what_saving_has_cost(tmp_path: Path) -> None:
    run, step = begin(tmp_path / "run")
    advance(run, step, 10)
    policy = run._saving.policy
    kept = policy.state_dict(now=0.0)
    run.close("interrupted")
    resumed, step = begin(tmp_path / "run", resume=True)
    again = resumed._saving.policy.state_dict(now=0.0)
    assert kept["count"] == 2
    assert again["count"] == 1, "the checkpoint of step 10 was captured before it was written"
    assert again["step"] == 5
    assert 0 < again["seconds"] < kept["seconds"]
    assert resumed._saving.policy.cost == again["seconds"]
    resumed.close()


def test_what_stays_may_be_a_policy(tmp_path: Path) -> None:
    run, step = begin(tmp_path / "run", navigate="off")
    advance(run, step, 100, keep=Spread(5) | Last(2), wait=False)
    run.close()
    kept = steps_in(tmp_path / "run")
    assert kept[0] == 5
    assert kept[-2:] == [95, 100]
    assert 5 <= len(kept) <= 6


def test_pruning_is_beside_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads every new checkpoint whole once, which the next step need not wait for."""
    run, step = begin(tmp_path / "run", navigate="off")
    threads: list[str] = []
    sound = CheckpointStore.is_sound

    def noted(self: CheckpointStore, which) -> bool:
        threads.append(threading.current_thread().name)
        return sound(self, which)

    monkeypatch.setattr(CheckpointStore, "is_sound", noted)
    advance(run, step, 50, keep=2, wait=False)
    run.close()
    assert threads
    assert all(name.startswith("dynaxx-tidying") for name in threads)
    assert len(steps_in(tmp_path / "run")) == 2


def test_what_cannot_be_pruned_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, step = begin(tmp_path / "run", navigate="off")
    advance(run, step, 10, keep=2)

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("dynaxx.session.saving.prune", broken)
    with pytest.warns(DynaxxWarning, match="Older checkpoints stay for now.*Input/output"):
        advance(run, step, 15, keep=2)
    run.close()
