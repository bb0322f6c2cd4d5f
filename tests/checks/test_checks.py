"""Each live check against a state whose truth is known, and all of them for the trace that they must not leave."""

import copy
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import dynaxx
from dynaxx import catalog
from dynaxx.core.navigation import LivePoint
from dynaxx.core.task import leading
from dynaxx.errors import BadInput, NotApplicable, UnknownName


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def point(model, batches, loss=cross_entropy, optimizer=None, step=20, rate=1.0):
    if optimizer is None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    device = torch.device("cpu")
    return LivePoint(
        step=step,
        model=model,
        optimizer=optimizer,
        loss=loss,
        batches=batches,
        weight=lambda b: float(leading(b) or 1),
        device=device,
        rate=rate,
    )


def look(name, at, **options):
    return catalog.get("checks", name)(**options).look(at)


def classified(count=8, seed=0):
    """Batches of 32 examples in 6 dimensions with labels by a linear rule, and a net that is trained on them."""
    weight = torch.randn(6, 3, generator=generator(99))
    batches = []
    for i in range(count):
        x = torch.randn(32, 6, generator=generator(seed + i))
        batches.append((x, (x @ weight).argmax(1)))
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for batch in batches * 12:
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()
        optimizer.step()
    return model, batches


class Vector(nn.Module):
    def __init__(self, values):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values, dtype=torch.float64))


DIAGONAL = torch.tensor([3.0, 1.0], dtype=torch.float64)


def bowl(model, batch):
    """½ Σ aᵢ wᵢ², whatever the batch."""
    return (DIAGONAL * model.w.square()).sum() / 2 + 0.0 * batch.sum()


def test_directional_curvature_of_a_bowl():
    model = Vector([1.0, 2.0])  # g = (3, 2): gᵀHg/‖g‖² = (27 + 4)/13
    found = look("directional_curvature", point(model, [torch.zeros(4, dtype=torch.float64)], bowl))
    assert found["curvature"] == pytest.approx(31 / 13)
    assert found["threshold"] == pytest.approx(2 / 0.1)
    assert found["ratio"] == pytest.approx(0.1 / 2 * 31 / 13)
    # Heavy ball stands (2 + 2μ)/η, and an action that multiplies the rate by 4 a quarter of it.
    heavy = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    found = look("directional_curvature", point(model, [torch.zeros(4, dtype=torch.float64)], bowl, heavy, rate=4.0))
    assert found["threshold"] == pytest.approx(3 / 0.4)
    assert found["rate"] == pytest.approx(0.4)


def test_directional_curvature_under_adam_is_along_its_update():
    model = Vector([1.0, 2.0])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, 0.99), eps=0.0)
    bowl(model, torch.zeros(1)).backward()
    optimizer.step()
    with torch.no_grad():
        model.w.copy_(torch.tensor([1.0, 2.0]))
    found = look("directional_curvature", point(model, [torch.zeros(4, dtype=torch.float64)], bowl, optimizer))
    g, v = torch.tensor([3.0, 2.0]).double(), torch.tensor([9.0, 4.0]).double()
    squared = 0.01 / (0.1 * v.sqrt())  # D² = η / ((1 − β₁)√v̂)
    row = squared.sqrt() * g
    along = float((row * squared * DIAGONAL * row).sum() / row.square().sum())
    assert found["ratio"] == pytest.approx(along / ((2 + 2 * 0.9) / (1 - 0.9)))
    assert found["threshold"] == pytest.approx(found["curvature"] / found["ratio"])


def test_half_batch_noise_of_known_gradients():
    """L = mean xᵢ·w has the gradient x̄: halves, noise and cosine are sums over the batch."""
    x = torch.randn(8, 3, generator=generator(), dtype=torch.float64) + 1.0
    found = look("half_batch_noise", point(Vector([0.0, 0.0, 0.0]), [x], lambda m, b: (b @ m.w).mean()), batches=1)
    one, other, whole = x[:4].mean(0), x[4:].mean(0), x.mean(0)
    small, big = float((one.square().sum() + other.square().sum()) / 2), float(whole.square().sum())
    trace = (small - big) / (1 / 4 - 1 / 8)
    square = (8 * big - 4 * small) / 4
    assert found["trace"] == pytest.approx(trace)
    assert found["gradient"] == pytest.approx(square)
    assert found["scale"] == pytest.approx(trace / square)
    assert found["cosine"] == pytest.approx(float(torch.nn.functional.cosine_similarity(one, other, dim=0)))
    assert found["batch"] == 8


def test_replay_batch_tells_a_bad_batch_from_a_bad_state():
    model, batches = classified()
    assert not look("replay_batch", point(model, batches))["reproduced"]
    bad = [*batches[:-2], (100 * batches[-2][0], (batches[-2][1] + 1) % 3), batches[-1]]
    found = look("replay_batch", point(model, bad), step=19)
    assert found["reproduced"]
    assert found["percentile"] == 1.0
    assert not look("replay_batch", point(model, bad))["reproduced"]  # the last one's is as ever
    with torch.no_grad():
        model[2].weight.mul_(-30)  # the state is bad: all are as high
    assert not look("replay_batch", point(model, batches))["reproduced"]
    with pytest.raises(NotApplicable, match="step 3 is not among the last 8"):
        look("replay_batch", point(model, batches), step=3)


