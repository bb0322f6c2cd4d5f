"""Live curvature of wrapped models: one of two ranks measures, and the compiled model is taken out of its wrapper."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

import dynaxx
from dynaxx.numerics.lanczos import eigenpairs

SIGNALS = ["sharpness", "trace", "directional_curvature", "gradient_noise", "grad_norm"]
STEPS = 9


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))


def loss_fn(model, batch):
    return model(batch).square().mean()


def communicating(model, batch):
    value = loss_fn(model, batch)
    dist.all_reduce(value.detach().clone())
    return value


def data(rank=0, world=1):
    return [torch.randn(16, 5, generator=torch.Generator().manual_seed(i)).chunk(world)[rank] for i in range(STEPS)]


def train(model, folder, batches, loss=loss_fn):
    """Train, watched where there is a folder; the weights at the end."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = None
    if folder is not None:
        run = dynaxx.watch(model, optimizer, folder, loss=loss, signals=SIGNALS, quiet=True)
    for batch in batches if run is None else run.batches(batches):
        loss_fn(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    if run is not None:
        run.close()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def worker(kind, folder, rank):
    import dynaxx.session.instruments as instruments

    instruments.PRICING = 3
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/meet")
    results = []
    for where in (None, f"{folder}/run"):
        model = net()
        if kind == "fsdp2":
            from torch.distributed.fsdp import fully_shard

            fully_shard(model)
        else:
            model = nn.parallel.DistributedDataParallel(model)
        loss = communicating if kind == "communicating" else loss_fn
        found = train(model, where, data(rank, 2), loss)
        results.append({name: v.to_local() if kind == "fsdp2" else v for name, v in found.items()})
    assert all(torch.equal(a, b) for a, b in zip(*(r.values() for r in results), strict=True))
    dist.destroy_process_group()


def two_ranks(kind, folder):
    ranks = [subprocess.Popen([sys.executable, __file__, kind, str(folder), str(rank)]) for rank in (0, 1)]
    try:
        codes = [process.wait(timeout=120) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert codes == [0, 0]
    return dynaxx.open_run(Path(folder) / "run")


def test_one_of_two_replicas_measures_by_itself(tmp_path):
    view = two_ranks("ddp", tmp_path)
    for name in SIGNALS[:4]:
        assert view[name].steps.tolist() == [3, 6, 9], name
    # The same weights by hand: the first rank's first batch is the probe batch.
    from dynaxx.core.objective import Objective
    from dynaxx.numerics.hessian import Hessian

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in data():
        loss_fn(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    truth = eigenpairs(Hessian(Objective(model, loss_fn, data(0, 2)[:1]))).values[0]
    assert view["sharpness"].values[-1] == pytest.approx(float(truth), rel=1e-2)


def test_a_loss_that_communicates_hangs_nobody(tmp_path):
    view = two_ranks("communicating", tmp_path)
    (report,) = view.events("self_test")
    for name in ("sharpness", "trace", "directional_curvature", "gradient_noise"):
        assert "communicates between ranks" in report["not_applicable"][name]
        assert name not in view.columns


def test_shards_are_not_applicable_with_a_reason(tmp_path):
    view = two_ranks("fsdp2", tmp_path)
    (report,) = view.events("self_test")
    assert "split over ranks" in report["not_applicable"]["sharpness"]
    assert len(view["grad_norm"]) == STEPS


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_is_measured_uncompiled(tmp_path, monkeypatch, in_place):
    """The compiled graph has no second derivative; it is neither used nor compiled anew for ours."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr("dynaxx.session.instruments.PRICING", 3)
    train(net(), tmp_path / "plain", data())

    def compiled():
        torch.compiler.reset()
        counters.clear()
        model = net()
        if not in_place:
            return torch.compile(model, backend="aot_eager")
        model.compile(backend="aot_eager")
        return model

    bare = train(compiled(), None, data())
    graphs = counters["stats"]["unique_graphs"]
    watched = train(compiled(), tmp_path / "compiled", data())
    assert counters["stats"]["unique_graphs"] == graphs
    assert all(torch.equal(a, b) for a, b in zip(bare.values(), watched.values(), strict=True))
    plain, other = (dynaxx.open_run(tmp_path / name) for name in ("plain", "compiled"))
    for name in SIGNALS[:4]:
        assert other[name].steps.tolist() == [3, 6, 9]
        np.testing.assert_allclose(other[name].values, plain[name].values, rtol=1e-3, err_msg=name)


if __name__ == "__main__":
    worker(sys.argv[1], sys.argv[2], int(sys.argv[3]))
