"""Two gloo ranks with batches of their own, ragged: values, gradients and products equal those of one process."""

import subprocess
import sys
import traceback
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from dynaxx.core.objective import Objective
from dynaxx.errors import BadInput
from dynaxx.numerics.gauss_newton import Fisher, GaussNewton
from dynaxx.numerics.hessian import Hessian
from dynaxx.numerics.space import Space

WORLD = 2
LIMIT = 240
"""Seconds for a pair of ranks and all cases, which take 26 seconds of processor time."""
CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


class Attention(nn.Module):
    """Embedding, masked attention, tied output. 7 rows do not divide by 2."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(7, 6)
        self.qkv = nn.Linear(6, 18)
        self.norm = nn.LayerNorm(6)
        self.out = nn.Linear(6, 7, bias=False)
        self.out.weight = self.tokens.weight

    def forward(self, x):
        h = self.tokens(x) + torch.arange(x.shape[1], device=x.device)[:, None] / 10
        q, k, v = self.qkv(h).unflatten(2, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        h = h + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.out(self.norm(h))


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, 3), nn.Linear(3, 1)).double()
    model[3].bias.requires_grad_(False)
    return model


def attention():
    torch.manual_seed(0)
    return Attention().double()


def loss(model, batch):
    return (model(batch[0]).squeeze(1) - batch[1]).square().mean()


def language(model, batch):
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


def data():
    """Batches of 8, 3 and 5 examples: the first two are rank 0's, the third is rank 1's."""
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 5, generator=g, dtype=torch.float64), torch.randn(n, generator=g, dtype=torch.float64))
        for n in (8, 3, 5)
    ]


def text():
    g = torch.Generator().manual_seed(1)
    return [(torch.randint(0, 7, (n, 4), generator=g), torch.randint(0, 7, (n, 4), generator=g)) for n in (8, 3, 5)]


def mine(batches):
    return batches[:2] if dist.get_rank() == 0 else batches[2:]


def shard(model, *parts):
    from torch.distributed.fsdp import fully_shard

    for part in parts:
        fully_shard(part)
    return fully_shard(model)


def whole(space, rows):
    """Rows over all shards, on every rank."""
    found = []
    for row in rows:
        parts = []
        for part, parameter in zip(space.split(row), space.parameters, strict=True):
            if type(parameter).__name__ == "DTensor":
                from torch.distributed.tensor import DTensor

                part = DTensor.from_local(
                    part, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
                ).full_tensor()
            parts.append(part.flatten())
        found.append(torch.cat(parts))
    return torch.stack(found)


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


def equal_to_one_process(objective, one, operators=(Hessian, GaussNewton), tolerance=1e-10):
    space, alone = Space(objective.parameters, objective.names), Space(one.parameters, one.names)
    assert space.numel == alone.numel
    rows, whole_rows = space.random(3, seed=5), alone.random(3, seed=5)
    close(whole(space, rows), whole_rows, 0.0)
    close(space.gram(rows, rows), whole_rows @ whole_rows.T)
    close(space.norms(rows), whole_rows.norm(dim=1))
    assert objective.value() == pytest.approx(one.value(), rel=1e-12)
    gradient = whole(space, space.flatten(objective.gradient())[None])
    close(gradient, alone.flatten(one.gradient())[None])
    for operator in operators:
        close(whole(space, operator(objective)(rows)), operator(one)(whole_rows), tolerance)


@case
def fsdp2_equals_one_process():
    model = net()
    shard(model, model[0])
    before = [p.to_local().clone() for p in model.parameters()]
    objective = Objective(model, loss, mine(data()))
    one = Objective(net(), loss, data())
    equal_to_one_process(objective, one)
    hessian = Hessian(objective)
    assert hessian.mode == "double_backward"
    assert hessian.check.passed
    assert hessian.check.error < 1e-6
    for mode in ("finite_difference", "one_sided"):
        other, alone = Hessian(objective, mode=mode), Hessian(one)
        rows = other.space.random(1, seed=5)
        close(whole(other.space, other(rows)), alone(alone.space.random(1, seed=5)), 1e-4)
    with pytest.raises(BadInput, match="linearize"):
        Hessian(objective, mode="linearize")
    close(
        whole(hessian.space, Fisher(objective, "gaussian")(rows)),
        Fisher(one, "gaussian")(alone.space.random(1, seed=5)),
    )
    assert all(torch.equal(a, p.to_local()) for a, p in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())


@case
def training_goes_on_before_and_after():
    """A product between steps changes no weight, and follows the weights."""
    results = []
    for probing in (False, True):
        model = net()
        shard(model, model[0])
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        objective = Objective(model, loss, mine(data())[:1])
        hessian = Hessian(objective) if probing else None
        rows = Space(objective.parameters).random(1, seed=0)
        for _ in range(3):
            if hessian is not None:
                product = hessian(rows)
            with torch.no_grad():
                model(data()[0][0])  # leaves the root whole
            loss(model, mine(data())[0]).backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append([p.to_local().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    with torch.no_grad():
        model(data()[0][0])
    fresh = Hessian(Objective(model, loss, mine(data())[:1]), check=False)
    close(hessian(rows), fresh(rows))
    assert float(hessian.space.norms(hessian(rows) - product)[0]) > 1e-6


@case
def fsdp2_attention_with_tied_weights():
    model = attention()
    shard(model, model.qkv)
    objective = Objective(model, language, mine(text()), microbatch=4)
    equal_to_one_process(objective, Objective(attention(), language, text()))


@case
def fsdp2_with_activation_checkpointing():
    from torch.utils.checkpoint import checkpoint

    model = net()
    shard(model, model[0])

    def checkpointed(m, batch):
        h = checkpoint(lambda x: m[3](m[2](m[1](m[0](x)))), batch[0], use_reentrant=False)
        return (m[4](h).squeeze(1) - batch[1]).square().mean()

    objective = Objective(model, checkpointed, mine(data()))
    equal_to_one_process(objective, Objective(net(), loss, data()), operators=(Hessian,))
    single = Hessian(Objective(model, checkpointed, mine(data())[:1]))
    rows = single.space.random(2, seed=0)
    close(single(rows), torch.cat([single(rows[:1]), single(rows[1:])]))


@case
def a_missing_second_derivative_falls_back():
    from torch.autograd.function import once_differentiable

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        @once_differentiable
        def backward(ctx, g):
            return 2 * g * ctx.saved_tensors[0]

    def odd(m, batch):
        return Square.apply(m(batch[0]).squeeze(1) - batch[1]).square().mean()

    model = net()
    shard(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hessian = Hessian(Objective(model, odd, mine(data())))
    assert hessian.mode == "finite_difference"
    assert "Square" in hessian.check.note
    one = Hessian(Objective(net(), lambda m, b: (m(b[0]).squeeze(1) - b[1]).square().square().mean(), data()))
    close(whole(hessian.space, hessian(hessian.space.random(1, seed=5))), one(one.space.random(1, seed=5)), 1e-5)


@case
def nan_is_named_on_both_ranks():
    model = net()
    shard(model, model[0])
    with torch.no_grad():
        if dist.get_rank() == 0:
            model[0].weight.to_local()[0, 0] = float("nan")
    with pytest.raises(BadInput, match=r"0\.weight|another rank"):
        Objective(model, loss, mine(data())).gradient()


@case
def a_rank_without_batches():
    batches = data() if dist.get_rank() == 0 else []
    model = net()
    shard(model)
    with pytest.raises(BadInput, match="at least one batch"):
        Objective(model, loss, batches).value()
    equal_to_one_process(
        Objective(net(), loss, batches, process_group="world"), Objective(net(), loss, data()), operators=(Hessian,)
    )


@case
def ddp_equals_one_process():
    model = nn.parallel.DistributedDataParallel(net())
    objective = Objective(model, loss, mine(data()), process_group="world")
    one = Objective(net(), loss, data())
    equal_to_one_process(objective, one)
    for mode in ("linearize", "finite_difference"):
        other = Hessian(objective, mode=mode)
        rows = other.space.random(2, seed=0)
        close(other(rows), Hessian(one)(rows), 1e-10 if mode == "linearize" else 1e-5)
    local = Hessian(Objective(model, loss, mine(data())))(rows)
    assert (local - Hessian(one)(rows)).norm() > 0.01 * local.norm(), "without a group each rank is alone"
    model(data()[0][0]).sum().backward()  # the reducer is as it was
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@case
def loss_on_dtensors_equals_one_process():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_module, distribute_tensor

    mesh = init_device_mesh("cpu", (WORLD,))

    def place(name, module, mesh):
        del name
        for key, parameter in list(module.named_parameters(recurse=False)):
            spread = distribute_tensor(parameter.detach(), mesh, [Shard(0)])
            module.register_parameter(key, nn.Parameter(spread, requires_grad=parameter.requires_grad))

    model = distribute_module(net(), mesh, place)
    x, y = data()[0]
    batch = (distribute_tensor(x, mesh, [Shard(0)]), distribute_tensor(y, mesh, [Shard(0)]))
    objective, one = Objective(model, loss, [batch]), Objective(net(), loss, [(x, y)])
    equal_to_one_process(objective, one, operators=(Hessian,))
    assert Hessian(objective).mode == "sharded"


def worker(folder, rank):
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD, init_method=f"file://{folder}/meet")
    failed = None
    for name in sys.argv[3:]:
        print(name, flush=True)
        try:
            CASES[name]()
        except BaseException:
            traceback.print_exc()
            failed = name
            break  # the other rank may wait in a collective of this case
    if failed is None:
        dist.barrier()
    dist.destroy_process_group()
    sys.exit(failed is not None)


def run(names, folder):
    """Two ranks through cases until one fails: which were begun, and what was said; that of the last where one did."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, __file__, str(folder)]
    ranks = [subprocess.Popen([*command, str(rank), *names], **options) for rank in range(WORLD)]
    try:
        said = [rank.communicate(timeout=LIMIT) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    begun = min((out.split() for out, _ in said), key=len)
    failed = any(rank.returncode for rank in ranks)
    return begun, "\n".join(errors for _, errors in said) if failed else ""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What each case said: one pair of ranks for all that pass, as starting one takes longer than the cases."""
    left, found = list(CASES), {}
    while left:
        begun, errors = run(left, tmp_path_factory.mktemp("ranks"))
        begun = begun or left[:1]
        found |= dict.fromkeys(begun, "") | {begun[-1]: errors}
        left = left[len(begun) :]
    return found


@pytest.mark.parametrize("name", list(CASES))
def test_two_ranks(name, outcomes):
    assert not outcomes[name], outcomes[name]


if __name__ == "__main__":
    worker(sys.argv[1], int(sys.argv[2]))
