"""`dynaxx.watch` on unchanged loops: right, neutral, and clear about what it cannot do."""

import copy
import io
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dynaxx
from dynaxx.errors import BadInput, DynaxxWarning, RunFolderExists

TEN_LINES = """
    import torch, dynaxx
    torch.manual_seed(0); torch.set_num_threads(1)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    {watch}
    norms, ratios = [], []
    for i in range(120):
        x = torch.randn(16, 4)
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        layers = [[p for p in m.parameters()] for m in (model[0], model[3])]
        flat = lambda ps: torch.cat([p.detach().double().flatten() for p in ps])
        norms.append([torch.cat([p.grad.double().flatten() for p in ps]).norm().item() for ps in layers])
        old = [flat(ps) for ps in layers]
        optimizer.step()
        ratios.append([((flat(ps) - o).norm() / o.norm()).item() for ps, o in zip(layers, old)])
        optimizer.zero_grad()
    torch.save((model.state_dict(), torch.get_rng_state(), norms, ratios), {out!r})
"""


def run_loop(watch: str, out: Path) -> tuple:
    code = textwrap.dedent(TEN_LINES).format(watch=watch, out=str(out))
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, stderr=subprocess.PIPE)
    return torch.load(out, weights_only=False)


def test_one_line_on_a_third_party_loop(tmp_path: Path) -> None:
    bare = run_loop("pass", tmp_path / "bare.pt")
    watched = run_loop(f"dynaxx.watch(model, optimizer, {str(tmp_path / 'run')!r})", tmp_path / "watched.pt")
    assert all(torch.equal(bare[0][k], watched[0][k]) for k in bare[0])
    assert torch.equal(bare[1], watched[1])
    view = dynaxx.open_run(tmp_path / "run")
    grad = view["grad_norm"]
    assert grad.labels == ("0", "3")
    np.testing.assert_array_equal(grad.steps, np.arange(1, 121))
    np.testing.assert_allclose(np.asarray(grad), watched[2], rtol=1e-6)
    ratio = view["update_ratio"]
    at = np.asarray(ratio.steps) - 1
    assert len(at) >= 100
    np.testing.assert_allclose(np.asarray(ratio), np.array(watched[3])[at], rtol=2e-6)
    assert view.attempts[-1].status == "finished"


def loop(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, run: dynaxx.Run | None = None) -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        x = torch.randn(8, 4, generator=generator)
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if run is not None:
            run.log(loss=loss)


def small() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def test_self_test_line_and_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, optimizer = small()
    with dynaxx.watch(model, optimizer, tmp_path / "run") as run:
        loop(model, optimizer, 105, run)
    said = capsys.readouterr().err
    assert "2 layers, unclipped, unscaled gradients; overhead" in said
    assert "missing" not in said
    view = dynaxx.open_run(tmp_path / "run")
    assert view.events("self_test")[0]["missing"] == []
    cadence = {s["name"]: s["cadence"] for s in view.events("calibration")[0]["signals"]}
    assert cadence["grad_norm"] == 1
    assert all(c & (c - 1) == 0 for c in cadence.values())


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = small()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with dynaxx.watch(model, optimizer, tmp_path / "run"):
        loop(model, optimizer, 3)
    assert "2 parameters (2.weight, 2.bias) of the model require a gradient but are not in the optimizer" in (
        capsys.readouterr().err
    )


def test_a_run_without_a_step_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, optimizer = small()
    dynaxx.watch(model, optimizer, tmp_path / "run").close()
    assert "dynaxx: no step was seen" in capsys.readouterr().err
    (report,) = dynaxx.open_run(tmp_path / "run").events("self_test")
    assert report["missing"][0].startswith("no step was seen")


def test_step_numbers_of_logged_values(tmp_path: Path) -> None:
    model, optimizer = small()
    run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True)
    run.log(before=1.0)
    x = torch.ones(2, 4)
    for step in (1, 2):
        for micro in (1, 2):
            loss = model(x).sum() / 2
            loss.backward()
            run.log(micro=10.0 * step + micro)
        optimizer.step()
        optimizer.zero_grad()
        run.log(after=float(step))
    run.close()
    view = dynaxx.open_run(tmp_path / "run")
    for name, steps, values in (("before", [0], [1.0]), ("micro", [1, 2], [11.5, 21.5]), ("after", [1, 2], [1.0, 2.0])):
        assert list(view[name].steps) == steps, name
        np.testing.assert_array_equal(np.asarray(view[name]), values)


def test_names_that_collide_are_the_users(tmp_path: Path) -> None:
    model, optimizer = small()
    with dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True) as run:
        loop(model, optimizer, 1)
        run.log(grad_norm=7.0, loss=1.0)
    view = dynaxx.open_run(tmp_path / "run")
    assert np.asarray(view["user.grad_norm"]) == [7.0]
    assert np.asarray(view["grad_norm"]).shape == (1, 2)


@pytest.mark.parametrize(
    ("value", "said"), [(torch.ones(3), r"shape \(3,\)"), ("high", "str"), (None, "NoneType"), (1j, "complex")]
)
def test_a_first_value_that_is_no_number(tmp_path: Path, value: object, said: str) -> None:
    model, optimizer = small()
    run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True)
    with run, pytest.raises(BadInput, match=rf"run.log\(loss=...\) must be a number.*{said}"):
        run.log(loss=value)  # type: ignore[arg-type]


