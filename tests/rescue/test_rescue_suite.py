import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from dynaxx.cli import run as command
from dynaxx.errors import BadInput, UnknownName
from dynaxx.rescue.report import report
from dynaxx.rescue.suite import cases, recorded, run_suite
from dynaxx.rescue.training import RESULT, Case, Ended, run_case
from dynaxx.runlog import open_run

STEPS = 16
TASK = """
import torch
from torch import nn
import dynaxx

class Mine(dynaxx.Task):
    steps, batch_size = 12, 8
    def model(self):
        return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)
    def batches(self, split, seed):
        x = torch.randn(64, 3, generator=torch.Generator().manual_seed(seed % 2**32))
        return [(b, b.sum(1, keepdim=True)) for b in x.split(8)]
    def loss(self, model, batch):
        return nn.functional.mse_loss(model(batch[0]), batch[1])
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    out = tmp_path_factory.mktemp("suite")
    names = ["rate_too_high", "frozen_block", "nan_batch", "long_warmup"]
    chosen = cases(nets=["mlp"], seeds=[0], alterations=names, steps=STEPS)
    treated = cases(nets=["mlp"], seeds=[0], alterations=names[:1], policies=["halve"], steps=STEPS)
    return out, run_suite([*chosen, *treated], out, workers=1)


def test_cases_hold_clean_twins_and_each_once():
    chosen = cases(nets=["mlp", "cnn"], seeds=range(3), alterations=["rate_too_low"])
    assert len(chosen) == len(set(chosen)) == 12
    assert sum(case.alteration is None for case in chosen) == 6
    assert len({case.key for case in chosen}) == 12
    with pytest.raises(BadInput, match="at least one"):
        cases(nets=[], seeds=[0])


def test_another_order_of_the_data_is_another_run_of_the_same_case(tmp_path):
    chosen = cases(nets=["mlp"], seeds=[0], alterations=["nan_batch"], steps=STEPS, orders=2)
    assert [case.key for case in chosen] == [
        "healthy/clean-mlp-0",
        "incident/nan_batch-mlp-0",
        "healthy/clean-mlp-0-order1",
        "incident/nan_batch-mlp-0-order1",
        "healthy/clean-mlp-0-order2",  # clean twins on twice as many, by which the measure is judged
        "healthy/clean-mlp-0-order3",
    ]
    twin, hurt, other, hurt_too, *_ = run_suite(chosen[:4], tmp_path, workers=1)
    losses = [np.asarray(open_run(each.folder)["loss"].values) for each in (twin, hurt, other, hurt_too)]
    assert losses[0][0] == losses[1][0]
    assert losses[2][0] == losses[3][0]
    assert not np.isclose(losses[0][0], losses[2][0])
    first = hurt.span[0]
    assert [int(np.flatnonzero(~np.isfinite(each))[0]) + 1 for each in (losses[1], losses[3])] == [first, first]
    assert abs(twin.final - other.final) < 0.5 * twin.final


def test_a_treated_case_on_another_order_is_measured_and_an_untouched_one_is_not(tmp_path):
    chosen = [Case(net="mlp", seed=0, policy=name, steps=STEPS, order=1) for name in ("nothing", "navigator")]
    bare, acted = (open_run(each.folder).columns for each in run_suite(chosen, tmp_path, workers=1))
    assert "grad_norm" not in bare
    assert "grad_norm" in acted


def test_each_run_has_a_log_a_result_and_a_label(suite):
    out, runs = suite
    labels = json.loads((out / "labels.json").read_text())
    assert set(labels) == {run.case.key for run in runs}
    for run in runs:
        view = open_run(run.folder)
        assert run.status == "finished"
        assert len(view["loss"]) == STEPS == run.step
        assert view.manifest["facts"]["case"]["seed"] == 0
        assert Ended.from_dict(json.loads((Path(run.folder) / RESULT).read_text())).case == run.case
    by_name = {(run.case.name, run.case.policy): run for run in runs}
    bad = open_run(by_name["nan_batch", "nothing"].folder)
    first = labels["incident/nan_batch-mlp-0"]["span"][0]
    finite = np.isfinite(bad["loss"].values)
    assert finite[: first - 1].all()
    assert not finite[first - 1 :].any()
    assert math.isnan(by_name["nan_batch", "nothing"].final)


def test_what_is_done_is_read_and_what_was_cut_off_is_done_anew(suite, monkeypatch):
    out, runs = suite
    again = run_suite([run.case for run in runs], out, workers=1)
    assert [run.seconds for run in again] == [run.seconds for run in runs]
    folder = Path(runs[0].folder)
    (folder / RESULT).unlink()
    anew = run_case(runs[0].case, out)
    assert anew.seconds != runs[0].seconds
    assert anew.final == runs[0].final  # bit for bit
    assert len(open_run(folder).attempts) == 1


def test_a_twin_differs_in_nothing_but_what_was_planted(suite):
    _, runs = suite
    by_name = {(run.case.name, run.case.policy): open_run(run.folder)["loss"].values for run in runs}
    clean = by_name["clean", "nothing"]
    for name in ("rate_too_high", "frozen_block", "nan_batch"):
        assert by_name[name, "nothing"][0] == clean[0]  # weights and first batch are the same
    assert not np.array_equal(by_name["rate_too_high", "nothing"], clean, equal_nan=True)


def test_the_report_says_who_found_what(suite, tmp_path):
    _, runs = suite
    found = report(runs, ["silent", "olmo", "sagemaker"])
    assert found.observers["silent"].faults.hits == 0
    assert set(found.policies) == {"nothing", "halve"}
    text, data = found.write(tmp_path)
    assert "| silent |" in text.read_text()
    kept = json.loads(data.read_text())
    assert kept["observers"]["silent"]["faults"]["hits"] == 0
    assert len(kept["runs"]) == len(runs)
    with pytest.raises(UnknownName, match="sagemaker"):
        report(runs, ["sagemakr"])


def test_a_case_that_does_not_apply_says_why(tmp_path):
    ended = run_case(Case(net="cnn", seed=0, alteration="epsilon_too_large", steps=2), tmp_path)
    assert (ended.status, ended.why) == ("not applicable", "SGD has no eps.")


def test_the_command_runs_a_users_own_task(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(TASK)
    words = ["rescue", f"{tmp_path / 'mine.py'}:Mine", "--out", str(tmp_path / "out"), "--seeds", "1", "--workers", "1"]
    words += ["--orders", "2"]
    assert (
        command([*words, "--plant", "rate_too_low,label_smoothing", "--observers", "olmo,silent", "--act", "halve"])
        == 0
    )
    out = capsys.readouterr()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.out.splitlines()]
    measures = {cells[0] for cells in rows if cells}  # a row each: abreast their names were cut at 80 columns
    assert {"faults detected", "healthy runs with an alarm", "repaired", "healthy kinds harmed"} <= measures
    assert "rate_too_low-mineMine-0-halve-order1" in out.err
    kept = json.loads((tmp_path / "out" / "rescue.json").read_text())
    assert {run["status"] for run in kept["runs"]} == {"finished", "not applicable"}


def test_bad_words_end_in_one_line(tmp_path, capsys):
    assert command(["rescue", "--plant", "rate_to_high", "--out", str(tmp_path)]) == 2
    assert "rate_too_high" in capsys.readouterr().err
    assert command(["rescue", "--nets", "mpl", "--seeds", "1", "--plant", "healthy", "--out", str(tmp_path)]) == 2
    assert "mlp" in capsys.readouterr().err


def test_the_command_lists_what_can_be_planted(capsys):
    assert command(["rescue", "--list"]) == 0
    assert "rate_too_high" in capsys.readouterr().out


def test_recorded_runs_are_read_from_wherever_they_lie_and_scored_without_training(suite, tmp_path):
    out, runs = suite
    moved = tmp_path / "elsewhere"
    shutil.copytree(out, moved)
    found = recorded(moved)
    assert {each.case.key for each in found} == {each.case.key for each in runs}
    assert all(Path(each.folder).is_relative_to(moved) for each in found)
    assert set(report(found, ["silent"]).observers) == {"silent"}
    with pytest.raises(BadInput, match="no run of the rescue suite"):
        recorded(tmp_path / "empty")
