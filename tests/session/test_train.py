"""What a fleet asks of `train` beyond `dynaxx train`: rate, optimizer, order, horizon, start, fewer checkpoints."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dynaxx import catalog, open_run
from dynaxx.checkpoints import CheckpointStore
from dynaxx.checkpoints.coordinates import ByWeights
from dynaxx.checkpoints.places import LocalPlace
from dynaxx.checkpoints.save_policy import SavePolicy
from dynaxx.core.records import Action
from dynaxx.errors import BadInput, UnknownName
from dynaxx.session import train as session_train
from dynaxx.session.optimizers import optimizer_for
from dynaxx.session.recipe import Recipe
from dynaxx.session.train import train

TASKS = Path(__file__).parents[1] / "survey" / "fleet_tasks.py"


def run(folder: Path, name: str = "Noisy", **options):
    options = {"steps": 30, "signals": ("lr", "update_norm"), **options}
    outcome = train(catalog.task(f"{TASKS}:{name}"), folder, name=name, quiet=True, **options)
    return outcome, open_run(folder)


def column(view, name: str) -> np.ndarray:
    return np.asarray(view[name], dtype=float)


def test_rate_multiplies_the_whole_schedule(tmp_path):
    _, plain = run(tmp_path / "a")
    _, tripled = run(tmp_path / "b", recipe=Recipe(rate=3.0))
    # A one-cycle schedule overwrites the groups' rates at every step: scaling them once would be lost.
    np.testing.assert_allclose(column(tripled, "lr.max"), 3 * column(plain, "lr.max"), rtol=1e-12)
    assert column(tripled, "update_norm.total")[0] == pytest.approx(3 * column(plain, "update_norm.total")[0], rel=1e-5)
    assert tripled.manifest["facts"]["recipe"] == {"rate": 3.0}


def test_rate_survives_a_resume_bit_for_bit(tmp_path):
    whole, reference = run(tmp_path / "whole", recipe=Recipe(rate=2.0))

    class Cut(Exception):
        pass

    def cut(at):
        if at.step == 17:
            raise Cut

    with pytest.raises(Cut):
        run(tmp_path / "cut", recipe=Recipe(rate=2.0), checkpoints=5, progress=cut)
    outcome, view = run(tmp_path / "cut", recipe=Recipe(rate=2.0), checkpoints=5, resume=True)
    assert outcome.loss == whole.loss
    np.testing.assert_array_equal(column(view, "loss"), column(reference, "loss"))
    with pytest.raises(BadInput, match=r"recipe = \{'rate': 2\.0\}, not"):
        run(tmp_path / "cut", resume=True)


def test_order_seed_changes_the_order_alone(tmp_path):
    _, a = run(tmp_path / "a", seed=0)
    _, b = run(tmp_path / "b", seed=0, order_seed=5)
    _, c = run(tmp_path / "c", seed=5)
    first = [column(view, "loss")[0] for view in (a, b, c)]
    assert len(set(first)) == 3  # same weights, other batch; other weights, that batch
    torch.manual_seed(0)
    _, d = run(tmp_path / "d", seed=0, order_seed=0)
    np.testing.assert_array_equal(column(a, "loss"), column(d, "loss"))


def test_horizon_keeps_the_schedule_of_the_long_training(tmp_path):
    _, long = run(tmp_path / "long", steps=60)
    _, short = run(tmp_path / "short", steps=20, horizon=60)
    np.testing.assert_array_equal(column(short, "lr.max"), column(long, "lr.max")[:20])
    np.testing.assert_array_equal(column(short, "loss"), column(long, "loss")[:20])
    assert short["val_loss"].steps[-1] == 20


def test_start_takes_the_weights_of_a_checkpoint(tmp_path):
    run(tmp_path / "first", "Bowl", steps=20)
    info = CheckpointStore(tmp_path / "first" / "checkpoints").load()[1]
    _, view = run(tmp_path / "second", "Bowl", steps=1, start=info.path)
    rates = 1 - 0.1 * np.array([1.0, 2.0, 4.0])
    assert column(view, "loss")[0] == pytest.approx(0.5 * ([1, 2, 4] * rates**40).sum(), rel=1e-4)
    with pytest.raises(BadInput, match="committed checkpoint"):
        run(tmp_path / "third", "Bowl", start=tmp_path)
    with pytest.raises(BadInput):  # names the tensors that differ
        run(tmp_path / "fourth", "Noisy", start=info.path)


@pytest.mark.parametrize(("steps", "evaluations", "seen"), [(100, 50, 50), (100, 5, 5), (7, 3, 3), (100, 1, 1)])
def test_as_many_evaluations_as_wanted(tmp_path, steps, evaluations, seen):
    _, view = run(tmp_path / "a", "Bowl", steps=steps, evaluations=evaluations)
    at = list(view["val_loss"].steps)
    assert abs(len(at) - seen) <= 1
    assert at[-1] == steps


def test_fewer_checkpoints(tmp_path):
    _, view = run(tmp_path / "a", "Bowl", steps=100, checkpoints=2)
    assert [event["step"] for event in view.events("checkpoint")] == [50, 100]


def test_another_optimizer(tmp_path):
    _, view = run(tmp_path / "a", "Bowl", recipe=Recipe(optimizer="adam:lr=0.25"))
    assert view.manifest["optimizer"]["class"] == "Adam"
    assert column(view, "lr.max")[0] == 0.25
    # Adam's first update of each weight is its rate, whatever the gradient.
    assert column(view, "update_norm.total")[0] == pytest.approx(0.25 * 3**0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("spec", "error", "word"),
    [
        ("adm", UnknownName, "adam"),
        ("adam:lr", BadInput, "name:option=value"),
        ("adam:learning_rate=1", BadInput, "learning_rate"),
        ("adam:lr=-1.0", BadInput, "[Ii]nvalid learning rate"),
        ("lbfgs", UnknownName, "lbfgs"),
        (":lr=1", BadInput, "name:option=value"),
    ],
)
def test_an_optimizer_that_cannot_be_made(spec, error, word):
    with pytest.raises(error, match=word):
        optimizer_for(spec, torch.nn.Linear(2, 1))


@pytest.mark.parametrize(
    ("option", "word"),
    [({"horizon": 10}, "horizon"),
     ({"evaluations": 0}, "evaluations"), ({"checkpoints": 0}, "checkpoints"), ({"steps": 0}, "steps")],
)  # fmt: skip
def test_bad_openings(tmp_path, option, word):
    with pytest.raises(BadInput, match=word):
        run(tmp_path / "a", **option)
    assert not (tmp_path / "a").exists()


def test_the_save_policy_sees_the_same_evaluations_across_a_resume(tmp_path, monkeypatch):
    """Plateaus are told from the whole history, which a resumed run reads from the log, up to its checkpoint."""
    seen: dict[int, list[tuple[int, float]]] = {}

    def due(self, step, now, validation=()):
        seen[step] = list(validation)
        return "plateau" if step in (15, 25) else None

    class Cut(Exception):
        pass

    def cut(at):
        if at.step == 22:
            raise Cut

    monkeypatch.setattr(SavePolicy, "due", due)
    options = {"checkpoints": None, "evaluations": 10, "navigate": "off"}
    run(tmp_path / "whole", **options)
    whole, seen = seen, {}
    with pytest.raises(Cut):
        run(tmp_path / "cut", **options, progress=cut)
    seen.clear()
    run(tmp_path / "cut", **options, resume=True)
    assert seen == {step: history for step, history in whole.items() if step > 15}
    assert [step for step, _ in seen[16]] == [3, 6, 9, 12, 15]
    policy = SavePolicy(30, patience=4, gap=99, threshold=0.9)  # nothing improves by nine tenths in four steps
    monkeypatch.undo()
    policy.begin(0.0)
    policy.saved(10, 0.0, 0.0)
    assert policy.due(16, 0.0, seen[16]) == "plateau"
    assert policy.due(16, 0.0, seen[16][-1:]) != "plateau", "without the log there would be nothing to compare"


def test_what_a_rollback_took_back_is_not_part_of_the_history(tmp_path, monkeypatch):
    seen: list[tuple[int, list[int]]] = []

    def due(self, step, now, validation=()):
        seen.append((step, [at for at, _ in validation]))
        return "planned" if step == 10 else None

    def back(at):
        if at.step == 20 and len(seen) == 20:
            runs[0].rollback(before=11)

    runs = []
    monkeypatch.setattr(SavePolicy, "due", due)
    real = session_train.watch
    monkeypatch.setattr(session_train, "watch", lambda *a, **k: runs.append(real(*a, **k)) or runs[0])
    run(tmp_path / "run", checkpoints=None, evaluations=10, navigate="off", progress=back)
    again = [entry for entry in seen if entry[0] == 11]
    assert again == [(11, [3, 6, 9]), (11, [3, 6, 9])], (
        "the evaluations of steps 12 to 18 belong to what was taken back"
    )


def test_a_return_that_ends_the_run_ends_it_there(tmp_path, monkeypatch):
    """`overtraining` goes back to the best checkpoint and stops: between two steps, at the end of an epoch or not."""
    runs, seen = [], {}

    def back(at):
        seen[at.step] = at.validation
        if at.step == 20:
            stop = Action(name="stop", reason="it was best there")
            runs[0].steering.ask_rollback(11, "pass", [stop], "the validation rises")

    real = session_train.watch
    monkeypatch.setattr(SavePolicy, "due", lambda self, step, now, validation=(): "planned" if step == 10 else None)
    monkeypatch.setattr(session_train, "watch", lambda *a, **k: runs.append(real(*a, **k)) or runs[0])
    outcome, _ = run(tmp_path / "run", checkpoints=None, evaluations=30, navigate="off", progress=back)
    assert (outcome.status, outcome.step, outcome.why) == ("stopped", 10, "it was best there")
    assert outcome.validation["val_loss"] == seen[10]["val_loss"] != seen[20]["val_loss"]


def test_a_training_keeps_a_diverse_set_and_its_distances(tmp_path):
    run(tmp_path / "run", steps=60, keep="last:2,diverse:3", checkpoints=20, navigate="off")
    place = LocalPlace(tmp_path / "run" / "checkpoints")
    infos = place.list()
    assert [info.step for info in infos][-2:] == [57, 60]
    assert len(infos) == 5
    weights = [
        torch.cat([w.flatten() for w in place.load(i, only=("model",))[0]["model"]["state"].values()]) for i in infos
    ]
    true = [min(float((a - b).norm()) for b in weights if b is not a) for a in weights]
    near = ByWeights(place).nearest(infos)
    assert [near[info.id] for info in infos] == pytest.approx(true, rel=0.05)  # sketched
