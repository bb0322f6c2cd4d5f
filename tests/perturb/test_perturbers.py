"""Every perturber: exact restoring, resuming bit for bit, seeded noise; and each against its formula."""

import copy
import io
import math

import pytest
import torch
from torch import nn

from dynaxx import catalog
from dynaxx.core.methods import Perturber
from dynaxx.errors import BadInput
from dynaxx.perturb import (
    AnnealedNoise,
    DistanceToStart,
    Ewc,
    Sam,
    TargetedDropout,
    WeightNoise,
    fisher_diagonal,
)

OPTIONS = {
    "sam": {"rho": 0.1, "every": 2},
    "annealed_noise": {},
    "weight_noise": {"std": 0.1},
    "targeted_dropout": {},
    "distance_to_start": {"strength": 0.5},
    "ewc": {"strength": 0.5},
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))


def make(name, model):
    options = dict(OPTIONS[name])
    if name == "ewc":
        options["fisher"] = {n: torch.full_like(p, 2.0) for n, p in model.named_parameters()}
    return catalog.get("perturb", name)(model, **options)


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, 3, generator=generator) for _ in range(count)]


def train(model, optimizer, perturber, data):
    for x in data:

        def closure():
            loss = model(x).square().mean()  # noqa: B023
            loss.backward()
            return loss

        if perturber is None:
            closure()
            optimizer.step()
        else:
            perturber.around(optimizer, closure)
        optimizer.zero_grad()


def test_the_table_covers_every_entry():
    assert sorted(OPTIONS) == catalog.names("perturb")


@pytest.mark.parametrize("name", OPTIONS)
def test_weights_and_random_streams_are_as_without_it(name):
    """With a rate of 0 only what a perturber leaves behind could differ."""
    plain, perturbed = net(), net()
    ends = []
    for model, perturber in ((plain, None), (perturbed, make(name, perturbed))):
        assert perturber is None or isinstance(perturber, Perturber)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        torch.manual_seed(5)
        train(model, optimizer, perturber, batches(4))
        ends.append(torch.get_rng_state())
    assert torch.equal(*ends)
    for (key, a), b in zip(plain.state_dict().items(), perturbed.state_dict().values(), strict=True):
        if key.startswith("1.running") and name in ("weight_noise", "targeted_dropout"):
            continue  # statistics of the only forward there is, at its weights
        assert torch.equal(a, b), key


@pytest.mark.parametrize("name", OPTIONS)
def test_it_matters_and_resumes_bit_for_bit(name):
    data, ends = batches(9), []
    for cut in (None, 4):
        model = net()
        perturber = make(name, model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        torch.manual_seed(5)
        train(model, optimizer, perturber, data[:cut])
        if cut is not None:
            buffer = io.BytesIO()
            torch.save(
                [model.state_dict(), optimizer.state_dict(), perturber.state_dict(), torch.get_rng_state()], buffer
            )
            buffer.seek(0)
            saved = torch.load(buffer, weights_only=True)
            model = net()
            perturber, optimizer = make(name, model), torch.optim.AdamW(model.parameters(), lr=0.01)
            for thing, state in zip((model, optimizer, perturber), saved, strict=False):
                thing.load_state_dict(state)
            torch.set_rng_state(saved[3])
            train(model, optimizer, perturber, data[cut:])
        ends.append(model.state_dict())
    model = net()
    torch.manual_seed(5)
    train(model, torch.optim.AdamW(model.parameters(), lr=0.01), None, data)
    assert all(torch.equal(a, b) for a, b in zip(*[end.values() for end in ends], strict=True))
    assert not torch.equal(ends[0]["0.weight"], model.state_dict()["0.weight"])


def test_annealed_noise_has_the_variance_of_the_paper():
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100))
    noise = AnnealedNoise(model, eta=0.3, relative=False)
    for t in range(3):
        noise.gradients(lambda: [setattr(p, "grad", torch.zeros_like(p)) for p in model.parameters()])
        sigma = math.sqrt(0.3 / (1 + t) ** 0.55)
        for layer in model:
            assert layer.weight.grad.std().item() == pytest.approx(sigma, rel=5 / math.sqrt(2e4))
        assert not torch.equal(model[0].weight.grad, model[1].weight.grad)
    relative = AnnealedNoise(model, eta=1.0)

    def gradients():
        for scale, layer in zip((1.0, 100.0), model, strict=True):
            for p in layer.parameters():
                p.grad = torch.full_like(p, scale)

    relative.gradients(gradients)
    for scale, layer in zip((1.0, 100.0), model, strict=True):
        assert (layer.weight.grad - scale).std().item() == pytest.approx(scale, rel=0.04)