def test_a_batch_from_before_the_last_ones_is_replayed_where_it_is_kept():
    model, batches = classified()
    bad = (100 * batches[0][0], (batches[0][1] + 1) % 3)
    kept = replace(point(model, batches), earlier=[bad, batches[1]])
    found = look("replay_batch", kept, step=kept.step - len(batches) - 1)
    assert found["reproduced"]
    assert not look("replay_batch", kept, step=kept.step - len(batches))["reproduced"]


def test_overfit_one_batch_works_but_for_wiring():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
    _, batches = classified()
    found = look("overfit_one_batch", point(model, batches))
    assert found["solved"]
    assert found["steps"] == 60
    assert found["moved"] == 4

    def severed(model, batch):
        return cross_entropy(lambda x: model(x).detach() + 0 * model(x), batch)

    found = look("overfit_one_batch", point(model, batches, severed))
    assert not found["solved"]
    assert found["moved"] == 0


@pytest.mark.parametrize("stage", ["parameter", "input", "module", "loss", "backward", "none"])
def test_non_finite_origin(stage):
    model, batches = classified()
    loss, where = cross_entropy, ""
    if stage == "parameter":
        model[2].bias.data[1] = math.inf
        where = "2.bias"
    elif stage == "input":
        batches[-3][0][5, 2] = math.nan
        where = "0"
    elif stage == "module":
        model[0].weight.data.mul_(1e38)
        batches = [(x * 1e3, y) for x, y in batches]
        where = "0"
    elif stage == "loss":

        def loss(model, batch):
            return cross_entropy(model, batch) + torch.log(torch.zeros(()))

        where = "loss_fn(model, batch)"
    elif stage == "backward":

        def loss(model, batch):
            return cross_entropy(model, batch) + torch.sqrt(0.0 * model(batch[0]).square()).sum()

        where = "2.bias"
    found = look("non_finite_origin", point(model, batches, loss))
    assert found["stage"] == stage
    assert found["where"] == where
    assert found["step"] == (18 if stage == "input" else 20)
    if stage == "input":
        assert found["rows"] == [5]


def test_example_losses_names_the_rows():
    model, batches = classified()
    x, y = batches[-1]
    clean = look("example_losses", point(model, [(x[:4].repeat(8, 1), y[:4].repeat(8))]))
    assert clean["examples"] == 32
    y = y.clone()
    confident = model(x).softmax(1).amax(1).topk(2).indices.tolist()
    for row in confident:
        y[row] = (y[row] + 1) % 3
    found = look("example_losses", point(model, [(x, y)]))
    assert set(found["rows"]) == set(confident)
    assert found["outlier_share"] == pytest.approx(2 / 32)
    by_hand = nn.functional.cross_entropy(model(x), y, reduction="none").detach()
    assert found["highest"] == pytest.approx(float(by_hand.max()), rel=1e-5)
    assert found["share_of_loss"] == pytest.approx(float(by_hand[confident].sum() / by_hand.sum()), rel=1e-5)


def test_optimizer_holds():
    model, batches = classified()
    model[0].bias.requires_grad_(False)
    stray = nn.Linear(3, 2)
    optimizer = torch.optim.SGD([model[0].weight, *stray.parameters()], lr=0.1)
    found = look("optimizer_holds", point(model, batches, optimizer=optimizer))
    assert found["frozen"] == ["0.bias"]
    assert found["outside"] == ["2.weight", "2.bias"]
    assert found["foreign"] == 8
    assert found["unreached"] == []
    model.append(nn.Linear(3, 3))

    def around(model, batch):
        return nn.functional.cross_entropy(model[2](0.0 * model[1](model[0](batch[0]))), batch[1])

    found = look("optimizer_holds", point(model, batches, around, torch.optim.SGD(model.parameters(), lr=0.0)))
    assert found["unreached"] == ["3.weight", "3.bias"]
    assert set(found["resting"]) == {"0.weight", "2.weight"}
    assert found["rates_of_zero"] == 1


def test_input_statistics():
    x = torch.randn(6, 4, generator=generator()) * 3 + 1
    x[:, 2] = 5.0
    y = torch.tensor([0, 0, 1, 1, 1, 2])
    other = (x + torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.zeros(6, dtype=torch.long))
    found = look("input_statistics", point(nn.Linear(4, 3), [(x, y), other, (x.clone(), y.clone())]))
    assert (found["batches"], found["repeated"], found["constant"], found["columns"]) == (3, 1, 1, 4)
    assert found["labels"] == {"0": 10, "1": 6, "2": 2}
    assert found["sorted"] == 1
    everything = torch.cat([x, other[0], x]).double()
    assert found["mean"] == pytest.approx(float(everything.mean()))
    assert found["rms"] == pytest.approx(float(everything.square().mean().sqrt()))


