import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from dynaxx.core.loop import epoch_seed, evaluate, train_steps, validation_seed
from dynaxx.core.task import Task
from dynaxx.errors import BadInput


class Squares(Task):
    """Least squares in float64, whose gradient has a closed form."""

    def model(self):
        return nn.Linear(3, 1, dtype=torch.float64)

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=1.0)

    def batches(self, split, seed):
        return batches_of([5, 2, 7, 1, 4])

    def loss(self, model, batch):
        return (model(batch[0]).squeeze(1) - batch[1]).square().mean()

    def metrics(self, model, batch):
        return {"absolute": (model(batch[0]).squeeze(1) - batch[1]).abs().mean(), "rows": len(batch[1])}


def batches_of(sizes):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(sum(sizes), 3, dtype=torch.float64, generator=generator)
    y = torch.randn(sum(sizes), dtype=torch.float64, generator=generator)
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def whole(batches):
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def fresh(task=None):
    torch.manual_seed(0)
    task = task or Squares()
    model = task.model()
    return task, model, task.optimizer(model)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradient(model, batch):
    """The gradient of mean squared error, 2/n Xᵀ(Xw + b − y), without autograd."""
    x, y = batch
    error = model.weight.detach() @ x.T + model.bias.detach() - y
    return torch.cat([2 / len(y) * (error @ x).flatten(), 2 * error.mean().reshape(1)])


def test_ragged_micro_batches_give_the_gradient_of_the_whole():
    task, model, optimizer = fresh()
    micro = batches_of([5, 2, 7])
    start, expected = flat(model), gradient(model, whole(micro))
    loss = task.loss(model, whole(micro)).detach()
    (mean,) = train_steps(task, model, optimizer, micro, accumulate=3)
    torch.testing.assert_close(start - flat(model), expected, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(mean, loss, rtol=1e-14, atol=1e-14)
    assert not mean.requires_grad


def test_weights_of_the_task_count():
    class Doubled(Squares):
        def weight(self, batch):
            return 10.0 if len(batch[1]) == 2 else 1.0

    task, model, optimizer = fresh(Doubled())
    micro = batches_of([5, 2])
    start = flat(model)
    expected = gradient(model, micro[0]) / 11 + gradient(model, micro[1]) * 10 / 11
    list(train_steps(task, model, optimizer, micro, accumulate=2))
    torch.testing.assert_close(start - flat(model), expected, rtol=1e-14, atol=1e-14)


def test_the_last_step_takes_what_is_left():
    task, model, optimizer = fresh()
    optimizer.param_groups[0]["lr"] = 0.0
    micro = batches_of([4, 3, 6, 2, 5])
    means = list(train_steps(task, model, optimizer, micro, accumulate=2))
    expected = [task.loss(model, whole(micro[i : i + 2])).detach() for i in (0, 2, 4)]
    torch.testing.assert_close(means, expected, rtol=1e-14, atol=1e-14)


def test_accumulate_1_is_the_bare_loop_bit_for_bit():
    def parts():
        task, model, _ = fresh()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        return task, model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)

    task, model, optimizer, scheduler = parts()
    losses = list(train_steps(task, model, optimizer, task.batches("train", 0), scheduler=scheduler))
    task, bare, optimizer, scheduler = parts()
    for batch, seen in zip(task.batches("train", 0), losses, strict=True):
        loss = task.loss(bare, batch)
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        assert torch.equal(loss.detach(), seen)
    assert torch.equal(flat(model), flat(bare))
    assert scheduler.get_last_lr() == [0.0025]


def test_the_order_within_a_step():
    order = []

    class Loud(torch.optim.SGD):
        def step(self, closure=None):
            order.append(f"step at {self.param_groups[0]['lr']}, gradient: {model.weight.grad is not None}")
            return super().step(closure)

        def zero_grad(self, set_to_none=True):
            order.append(f"zero_grad({set_to_none}) at {self.param_groups[0]['lr']}")
            super().zero_grad(set_to_none)

    task, model, _ = fresh()
    optimizer = Loud(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    steps = train_steps(task, model, optimizer, task.batches("train", 0)[:2], scheduler=scheduler)
    order.extend(f"yield, gradient: {model.weight.grad is not None}" for _ in steps)
    assert order == [
        "step at 1.0, gradient: True",
        "zero_grad(True) at 0.5",
        "yield, gradient: False",
        "step at 0.5, gradient: True",
        "zero_grad(True) at 0.25",
        "yield, gradient: False",
    ]


def test_one_step_is_taken_per_item_and_no_batch_is_drawn_ahead():
    task, model, optimizer = fresh()
    drawn = []
    source = (drawn.append(i) or batch for i, batch in enumerate(task.batches("train", 0)))
    steps = train_steps(task, model, optimizer, source, accumulate=2)
    start = flat(model)
    assert not drawn
    next(steps)
    assert drawn == [0, 1]
    assert not torch.equal(start, flat(model))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda model, batch: (model(batch[0]).squeeze(1) - batch[1]).square(),
            r"Bad\.loss\(model, batch\) must return a scalar tensor\. Got shape \(5,\)\. Take its mean\.",
        ),
        (lambda model, batch: 0.5, r"Got float\. Leave out \.item\(\)"),
        (lambda model, batch: model(batch[0]).mean().detach(), r"Got one without\. Leave out \.detach\(\)"),
    ],
)
def test_a_loss_that_cannot_be_trained_on(loss, message):
    task, model, optimizer = fresh(type("Bad", (Squares,), {"loss": staticmethod(loss)})())
    with pytest.raises(BadInput, match=message):
        next(train_steps(task, model, optimizer, task.batches("train", 0)))