def test_noise_depends_on_seed_step_and_name_alone():
    def of(seed, start):
        model = nn.Linear(4, 4)
        noise = AnnealedNoise(model, relative=False, seed=seed)
        noise.load_state_dict({"step": start})
        torch.rand(start + 1)
        noise.gradients(lambda: [setattr(p, "grad", torch.zeros_like(p)) for p in model.parameters()])
        return model.weight.grad

    assert torch.equal(of(0, 3), of(0, 3))
    assert not torch.equal(of(0, 3), of(1, 3))
    assert not torch.equal(of(0, 3) / of(0, 4).abs(), of(0, 4) / of(0, 4).abs())


def test_weight_noise_is_in_units_of_the_weights():
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100))
    nn.init.zeros_(model[0].bias)
    with torch.no_grad():
        model[1].weight.mul_(10)
    before, seen = copy.deepcopy(model.state_dict()), {}
    noise = WeightNoise(model, std=0.1)
    noise.gradients(lambda: seen.update(copy.deepcopy(model.state_dict())))
    for name in ("0.weight", "1.weight"):
        size = before[name].square().mean().sqrt().item()
        assert (seen[name] - before[name]).std().item() == pytest.approx(0.1 * size, rel=0.03)
    assert torch.equal(seen["0.bias"], before["0.bias"])
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_targeted_dropout_drops_the_smallest():
    model = nn.Sequential(nn.Conv2d(1, 2, 2, bias=False), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([4.0, -1, 3, 2, 10, 40, -30, 20]).view(2, 1, 2, 2))
    seen = []

    def closure():
        seen.append(model[0].weight.detach().flatten().tolist())
        model(torch.ones(1, 1, 2, 2)).sum().backward()

    before = copy.deepcopy(model.state_dict())
    TargetedDropout(model, share=0.5, probability=1.0, exclude=["2"]).gradients(closure)
    assert seen == [[4, 0, 3, 0, 0, 40, -30, 0]]
    assert (model[0].weight.grad.flatten() == 0).tolist() == [False, True, False, True, True, False, False, True]
    seen.clear()
    units = TargetedDropout(model, share=0.5, probability=1.0, of="units", exclude=["2"])
    units.gradients(closure)
    assert seen == [[0, 0, 0, 0, 10, 40, -30, 20]]
    with units.pruned():
        assert not model[0].weight[0].any()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_targeted_dropout_drops_candidates_with_its_probability():
    model = nn.Linear(1000, 40)
    seen = []
    dropout = TargetedDropout(model, share=0.29, probability=0.25)
    for _ in range(2):
        dropout.gradients(lambda: seen.append(model.weight.detach() == 0))
    candidates = 0.29 * 40_000
    for mask in seen:
        assert mask.sum().item() == pytest.approx(0.25 * candidates, abs=5 * math.sqrt(candidates * 0.25 * 0.75))
    smallest = model.weight.abs().argsort(1).argsort(1) < 290
    assert bool((smallest | ~seen[0]).all())
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("kind", ["distance", "ewc"])
def test_the_pull_is_the_proximal_step_whatever_the_optimizer(kind):
    model = nn.Linear(3, 1).double()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    fisher = {n: torch.rand_like(p) * 1e6 for n, p in model.named_parameters()}
    pull = DistanceToStart(model, strength=3.0) if kind == "distance" else Ewc(model, fisher=fisher, strength=3.0)
    optimizer = torch.optim.Adam([{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.01}])
    alone = copy.deepcopy(model)
    theirs = torch.optim.Adam([{"params": [alone.weight], "lr": 0.1}, {"params": [alone.bias], "lr": 0.01}])
    x = torch.randn(5, 3).double()
    pull.around(optimizer, lambda: model(x).square().mean().backward())
    alone(x).square().mean().backward()
    theirs.step()
    for (name, ours), free, rate in zip(model.named_parameters(), alone.parameters(), (0.1, 0.01), strict=True):
        stiff = 3.0 * rate * (1.0 if kind == "distance" else fisher[name])
        torch.testing.assert_close(ours.detach(), start[name] + (free.detach() - start[name]) / (1 + stiff))


def logistic():
    torch.manual_seed(0)
    return nn.Linear(4, 3).double(), torch.randn(600, 4).double()


