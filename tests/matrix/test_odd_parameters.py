"""Parameters that are frozen, shared, missing a gradient, complex, sparse, empty, of other types, or not there yet."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import dynaxx
from dynaxx.errors import BadInput

QUICK = {
    "test_groupings_of_the_users": ["partial"],
    "test_complex_parameters": ["adamw_loop"],
    "test_sparse_gradients": ["sgd-True", "sparse_adam-False"],
    "test_parameters_of_other_types": ["dtype1"],
}


def train(model, optimizer, watch, book, batches, loss, **options):
    return book.train(model, optimizer, watch, batches, lambda batch: loss(model, batch), **options)


def classify(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def test_frozen_parameters_have_no_gradient_and_do_not_move(both, agrees, small, data):
    def loop(watch, book):
        model = small()
        for parameter in model[0].parameters():
            parameter.requires_grad_(False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        return train(model, optimizer, watch, book, data(4), classify)

    view, book = both(loop)
    agrees(view, book)
    assert view["grad_norm"].values[:, 0].tolist() == [0.0] * 4
    assert view["update_norm"].values[:, 0].tolist() == [0.0] * 4
    assert view["grad_zeros"].values[:, 0].tolist() == [1.0] * 4
    assert view["parameter_norm"].values[:, 0].min() > 0
    assert view.events("self_test")[0]["missing"] == []


def test_parameters_that_are_unfrozen_later(both, agrees, small, data):
    def loop(watch, book):
        model = small()
        model[0].requires_grad_(False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watch(model, optimizer)
        for i, (x, y) in enumerate(data(4)):
            if i == 2:
                model[0].requires_grad_(True)
            classify(model, (x, y)).backward()
            book.take_step(model, optimizer)
        return model, optimizer

    view, book = both(loop)
    agrees(view, book)
    assert (view["grad_norm"].values[:, 0] > 0).tolist() == [False, False, True, True]


class Tied(nn.Module):
    """A language model in small: input and output embedding are one tensor."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.mix(self.embed(tokens)))


def tokens(n):
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(0, 11, (3, 5), generator=generator) for _ in range(n)]


def language(model, batch):
    return functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def test_tied_parameters_count_once(both, agrees):
    def loop(watch, book):
        model = Tied()
        return train(model, torch.optim.AdamW(model.parameters()), watch, book, tokens(4), language)

    view, book = both(loop)
    agrees(view, book)
    assert view["grad_norm"].labels == ("embed", "mix")
    assert view.manifest["model"]["numel"] == 11 * 6 + 6 * 6 + 6


def test_parameters_without_gradient(both, agrees, data):
    """A branch that is taken every second step, and a layer that is never used."""

    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.never = nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(6, 3)
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return self.second(x) if self.calls % 2 else self.first(x)

    def loop(watch, book):
        model = Branching()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        return train(model, optimizer, watch, book, data(4), classify)

    view, book = both(loop)
    agrees(view, book)
    assert view["loss"].steps.tolist() == [1, 2, 3, 4]
    missing = view.events("self_test")[0]["missing"]
    assert missing == ["2 parameters (never.weight, never.bias) never had a gradient"]


def test_gradients_that_are_zeroed_but_kept(both, agrees, small, data):
    def loop(watch, book):
        model = small()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        watch(model, optimizer)
        for x, y in data(4):
            optimizer.zero_grad(set_to_none=False)
            classify(model, (x, y)).backward()
            book.backward_done(model)
            book.before_step(model)
            optimizer.step()
            book.after_step(model)
        return model, optimizer

    agrees(*both(loop))


GROUPINGS = {
    "parameters": ("parameters", ("0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias")),
    "pattern": (r"\.(weight|bias)$", ("weight", "bias")),
    "partial": (r"^(?:0|1)\b", ("0", "1", "4")),
    "callable": (lambda name: "head" if name.startswith("4") else "body", ("body", "head")),
}


