import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from dynaxx.core.events import Event
from dynaxx.signals.activations import WINDOW

KINDS = ("mean", "std", "zeros", "saturated", "dead")


class Looked:
    """A bench for activations whose values are read by label."""

    def __init__(self, bench, model):
        self.bench = bench(model, torch.optim.SGD(model.parameters(), lr=0.1), "activations")

    def forward(self, *xs):
        with torch.no_grad():
            for x in xs:
                self.bench.look(x)
        return self

    def read(self):
        """Label → statistic → value."""
        values = self.bench.measure(Event.STEP_END, self.bench.begin())
        labels = self.bench.columns["activations.mean"].axis.labels
        assert values.keys() == {f"activations.{kind}" for kind in KINDS}
        return {
            label: {kind: float(values[f"activations.{kind}"][i]) for kind in KINDS} for i, label in enumerate(labels)
        }


@pytest.fixture
def looked(bench):
    return lambda model: Looked(bench, model)


def model_with(module):
    """The inputs go through a layer that returns them, so that the second module's outputs are known."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), module)
    nn.init.eye_(model[0].weight)
    return model


def truth(outputs):
    x = torch.cat([o.double().flatten() for o in outputs])
    return {"mean": float(x.mean()), "std": float(x.std(correction=0)), "zeros": float((x == 0).double().mean())}


def check(row, outputs, **more):
    for kind, value in (truth(outputs) | more).items():
        assert row[kind] == pytest.approx(value, rel=1e-5, abs=1e-7, nan_ok=True), kind


def test_known_inputs(looked):
    x = torch.tensor([[-1.0, 0.0, 2.0, 3.0], [-2.0, -0.0, 5.0, -1.0]])
    rows = looked(model_with(nn.ReLU())).forward(x).read()
    assert list(rows) == ["0", "1"]
    assert rows["0"]["mean"] == 0.75
    assert rows["0"]["zeros"] == 0.25
    assert rows["1"]["mean"] == 1.25
    assert rows["1"]["zeros"] == 5 / 8
    check(rows["0"], [x])
    check(rows["1"], [x.relu()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_random_inputs_of_any_floating_dtype(looked, dtype):
    model = model_with(nn.ReLU()).to(dtype)
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows = looked(model).forward(x).read()
    check(rows["0"], [x])
    check(rows["1"], [x.relu()])


def test_forwards_of_unequal_size_are_combined_exactly(looked):
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(n, 4, generator=generator) * n + n for n in (1, 7, 32)]
    watched = looked(model_with(nn.Tanh()))
    rows = watched.forward(*xs).read()
    check(rows["0"], xs)
    outputs = [x.tanh() for x in xs]
    check(rows["1"], outputs, saturated=float((torch.cat(outputs).abs() >= 0.99).double().mean()))
    rows = watched.forward(xs[0]).read()  # and a reading begins anew
    check(rows["0"], xs[:1])


def test_a_small_spread_about_a_large_mean_is_not_lost(looked):
    x = 1000 + 0.01 * torch.randn(512, 4, generator=torch.Generator().manual_seed(0))
    rows = looked(model_with(nn.ReLU())).forward(x).read()
    assert rows["0"]["std"] == pytest.approx(float(x.double().std(correction=0)), rel=1e-3)


def test_without_a_forward_there_is_nothing_to_say(looked):
    watched = looked(model_with(nn.ReLU()))
    watched.forward(torch.randn(3, 4)).read()
    rows = watched.read()
    assert all(math.isnan(value) for kind, value in rows["1"].items() if kind != "dead")


@pytest.mark.parametrize(
    ("module", "x", "share"),
    [
        (nn.Tanh(), [-9.0, -2.0, 0.0, 9.0], 0.5),
        (nn.Sigmoid(), [-9.0, -4.0, 0.0, 9.0], 0.5),
        (nn.Softsign(), [-98.0, -200.0, 99.0, 1.0], 0.5),
        (nn.ReLU6(), [-1.0, 0.0, 6.0, 7.0], 0.5),
        (nn.Hardtanh(), [-1.0, -0.9, 0.9, 2.0], 0.5),
        (nn.Hardtanh(-2.0, 3.0), [-1.5, -2.5, 2.9, 2.0], 0.25),
        (nn.Hardsigmoid(), [-3.0, -2.9, 2.9, 2.8], 0.25),
        (nn.ReLU(), [-1.0, 0.0, 1e9, 1.0], math.nan),
        (nn.GELU(), [-9.0, -9.0, -9.0, 9.0], math.nan),
        (nn.Linear(4, 4), [1e9, 1e9, 0.0, 0.0], math.nan),
    ],
    ids=repr,
)
def test_only_what_is_bounded_can_be_saturated(looked, module, x, share):
    rows = looked(model_with(module)).forward(torch.tensor([x])).read()
    assert math.isnan(rows["0"]["saturated"])  # a layer has no bounds
    assert rows["1"]["saturated"] == pytest.approx(share, nan_ok=True)


def test_units_that_stay_silent_are_dead_after_a_window(looked):
    watched = looked(model_with(nn.ReLU()))
    live = torch.tensor([[1.0, -1.0, -1.0, 1.0], [1.0, 1.0, -1.0, 1.0]])
    dim = torch.tensor([[1.0, -1.0, -1.0, 1.0], [1.0, -1.0, -1.0, -1.0]])
    for i in range(1, WINDOW):
        assert math.isnan(watched.forward(live).read()["1"]["dead"]), i
    assert watched.forward(live).read()["1"]["dead"] == 0.25  # unit 2 never spoke
    for _ in range(WINDOW - 1):
        assert watched.forward(dim).read()["1"]["dead"] == 0.25
    assert watched.forward(dim).read()["1"]["dead"] == 0.5  # unit 1 has been silent for a window
    assert watched.forward(live).read()["1"]["dead"] == 0.25  # and speaks again


@pytest.mark.parametrize(
    ("layer", "x", "units"),
    [
        (nn.Conv2d(1, 3, 1, bias=False), torch.ones(2, 1, 5, 5), 3),
        (nn.Conv1d(1, 3, 1, bias=False), torch.ones(2, 1, 5), 3),
        (nn.Linear(2, 5, bias=False), torch.ones(3, 4, 2), 5),
    ],
    ids=["Conv2d", "Conv1d", "Linear"],
)
def test_units_are_channels_of_convolutions_and_the_last_dimension_elsewhere(looked, layer, x, units):
    nn.init.ones_(layer.weight)
    with torch.no_grad():
        layer.weight[0] = 0
    watched = looked(nn.Sequential(layer))
    for _ in range(WINDOW):
        rows = watched.forward(x).read()
    assert rows["0"]["dead"] == pytest.approx(1 / units)


class Functions(nn.Module):
    """Activation functions called by hand, one twice, within a block and at the root."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.block = nn.Linear(4, 4, bias=False)
        self.block.forward = lambda x: functional.relu(functional.relu(x - 1) - 1) * 1.0
        self.last = nn.Sigmoid()

    def forward(self, x):
        return functional.silu(self.last(torch.tanh(self.block(x) + x)))


