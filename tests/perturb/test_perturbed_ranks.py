"""Two gloo ranks, data-parallel and sharded: perturbed steps and averages equal those of one process."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from dynaxx.averaging import Ema, Latest
from dynaxx.perturb import AnnealedNoise, DistanceToStart, Sam, WeightNoise

WORLD, STEPS, RHO = 2, 5, 0.2
MAKE = {
    "sam": lambda model: Sam(model, rho=RHO, every=2),
    "adaptive": lambda model: Sam(model, rho=RHO, adaptive=True),
    "alone": lambda model: Sam(model, rho=RHO, per_rank=True),
    "annealed_noise": AnnealedNoise,
    "weight_noise": lambda model: WeightNoise(model, std=0.1),
    "distance_to_start": lambda model: DistanceToStart(model, strength=1.0),
}
CASES = [("ddp", name) for name in MAKE] + [("fsdp2", "sam"), ("fsdp2", "adaptive"), ("fsdp2", "distance_to_start")]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.LayerNorm(3), nn.Linear(3, 1)).double()


def batch(step: int) -> torch.Tensor:
    return torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(step))


def train(model: nn.Module, perturber: object, part: slice) -> tuple[Ema, Latest]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    averages = Ema(model, decay=0.9).attach(optimizer), Latest(model, window=2, every=2).attach(optimizer)
    for step in range(STEPS):

        def closure() -> torch.Tensor:
            loss = model(batch(step)[part]).square().mean()  # noqa: B023
            loss.backward()
            return loss

        perturber.around(optimizer, closure)
        optimizer.zero_grad()
    return averages


def whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: (t.full_tensor() if hasattr(t, "full_tensor") else t).detach().clone() for n, t in tensors.items()}


def worker(folder: str, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD, init_method=f"file://{folder}/meet")
    for kind, name in CASES:
        bare = net()
        model = bare
        if kind == "fsdp2":
            from torch.distributed.fsdp import fully_shard

            fully_shard(bare[0])
            fully_shard(bare)
        else:
            model = nn.parallel.DistributedDataParallel(bare)
        averages = train(model, MAKE[name](model), slice(4 * rank, 4 * rank + 4))
        again = Ema(model)
        again.load_state_dict(averages[0].state_dict())
        found = [whole(dict(bare.named_parameters())), *(whole(a.averages()) for a in (*averages, again))]
        with averages[0].swapped():
            found.append(whole(dict(bare.named_parameters())))
        torch.save(found, f"{folder}/{kind}-{name}-{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("ranks")
    ranks = [subprocess.Popen([sys.executable, __file__, str(found), str(rank)]) for rank in range(WORLD)]
    assert [rank.wait(timeout=240) for rank in ranks] == [0] * WORLD
    return found


class Alone:
    """SAM with an ε per half of the batch, by its formula: the mean of the halves' gradients, each at its own w + ε."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._step = model, 0

    def around(self, optimizer: torch.optim.Optimizer, closure: object) -> None:
        parameters = list(self._model.parameters())
        total = [torch.zeros_like(p) for p in parameters]
        for half in batch(self._step).split(4):
            start = [p.detach().clone() for p in parameters]
            g = torch.autograd.grad(self._model(half).square().mean(), parameters)
            norm = torch.cat([x.flatten() for x in g]).norm()
            with torch.no_grad():
                for p, x in zip(parameters, g, strict=True):
                    p.add_(RHO * x / norm)
            for t, x in zip(total, torch.autograd.grad(self._model(half).square().mean(), parameters), strict=True):
                t += x / 2
            with torch.no_grad():
                for p, s in zip(parameters, start, strict=True):
                    p.copy_(s)
        for p, t in zip(parameters, total, strict=True):
            p.grad = t
        optimizer.step()
        self._step += 1


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_two_ranks_are_one(folder: Path, kind: str, name: str) -> None:
    torch.set_num_threads(1)
    model = net()
    averages = train(model, Alone(model) if name == "alone" else MAKE[name](model), slice(None))
    expected = [dict(model.named_parameters()), *(a.averages() for a in averages), averages[0].averages()]
    for rank in range(WORLD):
        found = torch.load(folder / f"{kind}-{name}-{rank}")
        for one, two in zip([*expected, expected[1]], found, strict=True):
            assert one.keys() == two.keys()
            for key in one:
                torch.testing.assert_close(two[key], one[key].detach(), rtol=1e-9, atol=1e-11, msg=f"{rank} {key}")


if __name__ == "__main__":
    worker(sys.argv[1], int(sys.argv[2]))
