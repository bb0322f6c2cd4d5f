import math
from dataclasses import replace

import pytest
import torch

from dynaxx.core.loop import epoch_seed, evaluate, train_steps
from dynaxx.tasks import _bigram
from dynaxx.tasks.stdlib_lm import VALIDATION_WINDOWS, StdlibLM


@pytest.fixture
def task():
    torch.manual_seed(0)
    return StdlibLM()


def test_targets_are_the_next_bytes_of_the_text(task):
    text = task.text.train.numpy().tobytes()
    inputs, targets = task.batches("train", seed=1)[7]
    assert inputs.shape == targets.shape == (8, 128)
    assert inputs.dtype == targets.dtype == torch.int64
    for one, other in zip(inputs, targets, strict=True):
        assert bytes(one.tolist()) + bytes(other[-1:].tolist()) in text
        assert torch.equal(one[1:], other[:-1])


class Numbered(StdlibLM):
    """Its text is the numbers 0, 1, 2, …: a batch shows the positions it was read from."""

    @property
    def text(self):
        return replace(super().text, train=torch.arange(100_000), validation=torch.arange(50_000))


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_an_epoch_predicts_each_byte_at_most_once_and_nearly_all(seed):
    seen = torch.cat([targets.flatten() for _, targets in Numbered().batches("train", seed)])
    assert len(seen.unique()) == len(seen)
    assert len(seen) >= 100_000 - 3 * 128
    assert (seen.min() >= 1) & (seen.max() <= 99_999)


def test_windows_begin_elsewhere_in_each_epoch():
    epochs = [torch.cat([inputs[:, 0] for inputs, _ in Numbered().batches("train", seed)]) % 128 for seed in range(8)]
    assert all(len(starts.unique()) == 1 for starts in epochs)
    assert len({int(starts[0]) for starts in epochs}) > 4


def test_validation_windows_are_spread_evenly():
    starts = torch.cat([inputs[:, 0] for inputs, _ in Numbered().batches("validation", 0)])
    windows = 49_999 // 128
    assert starts.tolist() == [128 * (i * windows // VALIDATION_WINDOWS) for i in range(VALIDATION_WINDOWS)]


def test_medium_is_the_size_of_the_overhead_benchmark():
    with torch.device("meta"):
        model = StdlibLM("medium").model()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(10.8e6, rel=0.01)
    assert StdlibLM("medium").batches("train", 0)[0][0].numel() == 1024


def test_bits_per_byte_weight_and_first_loss(task):
    model, batch = task.model(), task.batches("train", 0)[0]
    loss = float(task.loss(model, batch).detach())
    assert loss == pytest.approx(math.log(256), abs=0.3)
    assert float(task.metrics(model, batch)["bits_per_byte"].detach()) == pytest.approx(loss / math.log(2), rel=1e-6)
    assert task.weight(batch) == 8 * 128


def test_weight_decay_on_matrices_only(task):
    model = task.model()
    matrices, vectors = task.optimizer(model).param_groups
    assert {p.dim() for p in matrices["params"]} == {2}
    assert {p.dim() for p in vectors["params"]} == {1}
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(model.parameters()))


def test_the_future_is_not_seen(task):
    model = task.model()
    inputs = task.batches("train", 0)[0][0]
    changed = inputs.clone()
    changed[:, 60] = (changed[:, 60] + 1) % 256
    before, after = model(inputs), model(changed)
    torch.testing.assert_close(before[:, :60], after[:, :60])
    assert not torch.allclose(before[:, 60:62], after[:, 60:62])
    torch.testing.assert_close(model(inputs[:, :10]), before[:, :10])


def test_rotated_products_depend_on_distance_and_not_on_place(task):
    attention = task.model().blocks[0].attention
    query, key = torch.randn(2, 1, 3, 1, 32)
    for distance in (0, 1, 7):
        products = []
        for place in (0, 5, 100):
            rotated_query = attention._rotate(query.expand(1, 3, 128, 32))[..., place + distance, :]
            rotated_key = attention._rotate(key.expand(1, 3, 128, 32))[..., place, :]
            products.append((rotated_query * rotated_key).sum(dim=-1))
        torch.testing.assert_close(products[0], products[1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(products[0], products[2], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(products[0], (query * key).sum(dim=-1).squeeze(-1), atol=1e-2)


@pytest.mark.slow
def test_tiny_beats_the_bigram_table_by_far(task):
    model = task.model()
    optimizer = task.optimizer(model)
    scheduler = task.scheduler(optimizer)
    batches = task.batches("train", epoch_seed(0, 0))[: task.steps]
    list(train_steps(task, model, optimizer, batches, scheduler=scheduler))
    found = evaluate(task, model, task.batches("validation", 0))["bits_per_byte"]
    assert found < 2.5 < _bigram.bits_per_byte(task)
