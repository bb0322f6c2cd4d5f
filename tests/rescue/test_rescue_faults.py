import copy
import math
from itertools import islice

import pytest
import torch
from torch import nn
from torch.nn import functional

from dynaxx import catalog
from dynaxx.core.causes import CAUSES
from dynaxx.core.loop import epoch_seed, evaluate, train_steps
from dynaxx.core.navigation import REMEDIES
from dynaxx.core.task import Task
from dynaxx.errors import NotApplicable, UnknownName
from dynaxx.rescue.altered import Altered
from dynaxx.rescue.faults import ALTERATIONS, names, plant
from dynaxx.rescue.nets import small_task


class Blobs(Task):
    """Two features, three classes, one hidden layer: in nothing like the suite's own nets."""

    steps, batch_size, threads = 40, 16, 1

    def model(self):
        return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    def optimizer(self, model):
        return torch.optim.Adam(model.parameters(), lr=1e-2)

    def batches(self, split, seed):
        random = torch.Generator().manual_seed(seed % 2**32)
        labels = torch.randint(3, (160,), generator=random)
        centres = torch.tensor([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]])
        inputs = centres[labels] + 0.3 * torch.randn(160, 2, generator=random)
        return list(zip(inputs.split(self.batch_size), labels.split(self.batch_size), strict=True))

    def loss(self, model, batch):
        return functional.cross_entropy(model(batch[0]), batch[1])


def trained(name, *, task=None, seed=3, steps=40, draw=3):
    """Model before and after a few steps of an altered task, and the task."""
    altered = Altered(task or Blobs(), None if name is None else plant(name, draw), seed=seed)
    torch.manual_seed(seed)
    model = altered.model()
    optimizer = altered.optimizer(model)
    scheduler = altered.scheduler(optimizer)
    before = copy.deepcopy(model)
    losses = []
    for epoch in range(1000):
        rest = islice(iter(altered.batches("train", epoch_seed(seed, epoch))), steps - len(losses))
        losses += map(float, train_steps(altered, model, optimizer, rest, scheduler=scheduler))
        if len(losses) == steps:
            break
    return altered, before, model, losses


def moved(before, after):
    """Paths of parameters that changed."""
    old = dict(before.named_parameters())
    return {name for name, p in after.named_parameters() if not torch.equal(p, old[name])}


def test_there_are_enough_of_each_kind():
    assert len(names("fault")) >= 21
    assert len(names("incident")) >= 8
    assert len(names("healthy")) >= 15


@pytest.mark.parametrize("name", names())
def test_every_alteration_says_what_a_judge_expects(name):
    kind = ALTERATIONS[name]
    assert (kind.__doc__ or "").strip().endswith(".")
    assert set(kind.causes) <= set(CAUSES)
    assert bool(kind.causes) == bool(kind.codes) == (kind.kind != "healthy")
    first, last = plant(name, 0).span(400)
    assert 1 <= first <= last <= 400


@pytest.mark.parametrize("name", names())
def test_draws_are_of_the_seed_alone_and_differ(name):
    drawn = [plant(name, seed).drawn() for seed in range(12)]
    assert drawn[:3] == [plant(name, seed).drawn() for seed in range(3)]
    assert name == "double_softmax" or len({str(d) for d in drawn}) > 1


@pytest.mark.parametrize("name", [name for name in names() if name != "grokking"])
def test_every_alteration_trains_a_users_task(name):
    _, _, _, losses = trained(name, steps=12)
    assert len(losses) == 12
    assert math.isfinite(losses[0])


def test_without_alteration_nothing_changes_bit_for_bit():
    task = Blobs()
    torch.manual_seed(3)
    model = task.model()
    optimizer = task.optimizer(model)
    batches = islice((b for e in range(9) for b in task.batches("train", epoch_seed(3, e))), 40)
    for _ in train_steps(task, model, optimizer, batches):
        pass
    _, _, twin, _ = trained(None)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("name", ["frozen_block", "missing_from_optimizer"])
