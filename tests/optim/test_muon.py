import pytest
import torch
from torch import nn

from dynaxx.errors import BadInput, UnknownName
from dynaxx.optim.muon import Muon


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(6, 5), (4, 9)])
def test_ten_steps_are_those_of_torch(adjust, nesterov, shape):
    g = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(shape, generator=g))
    peer = nn.Parameter(weight.detach().clone())
    options = {"lr": 0.02, "weight_decay": 0.1, "nesterov": nesterov}
    one, other = Muon([weight], adjust=adjust, **options), torch.optim.Muon([peer], adjust_lr_fn=adjust, **options)
    for _ in range(10):
        weight.grad = torch.randn(shape, generator=g)
        peer.grad = weight.grad.clone()
        one.step()
        other.step()
        # bfloat16 products of a batch and of a matrix may round apart: 2⁻⁸ of a step.
        torch.testing.assert_close(weight, peer, rtol=0, atol=0.02 * 2**-6)


def test_matrices_taken_together_and_kernels_are_flattened():
    g = torch.Generator().manual_seed(0)
    kernel = nn.Parameter(torch.randn(6, 2, 3, 1, generator=g))
    alike = nn.Parameter(torch.randn(6, 6, generator=g))
    alone = [nn.Parameter(p.detach().reshape(6, 6).clone()) for p in (kernel, alike)]
    together, single = Muon([kernel, alike]), [Muon([p]) for p in alone]
    for _ in range(4):
        for p, q in zip((kernel, alike), alone, strict=True):
            p.grad = torch.randn(p.shape, generator=g)
            q.grad = p.grad.reshape(6, 6).clone()
        together.step()
        for each in single:
            each.step()
    torch.testing.assert_close(kernel.detach().reshape(6, 6), alone[0].detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(alike, alone[1], rtol=0, atol=1e-5)


def test_the_rest_is_adamw():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    other = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    other.load_state_dict(net.state_dict())
    one = Muon.for_model(net, lr=0.01, weight_decay=0.1, adamw_lr=0.02)
    names = {g["rule"]: g["param_names"] for g in one.param_groups if g["weight_decay"]}
    assert names == {"muon": ["0.weight"], "adamw": ["2.weight"]}
    peer = torch.optim.AdamW(
        [{"params": [other[2].weight], "weight_decay": 0.1}, {"params": [other[0].bias, other[2].bias]}],
        lr=0.02, betas=(0.9, 0.95), weight_decay=0.0,
    )  # fmt: skip
    for _ in range(10):
        for p, q in zip(net.parameters(), other.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        one.step()
        peer.step()
    for name in ("0.bias", "2.weight", "2.bias"):
        torch.testing.assert_close(net.get_parameter(name), other.get_parameter(name))
    assert not torch.equal(net[0].weight, other[0].weight)


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.position = nn.Parameter(torch.zeros(5, 4))
        self.out = nn.Linear(4, 7, bias=False)
        self.block = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 4))


def hidden(optimizer):
    return [name for g in optimizer.param_groups if g["rule"] == "muon" for name in g["param_names"]]


def test_which_matrices_are_hidden():
    model = Language()
    assert hidden(Muon.for_model(model)) == [
        "position",
        "out.weight",
        "block.1.weight",
    ]  # the last nn.Linear is no head
    model.lm_head = nn.Linear(4, 7)
    model.after = nn.Linear(4, 4)
    assert hidden(Muon.for_model(model)) == [
        "position",
        "out.weight",
        "block.1.weight",
        "block.2.weight",
        "after.weight",
    ]
    del model.lm_head, model.after
    assert hidden(Muon.for_model(model, head=["out", "position"])) == ["block.1.weight", "block.2.weight"]
    assert hidden(Muon.for_model(model, head=[])) == ["position", "out.weight", "block.1.weight", "block.2.weight"]
    model.out.weight = model.table.weight  # tied: an embedding
    assert hidden(Muon.for_model(model, head=[])) == ["position", "block.1.weight", "block.2.weight"]
    assert hidden(Muon.for_model(nn.Linear(3, 2))) == ["weight"]
    with pytest.raises(UnknownName, match=r"output.*position"):
        Muon.for_model(model, head=["output"])


def test_bad_input():
    with pytest.raises(BadInput, match=r"'bias' has 1 dimensions.*adamw"):
        Muon(nn.Linear(2, 2).named_parameters())
    for options in ({"adjust": "mean"}, {"momentum": 1.0}, {"steps": 0}, {"rule": "sgd"}, {"nesterov": 1}):
        with pytest.raises(BadInput, match=next(iter(options))):
            Muon([nn.Parameter(torch.ones(2, 2))], **options)