@pytest.mark.parametrize("kind", GROUPINGS)
def test_groupings_of_the_users(both, small, data, kind):
    grouping, labels = GROUPINGS[kind]
    pick = {
        "parameters": lambda n: n,
        "pattern": lambda n: n.rpartition(".")[2],
        "partial": lambda n: n[0],
        "callable": GROUPINGS["callable"][0],
    }[kind]
    truths = []

    def loop(watch, book):
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watch(model, optimizer, layers=grouping)
        truths.clear()
        for x, y in data(3):
            classify(model, (x, y)).backward()
            row = dict.fromkeys(labels, 0.0)
            for name, parameter in model.named_parameters():
                row[pick(name)] += parameter.grad.double().square().sum().item()
            truths.append([value**0.5 for value in row.values()])
            optimizer.step()
            optimizer.zero_grad()
        return model, optimizer

    view, _ = both(loop)
    assert view["grad_norm"].labels == labels
    np.testing.assert_allclose(view["grad_norm"].values, truths, rtol=1e-6)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 6, dtype=torch.complex64))
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        return self.head((x.to(torch.complex64) @ self.weight.mT).abs())


@pytest.mark.parametrize("kind", ["adamw", "adamw_loop", "sgd"])
def test_complex_parameters(both, agrees, data, kind):
    def loop(watch, book):
        model = Complex()
        optimizer = {
            "adamw": lambda ps: torch.optim.AdamW(ps, lr=1e-2),
            "adamw_loop": lambda ps: torch.optim.AdamW(ps, lr=1e-2, foreach=False, amsgrad=True),
            "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
        }[kind](model.parameters())
        return train(model, optimizer, watch, book, data(4), classify)

    view, book = both(loop)
    agrees(view, book)
    assert np.isfinite(view["trajectory.distance"].values).all()
    assert view["grad_zeros"].values.max() < 1
    if kind != "sgd":
        assert np.isfinite(view["optimizer_state.momentum_ratio"].values).all()
        assert (view["optimizer_state.epsilon_dominated"].values <= 1).all()


class Sparse(nn.Module):
    def __init__(self, functional_call):
        super().__init__()
        self.embed = nn.Embedding(20, 4, sparse=not functional_call)
        self.functional_call = functional_call
        self.head = nn.Linear(4, 20)

    def forward(self, tokens):
        if self.functional_call:
            return self.head(functional.embedding(tokens, self.embed.weight, sparse=True))
        return self.head(self.embed(tokens))


@pytest.mark.parametrize("functional_call", [False, True])
@pytest.mark.parametrize("kind", ["sgd", "sparse_adam"])
def test_sparse_gradients(both, agrees, functional_call, kind):
    def loop(watch, book):
        model = Sparse(functional_call)
        if kind == "sgd":
            optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        else:
            model.head.requires_grad_(False)
            optimizer = torch.optim.SparseAdam(model.embed.parameters(), lr=0.1)
        return train(model, optimizer, watch, book, [t % 11 for t in tokens(4)], language)

    view, book = both(loop)
    agrees(view, book)
    zeros = view["grad_zeros"].values[:, 0]
    assert ((zeros > 0.3) & (zeros < 1)).all()  # rows whose token did not occur: at least 9 of 20
    assert np.isfinite(view["grad_max"].values).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_parameters_of_other_types(both, agrees, data, dtype):
    def loop(watch, book):
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        batches = [(x.to(dtype), y) for x, y in data(4)]
        return train(model, optimizer, watch, book, batches, lambda m, b: classify(m, b).float())

    view, book = both(loop)
    # A difference of 16-bit numbers is exact up to a factor of two between them, else rounded to 16 bits itself.
    agrees(view, book, rtol=1e-6 if dtype is torch.float64 else 2e-3)
    np.testing.assert_allclose(view["grad_norm"].values, np.array(book.gradients), rtol=1e-6)
    assert view.manifest["model"]["dtype"] == str(dtype)


def test_mixed_types_in_one_model(both, agrees, data):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.high = nn.Linear(6, 8).bfloat16(), nn.Linear(8, 3).double()

        def forward(self, x):
            return self.high(self.low(x.bfloat16()).double())

    def loop(watch, book):
        model = Mixed()
        return train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), watch, book, data(4), classify)

    view, book = both(loop)
    np.testing.assert_allclose(view["grad_norm"].values, np.array(book.gradients), rtol=1e-6)
    np.testing.assert_allclose(view["update_norm"].values, np.array(book.updates), rtol=2e-3)


def test_empty_and_scalar_parameters(both, agrees, data):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.empty = nn.Parameter(torch.zeros(0, 4))
            self.scale = nn.Parameter(torch.tensor(1.5))
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            return self.head(x) * self.scale + self.empty.sum()

    def loop(watch, book):
        model = Odd()
        return train(model, torch.optim.AdamW(model.parameters(), lr=1e-2), watch, book, data(4), classify)

    agrees(*both(loop))


