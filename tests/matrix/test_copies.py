"""Copies of a watched model, pickled ones, and two watched models that train each other."""

import copy
import io
import pickle
import subprocess
import sys
import textwrap

import torch
from torch import nn
from torch.nn import functional

import dynaxx


def test_copies_do_not_report(tmp_path, small, data):
    """An exponential moving average, a deep copy that is trained on its own, and pickles."""
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True)
    average = torch.optim.swa_utils.AveragedModel(model)
    twin = copy.deepcopy(model)
    its_optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    also = copy.deepcopy(optimizer)
    for x, y in data(3):
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        average(x)
        functional.cross_entropy(twin(x), y).backward()
        its_optimizer.step()
        also.step()
    assert run.step == 3
    run.close()
    assert run.view()["effective_batch"].values.tolist() == [5.0] * 3


def test_a_pickled_model_needs_no_dynaxx(tmp_path, small, data):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True)
    model(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    torch.save(model, tmp_path / "model.pt")
    copied = pickle.loads(pickle.dumps(model))  # noqa: S301
    assert torch.equal(copied[0].weight, model[0].weight)
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    torch.load(buffer, weights_only=True)
    code = """
        import sys, torch
        sys.modules["dynaxx"] = None
        model = torch.load(sys.argv[1], weights_only=False)
        model(torch.ones(2, 2)).sum().backward()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "model.pt")], check=True)
    run.close()


def test_two_watched_models_that_train_each_other(both, agrees, data):
    """A generator and a discriminator: each step belongs to its own run."""
    generators, discriminators = [], []

    def loop(watch, book):
        g, d = (
            nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6)),
            nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 1)),
        )
        og, od = torch.optim.Adam(g.parameters(), lr=1e-2), torch.optim.SGD(d.parameters(), lr=0.1)
        run_g, run_d = watch(g, og), watch(d, od)
        other = type(book)()
        for x, _ in data(4):
            fake = g(torch.randn(5, 4))
            loss_d = functional.softplus(-d(x)).mean() + functional.softplus(d(fake.detach())).mean()
            loss_d.backward()
            other.backward_done(d)
            other.before_step(d)
            od.step()
            other.after_step(d)
            run_d.log(loss=loss_d)
            loss_g = functional.softplus(-d(fake)).mean()
            loss_g.backward()
            book.backward_done(g)
            book.before_step(g)
            og.step()
            book.after_step(g)
            run_g.log(loss=loss_g)
            og.zero_grad()
            od.zero_grad()
        generators[:], discriminators[:] = [book], [other]
        return g, og, d, od

    (view_g, view_d), _ = both(loop)
    agrees(view_g, generators[0])
    agrees(view_d, discriminators[0])
    assert view_g["loss"].steps.tolist() == view_d["loss"].steps.tolist() == [1, 2, 3, 4]
    assert view_g["effective_batch"].values.tolist() == [5.0] * 4
    # The discriminator's forward for the generator's loss comes after its own step, so it counts for its next one.
    assert view_d["effective_batch"].values.tolist() == [10.0, 15.0, 15.0, 15.0]
