"""`dynaxx probe`: the objects that probes take beside words, one test for each entry of the table."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynaxx import catalog
from dynaxx.checkpoints import CheckpointStore
from dynaxx.cli import run
from dynaxx.core.chart import Chart
from dynaxx.core.contracts import Probe
from dynaxx.core.loop import epoch_seed
from dynaxx.core.objective import Objective
from dynaxx.core.records import Cost
from dynaxx.core.snapshot import Snapshot
from dynaxx.core.task import derive_seed
from dynaxx.landscape._supplies import SUPPLIES

TASK = '''
import torch
from torch import nn
import dynaxx

class Small(dynaxx.Task):
    """Two classes."""
    steps, batch_size, threads = 20, 16, 1
    width = 4
    def model(self):
        return nn.Sequential(nn.Linear(3, self.width), nn.BatchNorm1d(self.width), nn.Linear(self.width, 2))
    def optimizer(self, model): return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    def scheduler(self, optimizer): return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1 - s / 40)
    def batches(self, split, seed):
        x = torch.randn(64, 3, generator=torch.Generator().manual_seed(seed % 1000))
        return [(b, (b.sum(1) > 0).long()) for b in x.split(self.batch_size)]
    def loss(self, model, batch): return nn.functional.cross_entropy(model(batch[0]), batch[1])
    def metrics(self, model, batch):
        return {"accuracy": (model(batch[0]).argmax(1) == batch[1]).float().mean()}

class Percent(Small):
    """Its accuracy is no share."""
    def metrics(self, model, batch): return {"accuracy": 50.0}

class Tokens(Small):
    """Targets of its own for each position; no accuracy."""
    def batches(self, split, seed): return [(x, torch.stack([y, y], 1)) for x, y in super().batches(split, seed)]
    def loss(self, model, batch): return nn.functional.cross_entropy(model(batch[0]), batch[1][:, 0])
    def metrics(self, model, batch): return {}

class Wide(Small):
    """Another architecture."""
    width = 5
'''


class Recorder(Probe):
    """Keeps what it is given."""

    given: dict[str, Any] = {}  # noqa: RUF012

    def __init__(
        self,
        *,
        word: int = 3,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer] | torch.optim.Optimizer | None = None,
        training: Iterable[Any] | None = None,
        initial: Mapping[str, Tensor] | None = None,
        other: Mapping[str, Tensor] | None = None,
        trajectory: Sequence[Snapshot] = (),
        error: Callable[[nn.Module, Any], Tensor] | None = None,
        targets: Callable[[Any], Tensor] | None = None,
        reference: Mapping[str, Tensor] | None = None,
        unknown: Callable[[], None] | None = None,
    ) -> None:
        Recorder.given = {key: value for key, value in locals().items() if key != "self"}

    def price(self, objective: Objective) -> Cost:
        del objective
        return Cost()

    def run(self, objective: Objective) -> Chart:
        Recorder.given["objective"] = objective
        return Chart(probe="recorder", title="what was given", values={})


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    get, about = catalog.get, catalog.about
    mine = ("probes", "recorder")
    monkeypatch.setattr(catalog, "get", lambda *which: Recorder if which == mine else get(*which))
    monkeypatch.setattr(catalog, "about", lambda *which: "keeps what it is given" if which == mine else about(*which))

    def call(*words: Any) -> dict[str, Any]:
        assert run(["probe", "recorder", *map(str, words), "--quiet", "--json"]) == 0
        return Recorder.given

    return call


@pytest.fixture
def task(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(TASK)
    return f"{path}:Small"


@pytest.fixture
def trained(task: str, tmp_path: Path) -> Callable[..., Path]:
    def train(name: str, *words: str, of: str = "Small") -> Path:
        folder = tmp_path / name
        assert run(["train", task.replace("Small", of), "--out", str(folder), "--quiet", *words]) == 0
        return folder

    return train


def fresh(task: str, seed: int) -> nn.Module:
    torch.manual_seed(derive_seed(seed, "global"))
    return catalog.task(task, None).model()


def test_the_table_holds_what_was_agreed():
    assert set(SUPPLIES) == {
        "optimizer", "training", "initial", "other", "trajectory", "error", "targets", "reference",
    }  # fmt: skip


def test_words_and_unknown_objects_keep_their_defaults(probe, task):
    given = probe(task, "--word", 5)
    assert given["word"] == 5
    assert given["unknown"] is None


def test_optimizer_goes_on_from_the_checkpoint(probe, task, trained):
    folder = trained("run")
    given = probe(folder)
    model = given["objective"].model
    saved = CheckpointStore(folder / "checkpoints").load()[0]["optimizer"]
    optimizer = given["optimizer"](model)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)  # half of the schedule is over
    for i, parameter in enumerate(model.parameters()):
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], saved["state"][i]["momentum_buffer"])
    again = given["optimizer"](model)
    first = next(iter(model.parameters()))
    optimizer.state[first]["momentum_buffer"].zero_()
    assert again.state[first]["momentum_buffer"].any()  # each has a state of its own
    new = probe(task)
    assert not new["optimizer"](new["objective"].model).state


def test_training_is_the_runs_own_order_without_end(probe, task, trained):
    given = probe(trained("run", "--seed", "7"))
    small = catalog.task(task, None)
    wanted = [x for epoch in range(3) for x, _ in small.batches("train", epoch_seed(7, epoch))]
    for _ in range(2):  # it starts anew at each iteration
        found = [x for x, _ in islice(given["training"], len(wanted))]
        assert all(map(torch.equal, found, wanted))


def test_initial_is_where_the_run_began(probe, task, trained):
    given = probe(trained("run", "--seed", "7"))
    state = fresh(task, 7).state_dict()
    assert given["initial"].keys() == state.keys()
    assert all(torch.equal(given["initial"][name], state[name]) for name in state)
    assert all(torch.equal(given["reference"][name], state[name]) for name in state)


def test_a_fresh_model_has_no_reference_and_no_checkpoints(probe, task):
    given = probe(task)
    here = dict(given["objective"].model.named_parameters())
    assert all(torch.equal(given["initial"][name], p) for name, p in here.items())
    assert given["reference"] is None
    assert given["other"] is None
    assert given["trajectory"] == ()


def test_other_is_a_run_or_one_of_its_checkpoints(probe, trained):
    first, second = trained("first"), trained("second", "--seed", "1")
    store = CheckpointStore(second / "checkpoints")
    for where in (second, store.list()[0].path):
        wanted = store.load(store.list()[-1 if where == second else 0])[0]["model"]["state"]
        given = probe(first, "--other", where)
        assert "1.running_mean" in given["other"]
        assert all(torch.equal(given["other"][name], wanted[name]) for name in wanted)


def test_other_of_another_architecture_says_which_tensors(probe, trained, capsys):
    first, wide = trained("first"), trained("wide", of="Wide")
    del probe
    assert run(["probe", "recorder", str(first), "--other", str(wide)]) == 2
    said = capsys.readouterr().err
    assert "7 tensors differ" in said  # all but the bias of two classes and the counter of batches
    assert "0.weight (5, 3) there, (4, 3) here" in said
    assert "and 2 more" in said


@pytest.mark.parametrize("where", ["nowhere", "."])
@pytest.mark.parametrize("flag", ["--other", "--with"])
def test_what_is_no_run_is_one_clear_line(probe, task, capsys, flag, where):
    del probe
    assert run(["probe", "recorder", task, flag, where]) == 2
    assert "run's folder" in capsys.readouterr().err


def test_trajectory_is_every_valid_checkpoint_oldest_first(probe, trained):
    first, second = trained("first"), trained("second", "--seed", "1")
    store = CheckpointStore(first / "checkpoints")
    state, info = store.load()
    state["model"]["state"]["0.bias"] += 1
    store.save(info.step, state)  # a second save of the same step
    store.save(info.step + 1, state)
    broken = store.save(info.step + 2, state).path / "tensors.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="passed over"):
        found = probe(store.list()[0].path, "--with", second)["trajectory"]
    own = [snapshot for snapshot in found if snapshot.run == "first"]
    assert [s.step for s in own] == sorted({i.step for i in store.list()} - {info.step + 2})
    assert [s.step for s in own][-2:] == [info.step, info.step + 1]
    assert {s.run for s in found} == {"first", "second"}
    assert torch.equal(own[-2].load()["0.bias"], state["model"]["state"]["0.bias"])
    latest = CheckpointStore(second / "checkpoints").load()[0]["model"]["state"]
    assert all(torch.equal(found[-1].load()[name], latest[name]) for name in latest)


def test_trajectory_of_other_runs_at_a_fresh_model(probe, task, trained):
    folder = trained("run")
    found = probe(task, "--with", folder)["trajectory"]
    assert found[-1].step == 20
    assert found[-1].run == folder.name


def test_error_is_one_minus_accuracy(probe, task):
    given = probe(task)
    objective = given["objective"]
    x, y = objective.batches[0]
    objective.model.eval()
    wrong = (objective.model(x).argmax(1) != y).float().mean()
    assert 0 < float(wrong) < 1
    assert float(given["error"](objective.model, (x, y))) == pytest.approx(float(wrong))


@pytest.mark.parametrize("name", ["Percent", "Tokens"])
def test_no_error_where_no_accuracy_is_a_share(probe, task, name):
    assert probe(task.replace("Small", name))["error"] is None


def test_targets_are_the_second_of_a_pair(probe, task):
    given = probe(task)
    batch = given["objective"].batches[0]
    assert given["targets"](batch) is batch[1]
    assert probe(task.replace("Small", "Tokens"))["targets"] is None  # one for each position: none for an example


def test_only_probes_that_take_a_second_point_have_the_option(capsys, task):
    assert run(["probe", "spectrum", task, "--other", "x"]) == 2
    assert "--other" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "values"), [
    ("flatness", {"maurer_bound", "mcallester_bound"}),
    ("tangent_kernel", {"alignment", "drift"}),
])  # fmt: skip
def test_probes_use_them_and_the_report_shows_it(trained, capsys, name, values):
    folder = trained("run")
    assert run(["probe", name, str(folder), "--examples", "32", "--quiet", "--json"]) == 0
    chart = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values <= chart["values"].keys()
    assert run(["report", str(folder)]) == 0
    assert name in (folder / "report.html").read_text()
