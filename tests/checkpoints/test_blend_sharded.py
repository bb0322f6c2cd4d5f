"""Checkpoints that two ranks wrote are blended in one process."""

import subprocess
import sys

import pytest
import torch

from dynaxx.checkpoints.blend import blend

RANK = """
import sys
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from dynaxx.checkpoints.sharded import ShardedStore
folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
mesh, store = init_device_mesh("cpu", (2,)), ShardedStore(f"{folder}/run/checkpoints")
for step in (1, 2, 3):
    whole = torch.arange(21.0).reshape(7, 3) + step ** 2
    state = {"w": distribute_tensor(whole, mesh, [Shard(0)]), "b": torch.full((2,), float(step))}
    store.save(step, {"model": {"state": state, "metadata": {}, "buffers": {}}})
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_shards_are_put_together(tmp_path):
    command = [sys.executable, "-c", RANK, str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    said = [rank.communicate(timeout=200)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)
    found = blend(tmp_path / "run", how="uniform")
    assert torch.allclose(found.weights["w"], torch.arange(21.0).reshape(7, 3) + 14 / 3)
    assert found.weights["b"].tolist() == [2.0, 2.0]
