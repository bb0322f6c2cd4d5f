"""Blends of states and of runs against closed forms and dense float64."""

import copy
import json
import math

import pytest
import torch
from safetensors import safe_open
from torch import nn

from dynaxx.checkpoints import CheckpointStore, capture, restore
from dynaxx.checkpoints.archive import archive
from dynaxx.checkpoints.blend import blend
from dynaxx.checkpoints.judge import Judge
from dynaxx.checkpoints.model_state import restore_model
from dynaxx.checkpoints.places import LocalPlace
from dynaxx.checkpoints.remote import RemotePlace
from dynaxx.core.isolation import RandomState
from dynaxx.core.snapshot import Snapshot
from dynaxx.core.task import Task
from dynaxx.errors import BadInput, CorruptData, DynaxxWarning, NotApplicable, UnknownName


class Bowl(nn.Module):
    """One vector; the loss of an example b is ½‖w − b‖²."""

    def __init__(self, size=6):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size))

    def forward(self, b):
        return (self.w - b).square().sum(-1) / 2


def bowl_loss(model, batch):
    return model(batch).mean()


class BowlTask(Task):
    def model(self):
        return Bowl()

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def batches(self, split, seed):
        del split, seed
        return list(torch.randn(128, 6, generator=torch.Generator().manual_seed(0)).split(32))

    def loss(self, model, batch):
        return bowl_loss(model, batch)


def scattered(n, spread=1.0, size=6):
    generator = torch.Generator().manual_seed(5)
    return [{"w": spread * torch.randn(size, generator=generator)} for _ in range(n)]


def saved(folder, states, steps=None):
    """A run's folder with a checkpoint of each state."""
    store = CheckpointStore(folder / "checkpoints")
    for i, state in enumerate(states):
        model = Bowl(len(state["w"]))
        model.load_state_dict(state)
        optimizer = torch.optim.AdamW(model.parameters())
        bowl_loss(model, torch.randn(3, len(state["w"]))).backward()
        optimizer.step()
        model.load_state_dict(state)
        store.save(steps[i] if steps else 10 * (i + 1), capture(model, optimizer))
    return store


def test_mean_is_that_of_float64(identical):
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([0.0, -math.inf])

    def state(i):
        return {
            "a": torch.randn(50, 7, generator=generator),
            "half": torch.randn(50, 7, generator=generator).bfloat16(),
            "double": torch.randn(9, generator=generator, dtype=torch.float64),
            "complex": torch.randn(5, generator=generator, dtype=torch.complex64),
            "frozen": torch.full((3,), 0.1),
            "mask": mask,
            "count": torch.tensor(i),
            "flag": torch.tensor([i == 3, False]),
        }

    states = [state(i) for i in range(7)]
    found = blend(states, how="ema:half_life=2", barrier=math.inf).weights
    shares = torch.tensor([2**-3.0] + [(1 - 2**-0.5) * 2 ** (-(6 - i) / 2) for i in range(1, 7)], dtype=torch.float64)
    for name, tolerance in (("a", 3e-7), ("half", 2**-8), ("double", 1e-15), ("complex", 3e-7)):
        dense = sum(
            w * s[name].to(torch.promote_types(s[name].dtype, torch.float64))
            for w, s in zip(shares, states, strict=True)
        )
        assert float((found[name].to(dense.dtype) - dense).abs().max()) <= tolerance * float(dense.abs().max())
        assert found[name].dtype == states[0][name].dtype
    for name in ("frozen", "mask"):
        assert identical(found[name], states[0][name])
    assert found["count"].item() == 6
    assert found["flag"].tolist() == [False, False]


def test_half_precision_is_averaged_in_float32():
    """Entries one apart in bfloat16: taken in that type, the mean of 256 of them stands still."""
    states = [{"w": torch.full((2, 2), 1.0).bfloat16()}] + [{"w": torch.full((2, 2), 1.0078125).bfloat16()}] * 255
    wide = blend([*states, {"w": torch.full((2, 2), 1.0)}], how="uniform").weights["w"]
    assert wide.dtype == torch.float32
    assert float(wide[0, 0]) == pytest.approx(1 + 0.0078125 * 255 / 257, abs=2e-6)