def test_label_shuffle():
    model, batches = classified()
    assert look("label_shuffle", point(model, batches))["informative"]
    order = torch.randperm(32, generator=generator(5))
    random_labels = [(x, y[order]) for x, y in batches]
    found = look("label_shuffle", point(model, random_labels))
    assert not found["informative"]
    with pytest.raises(NotApplicable, match="at least 5"):
        look("label_shuffle", point(model, batches[:4]))
    with pytest.raises(NotApplicable, match="no labels"):
        look("label_shuffle", point(model, [x for x, _ in batches], lambda m, x: m(x).square().mean()))


def test_eval_train_gap():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    _, batches = classified()
    for _ in range(30):
        for x, _ in batches:
            model(x)
    assert not look("eval_train_gap", point(model, batches))["differs"]
    model[1].running_mean.sub_(20.0)
    model[1].running_var.mul_(1e-3)
    found = look("eval_train_gap", point(model, batches))
    assert found["differs"]
    assert found["ratio"] > 3


def train(folder, check=None, options=None):
    """Ten steps of a net with everything that a look could disturb; before the eighth the check is made."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.ReLU(), nn.Linear(8, 3))
    model[3].eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    _, batches = classified(10)
    run = dynaxx.watch(model, optimizer, folder, loss=cross_entropy, quiet=True)
    found = None
    for batch in run.batches(batches):
        if run.step == 7 and check is not None:
            before = everything(model, optimizer)
            found = run.check(check, **(options or {}))
            after = everything(model, optimizer)
            assert before.keys() == after.keys()
            for name, was in before.items():
                assert torch.equal(was, after[name]) if isinstance(was, torch.Tensor) else was == after[name], name
        optimizer.zero_grad()  # here, so that gradients stand while the check looks
        cross_entropy(model, batch).backward()
        optimizer.step()
    run.close()
    return everything(model, optimizer), found


def everything(model, optimizer):
    state = {f"tensor {k}": v.clone() for k, v in model.state_dict().items()}
    state |= {f"gradient {k}": None if p.grad is None else p.grad.clone() for k, p in model.named_parameters()}
    state |= {f"mode {k}": m.training for k, m in model.named_modules()}
    state |= {f"wants {k}": p.requires_grad for k, p in model.named_parameters()}
    for i, moments in enumerate(optimizer.state.values()):
        state |= {f"moment {i}.{k}": v.clone() if isinstance(v, torch.Tensor) else v for k, v in moments.items()}
    state |= {"cpu": torch.get_rng_state(), "python": random.getstate()}
    state["numpy"] = torch.from_numpy(np.random.get_state()[1].astype(np.int64))  # noqa: NPY002
    return state


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    return train(tmp_path_factory.mktemp("plain") / "run")[0]


@pytest.mark.parametrize("name", catalog.names("checks"))
def test_no_trace(name, untouched, tmp_path):
    after, found = train(tmp_path / "run", name)
    assert found
    for key, was in untouched.items():
        assert torch.equal(was, after[key]) if isinstance(was, torch.Tensor) else was == after[key], key
    [event] = dynaxx.open_run(tmp_path / "run").events("check")
    assert (event["name"], event["step"]) == (name, 7)
    assert event["values"].keys() == found.keys()
    cost = catalog.get("checks", name).cost
    assert event["cost"]["forwards"] == cost.forwards


@pytest.mark.parametrize("name", catalog.names("checks"))
def test_within_its_cost(name, monkeypatch):
    """Forwards of a batch that the model is asked for, of a full set of kept batches; smaller batches count as less."""
    model, batches = classified()
    at = point(model, batches)
    seen = [0]
    model.register_forward_pre_hook(lambda module, args: seen.__setitem__(0, seen[0] + 1))
    monkeypatch.setattr(copy, "deepcopy", lambda thing, memo=None: thing if thing is model else memo)
    look(name, at)
    assert seen[0] <= catalog.get("checks", name).cost.forwards


def test_refusals(tmp_path):
    model, batches = classified()
    run = dynaxx.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path / "a", quiet=True)
    with pytest.raises(UnknownName, match="replay_batch"):
        run.check("replay_bach")
    with pytest.raises(BadInput, match="check\\('replay_batch'"):
        run.check("replay_batch", nonsense=1)
    with pytest.raises(NotApplicable, match="loss="):
        run.check("replay_batch")
    run.close()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = dynaxx.watch(model, optimizer, tmp_path / "b", loss=cross_entropy, quiet=True)
    with pytest.raises(NotApplicable, match=r"run\.batches"):
        run.check("replay_batch")
    run.close()

    def broken(model, batch):
        raise ZeroDivisionError("of the user's")

    run = dynaxx.watch(model, optimizer, tmp_path / "c", loss=broken, signals=["lr"], quiet=True)
    for _ in run.batches(batches[:2]):
        with pytest.raises(NotApplicable, match="ZeroDivisionError"):
            run.check("eval_train_gap")
    run.close()
    assert "ZeroDivisionError" in dynaxx.open_run(tmp_path / "c").events("check")[0]["not_applicable"]