def test_a_layer_of_nothing_but_emptiness(both, data):
    class Hollow(nn.Module):
        def __init__(self):
            super().__init__()
            self.hollow = nn.Linear(6, 0)
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            return self.head(x) + self.hollow(x).sum()

    def loop(watch, book):
        with pytest.warns(UserWarning, match="zero-element"):
            model = Hollow()
        return train(model, torch.optim.SGD(model.parameters(), lr=0.1), watch, book, data(2), classify)

    view, _ = both(loop)
    assert view["grad_norm"].values[:, 0].tolist() == [0.0, 0.0]
    assert view["grad_norm"].values[:, 1].min() > 0


def test_a_layer_that_begins_at_zero(both, agrees, data):
    def loop(watch, book):
        model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
        nn.init.zeros_(model[1].weight)
        nn.init.zeros_(model[1].bias)
        return train(model, torch.optim.SGD(model.parameters(), lr=0.1), watch, book, data(3), classify)

    view, book = both(loop)
    agrees(view, book)
    assert view["update_ratio"].values[0, 1] == np.inf


def test_transposed_and_channels_last_parameters(both, agrees):
    def loop(watch, book):
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
        model[0].to(memory_format=torch.channels_last)
        model[3].weight = nn.Parameter(torch.randn(16, 3).t())
        generator = torch.Generator().manual_seed(2)
        batches = [
            (torch.randn(3, 2, 4, 4, generator=generator), torch.randint(0, 3, (3,), generator=generator))
            for _ in range(3)
        ]
        return train(model, torch.optim.AdamW(model.parameters(), lr=1e-2), watch, book, batches, classify)

    agrees(*both(loop))


def test_several_groups_and_one_added_later(both, agrees, small, data):
    def loop(watch, book):
        model = small()
        groups = [{"params": model[0].parameters()}, {"params": model[1].parameters(), "lr": 0.3}]
        optimizer = torch.optim.SGD(groups, lr=0.1)
        watch(model, optimizer)
        for i, (x, y) in enumerate(data(5)):
            if i == 2:
                optimizer.add_param_group({"params": model[4].parameters(), "lr": 0.7})
            classify(model, (x, y)).backward()
            book.backward_done(model)
            book.before_step(model)
            optimizer.step()
            book.after_step(model)
            model.zero_grad()
        return model, optimizer

    view, book = both(loop)
    agrees(view, book)
    assert view["update_norm"].values[:2, 2].tolist() == [0.0, 0.0]
    rates = view["lr"]
    assert rates.labels == ("group 0", "group 1", "group 2")
    np.testing.assert_array_equal(rates.at(5), [0.1, 0.3, 0.7])
    np.testing.assert_array_equal(rates.at(1), [0.1, 0.3, np.nan])


def watched(tmp_path, model, optimizer=None):
    return dynaxx.watch(model, optimizer or torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1), tmp_path / "run")


def test_parameters_on_the_meta_device_are_refused(tmp_path):
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(BadInput, match=r"watch\(model=Sequential\): 2 parameters \(0.weight, 0.bias\) are on the meta"):
        watched(tmp_path, model, torch.optim.SGD(model.parameters(), 0.1))
    assert not (tmp_path / "run").exists()


def test_parameters_that_are_not_initialised_are_refused(tmp_path):
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))
    with pytest.raises(BadInput, match=r"2 parameters \(0.weight, 0.bias\) have no shape yet.*one forward"):
        watched(tmp_path, model, torch.optim.SGD(model.parameters(), 0.1))
    assert not (tmp_path / "run").exists()
    model(torch.ones(1, 2))
    dynaxx.watch(model, torch.optim.SGD(model.parameters(), 0.1), tmp_path / "run", quiet=True).close()


def test_a_model_without_parameters_and_an_optimizer_of_another_model(tmp_path):
    with pytest.raises(BadInput, match="the model has no parameters"):
        watched(tmp_path, nn.ReLU())
    with pytest.raises(BadInput, match="none of them the model's 2"):
        watched(tmp_path, nn.Linear(2, 1))
    assert not (tmp_path / "run").exists()
