"""Going back within a running training: the same bits where nothing else changes, and the story in the log."""

import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dynaxx
from dynaxx.checkpoints import CheckpointStore
from dynaxx.checkpoints.health import mark
from dynaxx.core.findings import Finding
from dynaxx.core.records import Action
from dynaxx.errors import BadInput, DynaxxWarning, NotApplicable
from dynaxx.runlog.manifest import ROLLED_BACK
from dynaxx.session.rollback import destinations

STEPS = 40
DATA = torch.randn(64, 6, generator=torch.Generator().manual_seed(3))


def build():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)


def shuffled():
    return DataLoader(TensorDataset(DATA), batch_size=4, shuffle=True)


def train(folder, *, at=0, save=0, until=0, resume=False, loader=None, navigate="off", **options):
    """`STEPS` steps; a rollback is asked for once, behind step `at`; every 5th step is saved, and step `save`."""
    model, optimizer, scheduler = build()
    run = dynaxx.watch(
        model, optimizer, folder, scheduler=scheduler, steps=STEPS, resume=resume, quiet=True, navigate=navigate
    )
    asked, seen = resume, []
    source = shuffled() if loader is None else loader
    while run.step < STEPS:
        for (batch,) in run.batches(source):
            seen.append(batch)
            model(batch).square().mean().backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            run.log(loss=run.step)
            if run.step % 5 == 0 or run.step == save:
                run.save(keep=20)
            if run.step == at and not asked:
                asked = True
                run.rollback(**options)
            if run.step == STEPS or (run.step == until and (asked or not at)):
                break
        else:
            continue
        break
    run.close()
    return model, run, seen


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, bits(other)[name]) for name, value in bits(one).items())


@pytest.mark.parametrize("source", ["shuffled", "list"])
def test_rewind_without_a_change_gives_the_same_bits(tmp_path: Path, source) -> None:
    loader = None if source == "shuffled" else [(part,) for part in DATA.split(4)]
    whole, _, _ = train(tmp_path / "whole", loader=loader)
    torch.manual_seed(77)
    back, _, _ = train(tmp_path / "back", at=13, before=12, data="rewind", loader=loader)
    assert same(whole, back)
    view = dynaxx.open_run(tmp_path / "back")
    assert [attempt.status for attempt in view.attempts] == [ROLLED_BACK, "finished"]
    [event] = view.events("rolled_back")
    assert (event["step"], event["came_from"], event["data"]) == (10, 13, "rewound")
    np.testing.assert_array_equal(view.steps, np.arange(1, STEPS + 1))
    assert set(view.attempt_of_steps[10:]) == {2}


def test_to_step_zero_moments_are_gone(tmp_path: Path) -> None:
    """A checkpoint from before the first step has no moments; to go back to it is to begin anew."""
    model, optimizer, _ = build()
    whole, _, _ = train(tmp_path / "whole")
    torch.manual_seed(1)
    model, optimizer, scheduler = build()
    run = dynaxx.watch(model, optimizer, tmp_path / "zero", scheduler=scheduler, steps=STEPS, quiet=True)
    run.save()
    asked = False
    while run.step < STEPS:
        for (batch,) in run.batches(shuffled()):
            model(batch).square().mean().backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            if run.step == 7 and not asked:
                asked = True
                run.rollback(data="rewind")
            if run.step == STEPS:
                break
    run.close()
    assert same(whole, model)


def test_passing_goes_on_with_the_next_batches(tmp_path: Path) -> None:
    batches = [(part,) for part in DATA.split(4)]  # 16 batches an epoch
    _, _, seen = train(tmp_path / "run", at=9, loader=batches, learning_rate=0.25, clip=1.0)
    order = [next(i for i, (b,) in enumerate(batches) if b is s) for s in seen]
    assert order[:12] == list(range(12))  # batch 9 comes after batch 8, although the step goes back to 5
    view = dynaxx.open_run(tmp_path / "run")
    [event] = view.events("rolled_back")
    assert (event["step"], event["batches_passed"], event["data"]) == (5, 4, "passed")
    rates = view["lr.max"]
    expected = 0.25e-2 * 0.5 * (1 + np.cos(np.pi * 5 / STEPS))
    assert rates.values[list(rates.steps).index(6)] == pytest.approx(expected, rel=1e-6)
    receipts = [(r["receipt"]["action"]["name"], r["receipt"]["status"]) for r in view.events("receipt")]
    assert receipts == [("learning_rate", "begun"), ("gradient_clip", "begun")]


@pytest.mark.parametrize("data", ["pass", "rewind"])
@pytest.mark.parametrize("navigate", ["off", "advise"])
def test_a_checkpoint_after_a_rollback_resumes_bit_for_bit(tmp_path: Path, data, navigate) -> None:
    options = {"at": 13, "before": 12, "data": data, "navigate": navigate, "learning_rate": 0.5}
    whole, _, _ = train(tmp_path / "whole", **options)
    train(tmp_path / "cut", until=18, save=17, **options)
    resumed, run, _ = train(tmp_path / "cut", resume=True, navigate=navigate)
    assert run.resumed_from is not None
    assert run.resumed_from.step == 17
    assert same(whole, resumed)


