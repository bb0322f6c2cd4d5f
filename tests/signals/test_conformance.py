"""What every signal keeps to: it changes nothing, waits for nothing, costs what it says, goes on from its state."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dynaxx
from dynaxx import catalog
from dynaxx.checkpoints.codec import decode, encode
from dynaxx.core.events import UPDATE_COST, Event, Need, StepBatch, StepTimes, StepView
from dynaxx.core.objective import Objective
from dynaxx.core.parameters import Layout
from dynaxx.numerics.hessian import Hessian
from dynaxx.phases import Phase, Phased
from dynaxx.session.instruments import Instruments

NAMES = catalog.names("signals")
DEAR = [name for name in NAMES if Need.CURVATURE in catalog.get("signals", name).needs]
"""Those that run the model by themselves: they may wait, and are paid for by forwards and backwards."""
STEPS = 9
ODD = ("frozen", "unused")
"""Layers without gradients, for which some quantities do not exist."""


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.router = nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        weights = torch.softmax(self.router(x), dim=-1)
        return sum(weights[..., i, None] * expert(x) for i, expert in enumerate(self.experts))


class Everything(nn.Module):
    """Something for every signal to look at: statistics in buffers, dropout, attention, experts, odd parameters."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(5)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.mixture = Mixture()
        self.dropout = nn.Dropout(0.2)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.unused = nn.Linear(2, 2)
        self.bounded = nn.Tanh()
        self.head = nn.Linear(8, 8)

    def forward(self, x):
        x = self.norm(functional.relu(self.embed(x)) + 0.1)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = functional.scaled_dot_product_attention(x, x, x, is_causal=True, dropout_p=0.1)
        x = self.dropout(self.mixture(x)) + self.frozen(x)
        return self.head(self.bounded(x))


def batches():
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(4, 5, 6, generator=generator) for _ in range(STEPS)]


def loss_fn(model, x):
    return model(x).square().mean()


@pytest.fixture(autouse=True)
def every_step(monkeypatch):
    """Dear signals, too, are measured at every step."""
    monkeypatch.setattr("dynaxx.session.instruments.PRICING", 1)


def seed_all():
    torch.manual_seed(1)
    np.random.seed(2)  # noqa: NPY002
    random.seed(3)


def train(folder=None, signals=()):
    """Train, watched where there is a folder, and return all that may not differ with the run."""
    seed_all()
    model = Everything()
    model.bounded.eval()  # a mode of its own
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": rest, "lr": 0.02}], lr=0.01)
    run = None if folder is None else dynaxx.watch(model, optimizer, folder, loss=loss_fn, signals=signals, quiet=True)
    trace = []
    for x in batches() if run is None else run.batches(batches()):
        loss = model(x).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        trace.append({"loss": loss, **{f"grad.{n}": p.grad for n, p in model.named_parameters()}})
        trace[-1] = {k: None if v is None else v.detach().clone() for k, v in trace[-1].items()}
        optimizer.step()
        trace.append({n: v.clone() for n, v in model.state_dict().items()})
        optimizer.zero_grad()
        trace.append({"random": torch.rand(1), "numpy": np.random.rand(), "python": random.random()})  # noqa: NPY002
    trace.append(optimizer.state_dict())
    trace.append([(module.training, len(module._forward_hooks)) for module in model.modules()][1:])
    trace.append([(p.requires_grad, p.grad) for p in model.parameters()])
    trace.append([torch.get_rng_state(), np.random.get_state(), random.getstate(), torch.is_grad_enabled()])  # noqa: NPY002
    return run, trace


