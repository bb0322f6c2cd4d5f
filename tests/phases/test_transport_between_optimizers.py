"""What a switch hands over, and how long the first step behind it is."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from dynaxx.core.parameters import Layout
from dynaxx.errors import BadInput
from dynaxx.optim.adamw import AdamW
from dynaxx.optim.kfac import KFAC
from dynaxx.optim.lamb import Lamb
from dynaxx.optim.muon import Muon
from dynaxx.optim.sgd import SGD
from dynaxx.optim.soap import SOAP
from dynaxx.phases import transport
from dynaxx.phases._dry_run import step_lengths
from dynaxx.phases.switch import warmup_steps


def gradients(model, count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [
        {n: (1 + i) * 0.1 + torch.randn(p.shape, generator=draw) for i, (n, p) in enumerate(model.named_parameters())}
        for _ in range(count)
    ]  # fmt: skip


def follow(model, optimizer, sets):
    for each in sets:
        for name, p in model.named_parameters():
            p.grad = each[name].clone()
        optimizer.step()


def trained(net, kind=AdamW, steps=30, **options):
    model = net()
    optimizer = kind.for_model(model, **{"lr": 0.01, "weight_decay": 0.0, **options})
    follow(model, optimizer, gradients(model, steps))
    return model, optimizer


def test_adam_to_adam_is_no_switch_at_all(net):
    """The next step is the one that the old optimizer would have taken, and nothing is re-warmed."""
    model, old = trained(net, betas=(0.9, 0.95))
    twin = deepcopy((model, old))
    new = AdamW.for_model(model, lr=0.01, weight_decay=0.0, betas=(0.9, 0.95))
    found = transport(old, new, gradients(model, 8, seed=1), model=model)
    assert found.factors == pytest.approx([1.0] * 3, abs=1e-5)
    assert set(found.carried.values()) == {"both moments"}
    assert found.steady == pytest.approx(found.first, rel=1e-5)
    step = gradients(model, 1, seed=2)
    follow(model, new, step)
    follow(*twin, step)
    for a, b in zip(model.parameters(), twin[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def test_soap_in_an_identity_basis_goes_on_as_adam():
    """Gradients along one entry a row and column: Gram matrices are diagonal, so V' = V by a permutation."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    weight = model[0].weight
    draw = torch.Generator().manual_seed(0)
    sets = [
        {"0.weight": torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]) * torch.randn(4, generator=draw))} for _ in range(20)
    ]
    options = {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.0}
    old = AdamW.for_model(model, **options)
    follow(model, old, sets)
    twin = deepcopy((model, old))
    new = SOAP.for_model(model, **options)
    transport(old, new, sets[-8:], model=model)
    follow(model, new, sets[:1])
    follow(*twin, sets[:1])
    torch.testing.assert_close(weight, twin[0][0].weight, rtol=0, atol=1e-6)


def test_the_second_moment_goes_into_the_eigenbasis_by_the_hadamard_rule(net):
    """Against the dense product in float64, with the basis of the mean Gram matrices."""
    model, old = trained(net)
    sets = gradients(model, 16, seed=3)
    weight = model[2].weight
    _, second = old.moments(weight)
    new = SOAP.for_model(model)
    transport(old, new, sets, model=model)
    stack = torch.stack([each["2.weight"].double() for each in sets])
    state = new.state[weight]
    left, right = (state[f"{side}_axes_0"][0].double().mT for side in ("left", "right"))
    for basis, gram in ((left, (stack @ stack.mT).mean(0)), (right, (stack.mT @ stack).mean(0))):
        turned = basis.T @ gram @ basis
        assert (turned - turned.diagonal().diag()).abs().max() < 1e-4 * turned.abs().max()
    truth = (left**2).T @ second.double() @ right**2
    kept = state["exp_avg_sq"].double() / (1 - 0.95**30)
    torch.testing.assert_close(kept, truth, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "chain", [(AdamW, SOAP), (SOAP, AdamW), (AdamW, Muon), (Muon, AdamW), (SOAP, Muon), (AdamW, Lamb), (Lamb, AdamW)]
)
def test_weights_gradients_and_the_outgoing_optimizer_stay(net, chain):
    model, old = trained(net, chain[0])
    new = chain[1].for_model(model, lr=0.01)
    before = deepcopy((dict(model.named_parameters()), old.state_dict()["state"], [p.grad for p in model.parameters()]))
    sets = gradients(model, 8, seed=1)
    given = deepcopy(sets)
    found = transport(old, new, sets, model=model)
    after = (dict(model.named_parameters()), old.state_dict()["state"], [p.grad for p in model.parameters()])
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    torch.testing.assert_close(sets, given, rtol=0, atol=0)
    ours = {t.untyped_storage().data_ptr() for s in new.state.values() for t in s.values() if torch.is_tensor(t)}
    theirs = {t.untyped_storage().data_ptr() for s in old.state.values() for t in s.values() if torch.is_tensor(t)}
    assert not ours & theirs
    assert all(0 < f <= 1 for f in found.factors)
    matched = [a * f for a, f in zip(found.first, found.factors, strict=True)]
    assert all(m <= s * (1 + 1e-6) for m, s in zip(matched, found.steady, strict=True))