def test_the_loss_of_a_mean_of_quadratics(tmp_path):
    """½ E‖w̄ − b‖² on the examples that judge; the mean of scattered parts is better than each."""
    states = scattered(10, spread=2.0)
    saved(tmp_path / "run", states)
    task = BowlTask()
    found = blend(tmp_path / "run", task, how="uniform", barrier=math.inf)
    mean = torch.stack([s["w"] for s in states]).double().mean(0)
    assert torch.allclose(found.weights["w"].double(), mean, atol=1e-6)
    judge = Judge.of_task(task, 0)
    judge.put(iter([("w", mean)]), "the mean")
    chart = found.chart
    assert chart["blend"] == pytest.approx(judge.score(judge.losses("judge"), "judge"), abs=1e-6)
    best = states[int(chart.arrays["score"].argmin())]["w"].double()
    # ½E‖w̄ − b‖² − ½E‖w₁ − b‖² = ½(‖w̄‖² − ‖w₁‖²) − (w̄ − w₁)·E b
    judging = torch.cat([judge.objective.batches[i] for i in judge._splits["judge"]]).double().mean(0)
    expected = (mean @ mean - best @ best) / 2 - (mean - best) @ judging
    assert chart["difference"] == pytest.approx(float(expected), abs=1e-6)
    assert found.verdict == "better"
    assert expected < 0


def test_each_rule_gives_its_weights(tmp_path):
    states = scattered(6, spread=0.3)
    saved(tmp_path / "run", states, steps=[10, 20, 30, 50, 60, 80])

    def weights(how):
        return blend(tmp_path / "run", BowlTask(), how=how).chart.arrays["weight"]

    assert weights("uniform").tolist() == [1 / 6] * 6
    assert weights("decay:shape=linear") == pytest.approx([x / 85 for x in (10, 10, 15, 15, 15, 20)])
    cosine = weights("decay:shape=cosine")
    assert cosine.sum() == pytest.approx(1)
    assert cosine[2] > cosine[0]
    ema = weights("ema:half_life=20")
    assert ema[-1] == pytest.approx(1 - 2**-1)
    sharp, flat = weights("exponential:temperature=0.001"), weights("exponential:temperature=1000")
    assert sharp.max() > 0.99
    assert flat == pytest.approx([1 / 6] * 6, abs=1e-3)
    tuned = weights("exponential")
    assert tuned.sum() == pytest.approx(1)
    window = weights("window")
    n = (window > 0).sum()
    assert n in (2, 4, 6)
    assert window[-n:].tolist() == [1 / n] * n


def test_greedy_keeps_what_does_not_harm():
    """Two parts on either side of the optimum help each other; one far off is left out, whatever it is called."""
    judge = Judge(Bowl(2), bowl_loss, list((0.01 * torch.randn(64, 2)).split(8)))
    states = [{"w": torch.tensor(w)} for w in ([1.0, 0.0], [9.0, 9.0], [-0.9, 0.0], [0.0, 3.0])]
    found = blend(states, judge, how="greedy", barrier=math.inf)
    assert found.chart.arrays["weight"].tolist() == [0.5, 0.0, 0.5, 0.0]
    assert torch.allclose(found.weights["w"], torch.tensor([0.05, 0.0]))
    limited = blend(states, judge, how="greedy:budget=1", barrier=math.inf)
    assert (limited.chart.arrays["weight"] > 0).sum() == 2
    alone = blend([states[1], {"w": torch.tensor([20.0, 20.0])}], judge, how="greedy", barrier=math.inf)
    assert alone.verdict == "not established"
    assert any("No other part" in note for note in alone.chart.notes)


