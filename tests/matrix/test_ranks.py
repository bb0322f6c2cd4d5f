"""Loops on two gloo ranks, data-parallel and sharded: right, neutral, and without a collective too many."""

import json
import subprocess
import sys

import _ranks
import numpy as np
import pytest
import torch
from _ranks import CASES, WORLD, batches, net, optimizer_of

import dynaxx


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Runs cases on two processes, once for all of them; gives each case's results by rank, and its view."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, _ranks.__file__, str(folder), ",".join(CASES)]
    processes = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(WORLD)]
    try:
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * WORLD, "\n".join(said)

    def results(name):
        found = [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(WORLD)]
        view = dynaxx.open_run(folder / name)
        assert len(view.attempts) == 1, "one rank writes"
        assert view.attempts[0].status == "finished"
        assert not view.problems
        assert view.events("warning") == []
        return found, view

    return results


pytestmark = pytest.mark.slow


def check(found, view, rtol=1e-6):
    for name in ("grad_norm", "update_norm"):
        if name in found[0]:
            assert found[0][name] == found[1][name]
            np.testing.assert_allclose(view[name].values, found[0][name], rtol=rtol, atol=1e-12, err_msg=name)
    assert found[0]["same"]
    assert found[1]["same"], "the watched loop is not the bare one, bit for bit"


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_accumulation(ranks, kind):
    found, view = ranks(f"{kind}_accumulation")
    check(found, view)
    assert view["effective_batch"].values.tolist() == [16.0] * 3  # 4 examples × 2 micro-batches × 2 ranks
    np.testing.assert_allclose(view["loss"].values, np.reshape(found[0]["loss"], (3, 2)).mean(1), rtol=1e-6)
    assert view["clip_coefficient"].steps.tolist() == [1, 2, 3]
    assert view.events("self_test")[0]["missing"] == []
    assert view.events("self_test")[0]["seen"] == "pre-clip, unscaled"


@pytest.mark.parametrize("name", ["fsdp_in_double_precision", "fsdp_in_mixed_precision", "hybrid_sharding"])
def test_sharded_figures_are_those_of_whole_tensors(ranks, name):
    found, view = ranks(name)
    check(found, view)
    assert view["trajectory.sketch"].steps.tolist() == [1, 2, 3, 4, 5, 6]
    if name == "fsdp_in_double_precision":
        exact, sketched = view["exact_trajectory.distance"].values, view["trajectory.distance"].values
        np.testing.assert_allclose(sketched, exact, rtol=1e-5)  # fewer parameters than the sketch has numbers
        np.testing.assert_allclose(exact[0], np.linalg.norm(found[0]["update_norm"][0]), rtol=1e-6)


def test_rows_of_which_one_rank_holds_nothing(ranks):
    found, view = ranks("fsdp_by_parameter")
    assert found[0]["truth"] == found[1]["truth"]
    for i, name in enumerate(("grad_norm", "grad_max", "grad_zeros")):
        np.testing.assert_allclose(view[name].values, np.array(found[0]["truth"])[:, :, i], rtol=1e-6, err_msg=name)
    assert view["grad_norm"].labels[:2] == ("0.weight", "0.bias")


def test_what_is_not_finite_in_one_shard_is_not_finite_in_the_layer(ranks):
    found, view = ranks("fsdp_with_one_bad_shard")
    assert [f["steps"] for f in found] == [2, 2]
    for name in ("grad_norm", "grad_max"):
        assert np.isnan(view[name].values[0]).tolist() == [True, False], name
    assert view["grad_nonfinite"].steps.tolist() == [1, 2]  # by then the weights are spoilt, and every gradient
    assert view["grad_nonfinite"].values[0].tolist() == [2.0, 0.0]


def test_figures_of_two_shardings_agree(ranks):
    """Hybrid and full sharding of one training: the same numbers, up to the order of sums."""
    _, hybrid = ranks("hybrid_sharding")
    _, fully = ranks("fsdp_in_double_precision")
    for name in ("grad_norm", "grad_max", "grad_zeros", "update_ratio", "parameter_norm", "trajectory.sketch"):
        a, b = hybrid[name].values, fully[name].values
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.nanmax(np.abs(b)), err_msg=name)


def test_the_model_within_the_wrapper(ranks):
    found, view = ranks("ddp_watched_inside")
    check(found, view)
    assert view["effective_batch"].values.tolist() == [8.0] * 6


def test_a_rank_that_stops_early_hangs_nobody(ranks):
    found, view = ranks("ddp_one_rank_stops_early")
    assert [f["steps"] for f in found] == [106, 60]
    assert [f["calibrated"] for f in found] == [True, False]
    assert len(view["grad_norm"].steps) == 106


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_actions_are_the_same_on_all_ranks_and_as_on_one(ranks, kind, tmp_path):
    found, view = ranks(f"{kind}_actions")
    assert [f["steps"] for f in found] == [5, 5]
    assert found[0]["weights"] == found[1]["weights"]
    model = net()
    optimizer = optimizer_of(model)
    rates, scale = 0.5e-2, 2.0
    for group in optimizer.param_groups:
        group["lr"] = rates
    for i, x in enumerate(batches(0, world=1)):
        if i == 2:
            continue
        model(x).square().mean().backward()
        if i < 2:  # three attempts, of which one was left out
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad *= scale
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
    for a, b in zip(model.parameters(), found[0]["weights"], strict=True):
        torch.testing.assert_close(a.detach(), torch.tensor(b), rtol=1e-4, atol=1e-6)
    assert [event["step"] for event in view.events("update_left_out")] == [2]


def test_an_overflow_on_one_rank(ranks):
    found, view = ranks("ddp_under_a_scaler")
    check(found, view)
    assert [f["steps"] for f in found] == [5, 5]
    assert [event["step"] for event in view.events("update_left_out")] == [1]
