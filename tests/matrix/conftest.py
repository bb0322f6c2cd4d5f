"""Real loops run twice, bare and watched: the same bit for bit, and measured as the truth by hand beside them."""

import copy
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dynaxx

sys.path.insert(0, str(Path(__file__).parent))  # for `_ranks`, which is a script of its own too


def pytest_collection_modifyitems(items):
    """A case of a table is slow unless its test names it in `QUICK`, a module's dict of test → parts of case ids."""
    for item in items:
        quick = getattr(getattr(item, "module", None), "QUICK", {}).get(getattr(item, "originalname", None))
        if quick is not None and not any(part in item.name for part in quick):
            item.add_marker(pytest.mark.slow)


class Book:
    """Truth, computed by hand within the loop: one row per layer or model, as the library's columns must have it."""

    def __init__(self):
        self.gradients, self.updates, self.ratios, self.totals = [], [], [], []
        self.values = {}
        self._before = None

    @staticmethod
    def layers(model):
        """Layer → its parameters, by the module that owns them; shared ones once."""
        rows = {}
        for name, parameter in model.named_parameters():
            rows.setdefault(name.rpartition(".")[0] or "(root)", []).append(parameter)
        return rows

    @staticmethod
    def norm(tensors):
        """√Σ‖t‖² in double precision; None and sparse included."""
        total = 0.0
        for t in tensors:
            if t is not None:
                t = t.detach()
                t = t.to_dense() if t.is_sparse else t
                total += t.abs().double().square().sum().item()
        return total**0.5

    def backward_done(self, model, factor=1.0):
        """To be called where gradients are complete and not yet clipped."""
        self.gradients.append([factor * self.norm(p.grad for p in ps) for ps in self.layers(model).values()])

    def before_step(self, model):
        self._before = [p.detach().clone() for p in model.parameters()]

    def after_step(self, model):
        """The parameters' real change since `before_step`, taken in double precision."""
        before = dict(zip(model.parameters(), self._before, strict=True))
        wide = {p: p.detach().to(torch.complex128 if p.is_complex() else torch.float64) for p in before}
        moved = {p: wide[p] - b.to(wide[p].dtype) for p, b in before.items()}
        rows = list(self.layers(model).values())
        update = np.array([self.norm(moved[p] for p in ps) for ps in rows])
        norms = np.array([self.norm(before[p] for p in ps) for ps in rows])
        self.updates.append(update)
        with np.errstate(invalid="ignore", divide="ignore"):
            self.ratios.append(update / norms)
        self.totals.append(np.linalg.norm(update) / np.linalg.norm(norms))

    def take_step(self, model, optimizer):
        """The optimizer's step once gradients are complete, with the truth of it, and gradients cleared."""
        self.backward_done(model)
        self.before_step(model)
        optimizer.step()
        self.after_step(model)
        optimizer.zero_grad()

    def train(self, model, optimizer, watch, batches, loss, **options):
        """A whole loop, a step for each batch; `loss(batch)`."""
        run = watch(model, optimizer, **options)
        for batch in batches:
            value = loss(batch)
            value.backward()
            self.take_step(model, optimizer)
            run.log(loss=value)
        return model, optimizer

    def note(self, name, value):
        self.values.setdefault(name, []).append(float(torch.as_tensor(value).detach()))


class Bare:
    """Stands where the run stands in the bare loop: does nothing, and hands batches on."""

    stopping = None

    def log(self, **values):
        pass

    def batches(self, loader):
        return iter(loader)

    def due(self, what):
        return False


def fingerprint(*things):
    """Everything that must be the same bit for bit: states, gradients, modes and every global random stream."""
    found = [torch.get_rng_state(), np.random.get_state(), random.getstate()]  # noqa: NPY002
    for thing in things:
        if isinstance(thing, nn.Module):
            found += [thing.state_dict(), [None if p.grad is None else p.grad.clone() for p in thing.parameters()]]
            found.append([(name, module.training) for name, module in thing.named_modules()])
        elif hasattr(thing, "state_dict"):
            found.append(thing.state_dict())
        else:
            found.append(thing)
    return copy.deepcopy(found)


def difference(a, b, where=""):
    """Where two nested values first differ, bit for bit (NaN is equal to NaN); None where they do not."""
    if type(a) is not type(b):
        return f"{where}: {type(a).__name__} against {type(b).__name__}"
    if isinstance(a, torch.Tensor):
        a, b = (t.to_dense() if t.is_sparse else t for t in (a, b))
        equal = a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
        return None if equal else f"{where}: {a} against {b}"
    if isinstance(a, np.ndarray):
        return None if np.array_equal(a, b, equal_nan=a.dtype.kind == "f") else f"{where}: {a} against {b}"
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return f"{where}: keys {list(a)} against {list(b)}"
        return next((d for k in a if (d := difference(a[k], b[k], f"{where}[{k!r}]"))), None)
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return f"{where}: {len(a)} against {len(b)} items"
        return next((d for i in range(len(a)) if (d := difference(a[i], b[i], f"{where}[{i}]"))), None)
    return None if a == b or (a != a and b != b) else f"{where}: {a!r} against {b!r}"


def seeded():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)


@pytest.fixture
def both(tmp_path):
    """`both(loop, **options)` runs `loop(watch, book)` bare, then watched; the loop returns what must end up the same.

    Returns the view of the watched run and the book of truths.
    """

    def compare(loop, **options):
        seeded()
        bare_book = Book()
        bare = fingerprint(*loop(lambda *a, **k: Bare(), bare_book))
        seeded()
        book, runs = Book(), []

        def watch(model, optimizer, **more):
            runs.append(dynaxx.watch(model, optimizer, tmp_path / f"run{len(runs)}", quiet=True, **{**options, **more}))
            return runs[-1]

        watched = fingerprint(*loop(watch, book))
        for run in runs:
            run.close()
        assert difference(bare, watched) is None
        assert difference(bare_book.gradients, book.gradients) is None
        reasons = [reason for run in runs for reason in run._instruments.not_applicable.values()]
        assert not [reason for reason in reasons if reason.startswith("failed")]
        views = [run.view() for run in runs]
        return (views[0] if len(views) == 1 else views), book

    return compare


@pytest.fixture
def small():
    """A net with a frozen batch-norm-like buffer, dropout (random stream) and batch statistics (buffers)."""

    def build():
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))

    return build


@pytest.fixture
def data():
    """`data(n, batch)`: n batches of (x, y) from a generator of its own."""

    def make(n, batch=5, seed=1):
        generator = torch.Generator().manual_seed(seed)
        return [
            (torch.randn(batch, 6, generator=generator), torch.randint(0, 3, (batch,), generator=generator))
            for _ in range(n)
        ]

    return make


@pytest.fixture
def agrees():
    """`agrees(view, book)`: norms, updates and ratios of the log equal the truths to 1e-6 relative, at every step."""

    def check(view, book, rtol=1e-6, start=1):
        steps = np.arange(start, start + len(book.gradients))
        for name, truth in (
            ("grad_norm", book.gradients),
            ("update_norm", book.updates),
            ("update_ratio", book.ratios),
            ("update_ratio.total", book.totals),
        ):
            if truth:
                column = view[name]
                np.testing.assert_array_equal(column.steps, steps, err_msg=name)
                np.testing.assert_allclose(column.values, np.array(truth), rtol=rtol, atol=1e-30, err_msg=name)

    return check
