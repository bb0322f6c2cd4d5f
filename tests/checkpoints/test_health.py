import pytest
import torch

from dynaxx.checkpoints import CheckpointStore
from dynaxx.checkpoints.health import healthy, illness, last_healthy, mark, settle, verdicts
from dynaxx.checkpoints.places import LocalPlace
from dynaxx.checkpoints.remote import RemotePlace
from dynaxx.errors import BadInput, DynaxxWarning


@pytest.fixture(params=["local", "remote"])
def place(request, tmp_path):
    if request.param == "local":
        return LocalPlace(tmp_path / "run" / "checkpoints")
    return RemotePlace(f"memory://{tmp_path}/checkpoints", waits=())


def save(place, *steps):
    return [place.save(step, {"weight": torch.full((2,), float(step))}) for step in steps]


def words(place):
    said = verdicts(place)
    return {info.step: said[info.id].health for info in place.list() if info.id in said}


def test_what_is_said_last_counts_and_is_read_by_another_process(place):
    (info,) = save(place, 10)
    mark(place, info, "probation", "fresh", signals={"grad_norm": 1.5}, findings=["D9"])
    mark(place, info, "suspect", "a spike")
    fresh = RemotePlace(place.name, waits=()) if isinstance(place, RemotePlace) else LocalPlace(place.folder)
    verdict = verdicts(fresh)[info.id]
    assert (verdict.health, verdict.why) == ("suspect", "a spike")
    assert verdict.signals == {"grad_norm": 1.5}  # kept: nothing else was said of them
    assert verdict.findings == ("D9",)
    with pytest.raises(BadInput, match="probation, healthy, suspect, bad"):
        mark(place, info, "fine", "")


def test_probation_ends_after_its_steps_without_an_alarm(place):
    save(place, 100, 150, 200, 290)
    settle(place, step=290)
    assert words(place) == {100: "healthy", 150: "healthy", 200: "probation", 290: "probation"}
    changed = settle(place, step=300, alarms=[295])
    assert words(place) == {100: "healthy", 150: "healthy", 200: "suspect", 290: "suspect"}
    assert {v.health for v in changed.values()} == {"suspect"}
    assert "95 steps after it" in next(v.why for v in changed.values() if "95" in v.why)
    settle(place, step=10_000)
    assert words(place)[200] == "suspect"  # time heals none


@pytest.mark.parametrize(("alarm", "word"), [(99, "healthy"), (100, "suspect"), (200, "suspect"), (201, "healthy")])
def test_an_alarm_counts_from_the_step_of_the_save_to_the_end_of_probation(place, alarm, word):
    save(place, 100)
    settle(place, step=200, alarms=[alarm])
    assert words(place) == {100: word}


def test_the_last_healthy_one_is_before_the_trouble_and_whole(place):
    first, second, third = save(place, 100, 200, 300)
    assert last_healthy(place).id == third.id  # nobody judged: all are trusted
    mark(place, first, "healthy", "")
    assert last_healthy(place).id == first.id
    mark(place, second, "healthy", "")
    mark(place, third, "suspect", "")
    assert last_healthy(place).id == second.id
    assert last_healthy(place, before=200).id == first.id
    assert last_healthy(place, before=100) is None


def test_a_damaged_healthy_one_is_passed_over(tmp_path):
    place = LocalPlace(tmp_path / "checkpoints")
    first, second = save(place, 100, 200)
    for info in (first, second):
        mark(place, info, "healthy", "")
    file = second.path / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.warns(DynaxxWarning, match="damaged on disk"):
        assert last_healthy(LocalPlace(place.folder)).id == first.id


def test_those_left_behind_come_last_and_do_not_become_healthy_by_others_steps(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    infos = [store.save(step, {"weight": torch.ones(1)}) for step in (100, 200, 300)]
    store.continue_from(infos[0])
    back = store.save(150, {"weight": torch.ones(1)})
    assert [info.step for info in healthy(store.list(), {})] == [150, 100, 300, 200]
    settle(store, step=5000)
    assert words(LocalPlace(store)) == {100: "healthy", 150: "healthy", 200: "suspect", 300: "suspect"}
    assert last_healthy(store).id == back.id


def test_a_note_that_was_changed_is_not_heeded(tmp_path):
    place = LocalPlace(tmp_path / "checkpoints")
    (info,) = save(place, 100)
    mark(place, info, "suspect", "")
    note = place.folder / "notes" / "health" / f"{info.id}.json"
    note.write_bytes(note.read_bytes().replace(b"suspect", b"healthy"))
    with pytest.warns(DynaxxWarning, match="is damaged"):
        assert verdicts(place) == {}


def trained(weight=0.0, mask=0.0, moment=0.0, running_var=1.0):
    """As `capture` makes it, of a model with a mask."""
    model = {"weight": torch.tensor([1.0, weight]), "mask": torch.tensor([mask]), "bn.running_var": [running_var]}
    model = {name: torch.as_tensor(value) for name, value in model.items()}
    return {"model": {"state": model, "buffers": {}}, "optimizer": {"state": {0: {"exp_avg": torch.tensor([moment])}}}}


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (trained(), ""),
        (trained(mask=-INF), ""),  # a causal mask
        (trained(mask=NAN), "nan in model/state/mask"),
        (trained(weight=-INF), "inf in model/state/weight"),
        (trained(running_var=INF), "inf in model/state/bn.running_var"),
        (trained(moment=INF), "inf in optimizer/state/0/exp_avg"),
        ({"scheduler": {"best": torch.tensor(INF)}, "loss": torch.tensor(NAN)}, ""),
    ],
)
def test_what_is_not_finite_is_known_from_the_save_on(place, state, why):
    place.save(100, trained())
    info = place.save(200, state)
    assert illness(info) == illness(place.list()[1]) == why  # and read from the manifest
    assert last_healthy(place).step == (100 if why else 200)  # nobody judged
    settle(place, step=250)
    assert words(place) == {100: "healthy", 200: "bad" if why else "probation"}
    assert not why or verdicts(place)[info.id].why == why
    assert settle(place, step=400).keys() == (set() if why else {info.id})
    assert last_healthy(place).step == (100 if why else 200)


def test_a_healthy_word_does_not_outweigh_what_is_not_finite(place):
    first, second = place.save(100, trained()), place.save(200, trained(weight=NAN))
    for info in (first, second):
        mark(place, info, "healthy", "by hand")
    assert last_healthy(place).step == 100
    settle(place, step=200)
    assert words(place) == {100: "healthy", 200: "bad"}


def test_to_call_one_bad_says_nothing_of_the_others(place):
    _, second = save(place, 100, 200)
    mark(place, second, "bad", "by hand")
    assert last_healthy(place).step == 100
