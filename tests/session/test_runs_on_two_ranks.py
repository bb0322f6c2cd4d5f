"""A run on two ranks, replicated (DDP) or cut up (FSDP2): saved, resumed and taken back bit for bit."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import dynaxx
from dynaxx.checkpoints import CheckpointStore

STEPS = 12
BATCHES = list(torch.randn(16, 8, 5, generator=torch.Generator().manual_seed(3)))


def train(folder, sharded, *, until=0, resume=False, back_at=0, wait=True):
    """Saves at steps 4 and 8; a rollback that rewinds is asked for once, behind step `back_at`."""
    torch.manual_seed(1 + dist.get_rank())
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    for parameter in model.parameters():
        dist.broadcast(parameter.detach(), 0)
    if sharded:
        fully_shard(model[0])
        fully_shard(model)
    else:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    run = dynaxx.watch(
        model,
        optimizer,
        folder,
        loss=lambda model, batch: model(batch).square().mean(),
        scheduler=scheduler,
        steps=STEPS,
        resume=resume,
        quiet=True,
        navigate="off",
    )
    asked = False
    for batch in run.batches(BATCHES):
        noise = 0.1 * torch.randn(4, 5)  # of this rank's own stream
        model(batch.chunk(2)[dist.get_rank()] + noise).square().mean().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if run.step in (4, 8):
            run.save(wait=wait)
        if run.step == back_at and not asked:
            asked = True
            run.rollback(data="rewind")
        if run.step in (until, STEPS):
            break
    run.close("killed" if run.step == until else "finished")
    return run, [(p.full_tensor() if sharded else p).detach().clone() for p in model.parameters()]


def worker(folder, sharded, rank):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/meet")
    _, whole = train(f"{folder}/whole", sharded)
    train(f"{folder}/cut", sharded, until=10, wait=False)
    run, resumed = train(f"{folder}/cut", sharded, resume=True)
    assert run.resumed_from.step == 8
    assert run._training.level == "exact", run._training.reasons
    assert all(map(torch.equal, whole, resumed))
    _, back = train(f"{folder}/back", sharded, back_at=10)
    assert all(map(torch.equal, whole, back))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["replicated", "sharded"])
def test_two_ranks_go_on_bit_for_bit(tmp_path: Path, sharded: bool) -> None:
    code = f"import runpy; runpy.run_path({__file__!r})['worker']({str(tmp_path)!r}, {sharded}, %d)"
    ranks = [subprocess.Popen([sys.executable, "-c", code % rank]) for rank in range(2)]
    try:
        assert [rank.wait(timeout=240) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    store = CheckpointStore(tmp_path / "cut" / "checkpoints")
    assert [info.step for info in store.list()] == [4, 8]
    assert len(list(store.list()[-1].path.glob("shard-*.safetensors"))) == (2 if sharded else 0)
    assert store.load()[0]["model"]["state"]["0.weight"].shape == (7, 5), "one process reads it whole"
    views = {name: dynaxx.open_run(tmp_path / name) for name in ("whole", "cut", "back")}
    assert [event["step"] for event in views["back"].events("rolled_back")] == [8]
    assert [event["of_step"] for event in views["cut"].events("checkpoint")] == [4, 8]
    for name in ("grad_norm", "update_ratio", "trajectory.distance", "trajectory.path_length", "gradient_agreement"):
        whole, *others = (np.asarray(view[name]) for view in views.values())
        assert len(whole) >= STEPS - 1
        for other in others:
            np.testing.assert_allclose(other, whole, rtol=1e-6, err_msg=name)