def test_a_dry_run_is_as_long_as_the_steps_taken(net):
    """Truth: the same steps on the model itself."""
    model, optimizer = trained(net)
    sets = gradients(model, 3, seed=4)
    told = step_lengths(optimizer, Layout(model), sets)
    lengths = []
    for each in sets:
        before = [p.detach().clone() for p in model.parameters()]
        follow(model, optimizer, [each])
        moves = [float((p - b).detach().double().norm()) for p, b in zip(model.parameters(), before, strict=True)]
        lengths.append([(w * w + b * b) ** 0.5 for w, b in zip(moves[::2], moves[1::2], strict=True)])
    assert told == pytest.approx(torch.tensor(lengths).median(0).values.tolist(), rel=1e-4)


def test_ten_times_the_rate_is_matched_and_released(net):
    model, old = trained(net)
    new = AdamW.for_model(model, lr=0.1, weight_decay=0.0, betas=(0.9, 0.95))
    found = transport(old, new, gradients(model, 8, seed=1), model=model)
    assert all(0.05 < f < 0.2 for f in found.factors)
    assert found.warmup == 40
    slowed = transport(old, AdamW.for_model(model, lr=0.1, weight_decay=0.0, betas=(0.9, 0.95)),
                       gradients(model, 8, seed=1), model=model, factors=[0.5] * 3)  # fmt: skip
    assert slowed.factors == pytest.approx([f / 2 for f in found.factors], rel=1e-5)


def test_what_muon_does_not_keep_is_made_from_gradients(net):
    model, old = trained(net, Muon)
    new = AdamW.for_model(model)
    sets = gradients(model, 8, seed=1)
    found = transport(old, new, sets, model=model)
    assert found.carried["2.weight"] == "first moment"
    assert found.carried["4.weight"] == "both moments"  # the head is Adam's in both
    second = new.moments(model[2].weight)[1]
    torch.testing.assert_close(
        second, torch.stack([s["2.weight"] for s in sets]).square().mean(0), rtol=1e-4, atol=1e-6
    )
    assert float(new.state[model[2].weight]["step"]) == 8  # an estimate from 8 weighs like 8
    with pytest.raises(BadInput, match="needs gradients"):
        transport(old, AdamW.for_model(model), model=model)


def test_without_any_gradient_what_begins_cold_is_warmed_up(net):
    model, old = trained(net)
    old.zero_grad()
    found = transport(old, Lamb.for_model(model), model=model)
    assert set(found.carried.values()) == {"nothing"}
    assert found.warmup == warmup_steps(Lamb.for_model(model).param_groups)
    assert found.factors == (1 / found.warmup,) * 3
    assert found.steady == ()


def test_a_parameter_that_never_had_a_gradient_begins_afresh(net):
    model, old = trained(net, steps=0)
    sets = gradients(model, 4)
    for each in sets:
        del each["4.weight"]
    new = AdamW.for_model(model)
    found = transport(old, new, sets, model=model)
    assert found.carried["4.weight"] == "nothing"
    assert found.carried["0.weight"] == "from gradients"
    assert not new.state.get(model[4].weight)


def test_refusals(net):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(5, 4), nn.Linear(4, 5)

    model = Reader()
    adam, sgd = AdamW.for_model(model), SGD.for_model(model, momentum=0.9)
    with pytest.raises(BadInput, match=r"AdamW → SGD.*embeddings: 1 parameter \(table.weight\).*force=True"):
        transport(adam, sgd, model=model)
    assert transport(adam, sgd, model=model, force=True).incoming == "SGD"
    assert transport(sgd, adam, model=model).incoming == "AdamW"
    plain = net()
    assert transport(AdamW.for_model(plain), SGD.for_model(plain), model=plain).incoming == "SGD"
    with pytest.raises(BadInput, match="K-FAC has no moments"):
        transport(AdamW.for_model(plain), KFAC.for_model(plain), model=plain)
    with pytest.raises(BadInput, match=r"same parameters.*2 parameters \(0.weight, 0.bias\) are in one of them only"):
        transport(AdamW.for_model(plain), AdamW(list(plain[2:].named_parameters())), model=plain)
    learned, old = trained(net)
    with pytest.raises(BadInput, match="has Kronecker factors"):
        transport(old, SOAP.for_model(learned), model=learned)