def test_functions_are_named_after_the_module_that_calls_them(looked):
    x = torch.tensor([[3.0, 1.5, 0.5, 9.0]])
    model = Functions()
    watched = looked(model)
    for _ in range(2):  # a second forward finds the same names
        rows = watched.forward(x).read()
        assert set(rows) == {"block", "block.relu", "block.relu#2", "tanh", "last", "silu"}
        first = functional.relu(x - 1)
        check(rows["block.relu"], [first], saturated=math.nan)
        check(rows["block.relu#2"], [functional.relu(first - 1)])
        hidden = torch.tanh(functional.relu(first - 1) + x)
        check(rows["tanh"], [hidden], saturated=0.5)
        check(rows["last"], [hidden.sigmoid()], saturated=0.0)
        check(rows["silu"], [functional.silu(hidden.sigmoid())])


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (functional.relu, "relu"),
        (lambda x: functional.relu(x, inplace=True), "relu"),
        (torch.relu, "relu"),
        (lambda x: x.relu(), "relu"),
        (functional.gelu, "gelu"),
        (lambda x: functional.gelu(x, approximate="tanh"), "gelu"),
        (functional.silu, "silu"),
        (functional.leaky_relu, "leaky_relu"),
        (functional.elu, "elu"),
        (torch.tanh, "tanh"),
        (functional.tanh, "tanh"),
        (lambda x: x.tanh(), "tanh"),
        (torch.sigmoid, "sigmoid"),
        (functional.sigmoid, "sigmoid"),
        (lambda x: x.sigmoid(), "sigmoid"),
    ],
)
def test_every_way_of_calling_an_activation_is_seen_once(looked, function, name):
    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return function(self.layer(x))

    model, x = Calls(), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    rows = looked(model).forward(x).read()
    assert set(rows) == {"layer", name}
    check(rows[name], [function(model.layer(x)).detach()])


def test_an_activation_module_is_one_row_however_it_computes(looked):
    for module in (nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Tanh(), nn.PReLU(), nn.LeakyReLU(inplace=True)):
        assert list(looked(model_with(module)).forward(torch.randn(2, 4)).read()) == ["0", "1"]


def test_a_module_that_is_called_twice_is_the_mean_of_its_outputs(looked):
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    rows = looked(model).forward(x).read()
    first = model[1](model[0](x))
    check(rows["1"], [first.detach(), model(x).detach()])


def test_the_projection_within_attention_that_is_never_called_has_no_row(looked):
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    model, x = Attends(), torch.randn(2, 3, 4)
    rows = looked(model).forward(x).read()
    assert list(rows) == ["attention"]
    check(rows["attention"], [model(x).detach()])


@pytest.mark.parametrize(
    "output", [torch.ones(3, dtype=torch.int64), torch.tensor(1.0), torch.ones(0, 4), "text", None, ()]
)
def test_outputs_without_entries_of_real_numbers_are_passed_over(looked, output):
    class Odd(nn.Linear):
        def forward(self, x):
            return output

    rows = looked(nn.Sequential(Odd(4, 4))).forward(torch.randn(2, 4)).read()
    assert math.isnan(rows["0"]["mean"])


def test_the_first_tensor_of_an_output_is_looked_at(looked):
    class Pair(nn.Linear):
        def forward(self, x):
            return {"out": (x * 2, x)}

    x = torch.randn(2, 4)
    check(looked(nn.Sequential(Pair(4, 4))).forward(x).read()["0"], [x * 2])