def test_window_follows_the_loss(tmp_path):
    """Parts that wander in from afar: the newest few are better than all."""
    path = [{"w": torch.full((6,), x)} for x in (8.0, 6.0, 4.0, 2.0, 0.5, -0.1, -0.5, 0.1)]
    saved(tmp_path / "run", path)
    found = blend(tmp_path / "run", BowlTask())
    assert (found.chart.arrays["weight"] > 0).tolist() == [False] * 4 + [True] * 4
    assert "newest 4 of 8, 30 steps" in found.chart.title


def test_selection(tmp_path):
    saved(tmp_path / "run", scattered(6, 0.1), steps=[5, 10, 15, 20, 25, 30])

    def steps(**options):
        return blend(tmp_path / "run", how="uniform", **options).chart.arrays["step"].tolist()

    assert steps() == [5, 10, 15, 20, 25, 30]
    assert steps(last=2) == [25, 30]
    assert steps(steps=(10, 20)) == [10, 15, 20]
    assert steps(duration=12) == [20, 25, 30]
    assert steps(steps=(5, 25), duration=10, last=2) == [20, 25]
    with pytest.raises(BadInput, match="no checkpoint is there within"):
        blend(tmp_path / "run", steps=(31, 40))
    with pytest.raises(BadInput, match="two parts make a blend"):
        blend(tmp_path / "run", steps=(30, 40))
    for options, words in (({"last": 0}, "last"), ({"steps": (3, 2)}, "steps"), ({"duration": -1}, "duration")):
        with pytest.raises(BadInput, match=words):
            blend(tmp_path / "run", **options)


def test_several_runs_single_checkpoints_and_live_states(tmp_path):
    one, two = scattered(4, 0.2)[:2], scattered(4, 0.2)[2:]
    store = saved(tmp_path / "one", one)
    saved(tmp_path / "two", two)
    whole = blend([tmp_path / "one", str(tmp_path / "two")], how="uniform")
    assert torch.allclose(whole.weights["w"], torch.stack([s["w"] for s in one + two]).mean(0))
    assert [p["run"] for p in whole.lineage["parts"]] == ["one", "one", "two", "two"]
    single = [info.path for info in store.list()]
    assert torch.allclose(blend(single, how="uniform").weights["w"], torch.stack([s["w"] for s in one]).mean(0))
    snapshots = [Snapshot(step=i, run="live", load=lambda s=s: s) for i, s in enumerate(one)]
    assert torch.allclose(blend(snapshots, how="uniform").weights["w"], torch.stack([s["w"] for s in one]).mean(0))
    with pytest.raises(BadInput, match="named twice"):
        blend([tmp_path / "one", tmp_path / "one"])
    with pytest.raises(BadInput, match="one run"):
        blend([tmp_path / "one", tmp_path / "two"], how="ema:half_life=3")
    saved(tmp_path / "elsewhere" / "one", two)
    alike = blend([tmp_path / "one", tmp_path / "elsewhere" / "one"], how="uniform")  # of one name, not one run
    assert len(alike.lineage["parts"]) == 4
    assert len(alike.chart.panels[0].lines) == 2
    with pytest.raises(BadInput, match="Got 2 runs: one, one"):
        blend([tmp_path / "one", tmp_path / "elsewhere" / "one"], how="decay")
    with pytest.raises(BadInput, match="neither a run's folder"):
        blend(tmp_path)
    with pytest.raises(BadInput, match="Got int"):
        blend([3])


def test_bad_rules():
    states = scattered(2)
    for how, error, words in (
        ("mean", UnknownName, "exponential"),
        ("ema", BadInput, "needs half_life"),
        ("ema:half_life=0", BadInput, "more than 0"),
        ("ema:decay=0.9", UnknownName, "half_life"),
        ("decay:shape=cubic", UnknownName, "linear"),
        ("exponential:temperature=-1", BadInput, "more than 0"),
        ("exponential:temperature=warm", BadInput, "not supported"),
        ("greedy:budget=0", BadInput, "at least 1"),
        ("greedy", NotApplicable, "needs validation losses"),
        ("exponential", NotApplicable, "needs validation losses"),
    ):
        with pytest.raises(error, match=words):
            blend(states, how=how)
    with pytest.raises(BadInput, match="barrier"):
        blend(states, barrier=-1.0)
    with pytest.raises(BadInput, match="Give a task"):
        blend(states, align=True)