def test_a_later_value_that_is_no_number_does_not_stop_the_training(tmp_path: Path) -> None:
    model, optimizer = small()
    with dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True) as run:
        loop(model, optimizer, 2, run)
        with pytest.warns(DynaxxWarning, match="left out"):
            run.log(loss=torch.ones(3))
        run.log(loss=torch.ones(3))
    assert dynaxx.open_run(tmp_path / "run").events("run_end")[0]["refused"] == {"loss": 2}


def test_logged_tensors_may_change_afterwards(tmp_path: Path) -> None:
    model, optimizer = small()
    with dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True) as run:
        loop(model, optimizer, 1)
        value = torch.tensor(2.0)
        run.log(value=value)
        value.mul_(100)
    assert np.asarray(dynaxx.open_run(tmp_path / "run")["value"]) == [2.0]


def test_bad_arguments(tmp_path: Path) -> None:
    model, optimizer = small()
    with pytest.raises(BadInput, match="no parameters"):
        dynaxx.watch(nn.ReLU(), optimizer, tmp_path / "a")
    with pytest.raises(BadInput, match=r"none of them the model's 4.*Build it from"):
        dynaxx.watch(copy.deepcopy(model), optimizer, tmp_path / "a")
    with pytest.raises(BadInput, match=r"must be a torch.optim.Optimizer"):
        dynaxx.watch(model, object(), tmp_path / "a")
    with pytest.raises(BadInput, match=r"must be a torch.nn.Module"):
        dynaxx.watch(lambda x: x, optimizer, tmp_path / "a")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="budget"):
        dynaxx.watch(model, optimizer, tmp_path / "a", budget=2)
    with pytest.raises(BadInput, match="Did you mean 'grad_norm'"):
        dynaxx.watch(model, optimizer, tmp_path / "a", signals=["grad_nrm"])
    with pytest.raises(BadInput, match=r"a list of names"):
        dynaxx.watch(model, optimizer, tmp_path / "a", signals="grad_norm")
    assert not (tmp_path / "a").exists()
    dynaxx.watch(model, optimizer, tmp_path / "a", quiet=True).close()
    with pytest.raises(RunFolderExists, match="resume"):
        dynaxx.watch(model, optimizer, tmp_path / "a")


def test_copies_of_the_model_stay_silent_and_can_be_saved(tmp_path: Path) -> None:
    model, optimizer = small()
    with dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True) as run:
        twin = copy.deepcopy(model)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=False)
        for other in (twin, loaded):
            other(torch.ones(2, 4)).sum().backward()
        run.log(x=1.0)
    view = dynaxx.open_run(tmp_path / "run")
    assert list(view["x"].steps) == [0]


def test_a_closed_run_leaves_no_hook(tmp_path: Path) -> None:
    model, optimizer = small()
    run = dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True)
    loop(model, optimizer, 2)
    run.close()
    loop(model, optimizer, 2)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert run.step == 2


def test_nan_in_the_first_batch_is_logged_and_located(tmp_path: Path) -> None:
    model, optimizer = small()
    with dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True) as run:
        loss = model(torch.full((2, 4), torch.nan)).sum()
        loss.backward()
        optimizer.step()
        run.log(loss=loss)
    view = dynaxx.open_run(tmp_path / "run")
    assert np.isnan(np.asarray(view["loss"])).all()
    np.testing.assert_array_equal(np.asarray(view["grad_nonfinite"]), [[24 + 0, 12]])


def test_a_broken_signal_is_retired_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dynaxx.signals.grad_max import GradMax

    def broken(*_: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(GradMax, "measure", broken)
    model, optimizer = small()
    with dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True) as run:
        with pytest.warns(DynaxxWarning, match="'grad_max' failed and is off.*out of luck"):
            loop(model, optimizer, 1, run)
        loop(model, optimizer, 2, run)
    view = dynaxx.open_run(tmp_path / "run")
    assert "grad_max" not in view.columns
    assert len(view["grad_norm"].steps) == 3


def test_an_unassigned_run_lives_and_its_log_is_complete(tmp_path: Path) -> None:
    model, optimizer = small()
    dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True)
    loop(model, optimizer, 5)
    assert len(dynaxx.open_run(tmp_path / "run")["grad_norm"].steps) == 5, "open_run in the same process flushes first"


def test_actions_leave_receipts(tmp_path: Path) -> None:
    model, optimizer = small()
    with dynaxx.watch(model, optimizer, tmp_path / "run", quiet=True) as run:
        run.apply("learning_rate", factor=0.5, steps=2, reason="a test")
        loop(model, optimizer, 3)
        with pytest.raises(BadInput, match="positive and finite"):
            run.apply("learning_rate", factor=-1.0)
        with pytest.raises(BadInput, match="Did you mean"):
            run.apply("learning_rat", factor=1.0)
    assert optimizer.param_groups[0]["lr"] == 0.1
    view = dynaxx.open_run(tmp_path / "run")
    np.testing.assert_allclose(np.asarray(view["lr"])[:, 0], [0.05, 0.05, 0.1])
    assert [e["receipt"]["status"] for e in view.events("receipt")] == ["begun", "ended"]