def test_blocks_before_the_head_do_not_move_and_the_head_does(name):
    _, before, after, _ = trained(name)
    still = {n for n, _ in after.named_parameters()} - moved(before, after)
    assert still
    assert {"4.weight", "4.bias"} <= moved(before, after)
    frozen = {n for n, p in after.named_parameters() if not p.requires_grad}
    assert frozen == (still if name == "frozen_block" else set())


def test_stale_head_does_not_move_and_its_old_self_is_held():
    altered, before, after, _ = trained("stale_head")
    assert moved(before, after) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    model = altered.model()
    optimizer = altered.optimizer(model)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert id(model[4].weight) not in held
    assert len(held) == 6


def test_detached_branch_gives_nothing_to_what_lies_before():
    altered, _, model, _ = trained("detached_branch", draw=0)
    model.zero_grad()
    altered.loss(model, altered.batches("train", epoch_seed(3, 0))[0]).backward()
    every = [name for name, _ in model.named_parameters()]
    reached = [name for name, p in model.named_parameters() if p.grad is not None]
    assert 0 < len(reached) < len(every)
    assert reached == every[-len(reached) :]


def test_gradients_that_are_not_cleared_are_a_running_sum():
    altered = Altered(Blobs(), plant("missing_zero_grad", 3), seed=0)
    altered.alteration.first_step = 1
    model = altered.model()
    altered.task.optimizer = lambda m: torch.optim.SGD(m.parameters(), lr=0.0)
    optimizer = altered.optimizer(model)
    batch = altered.batches("train", epoch_seed(0, 0))[0]
    for _ in range(3):
        altered.loss(model, batch).backward()
        own = model[0].weight.grad.clone()
        optimizer.step()
        seen = model[0].weight.grad.clone()
        optimizer.zero_grad()
    torch.testing.assert_close(seen, 3 * own)


def test_double_softmax_trains_on_probabilities_and_is_judged_on_logits():
    altered, _, model, losses = trained("double_softmax")
    batch = altered.batches("validation", 0)[0]
    torch.testing.assert_close(model(batch[0]).sum(-1), torch.ones(16))
    floor = math.log(math.e + 2) - 1  # the best a softmax of probabilities can do with three classes
    assert min(losses) >= floor
    assert torch.equal(altered.judged().loss(model, batch), Blobs().loss(model.inner, batch))


def test_wrong_sign_makes_the_goal_worse():
    altered, before, after, _ = trained("wrong_sign")
    batches = altered.batches("validation", 0)
    assert evaluate(altered.judged(), after, batches)["loss"] > evaluate(altered.judged(), before, batches)["loss"]


@pytest.mark.parametrize("name", ["shuffled_labels", "label_noise"])
def test_labels_keep_their_marginals_and_lose_their_inputs(name):
    altered, seed = Altered(Blobs(), plant(name, 1), seed=0), epoch_seed(0, 0)
    own, changed = Blobs().batches("train", seed), altered.batches("train", seed)
    same = 0.0
    for (x, y), (inputs, targets) in zip(own, changed, strict=True):
        assert torch.equal(x, inputs)
        if name == "shuffled_labels":
            assert torch.equal(y.sort().values, targets.sort().values)
        same += float((y == targets).float().mean()) / len(own)
    share = 1.0 if name == "shuffled_labels" else altered.alteration.share
    assert same == pytest.approx(1 - share * 2 / 3, abs=0.12)  # three classes: a third of the exchanges change nothing
    again = altered.batches("train", seed)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(changed, again, strict=True))
    assert torch.equal(altered.batches("validation", 0)[0][1], Blobs().batches("validation", 0)[0][1])


def test_unscaled_inputs_are_scaled_in_both_splits():
    altered = Altered(Blobs(), plant("unscaled_inputs", 1), seed=0)
    planted = altered.alteration
    for split, seed in (("train", epoch_seed(0, 0)), ("validation", 7)):
        x = Blobs().batches(split, seed)[0][0]
        torch.testing.assert_close(altered.batches(split, seed)[0][0], planted.factor * (x + planted.shift))


