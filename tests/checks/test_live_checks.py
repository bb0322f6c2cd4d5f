"""Each live check against a case whose answer is known, and one where the answer is the other; none leaves a trace."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from dynaxx import catalog
from dynaxx.core.isolation import RandomState, isolated_random
from dynaxx.core.navigation import LivePoint
from dynaxx.errors import NotApplicable

Live = Callable[..., LivePoint]
Batches = Callable[..., list[Any]]


def look(name: str, point: LivePoint, **options: Any):
    with isolated_random():  # as the session does
        return catalog.get("checks", name)(**options).look(point)


@pytest.mark.parametrize("name", catalog.names("checks"))
def test_no_check_leaves_a_trace(name: str, live: Live):
    point = live()
    point.model.train()
    point.model[3].eval()  # a module that was frozen in evaluation mode
    before = copy.deepcopy(point.model.state_dict())
    moments = copy.deepcopy(point.optimizer.state_dict())
    random = RandomState.capture()
    look(name, point)
    for key, value in point.model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    for key, state in point.optimizer.state_dict()["state"].items():
        for part, value in state.items():
            torch.testing.assert_close(value, moments["state"][key][part], rtol=0, atol=0)
    assert all(p.grad is None for p in point.model.parameters())
    assert [m.training for m in point.model] == [True, True, True, False, True]
    assert torch.equal(RandomState.capture().cpu, random.cpu)
    assert not point.model[0]._forward_hooks


@pytest.mark.parametrize("name", catalog.names("checks"))
def test_a_look_is_plain_data(name: str, live: Live):
    import json

    json.dumps(dict(look(name, live())))


def test_a_corrupted_batch_reproduces_its_loss_and_a_good_one_does_not(
    live: Live, good_batches: Batches, net: Callable[..., nn.Module]
):
    batches = good_batches()
    assert not look("replay_batch", live(batches=batches))["reproduced"]
    bad = [*batches[:5], (batches[5][0] * 100, (batches[5][1] + 1) % 4), *batches[6:]]
    point = live(model=net(norm=False), batches=batches)  # batch statistics take the factor out
    found = look("replay_batch", _poisoned(point, bad), step=98)
    assert found["reproduced"]
    assert found["percentile"] == 1.0
    with pytest.raises(NotApplicable, match="step 50 is not among"):
        look("replay_batch", point, step=50)


def test_noise_of_halves_is_that_of_the_closed_form(live: Live):
    """ℓ = ½ mean (w − x)², w = 0: per-example gradients −x, so tr Σ = Var x and ‖G‖² = (E x)²."""
    torch.manual_seed(0)
    batches = [(1.0 + 2.0 * torch.randn(4096, 1), torch.zeros(4096)) for _ in range(4)]
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)

    def loss(model: Any, batch: Any) -> torch.Tensor:
        return 0.5 * (model.weight[0, 0] - batch[0]).square().mean()

    found = look("half_batch_noise", live(model=model, batches=batches, loss=loss, trained=0))
    assert found["gradient"] == pytest.approx(1.0, rel=0.1)
    # Four draws of ‖g₁ − g₂‖² in one dimension, χ²₄/4: within a factor of five at the 99.9 % level.
    assert 4.0 / 5 < found["trace"] < 4.0 * 5
    assert found["scale"] == pytest.approx(found["trace"] / found["gradient"])


def test_curvature_along_the_update_against_the_threshold(live: Live):
    """ℓ = ½ · 10 · w²: gradient descent at rate η has ratio 10 η / 2."""
    model = nn.Linear(1, 1, bias=False)

    def loss(model: Any, batch: Any) -> torch.Tensor:
        return 5.0 * model.weight.square().sum() + 0.0 * batch[0].sum()

    for rate in (0.05, 0.3):
        nn.init.constant_(model.weight, 1.0)
        point = live(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=rate), loss=loss, trained=0)
        assert look("directional_curvature", point)["ratio"] == pytest.approx(10 * rate / 2, rel=1e-5)


def test_one_batch_is_memorised_unless_the_loss_does_not_reach_the_weights(live: Live, net: Callable[..., nn.Module]):
    assert look("overfit_one_batch", live(trained=0))["solved"]

    def cut(model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        out = model(x)
        return nn.functional.cross_entropy(out.detach() + 0.0 * out, y)

    found = look("overfit_one_batch", live(trained=0, loss=cut))
    assert not found["solved"]
    assert found["last"] == pytest.approx(found["first"])


def _poisoned(point: LivePoint, batches: list[Any]) -> LivePoint:
    return LivePoint(**{f: getattr(point, f) for f in point.__slots__} | {"batches": batches})


def test_the_first_tensor_that_is_not_finite_is_named(live: Live, good_batches: Batches):
    batches = good_batches()
    assert look("non_finite_origin", live())["stage"] == "none"
    x, y = batches[6]
    dirty = x.clone()
    dirty[3, 2] = math.nan
    found = look("non_finite_origin", _poisoned(live(), [*batches[:6], (dirty, y), batches[7]]))
    assert (found["stage"], found["step"]) == ("input", 99)
    point = live()
    with torch.no_grad():
        point.model[4].weight[0, 0] = math.inf
    assert look("non_finite_origin", point)["where"] == "4.weight"

    class Root(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sqrt()

    torch.manual_seed(0)
    broken = nn.Sequential(nn.Linear(6, 8), Root(), nn.Linear(8, 4))
    found = look("non_finite_origin", live(model=broken, trained=0))
    assert (found["stage"], found["where"]) == ("module", "1")

    def steep(model: nn.Module, batch: Any) -> torch.Tensor:  # √0: finite, with an infinite derivative
        return (model(batch[0]) * 0.0).sum().sqrt()

    assert look("non_finite_origin", live(loss=steep, trained=0))["stage"] == "backward"


def test_rows_that_stand_apart_are_named(live: Live, good_batches: Batches):
    batches = good_batches()
    point = live(trained=200)
    wrong = batches[7][1].clone()
    wrong[5] = (wrong[5] + 1) % 4
    found = look("example_losses", _poisoned(point, [*batches[:7], (batches[7][0], wrong)]))
    assert found["rows"][0] == 5


def test_what_the_optimizer_does_not_hold_is_named(live: Live, net: Callable[..., nn.Module]):
    model = net()
    optimizer = torch.optim.Adam([*model[0].parameters(), *nn.Linear(3, 3).parameters()], lr=1e-2)
    model[4].bias.requires_grad_(False)
    found = look("optimizer_holds", live(model=model, optimizer=optimizer))
    assert found["outside"] == ["1.weight", "1.bias", "4.weight"]
    assert found["frozen"] == ["4.bias"]
    assert found["foreign"] == 12
    assert look("optimizer_holds", live())["foreign"] == 0


def test_statistics_of_inputs(live: Live, good_batches: Batches):
    batches = good_batches()
    found = look("input_statistics", live())
    x = torch.cat([x for x, _ in batches]).double()
    assert found["rms"] == pytest.approx(float(x.square().mean().sqrt()))
    assert found["repeated"] == 0
    assert len(found["labels"]) == 4
    assert look("input_statistics", _poisoned(live(), [batches[0]] * 3))["repeated"] == 2
    flat = [(torch.cat((x[:, :3], torch.ones(len(x), 3)), dim=1), y) for x, y in batches]
    assert look("input_statistics", _poisoned(live(), flat))["constant"] == 3


def test_labels_tell_of_inputs_or_not(live: Live, good_batches: Batches):
    batches = good_batches()
    assert look("label_shuffle", live(trained=60))["informative"]
    draw = torch.Generator().manual_seed(3)
    fresh = [(x, torch.randint(4, (len(y),), generator=draw)) for x, y in batches]
    assert look("label_shuffle", _poisoned(live(trained=60), fresh))["p"] > 0.02

    def alone(model: nn.Module, batch: Any) -> torch.Tensor:
        return model(batch[0]).square().mean()

    with pytest.raises(NotApplicable, match="holds no labels"):
        look("label_shuffle", live(loss=alone, trained=0, batches=[(torch.zeros(4, 6),)] * 8))


def test_dropout_shows_between_the_modes(live: Live, net: Callable[..., nn.Module]):
    heavy = live(model=net(dropout=0.9, norm=False), trained=60)
    assert look("eval_train_gap", heavy)["ratio"] < 1 / 1.3
    assert look("eval_train_gap", live(model=net(norm=False)))["ratio"] == pytest.approx(1.0)


def test_without_batches_a_check_says_what_to_do(live: Live):
    with pytest.raises(NotApplicable, match="batch"):
        look("replay_batch", _poisoned(live(), []))