def test_what_may_go_on_is_passed_over_beyond_the_present(tmp_path: Path) -> None:
    """Also where some of these batches were fetched ahead, and no further than the epoch reaches."""
    batches = [(part,) for part in DATA.split(4)]  # 16 batches an epoch
    for further, expected in ((3, [12, 13, 14, 15, 0]), (50, [0, 1, 2, 3, 4])):
        model, optimizer, _ = build()
        run = dynaxx.watch(model, optimizer, tmp_path / f"{further}", steps=STEPS, quiet=True, navigate="off")
        order: list[int] = []
        while len(order) < 14:
            for (batch,) in run.batches(batches):
                order.append(next(i for i, (b,) in enumerate(batches) if b is batch))
                model(batch).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                if len(order) == 5:
                    run.save(keep=20)
                if len(order) == 9:
                    run._data.ahead(2)  # as a branch trial does
                    arguments = {"before": 6, "pass_data": True, "further": further, "then": []}
                    run.steering.remedies.ask(Action(name="rollback", arguments=arguments))
                if len(order) == 14:
                    break
        run.close()
        assert order == [*range(9), *expected]
        [event] = dynaxx.open_run(tmp_path / f"{further}").events("rolled_back")
        assert (event["step"], event["further"]) == (5, further)


def test_killed_right_after_a_rollback_goes_on_with_the_new_course(tmp_path: Path) -> None:
    """The abandoned course has checkpoints of later steps: they are not what the run is."""
    options = {"at": 18, "before": 12}
    whole, _, _ = train(tmp_path / "whole", **options)
    train(tmp_path / "cut", until=12, **options)  # saved at 15 before going back, and not since
    resumed, run, _ = train(tmp_path / "cut", resume=True)
    assert run.resumed_from is not None
    assert run.resumed_from.step == 10
    assert same(whole, resumed)


def test_retries_go_further_back_and_end(tmp_path: Path) -> None:
    model, optimizer, scheduler = build()
    run = dynaxx.watch(model, optimizer, tmp_path / "run", scheduler=scheduler, steps=STEPS, quiet=True)
    steps = 0
    for _ in range(4):
        for (batch,) in run.batches(shuffled()):
            model(batch).square().mean().backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            steps += 1
            if run.step % 5 == 0:
                run.save(keep=20)
            if steps in (22, 24, 26, 28):
                run.rollback()
            if steps == 30:
                break
        if steps == 30:
            break
    run.close()
    view = dynaxx.open_run(tmp_path / "run")
    assert [(e["came_from"], e["step"]) for e in view.events("rolled_back")] == [(22, 20), (22, 15), (17, 10)]
    refused = [e["receipt"] for e in view.events("receipt") if e["receipt"]["status"] == "refused"]
    assert len(refused) == 1
    assert "3 rollbacks" in refused[0]["detail"]


def test_not_into_what_is_ill(tmp_path: Path) -> None:
    model, _, _ = build()
    run = dynaxx.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path / "run", quiet=True)
    ill = Finding(code="D7", name="divergence", title="", severity="critical", spans=((8, 30),))
    for step in range(1, 4):
        run._live.begin_at(5 * step, 0)
        run.save(keep=20)
    rollbacks = run.steering.rollbacks
    assert rollbacks._choose(99, []).step == 15
    assert rollbacks._choose(99, [ill]).step == 5
    with pytest.raises(NotApplicable, match="no healthy checkpoint lies before step 5"):
        rollbacks._choose(5, [ill])
    run.close()


KINDS = ("healthy", "probation", "suspect", "bad")


def best_before(infos, said, before):
    """The rule in words: the best kind first, within a kind the newest."""
    for kind in KINDS[:3]:
        if steps := [info.step for info in infos if said[info.id] == kind and info.step < before]:
            return max(steps)
    return None


@pytest.mark.parametrize("seed", range(30))
def test_who_weighs_a_rollback_sees_where_it_leads(tmp_path: Path, seed) -> None:
    """For every step asked for, the newest of the steps that controllers are shown is the one that is taken."""
    store, draw = CheckpointStore(tmp_path / "checkpoints"), random.Random(seed)
    infos = [store.save(step, {}) for step in range(0, 60, 10)]
    said = {info.id: draw.choice(KINDS) for info in infos}
    for info in infos:
        mark(store, info, said[info.id], "drawn")
    shown = [info.step for info in destinations(store, ())]
    assert shown == sorted(shown)
    for before in range(65):
        assert max((step for step in shown if step < before), default=None) == best_before(infos, said, before)