def test_archived_checkpoints_are_blended_with_full_ones(tmp_path):
    states = [{"w": torch.randn(4, 5)} for _ in range(4)]
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    infos = []
    for i, state in enumerate(states):
        model = nn.Linear(5, 4, bias=False)
        model.load_state_dict({"weight": state["w"]})
        infos.append(store.save(i + 1, capture(model, None)))
    place = LocalPlace(store)
    for info in infos[:2]:
        archive(place, info)
    place.remove(infos[0])
    found = blend(tmp_path / "run", how="uniform", barrier=math.inf)
    rounded = states[0]["w"].bfloat16().float()
    assert not torch.equal(rounded, states[0]["w"])
    expected = (rounded + sum(s["w"] for s in states[1:])) / 4  # the full form of the second is there still
    assert torch.allclose(found.weights["weight"], expected, atol=1e-7)
    assert any("1 of 4 parts" in note and "bf16" in note for note in found.chart.notes)


def test_a_place_far_away_is_blended_too(tmp_path):
    states = scattered(3, 0.1)
    store = saved(tmp_path / "run", states)
    far = RemotePlace(f"memory://{tmp_path.name}/run/checkpoints")
    for info in store.list():
        far.upload(info.path)
    here, there = blend(tmp_path / "run", BowlTask(), how="uniform"), blend(far, BowlTask(), how="uniform")
    assert torch.equal(here.weights["w"], there.weights["w"])
    assert there.lineage["parts"][0]["run"] == "run"
    assert there.chart["difference"] == here.chart["difference"]


def test_damaged_ones_are_passed_over(tmp_path):
    states = scattered(4, 0.1)
    store = saved(tmp_path / "run", states)
    victim = store.list()[1].path / "tensors.safetensors"
    data = bytearray(victim.read_bytes())
    data[8 + int.from_bytes(data[:8], "little") + 2] ^= 1  # the first tensor is the model's
    victim.write_bytes(data)
    expected = torch.stack([s["w"] for i, s in enumerate(states) if i != 1]).mean(0)
    for task in (None, BowlTask()):
        with pytest.warns(DynaxxWarning, match="step 20 of run is passed over"):
            found = blend(tmp_path / "run", task, how="uniform", barrier=math.inf)
        assert torch.allclose(found.weights["w"], expected)
    bad = [*scattered(3, 0.1), {"w": torch.full((6,), math.nan)}]
    with pytest.warns(DynaxxWarning, match="loss is not finite"):
        found = blend(bad, BowlTask(), how="uniform", barrier=math.inf)
    assert len(found.lineage["parts"]) == 3


def test_what_a_rollback_left_behind_is_no_part(tmp_path):
    states = scattered(4, 0.1)
    store = saved(tmp_path / "run", states[:3])
    store.continue_from(store.list()[0])
    model = Bowl()
    model.load_state_dict(states[3])
    store.save(20, capture(model, None))
    assert blend(tmp_path / "run", how="uniform").chart.arrays["step"].tolist() == [10, 20]


def test_other_architectures_are_refused(tmp_path):
    saved(tmp_path / "one", scattered(2))
    saved(tmp_path / "two", scattered(2, size=7))
    for task in (None, BowlTask()):
        with pytest.raises(BadInput, match=r"step 10 of two is of another architecture: w is \(7,\), not \(6,\)"):
            blend([tmp_path / "one", tmp_path / "two"], task)
    with pytest.raises(BadInput, match="besides v"):
        blend([{"w": torch.ones(2)}, {"w": torch.ones(2), "v": torch.ones(1)}])
    with pytest.raises(BadInput, match="lacks 1 parameter"):
        blend([{"w": torch.ones(2), "v": torch.ones(1)}, {"w": torch.ones(2)}])


