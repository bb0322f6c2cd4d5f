"""A raw loop with a DataLoader, stopped and resumed in place: the same bits as without (traps T1, T2, T5, T8, T9)."""

import errno
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import dynaxx
from dynaxx.errors import BadInput, DynaxxWarning, NotSaved


class Augmented(Dataset):
    """Examples with noise from every global stream, drawn where the loader fetches: the main process or a worker."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> torch.Tensor:
        noise = torch.randn(()) + np.random.rand() + random.random()  # noqa: NPY002
        return torch.full((4,), float(i)) / 40 + 0.1 * noise


def loader_of(kind: str) -> DataLoader | list[torch.Tensor]:
    if kind == "list":
        return list(torch.linspace(0, 1, 40 * 4).reshape(10, 4, 4))
    if kind == "generator":
        return DataLoader(Augmented(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(9))
    return DataLoader(Augmented(), batch_size=4, shuffle=kind != "ordered", num_workers=2 if kind == "workers" else 0)


def build(dtype: torch.dtype) -> tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1)).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return model, optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=60)


def train(
    folder: Path, kind: str, until: int, *, resume: bool = False, dtype: torch.dtype = torch.float32, save_at: int = 0
) -> tuple[nn.Module, dynaxx.Run]:
    model, optimizer, scheduler = build(dtype)
    loader = loader_of(kind)
    run = dynaxx.watch(model, optimizer, folder, scheduler=scheduler, steps=40, resume=resume, quiet=True)
    for _ in range(4):
        for batch in run.batches(loader):
            loss = model(batch.to(dtype)).square().mean()
            loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            run.log(loss=loss)
            if run.step == save_at:
                run.save()
            if run.step == until:
                run.close("killed")
                return model, run
    run.close()
    return model, run


def series(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    column = dynaxx.open_run(folder)["loss"]
    return np.asarray(column.steps), np.asarray(column)


@pytest.mark.parametrize(
    "kind", ["list", "ordered", "shuffled", "generator", pytest.param("workers", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("at", [10, 17])  # the end of an epoch, the middle of one
def test_bit_identical(tmp_path: Path, kind: str, at: int) -> None:
    whole, _ = train(tmp_path / "whole", kind, until=0)
    train(tmp_path / "cut", kind, until=at + 3, save_at=at)
    resumed, run = train(tmp_path / "cut", kind, until=0, resume=True)
    assert run.resumed_from is not None
    assert run.resumed_from.step == at
    assert run.step == 40
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    for a, b in zip(series(tmp_path / "whole"), series(tmp_path / "cut"), strict=True):
        np.testing.assert_array_equal(a, b)
    rates = [np.asarray(dynaxx.open_run(tmp_path / name)["lr"]) for name in ("whole", "cut")]
    np.testing.assert_array_equal(*rates)
    trajectory = [dynaxx.open_run(tmp_path / n)["trajectory.path_length"] for n in ("whole", "cut")]
    np.testing.assert_allclose(np.asarray(trajectory[0])[-1], np.asarray(trajectory[1])[-1], rtol=1e-6)


def test_half_precision_moments_keep_their_dtype(tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "whole", "list", until=0, dtype=torch.bfloat16)
    train(tmp_path / "cut", "list", until=20, save_at=17, dtype=torch.bfloat16)
    resumed, _ = train(tmp_path / "cut", "list", until=0, resume=True, dtype=torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_resume_of_nothing_begins(tmp_path: Path) -> None:
    _, run = train(tmp_path / "run", "list", until=3, resume=True)
    assert run.resumed_from is None
    assert run.step == 3


def test_killed_before_the_first_checkpoint(tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "whole", "shuffled", until=0)
    train(tmp_path / "cut", "shuffled", until=5)
    resumed, _ = train(tmp_path / "cut", "shuffled", until=0, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    np.testing.assert_array_equal(series(tmp_path / "whole")[1], series(tmp_path / "cut")[1])


def test_a_corrupt_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "whole", "shuffled", until=0)
    train(tmp_path / "cut", "shuffled", until=12, save_at=8)
    _, run = train(tmp_path / "cut", "shuffled", until=20, save_at=16, resume=True)
    newest = max((tmp_path / "cut" / "checkpoints").glob("0000000016-*/tensors.safetensors"))
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    with pytest.warns(DynaxxWarning, match="0000000016"):
        resumed, run = train(tmp_path / "cut", "shuffled", until=0, resume=True)
    assert run.resumed_from is not None
    assert run.resumed_from.step == 8
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_one_shot_iterators_are_refused(tmp_path: Path) -> None:
    model, optimizer, _ = build(torch.float32)
    run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True)
    for make in (lambda: iter([1, 2]), lambda: (x for x in [1]), lambda: map(str, [1])):
        with run, pytest.raises(BadInput, match="only once"):
            next(run.batches(make()))


@pytest.mark.parametrize(("steps", "evaluations"), [(200, 50), (10, 10), (120, 60), (None, 3)])
def test_due(tmp_path: Path, steps: int | None, evaluations: int) -> None:
    model, optimizer, _ = build(torch.float32)
    with dynaxx.watch(model, optimizer, tmp_path / "run", steps=steps, quiet=True, signals=["grad_norm"]) as run:
        asked = 0
        assert not run.due("evaluation")
        for _ in range(steps or 300):
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
            asked += run.due("evaluation")
            assert not run.due("evaluation"), "once a step"
        assert asked == evaluations
        with pytest.raises(BadInput, match="'evaluation', 'checkpoint'"):
            run.due("lunch")  # type: ignore[arg-type]


def test_no_checkpoint_on_a_full_disk_but_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dynaxx.checkpoints import CheckpointStore

    def full(*_: object, **__: object) -> None:
        raise NotSaved(28, "No space left on device")

    monkeypatch.setattr(CheckpointStore, "save", full)
    model, optimizer, _ = build(torch.float32)
    with dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True) as run:
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        with pytest.warns(DynaxxWarning, match="No checkpoint was written at step 1; training goes on.*No space"):
            assert run.save() is None


def test_stop_ends_the_batches(tmp_path: Path) -> None:
    model, optimizer, _ = build(torch.float32)
    with dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True) as run:
        for _ in range(3):
            for batch in run.batches(loader_of("list")):
                model(batch).sum().backward()
                optimizer.step()
                if run.step == 4:
                    run.apply("stop", reason="enough")
        assert run.step == 4
        assert run.stopping == "enough"


def test_state_that_cannot_be_kept_is_refused_at_once(tmp_path: Path) -> None:
    model, optimizer, _ = build(torch.float32)
    with pytest.raises(BadInput, match=r"extra\['answer'\]"):
        dynaxx.watch(model, optimizer, tmp_path / "run", state={"answer": 42})
    assert not (tmp_path / "run").exists()


def test_a_read_only_folder_is_said_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, _ = build(torch.float32)

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", refused)
        with pytest.raises(BadInput, match=r"watch\(dir=.*nothing can be written there.*Read-only"):
            dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    with dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True):
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    assert len(dynaxx.open_run(tmp_path / "run").attempts) == 1, "what failed has left nothing behind"


def test_what_brings_the_training_down_three_times_is_passed_over(tmp_path: Path) -> None:
    """Step 16's checkpoint is whole, yet nothing gets from it to the next save: the one before has its turn."""
    train(tmp_path / "run", "list", until=10, save_at=8)
    train(tmp_path / "run", "list", until=20, save_at=16, resume=True)
    for _ in range(3):
        _, run = train(tmp_path / "run", "list", until=19, resume=True)
        assert run.resumed_from is not None
        assert run.resumed_from.step == 16
    with pytest.warns(DynaxxWarning, match="0000000016.* 3 times without reaching a save"):
        _, run = train(tmp_path / "run", "list", until=13, save_at=12, resume=True)
    assert run.resumed_from is not None
    assert run.resumed_from.step == 8
    _, run = train(tmp_path / "run", "list", until=0, resume=True)
    assert run.resumed_from is not None
    assert run.resumed_from.step == 12, "once a save is reached, training is on that line"