def test_what_controllers_see_is_what_a_retry_takes(tmp_path: Path) -> None:
    model, _, _ = build()
    run = dynaxx.watch(
        model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path / "run", steps=400, quiet=True, navigate="act"
    )
    for step in (40, 80, 120, 160):
        run._live.begin_at(step, 0)
        run.save(keep=20)
    run._live.begin_at(190, 0)
    flipped = Finding(code="D7", name="divergence", title="", severity="critical", spans=((184, 190),))
    run.steering.remedies.findings = lambda: (flipped,)
    assert run.steering._healthy((flipped,))[-1] == 160, (
        "a probation of 20 steps is over, though nothing was saved since"
    )
    rollbacks = run.steering.rollbacks
    assert rollbacks._choose(184, [flipped]).step == 160
    rollbacks._made.append({"from": 190, "to": 160})
    assert run.steering._healthy((flipped,))[-1] == rollbacks._choose(184, [flipped]).step == 120
    rollbacks._made += [{"from": 190, "to": 120}, {"from": 190, "to": 80}]
    assert run.steering._healthy((flipped,)) == (), "after three nothing is offered that would be refused"
    run.close()


def test_a_damaged_one_is_passed_over_for_the_next_best(tmp_path: Path) -> None:
    model, _, _ = build()
    run = dynaxx.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path / "run", quiet=True)
    for step in (10, 20, 30):
        run._live.begin_at(step, 0)
        run.save(keep=20)
    first, second, third = run._saving.store.list()
    mark(run._saving.store, second, "healthy", "")
    file = second.path / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert run.steering.rollbacks._choose(99, []).step == third.step  # the only healthy one cannot be read
    assert run.steering.rollbacks._choose(30, []).step == first.step
    run.close()


def test_refused_with_the_reason(tmp_path: Path) -> None:
    model, optimizer, _ = build()
    run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True)
    with pytest.raises(NotApplicable, match=r"run\.batches"):
        run.rollback()
    with pytest.raises(BadInput, match="'pass' or 'rewind'"):
        run.rollback(data="skip")
    with pytest.raises(BadInput, match="factor"):
        run.rollback(learning_rate=0.0)
    for (batch,) in run.batches([(DATA[:4],)] * 3):
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if run.step == 1:
            run.rollback()  # there is no checkpoint
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DynaxxWarning)
        run.close()
    assert run.step == 3
    [receipt] = dynaxx.open_run(tmp_path / "run").events("receipt")
    assert receipt["receipt"]["status"] == "refused"
    assert "no healthy checkpoint" in receipt["receipt"]["detail"]


def worker(folder, rank):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/meet")
    model, optimizer, scheduler = build()
    model = nn.parallel.DistributedDataParallel(model)
    run = dynaxx.watch(model, optimizer, f"{folder}/run", scheduler=scheduler, steps=STEPS, quiet=True, navigate="act")
    batches = [(part.chunk(2)[rank],) for part in DATA.split(8)]
    asked = False
    while run.step < 20:
        for (batch,) in run.batches(batches):
            model(batch).square().mean().backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            if run.step % 5 == 0:
                run.save(keep=20)
            if run.step == 13 and not asked:
                asked = True
                run.rollback(learning_rate=0.5)
            if run.step == 20:
                break
    run.close()
    torch.save([p.detach() for p in model.parameters()], f"{folder}/weights{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_go_back_together(tmp_path: Path) -> None:
    code = f"import runpy; runpy.run_path({__file__!r})['worker']({str(tmp_path)!r}, %d)"
    processes = [subprocess.Popen([sys.executable, "-c", code % rank]) for rank in range(2)]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    one, other = (torch.load(tmp_path / f"weights{rank}") for rank in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    [event] = dynaxx.open_run(tmp_path / "run").events("rolled_back")
    assert (event["came_from"], event["step"]) == (13, 10)


def test_healthy_ones_stay_and_critical_ones_are_suspect(tmp_path: Path) -> None:
    """With keep=1 the last two that outlived their probation of 20 steps stay besides the latest."""
    model, optimizer, _ = build()
    run = dynaxx.watch(model, optimizer, tmp_path / "run", steps=400, quiet=True, navigate="advise", signals=["lr"])
    ill = Finding(code="D7", name="divergence", title="", severity="critical", spans=((48, 52),))
    run.steering.remedies.findings = lambda: (ill,) if run.step >= 50 else ()
    store = run._saving.store
    kept = {}
    for (batch,) in [(part,) for part in DATA.split(1)] * 2:
        model(batch.expand(4, -1)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if run.step % 10 == 0:
            run.save(keep=1)
            kept[run.step] = [info.step for info in store.list()]
    run.close()
    assert kept[40] == [10, 20, 30, 40]  # 10 and 20 are healthy, the others on probation
    assert kept[70] == [10, 20, 60, 70]  # 30, 40 and 50 are suspect: an alarm came within 20 steps after them
    assert kept[100] == [70, 80, 90, 100]
