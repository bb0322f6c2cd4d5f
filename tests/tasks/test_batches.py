from collections.abc import Sequence

import pytest
import torch

from dynaxx.tasks._batches import Minibatches, permutation


def rows(count, batch_size):
    return Minibatches(lambda chosen: chosen * 10, permutation(count, seed=4), batch_size)


def test_random_access_equals_iteration():
    batches = rows(23, 5)
    in_order = list(batches)
    assert isinstance(batches, Sequence)
    assert [len(batch) for batch in in_order] == [5, 5, 5, 5, 3]
    for index in (3, 0, 4, 2, 1):
        assert torch.equal(batches[index], in_order[index])
        assert torch.equal(batches[index - 5], in_order[index])
    assert sorted(torch.cat(in_order).tolist()) == [10 * row for row in range(23)]
    assert all(torch.equal(a, b) for a, b in zip(batches[2:], in_order[2:], strict=True))
    for beyond in (5, -6):
        with pytest.raises(IndexError):
            batches[beyond]


@pytest.mark.parametrize(("count", "batch_size", "batches"), [(20, 5, 4), (21, 5, 5), (1, 5, 1), (0, 5, 0), (5, 1, 5)])
def test_length(count, batch_size, batches):
    assert len(rows(count, batch_size)) == batches == len(list(rows(count, batch_size)))


def test_the_order_depends_on_the_seed_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    order = permutation(1000, seed=2**63 - 1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(permutation(1000, seed=2**63 - 1), order)
    assert not torch.equal(permutation(1000, seed=0), order)
    assert torch.equal(order.sort().values, torch.arange(1000))
