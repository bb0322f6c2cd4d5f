"""What every signal keeps to: it changes nothing, waits for nothing, costs what it says, goes on from its state."""

import random

import numpy as np
import pytest
import torch
from _every_signal import DEAR, NAMES, ODD, STEPS, Everything, batches, facts, loss_fn, seed_all, taken
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import dynaxx
from dynaxx.checkpoints.codec import decode, encode
from dynaxx.core.events import Event
from dynaxx.phases import Phase, Phased


@pytest.fixture(autouse=True)
def every_step(monkeypatch):
    """Dear signals, too, are measured at every step."""
    monkeypatch.setattr("dynaxx.session.instruments.PRICING", 1)


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