def test_fisher_is_that_of_logistic_regression_and_not_a_batchs_squared_gradient():
    """Closed form: F_W = mean over x of p(1 − p) xᵀ², F_b without x²; avalanche #1224 squares batch means."""
    model, x = logistic()
    p = model(x).softmax(1).detach()
    closed = {
        "weight": torch.einsum("nc,nj->cj", p * (1 - p), x.square()) / len(x),
        "bias": (p * (1 - p)).mean(0),
    }
    state = torch.get_rng_state()
    found = fisher_diagonal(model, [(part, None) for part in x.split(100)], draws=60)
    assert torch.equal(state, torch.get_rng_state())
    for name, value in closed.items():
        torch.testing.assert_close(found[name], value, rtol=0.05, atol=0)
    wrong = torch.zeros_like(model.weight)
    for part in x.split(100):
        y = torch.multinomial(model(part).softmax(1).detach(), 1)[:, 0]
        (g,) = torch.autograd.grad(nn.functional.cross_entropy(model(part), y), model.weight)
        wrong += g.square() / 6
    assert (closed["weight"] / wrong).median() > 20, "smaller by about the size of a batch"


def test_fisher_of_means_and_of_sequences():
    model, x = logistic()
    found = fisher_diagonal(model, [x], likelihood="gaussian", draws=60)
    torch.testing.assert_close(found["weight"], x.square().mean(0).expand(3, 4), rtol=0.06, atol=0)
    positions = fisher_diagonal(model, [x.view(200, 3, 4)], draws=60)  # three independent positions: scores add up
    single = fisher_diagonal(model, [x], draws=60)
    torch.testing.assert_close(positions["weight"], 3 * single["weight"], rtol=0.1, atol=0)


def test_fisher_leaves_the_model_alone():
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    found = fisher_diagonal(model, [torch.randn(5, 3)], chunk=2)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert found.keys() == dict(model.named_parameters()).keys()
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert all(f.isfinite().all() for f in fisher_diagonal(attention, [torch.randn(3, 4, 8)]).values())


def test_words_name_an_old_task_by_its_file(tmp_path):
    """A later model, elsewhere by then, is pulled to the old weights as if Ewc had been made at them."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    first = Ewc.of(model, [torch.randn(8, 3)], strength=7.0)
    first.save(tmp_path / "old.safetensors")
    with torch.no_grad():
        model.weight += 1
    second = catalog.choice("perturb", f"ewc:old='{tmp_path / 'old.safetensors'}',strength=7.0").build(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.weight.detach().clone()
    found = []
    for perturber in (first, second):
        with torch.no_grad():
            model.weight.copy_(before)
        perturber.after_step(optimizer)
        found.append(model.weight.detach().clone())
    assert torch.equal(*found)
    assert not torch.equal(found[0], before)
    with pytest.raises(BadInput, match=r"these are not of this model's names and shapes"):
        Ewc(nn.Linear(2, 2), old=str(tmp_path / "old.safetensors"))
    with pytest.raises(BadInput, match=r"Ewc\(old='nowhere'\) cannot be read"):
        Ewc(model, old="nowhere")
    with pytest.raises(BadInput, match=r"give one of them.*save"):
        catalog.choice("perturb", "ewc:strength=3").build(model)


def test_ewc_remembers_where_distance_alone_cannot():
    """Two quadratic tasks in one weight each: EWC gives way in the direction that the old task does not notice."""
    model = nn.Linear(2, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    ewc = Ewc.of(model, [torch.tensor([[2.0, 0.0]]).double()] * 50, likelihood="gaussian", strength=1e4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(400):
        ewc.around(optimizer, lambda: (model.weight - 1).square().sum().backward())
        optimizer.zero_grad()
    assert abs(model.weight[0, 0].item()) < 0.01
    assert model.weight[0, 1].item() == pytest.approx(1.0, abs=0.01)


def test_bad_input():
    model = nn.Linear(2, 1)
    for call, message in (
        (lambda: AnnealedNoise(model, eta=0.0), "eta"),
        (lambda: AnnealedNoise(model, gamma=-1.0), "gamma"),
        (lambda: WeightNoise(model, std=math.inf), r"WeightNoise\(std=\.\.\.\) must be a finite number"),
        (lambda: TargetedDropout(model, share=1.5), "between 0 and 1"),
        (lambda: TargetedDropout(model, of="rows"), "'weights' or 'units'"),
        (lambda: TargetedDropout(model, exclude=["head"]), "must name Linear or Conv modules. Got 'head'"),
        (lambda: TargetedDropout(nn.LayerNorm(2)), "no trainable Linear or Conv"),
        (lambda: DistanceToStart(model, strength=-1), "strength"),
        (lambda: Ewc(model, fisher={"weight": torch.ones(1, 2)}), r"1 parameter \(bias\)"),
        (lambda: Ewc(model, fisher={"weight": torch.ones(2, 1), "bias": torch.ones(1)}), r"1 parameter \(weight\)"),
        (lambda: fisher_diagonal(model, []), "there is no example"),
        (lambda: fisher_diagonal(model, [torch.ones(1, 2)], likelihood="poisson"), "categorical"),
        (lambda: Sam("model"), "must be a torch.nn.Module. Got str"),
    ):
        with pytest.raises(BadInput, match=message):
            call()