def test_sorted_data_holds_the_same_examples_in_the_order_of_their_classes():
    altered, seed = Altered(Blobs(), plant("sorted_data", 1), seed=0), epoch_seed(0, 0)
    targets = torch.cat([batch[1] for batch in altered.batches("train", seed)])
    assert torch.equal(targets, torch.cat([b[1] for b in Blobs().batches("train", seed)]).sort().values)
    rows = torch.cat([batch[0] for batch in altered.batches("train", seed)])
    own = torch.cat([b[0] for b in Blobs().batches("train", seed)])
    assert torch.equal(rows.sort(0).values, own.sort(0).values)


def test_repeated_batches_are_few_and_the_same_in_every_epoch():
    altered = Altered(Blobs(), plant("repeated_batch", 1), seed=0)
    seen = [b for e in range(3) for b in altered.batches("train", epoch_seed(0, e))]
    assert len({id(batch) for batch in seen}) == altered.alteration.count
    assert len(seen) == 30


def test_class_imbalance_leaves_next_to_nothing_of_the_others():
    altered = Altered(Blobs(), plant("class_imbalance", 1), seed=0)
    targets = torch.cat([b[1] for e in range(10) for b in altered.batches("train", epoch_seed(0, e))])
    assert float(targets.bincount().max() / len(targets)) > 0.95
    mild = Altered(Blobs(), plant("mild_imbalance", 1), seed=0)
    targets = torch.cat([b[1] for e in range(10) for b in mild.batches("train", epoch_seed(0, e))])
    assert float(targets.bincount().max() / len(targets)) < 0.65


def test_nan_inputs_come_in_their_share_and_never_first():
    altered = Altered(Blobs(), plant("nan_inputs", 1), seed=0)
    batches = [b for e in range(200) for b in altered.batches("train", epoch_seed(0, e))]
    bad = [not bool(torch.isfinite(b[0]).all()) for b in batches]
    assert not bad[0]
    assert sum(bad) / len(bad) == pytest.approx(altered.alteration.share, rel=0.4)


@pytest.mark.parametrize(("name", "sign"), [("rate_too_high", 1), ("rate_too_low", -1)])
def test_rates_are_scaled_by_what_was_drawn(name, sign):
    factors = [plant(name, seed).factor for seed in range(200)]
    assert all(sign * math.log(f) > 0 for f in factors)
    assert max(factors) / min(factors) > 50  # decades of severity
    altered = Altered(Blobs(), plant(name, 1))
    assert altered.optimizer(altered.model()).param_groups[0]["lr"] == pytest.approx(1e-2 * altered.alteration.factor)


def test_a_shaped_schedule_multiplies_the_tasks_own():
    task = small_task("transformer", 0)
    task.steps = 100
    own = task.scheduler(task.optimizer(task.model()))
    altered = Altered(task, plant("decays_too_early", 0))
    optimizer = altered.optimizer(altered.model())
    scheduler = altered.scheduler(optimizer)
    planted = altered.alteration
    for step in (0, 1, 60):
        factor = 1.0 if step < planted.at * 100 else planted.final
        assert scheduler.lr_lambdas[0](step) == pytest.approx(own.lr_lambdas[0](step) * factor)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(task.rate * scheduler.lr_lambdas[0](0))


def test_underflow_flushes_what_half_precision_cannot_hold():
    altered = Altered(Blobs(), plant("underflow", 1), seed=0)
    model = altered.model()
    optimizer = altered.optimizer(model)
    altered.loss(model, altered.batches("train", epoch_seed(0, 0))[0]).backward()
    own = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    for before, p in zip(own, model.parameters(), strict=True):
        small = before.abs() * altered.alteration.scale < 2.0**-25  # half of the smallest subnormal
        assert torch.equal(p.grad[small], torch.zeros_like(p.grad[small]))


def test_a_stuck_scale_leaves_most_updates_out():
    altered, _, _, _ = trained("scale_stuck")
    model = altered.model()
    optimizer = altered.optimizer(model)
    before = copy.deepcopy(model)
    steps = 0
    for batch in (b for e in range(5) for b in altered.batches("train", epoch_seed(3, e))):
        optimizer.zero_grad()
        altered.loss(model, batch).backward()
        optimizer.step()
        steps += bool(moved(before, model))
        before = copy.deepcopy(model)
    assert steps < 15  # of 50


