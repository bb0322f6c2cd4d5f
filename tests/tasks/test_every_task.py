"""What holds of each built-in task: data from seed and position alone, and a loss that falls."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import islice

import pytest
import torch

from dynaxx import catalog
from dynaxx.core.loop import epoch_seed, evaluate, train_steps

TASKS = catalog.names("tasks")


@pytest.fixture(params=TASKS)
def task(request):
    torch.manual_seed(0)
    return catalog.task(request.param)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def digest(task):
    """A hash of the first, a middle and the last batch of both splits."""
    state = hashlib.sha256()
    for split in ("train", "validation"):
        batches = task.batches(split, epoch_seed(5, 2))
        for index in (0, len(batches) // 2, len(batches) - 1):
            for tensor in batches[index]:
                state.update(tensor.contiguous().numpy().tobytes())
    return state.hexdigest()


def test_batches_are_a_function_of_seed_and_position(task):
    train = task.batches("train", 11)
    assert isinstance(train, Sequence)
    start = [batch for _, batch in zip(range(4), train, strict=False)]
    again = task.batches("train", 11)
    assert all(same(again[index], start[index]) for index in (2, 0, 3, 1))
    assert not same(task.batches("train", 12)[0], start[0])
    for one, other in zip(task.batches("validation", 11), task.batches("validation", 12), strict=True):
        assert same(one, other)


def test_batches_leave_the_random_streams_alone(task):
    state = torch.get_rng_state()
    task.batches("train", 3)[1]
    task.batches("validation", 3)[0]
    assert torch.equal(torch.get_rng_state(), state)


def test_data_are_the_same_in_every_process():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_every_task import *\n"
        "print([digest(catalog.task(name)) for name in TASKS])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "99"}
    command = [sys.executable, "-c", code, os.path.dirname(__file__)]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == str([digest(catalog.task(name)) for name in TASKS])


def test_a_plan_may_change_the_batch_size(task):
    validation = task.batches("validation", 0)
    task.batch_size = 3
    assert len(task.batches("train", 0)[0][0]) == 3
    value = evaluate(task, task.model(), validation)
    assert set(value) > {"loss"}


def test_facts_can_be_written_down(task):
    facts = dict(task.facts())
    assert json.loads(json.dumps(facts)) == facts
    assert len(facts["xxh3_128"]) == 32
    assert facts == dict(type(task)().facts())


@pytest.mark.parametrize("name", TASKS)
def test_sizes_grow(name):
    counts = []
    for size in ("tiny", "small", "medium"):
        with torch.device("meta"):
            counts.append(sum(p.numel() for p in catalog.task(name, size).model().parameters()))
    assert counts[1] > 2 * counts[0]
    assert counts[2] > 2 * counts[1]


def train(task, steps):
    torch.manual_seed(0)
    model = task.model()
    optimizer = task.optimizer(model)
    scheduler = task.scheduler(optimizer)
    batches = (batch for epoch in range(steps) for batch in task.batches("train", epoch_seed(0, epoch)))
    losses = list(islice(train_steps(task, model, optimizer, batches, scheduler=scheduler), steps))
    return model, losses


def test_the_loss_falls_and_training_repeats_bit_for_bit(task):
    model, losses = train(task, 40)
    assert torch.stack(losses[-5:]).mean() < 0.8 * losses[0]
    other, repeated = train(task, 40)
    assert losses == repeated
    assert same(model.state_dict().values(), other.state_dict().values())


def test_evaluation_weighs_each_example_once(task):
    model, _ = train(task, 2)
    validation = task.batches("validation", 0)
    values = evaluate(task, model, validation)
    whole = tuple(torch.cat(parts) for parts in zip(*validation, strict=True))
    at_once = evaluate(task, model, [whole])
    assert values == pytest.approx(at_once, rel=1e-5)
    assert len(validation) > 1
