"""A rank that is killed while a run on four ranks saves: the checkpoint before it stays, and the others learn of it."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import dynaxx
from dynaxx.checkpoints import CheckpointStore, tensorfile
from dynaxx.checkpoints.sharded import ShardedStore

RANKS, PATIENCE = 4, 6.0


def die_in_the_middle(path, parts, meanwhile):
    path.write_bytes(b"".join(bytes(part) for part in parts)[:100])
    os.kill(os.getpid(), signal.SIGKILL)


def worker(folder, rank, wait):
    torch.set_num_threads(1)
    ShardedStore.__init__.__kwdefaults__["timeout"] = PATIENCE
    dist.init_process_group("gloo", rank=rank, world_size=RANKS, init_method=f"file://{folder}/meet")
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    run = dynaxx.watch(model, optimizer, f"{folder}/run", steps=8, quiet=True, navigate="off")
    draw = torch.Generator().manual_seed(2)
    for batch in run.batches([torch.randn(4, 5, generator=draw) for _ in range(8)]):
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if run.step == 4:
            run.save()
            whole = {name: p.full_tensor() for name, p in model.state_dict().items()}
            if rank == 0:
                torch.save(whole, f"{folder}/whole.pt")
            dist.barrier()
        if run.step == 6:
            break
    if rank == 1:
        tensorfile.write_durably = die_in_the_middle
    began = time.monotonic()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run.save(wait=wait)
        run.steering._parts.saving.settle(wait=True)
    (message,) = [str(warning.message) for warning in said if "No checkpoint" in str(warning.message)]
    assert "No checkpoint was written at step 6" in message
    assert f"A rank is gone, or did not answer within {PATIENCE:g} s" in message
    assert time.monotonic() - began < 3 * PATIENCE
    os._exit(0)  # the training's own group waits for the lost rank, as it would


@pytest.mark.slow
@pytest.mark.parametrize("wait", [True, False], ids=["waiting", "beside"])
def test_the_others_learn_it_and_the_checkpoint_before_stays(tmp_path: Path, wait: bool) -> None:
    code = f"import runpy; runpy.run_path({__file__!r})['worker']({str(tmp_path)!r}, %d, {wait})"
    ranks = [subprocess.Popen([sys.executable, "-c", code % rank]) for rank in range(RANKS)]
    try:
        assert [rank.wait(timeout=240) for rank in ranks] == [0, -signal.SIGKILL, 0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    (kept,) = store.list()
    assert kept.step == 4
    store.verify(kept)
    state = store.load()[0]["model"]["state"]
    whole = torch.load(tmp_path / "whole.pt", weights_only=True)
    assert all(torch.equal(state[name], tensor) for name, tensor in whole.items())
    assert store.save(8, {"anything": torch.ones(2)}).step == 8, "what the lost ones left does not stand in the way"