def test_weight_decay_takes_its_share_in_a_step():
    altered = Altered(Blobs(), plant("decay_too_high", 1))
    altered.task.optimizer = lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2)
    model = altered.model()
    optimizer = altered.optimizer(model)
    before = model[0].weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(model[0].weight.detach(), before * (1 - altered.alteration.per_step))


@pytest.mark.parametrize("name", names("incident"))
def test_an_incident_begins_when_it_says(name):
    _, _, clean, _ = trained(None, steps=40)
    altered = Altered(Blobs(), plant(name, 3))
    first, _ = altered.alteration.span(40)
    early = [trained(each, steps=first - 1)[2] for each in (None, name)]
    pairs = zip(*(model.parameters() for model in early), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    _, _, late, _ = trained(name, steps=40)
    same = all(torch.equal(a, b) for a, b in zip(clean.parameters(), late.parameters(), strict=True))
    assert not same or name == "hard_batches"  # which may draw no batch at all in so short a run


def test_an_incident_of_the_data_returns_with_the_batch_and_one_of_the_machine_does_not():
    altered = Altered(Blobs(), plant("nan_batch", 3), seed=5)
    step = altered.alteration.span(altered.steps)[0]
    epoch, index = divmod(step - 1, 10)
    for _ in range(2):
        assert not torch.isfinite(altered.batches("train", epoch_seed(5, epoch))[index][0]).all()
        assert torch.isfinite(altered.batches("train", epoch_seed(5, epoch))[index - 1][0]).all()
    spiked = Altered(Blobs(), plant("gradient_spike", 3))
    when = spiked.alteration.span(40)[0]
    model = spiked.model()
    optimizer = spiked.optimizer(model)
    sizes = []
    for _ in range(2 * 40):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        sizes.append(max(float(p.grad.max()) for p in model.parameters()))
    assert [i + 1 for i, size in enumerate(sizes) if size > 1] == [when]


def test_a_rate_bump_stands_while_the_step_is_logged_and_does_not_come_back():
    altered = Altered(Blobs(), plant("rate_bump", 3))
    optimizer = altered.optimizer(altered.model())
    scheduler = altered.scheduler(optimizer)
    rates = []
    optimizer.register_step_post_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    before = scheduler.state_dict()
    for _ in range(40):
        optimizer.step()
        scheduler.step()
    first, last = altered.alteration.span(40)
    raised = [
        step for step, rate in enumerate(rates, start=1) if rate == pytest.approx(1e-2 * altered.alteration.factor)
    ]
    assert raised == list(range(first, min(last, 40) + 1))
    assert {rate for step, rate in enumerate(rates, start=1) if step not in raised} == {1e-2}
    scheduler.load_state_dict(before)  # back to before it, as a rollback goes
    for _ in range(2 * 40):
        optimizer.step()
        scheduler.step()
    assert rates[40 + 20 :].count(1e-2) == len(rates) - 60


def test_what_counts_as_repairable_names_an_action_that_a_run_has():
    known = {*catalog.names("actions"), *REMEDIES}
    for name, kind in ALTERATIONS.items():
        assert set(kind.undone_by) <= known, name
        assert not (kind.kind == "healthy" and kind.undone_by), name
    assert not plant("overfitting", 0).undone_by  # it would take the data that were left out


def test_where_there_is_no_place_it_says_so():
    with pytest.raises(NotApplicable, match="floating-point"):
        Altered(small_task("transformer", 0), plant("unscaled_inputs", 0))
    altered = Altered(small_task("cnn", 0), plant("epsilon_too_large", 0))
    model = altered.model()
    with pytest.raises(NotApplicable, match="no eps"):
        altered.optimizer(model)
    with pytest.raises(NotApplicable, match="mlp"):
        Altered(Blobs(), plant("grokking", 0))
    with pytest.raises(UnknownName, match="rate_too_high"):
        plant("rate_to_high", 0)
    with pytest.raises(NotApplicable, match="another seed"):
        Altered(Blobs(), plant("label_noise", 0), seed=1).batches("train", epoch_seed(2, 0))
