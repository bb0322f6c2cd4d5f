import math

import pytest
import torch

from dynaxx.core.loop import evaluate
from dynaxx.errors import UnknownName
from dynaxx.rescue._chain import FAITHFUL, LENGTH, SYMBOLS, entropy, sequences
from dynaxx.rescue.nets import NETS, floor, small_task


def test_the_chains_entropy_is_that_of_the_perfect_predictor():
    drawn = sequences(20_000, seed=4)
    table = torch.randint(SYMBOLS, (SYMBOLS, SYMBOLS), generator=torch.Generator().manual_seed(0))
    told = table[drawn[:, :-2], drawn[:, 1:-1]]
    right = FAITHFUL + (1 - FAITHFUL) / SYMBOLS
    logs = torch.where(told == drawn[:, 2:], math.log(right), math.log((1 - FAITHFUL) / SYMBOLS))
    loss = (-logs.sum(1) + math.log(SYMBOLS)) / LENGTH
    error = float(loss.std() / len(loss) ** 0.5)
    assert float(loss.mean()) == pytest.approx(entropy(), abs=4 * error)
    assert floor("lstm") == entropy()
    assert math.isnan(floor("mlp"))


@pytest.mark.parametrize("net", list(NETS))
def test_a_net_is_of_its_seed_alone_and_begins_indifferent(net):
    one, two = small_task(net, 5), small_task(net, 5)
    assert {k: v for k, v in vars(one).items() if k != "draw"} == {k: v for k, v in vars(two).items() if k != "draw"}
    assert len({small_task(net, seed).rate for seed in range(5)}) == 5
    torch.manual_seed(0)
    loss = evaluate(one, one.model(), one.batches("validation", 0))["loss"]
    classes = {"mlp": 10, "cnn": 10, "lstm": SYMBOLS, "transformer": 256}[net]
    assert loss == pytest.approx(math.log(classes), rel=0.25)


def test_unknown_net():
    with pytest.raises(UnknownName, match="transformer"):
        small_task("tranformer", 0)