def test_the_users_model_and_the_random_streams_stay(identical):
    model = Bowl()
    before = copy.deepcopy(model.state_dict())
    streams = RandomState.capture()
    blend(
        scattered(5),
        Judge(model, bowl_loss, list(torch.randn(64, 6, generator=torch.Generator()).split(8))),
        how="greedy",
    )
    assert identical(dict(model.state_dict()), dict(before))
    after = RandomState.capture()
    assert torch.equal(streams.cpu, after.cpu)
    assert streams.python == after.python


def test_saved_as_safetensors_and_as_a_checkpoint(tmp_path):
    states = scattered(5, 0.2)
    own = saved(tmp_path / "run", states)
    found = blend(tmp_path / "run", BowlTask())
    path = found.save(tmp_path / "out" / "blend.safetensors")
    with safe_open(path, "pt") as file:
        assert torch.equal(file.get_tensor("w"), found.weights["w"])
        lineage = json.loads(file.metadata()["dynaxx"])
    assert lineage == json.loads(json.dumps(found.lineage))
    assert sum(part["weight"] for part in lineage["parts"]) == pytest.approx(1)
    assert [p.name for p in path.parent.iterdir()] == ["blend.safetensors"]
    with pytest.raises(BadInput, match=r"end in \.safetensors"):
        found.save(tmp_path / "blend.pt")

    info = found.commit(CheckpointStore(tmp_path / "blended" / "checkpoints"))
    assert info.step == 50
    assert info.facts["blend"]["verdict"] == found.verdict
    model = Bowl()
    level, reasons = restore(CheckpointStore(tmp_path / "blended" / "checkpoints").load()[0], model, None)
    assert level == "warm"
    assert "only the weights" in reasons[0]
    assert torch.equal(model.w, found.weights["w"])
    with pytest.raises(BadInput, match="begin from the blend"):
        found.commit(own)


def test_a_model_with_versions_tied_tensors_and_buffers_of_all_kinds(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3, bias=False)
            self.b = nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight
            self.norm = nn.BatchNorm1d(3)
            self.register_buffer("cache", torch.arange(3.0), persistent=False)

        def forward(self, x):
            return self.norm(self.b(self.a(x))) + self.cache

    store, weights = CheckpointStore(tmp_path / "run" / "checkpoints"), []
    model = Odd()
    for step in range(1, 4):
        with torch.no_grad():
            model.a.weight.add_(0.1 * torch.randn(3, 3))
        model(torch.randn(20, 3))
        weights.append(model.a.weight.detach().clone())
        store.save(step, capture(model, None))
    found = blend(tmp_path / "run", how="uniform")
    assert any("recompute_batch_norm" in note for note in found.chart.notes)
    other = Odd()
    restore_model(found.state(), other)
    assert other.a.weight is other.b.weight
    assert torch.allclose(other.a.weight, torch.stack(weights).mean(0))
    assert other.norm.num_batches_tracked.item() == 3
    assert found.state()["metadata"]["norm"] == {"version": 2}
    assert torch.equal(found.state()["buffers"]["cache"], torch.arange(3.0))
    found.save(tmp_path / "tied.safetensors")


def test_chart_shows_itself_and_survives_json(tmp_path):
    saved(tmp_path / "run", scattered(6, 0.2))
    chart = blend(tmp_path / "run", BowlTask(), how="uniform").chart
    assert [panel.title.partition(":")[0] for panel in chart.panels[:2]] == ["Parts", "Weights in the blend"]
    assert chart.cost.forwards == pytest.approx((6 + 5 + 1 + 1) / 2)  # parts, middles, blend, best part: a half each
    chart.plot().savefig(tmp_path / "chart.png")
    again = type(chart).from_dict(json.loads(json.dumps(chart.to_dict())))
    assert again["difference"] == chart["difference"]


def test_every_checkpoint_damaged_is_bad_input(tmp_path):
    store = saved(tmp_path / "run", scattered(2, 0.1))
    for info in store.list():
        (info.path / "tensors.safetensors").write_bytes(b"")
    with pytest.warns(DynaxxWarning), pytest.raises((BadInput, CorruptData)):
        blend(tmp_path / "run")
