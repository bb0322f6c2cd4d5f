"""A batch that is left out leaves nothing behind: the run goes on as if it had never been in the data."""

import pytest
import torch
from torch import nn

import dynaxx


def net() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    model.register_buffer("table", torch.arange(3.0))
    return model


def trained(folder, spoil=None, *, when="gross", accumulate=1, batches=40, at=30):
    """The model's state after training on all batches, of which one is spoilt, or left away where `spoil` is None."""
    torch.manual_seed(0)
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    run = dynaxx.watch(model, optimizer, folder, quiet=True, signals=["lr"])
    run.apply("skip", when=when)
    draw = torch.Generator().manual_seed(1)
    for i in range(batches):
        parts = [torch.randn(16, 4, generator=draw) for _ in range(accumulate)]
        if i == at:
            if spoil is None:
                continue
            parts[-1] = spoil(parts[-1])
        for x in parts:
            (model(x) - x.nan_to_num().sum(dim=1, keepdim=True)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    run.close()
    return model.state_dict(), [event["step"] for event in run.view().events("update_left_out")]


def nan(x):
    x = x.clone()
    x[0, 0] = torch.nan
    return x


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("spoil", [nan, lambda x: 100 * x, lambda x: x * torch.inf], ids=["nan", "hundredfold", "inf"])
def test_it_is_as_if_the_batch_had_never_been(tmp_path, spoil, accumulate):
    clean, none = trained(tmp_path / "clean", accumulate=accumulate)
    state, left_out = trained(tmp_path / "spoilt", spoil, accumulate=accumulate)
    assert (none, left_out) == ([], [30])
    assert all(torch.equal(state[name], value) for name, value in clean.items())
    assert torch.isfinite(state["1.running_var"]).all()


def test_four_batches_say_what_is_usual(tmp_path):
    clean, _ = trained(tmp_path / "clean", at=4)
    state, left_out = trained(tmp_path / "fifth", lambda x: 100 * x, at=4)
    assert left_out == [4]
    assert all(torch.equal(state[name], value) for name, value in clean.items())
    assert trained(tmp_path / "fourth", lambda x: 100 * x, at=3)[1] == []


def test_without_it_running_statistics_are_lost(tmp_path):
    torch.manual_seed(0)
    model = net()
    model(nan(torch.randn(16, 4)))
    assert not torch.isfinite(model[1].running_mean).all()


def test_the_scale_is_looked_at_where_the_gradient_does_not_tell(tmp_path):
    """The scale of its inputs is what a batch normalisation takes away, but not from its running statistics."""
    seen = {}
    for when in ("non_finite", "gross"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1))
        run = dynaxx.watch(model, torch.optim.SGD(model.parameters(), lr=1e-2), tmp_path / when, quiet=True)
        run.apply("skip", when=when)
        for i in range(30):
            x = torch.randn(16, 4) * (100 if i == 25 else 1)
            model(x).square().mean().backward()
            run._live.optimizer.step()
            model.zero_grad()
        run.close()
        seen[when] = float(model[0].running_var.max())
    assert seen["gross"] < 2 < 100 < seen["non_finite"]


def test_three_in_a_row_are_a_new_level(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    run = dynaxx.watch(model, torch.optim.SGD(model.parameters(), lr=1e-6), tmp_path, quiet=True)
    run.apply("skip", when="gross")
    for i in range(40):
        model(torch.randn(16, 4) * (100 if i >= 30 else 1)).square().mean().backward()
        run._live.optimizer.step()
        model.zero_grad()
    run.close()
    assert [event["step"] for event in run.view().events("update_left_out")] == [30, 30, 30]
    assert run.step == 37


def test_resumed_it_remembers_what_is_usual(tmp_path):
    def train(resume, first, last):
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
        run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True, resume=resume)
        if not resume:
            run.apply("skip", when="gross")
        for i in range(first, last):
            model(torch.randn(16, 4) * (100 if i == 21 else 1)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        run.save()
        run.close()
        return [event["step"] for event in run.view().events("update_left_out")]

    assert train(False, 0, 20) == []
    assert train(True, 20, 25) == [21]