def test_weights_that_sum_to_nothing_and_accumulate_below_1():
    task, model, optimizer = fresh(type("Weightless", (Squares,), {"weight": lambda self, batch: 0.0})())
    with pytest.raises(BadInput, match=r"Weightless\.weight\(batch\) must sum to more than 0.*Got 0\.0"):
        next(train_steps(task, model, optimizer, task.batches("train", 0), accumulate=2))
    with pytest.raises(BadInput, match=r"accumulate=\.\.\.\) must be at least 1\. Got 0"):
        next(train_steps(task, model, optimizer, task.batches("train", 0), accumulate=0))


def test_evaluate_is_the_mean_over_all_examples():
    task, model, _ = fresh()
    batches = task.batches("validation", 0)
    x, y = whole(batches)
    error = (model(x).squeeze(1) - y).detach()
    values = evaluate(task, model, batches)
    assert values["loss"] == pytest.approx(error.square().mean().item(), rel=1e-14)
    assert values["absolute"] == pytest.approx(error.abs().mean().item(), rel=1e-14)
    assert values["rows"] == pytest.approx((25 + 4 + 49 + 1 + 16) / 19, rel=1e-14)


def test_evaluate_sums_in_float64():
    class Constant(Squares):
        def loss(self, model, batch):
            return torch.tensor(batch[2], dtype=torch.float32)

        def metrics(self, model, batch):
            return {}

    one = torch.zeros(1)
    batches = [(one, one, 2.0**24)] + [(one, one, 1.0)] * 4  # in float32, 2²⁴ + 1 = 2²⁴
    assert evaluate(Constant(), nn.Identity(), batches)["loss"] == (2**24 + 4) / 5


def test_evaluate_leaves_no_trace():
    class Dropping(Squares):
        def model(self):
            return nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3, dtype=torch.float64), super().model())

        def loss(self, model, batch):
            torch.rand(3)
            return super().loss(model, batch)

    task, model, _ = fresh(Dropping())
    model[1].eval()
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    first = evaluate(task, model, task.batches("validation", 0))
    assert first == evaluate(task, model, task.batches("validation", 0))
    assert torch.equal(torch.rand(4), expected)
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert model[1].running_mean.abs().sum() == 0


def test_a_metric_left_out_on_some_batches_is_the_mean_over_the_others():
    class Sometimes(Squares):
        def metrics(self, model, batch):
            return {"rows": float(len(batch[1]))} if len(batch[1]) > 3 else {}

    task, model, _ = fresh(Sometimes())
    rows = evaluate(task, model, task.batches("validation", 0))["rows"]
    assert rows == pytest.approx((25 + 49 + 16) / (5 + 7 + 4), rel=1e-14)


@pytest.mark.parametrize(
    ("metrics", "batches", "message"),
    [
        ({"loss": 1.0}, [5], r'Bad\.metrics\(model, batch\) may not name a metric "loss"'),
        ({"hits": torch.ones(5)}, [5], r"metrics\(model, batch\)\['hits'\] must return a scalar.*\(5,\)"),
        ({}, [], r"evaluate\(Bad\): there is no batch"),
    ],
)
def test_evaluate_refuses(metrics, batches, message):
    task, model, _ = fresh(type("Bad", (Squares,), {"metrics": lambda self, model, batch: metrics})())
    with pytest.raises(BadInput, match=message):
        evaluate(task, model, batches_of(batches) if batches else [])


def test_seeds_are_the_same_in_every_process():
    code = "from dynaxx.core.loop import *; print([epoch_seed(3, e) for e in range(3)], validation_seed(3))"
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    seeds = [epoch_seed(3, epoch) for epoch in range(3)]
    assert shown.stdout.strip() == f"{seeds} {validation_seed(3)}"
    assert len({*seeds, validation_seed(3), epoch_seed(4, 0)}) == 5


def test_seeds_are_what_old_runs_were_given():
    assert (epoch_seed(0, 0), validation_seed(0)) == (7_417_288_841_815_781_252, 4_826_776_126_793_652_880)