@pytest.fixture(scope="module")
def bare():
    return train()[1]


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.equal(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return np.array_equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_it_changes_nothing_and_says_finite_numbers(name, tmp_path, bare):
    run, watched = train(tmp_path / "run", [name])
    for step, (one, other) in enumerate(zip(bare, watched, strict=True)):
        assert same(one, other), step
    run.close()
    view = dynaxx.open_run(tmp_path / "run")
    found = [column for column in view.columns if column == name or column.startswith(f"{name}.")]
    if name in ("grad_nonfinite", "phase"):  # they speak when there is something to say
        assert found == []
        return
    assert found
    for column in found:
        array = view[column]
        first = 2 if column in ("flops", "trajectory.cosine", "gradient_agreement") else 1  # a warm-up; two of a kind
        assert list(array.steps) == list(range(first, STEPS + 1)), column
        values = np.asarray(array)
        labels = np.array(["total"] if values.ndim == 1 else array.labels)
        normal = [not str(label).startswith(ODD) for label in labels]
        last = np.atleast_1d(values[-1])[normal]
        if column == "activations.saturated":  # exists for bounded activations only
            last = last[[label == "bounded" for label in labels[normal]]]
        assert len(last)
        assert np.isfinite(last).all(), (column, last)


def test_the_bare_run_would_show_a_difference(bare):
    assert same(bare, train()[1])
    other = train()[1]
    other[-1][0][3] += 1
    assert not same(bare, other)


def facts(model):
    """What a step shows when everything is known."""
    probe = batches()[0] if isinstance(model, Everything) else torch.ones(4, 700)
    return {
        "objective": Objective(model, loss_fn, [probe], mode="as is"),
        "clip": (torch.tensor(2.0), 1.0),
        "loss_scale": torch.tensor(128.0),
        "times": StepTimes(forward=0.1, total=0.3),
        "batch": StepBatch(forwards=1, samples=4, tokens=20, epoch=0.5, flops_per_sample=1e3),
    }


def taken(bench, name, model=None, make=torch.optim.Adam, steps=1):
    """A bench after some steps with random gradients."""
    seed_all()
    model = Everything() if model is None else model
    found = bench(model, make([p for p in model.parameters() if p.requires_grad], lr=0.01), name)
    for x in batches()[:steps]:
        if isinstance(model, Everything):
            (found.look(x) if found.watch else model(x)).square().mean().backward()
        else:
            for p in model.parameters():
                p.grad = torch.randn_like(p)
        found.step(**facts(model))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_columns_are_named_after_the_file_and_described(name, bench):
    model = Everything()

    def in_phases(parameters, lr):
        return Phased(model, [Phase(name="all", optimizer=f"adamw:lr={lr}")], steps=STEPS)

    found = taken(bench, name, model, in_phases if name == "phase" else torch.optim.Adam)
    if name == "grad_nonfinite":
        model.head.weight.grad[0, 0] = torch.nan
        found.step()
    assert found.columns
    for column in found.columns.values():
        assert column.name == name or column.name.startswith(f"{name}.")
        assert column.about
        assert column.about[0] not in " ."
        assert not column.about.endswith(".")
        assert column.unit
        assert column.axis is None or len(set(column.axis.labels)) == len(column.axis)
    signal = found.signals[name]
    assert signal.unit and signal.at in (Event.GRADS_READY, Event.STEP_END)  # noqa: PT018
    assert type(signal).__doc__ != type(signal).__mro__[1].__doc__


@pytest.mark.parametrize("name", NAMES)
def test_the_same_column_is_the_same_object(name, bench):
    """The log begins a new file where a column changes."""
    found = taken(bench, name)
    first = dict(found.columns)
    for x in batches()[:2]:
        (found.look(x) if found.watch else found.model(x)).square().mean().backward()
        found.step(**facts(found.model))
    assert all(found.columns[column] is first[column] for column in first)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_that_is_stored_goes_on_as_if_it_had_not_been(name, bench):
    found = taken(bench, name, steps=3)
    state = found.states[name]
    if not isinstance(state, dict):  # it holds no history that a resumed run would miss
        return
    tensors, tree = encode(state)
    stored = decode({key: tensor.clone() for key, tensor in tensors.items()}, tree)
    with torch.no_grad():
        for p in found.model.parameters():
            p.add_(torch.randn(p.shape))
    view = found.begin(**facts(found.model))
    view.before = [torch.ones_like(p) for p in view.parameters]
    one, other = found.signals[name].measure(state, view)[1], found.signals[name].measure(stored, view)[1]
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert a.column is b.column
        assert torch.as_tensor(a.value).equal(torch.as_tensor(b.value))


class Waited(AssertionError): ...


class NoWaiting(TorchDispatchMode):
    """Refuses operations whose result, or whose shape, the host needs to know."""

    refused = frozenset(
        {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"}
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._overloadpacket.__name__
        indexed = name == "index" and any(t is not None and t.dtype == torch.bool for t in args[1])
        if name in self.refused or indexed:
            raise Waited(name)
        return func(*args, **(kwargs or {}))


class NoReading(TorchFunctionMode):
    """Refuses what reads memory without an operation."""

    refused = frozenset(
        {"item", "tolist", "numpy", "cpu", "__array__", "__bool__", "__float__", "__int__", "__index__"}
    )

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in self.refused:
            raise Waited(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "wait",
    [
        float,
        bool,
        int,
        torch.Tensor.item,
        torch.Tensor.tolist,
        torch.Tensor.numpy,
        np.asarray,
        torch.nonzero,
        lambda x: x.reshape(1)[x.reshape(1) > 0],
        lambda x: torch.equal(x, x),
        lambda x: torch.ones(3)[x.long()],
        lambda x: "yes" if x > 0 else "no",
        lambda x: x.to("cpu", copy=True).cpu(),
    ],
)
def test_waiting_would_be_noticed(wait):
    with NoReading(), NoWaiting(), pytest.raises(Waited):
        wait(torch.tensor(1.0))


@pytest.mark.parametrize("name", NAMES)
def test_it_does_not_wait_for_the_device(name, bench):
    if name in DEAR:
        return
    found = taken(bench, name, steps=2)
    signal = found.signals[name]
    for x in batches()[:2]:
        if found.watch is not None:
            with NoReading(), NoWaiting():
                out = found.look(x)
        else:
            out = found.model(x)
        out.square().mean().backward()
        view = found.begin(**facts(found.model))
        view.before = [p.clone() for p in view.parameters]
        view.memo("before_norms", lambda: torch.ones(len(found.layout.layers)))
        with torch.no_grad(), NoReading(), NoWaiting():
            if name in ("grad_nonfinite", "grad_norm"):  # on a CPU there is nothing to wait for
                with pytest.raises(Waited):
                    signal.measure(found.states[name], view)
                return
            found.states[name], _ = signal.measure(found.states[name], view)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("name", sorted(set(NAMES) - set(DEAR)))
def test_it_does_not_wait_for_an_accelerator(name, bench):
    model = Everything().cuda()
    found = bench(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01), name)
    for i, x in enumerate(batches()):
        mode = "default" if i < 2 else "error"  # tables are made in the first step
        x = x.cuda()
        try:
            torch.cuda.set_sync_debug_mode(mode)
            out = (found.look if found.watch else model)(x)
            torch.cuda.set_sync_debug_mode("default")
            out.square().mean().backward()
            view = found.begin()
            view.before = [p.detach().clone() for p in view.parameters]
            view.memo("before_norms", lambda: torch.ones(len(found.layout.layers), device="cuda"))
            found.optimizer.step()
            torch.cuda.set_sync_debug_mode(mode)
            with torch.no_grad():
                found.states[name], _ = found.signals[name].measure(found.states[name], view)
        finally:
            torch.cuda.set_sync_debug_mode("default")


class Sweeps(TorchDispatchMode):
    """Counts the elements that operations read: of every tensor given to one that is neither a view nor a constant.

    An `out=`, and what `copy_` writes to, are not read. Integer tables and masks count as elements like the others.
    """

    constant = frozenset({"new_zeros", "new_empty", "new_full", "zeros_like", "ones_like", "empty_like", "full_like"})
    overwrite = frozenset({"copy_", "_foreach_copy_", "zero_", "fill_"})

    def __init__(self):
        super().__init__()
        self.read = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._overloadpacket.__name__
        view = name == "_unsafe_view" or any(
            r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns
        )
        if not view and name not in self.constant:
            given = [args[1:] if name in self.overwrite else args, {k: v for k, v in kwargs.items() if k != "out"}]
            self.read += sum(t.numel() for t in tree_leaves(given) if isinstance(t, torch.Tensor))
        return func(*args, **kwargs)


def wide():
    """Tensors so large that what is read beside them does not show."""
    return nn.Sequential(nn.Linear(700, 800), nn.Linear(800, 500))


def swept(call, model):
    with torch.no_grad(), Sweeps() as sweeps:
        call()
    return sweeps.read / sum(p.numel() for p in model.parameters())


def test_sweeps_count_what_is_read():
    x = torch.ones(100)
    model = nn.ParameterList([x])
    for call, truth in [
        (lambda: torch.linalg.vector_norm(x), 1),
        (lambda: torch.linalg.vector_norm(x - x), 3),
        (lambda: x.view(10, 10).T.reshape(2, 50), 1),
        (lambda: torch.zeros_like(x).copy_(x), 1),
        (lambda: torch._foreach_norm([x, x]), 2),
        (lambda: torch.mul(x, x, out=torch.empty(100)), 2),
        (lambda: x.new_zeros(7).fill_(3), 0),
    ]:
        assert swept(call, model) == truth


@pytest.mark.parametrize("name", DEAR)
def test_a_dear_signal_takes_no_more_than_it_declares(name, bench, monkeypatch):
    found = taken(bench, name, steps=3)
    products, examples = [], []
    multiply = Hessian.__call__

    def counted(operator, rows):
        products.append(len(rows))
        return multiply(operator, rows)

    monkeypatch.setattr(Hessian, "__call__", counted)
    (found.model(batches()[4])).square().mean().backward()
    view = found.begin(**facts(found.model))
    found.model.register_forward_pre_hook(lambda _, inputs: examples.append(len(inputs[0])))
    with torch.no_grad():
        found.signals[name].measure(found.states[name], view)
    cost = found.signals[name].cost
    assert sum(products) <= cost.products
    if cost.products:
        assert products
        assert sum(examples) == 4, "one graph, kept for all products"
    else:
        assert sum(examples) / 4 == cost.forwards


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(DEAR)))
def test_the_declared_cost_is_what_is_read(name, bench):
    model = wide()
    if name == "router":
        model.gate, model.experts = nn.Linear(2, 2), nn.Linear(2, 2)
    found = taken(bench, name, model, steps=2)
    signal = found.signals[name]
    view = found.begin(**facts(model))
    view.before = [torch.randn_like(p) for p in view.parameters]
    view.memo("before_norms", lambda: torch.ones(len(found.layout.layers)))
    model.register_forward_pre_hook(lambda *_: pytest.fail("a measurement ran the model"))
    measured = swept(lambda: signal.measure(found.states[name], view), model)
    assert measured == pytest.approx(signal.cost.sweeps, abs=0.15)
    assert (signal.cost.forwards, signal.cost.backwards) == (0, 0)


def test_the_price_of_the_update_is_what_is_read():
    model = wide()
    layout = Layout(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    instruments = Instruments(model, layout, ["update_norm"], None, budget=0.02, warn=pytest.fail)
    view = StepView(step=1, layout=layout, optimizer=optimizer)

    def prepare():
        instruments.keep(view)
        instruments.compare(view)

    assert swept(prepare, model) == pytest.approx(UPDATE_COST.sweeps, abs=0.15)
