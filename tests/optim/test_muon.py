import pytest
import torch
from torch import nn

from dynaxx.catalog import choice
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


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("heads", [2, 6])
def test_a_stack_is_so_many_matrices_of_torch(adjust, heads):
    """Ten steps of a fused projection, beside a whole one of the height of a head, equal those of the parts."""
    g = torch.Generator().manual_seed(0)
    net = nn.ModuleDict({"fused": nn.Linear(5, 12, bias=False), "whole": nn.Linear(5, 12 // heads, bias=False)})
    parts = [nn.Parameter(part.detach().clone()) for part in net["fused"].weight.chunk(heads)]
    peers = [*parts, nn.Parameter(net["whole"].weight.detach().clone())]
    one = Muon(net.named_parameters(), lr=0.02, adjust=adjust, stacked={"fus*": heads})
    other = torch.optim.Muon(peers, lr=0.02, adjust_lr_fn=adjust)
    for _ in range(10):
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=g)
        for p, gradient in zip(peers, [*net["fused"].weight.grad.chunk(heads), net["whole"].weight.grad], strict=True):
            p.grad = gradient.clone()
        one.step()
        other.step()
    for p, q in zip(net.parameters(), [torch.cat([p.detach() for p in parts]), peers[-1]], strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=0.02 * 2**-6)


def test_in_a_stack_none_holds_down_another():
    """Two matrices, one with gradients a thousand times the other's: taken as one, the weak one hardly moves."""
    g = torch.Generator().manual_seed(0)
    gradient = torch.randn(2, 8, 8, generator=g).mul_(torch.tensor([1.0, 1e-3])[:, None, None]).flatten(0, 1)

    def lengths(stacked):
        weight = nn.Parameter(torch.zeros(16, 8))
        optimizer = Muon([("w", weight)], momentum=0.0, stacked=stacked)
        weight.grad = gradient.clone()
        optimizer.step()
        return [float(part.norm()) for part in weight.detach().chunk(2)]

    strong, weak = lengths({"w": 2})
    assert weak == pytest.approx(strong, rel=0.2)
    strong, weak = lengths(None)
    assert weak < 0.1 * strong


def test_stacks_in_words_and_in_checkpoints_from_before_there_were_any():
    layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=8)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    stacked = {"layers.*.self_attn.in_proj_weight": 6, "layers.1.linear1": 2}
    optimizer = choice("optim", f"muon:lr=0.02,stacked={stacked}").build(model)
    assert [group["stacked"] for group in optimizer.param_groups] == [stacked] * 3
    older = optimizer.state_dict()
    for group in older["param_groups"]:
        del group["stacked"]
    optimizer.load_state_dict(older)
    assert [group["stacked"] for group in optimizer.param_groups] == [{}] * 3


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
    for stacked in ({"weight": 0}, {"weight": 1.5}, 3, {1: 1}):
        with pytest.raises(BadInput, match=r"Muon\(stacked=\.\.\.\) must be a dict of names"):
            Muon(nn.Linear(2, 2, bias=False).named_parameters(), stacked=stacked)
    with pytest.raises(BadInput, match=r"'weight' has 4 rows, which are not 3 equally high matrices"):
        Muon(nn.Linear(2, 4, bias=False).named_parameters(), stacked={"weight": 3})
    with pytest.raises(UnknownName, match=r"hidden matrix.*'q_proj'.*There are: weight"):
        Muon(nn.Linear(2, 4, bias=False).named_parameters(), stacked={"q_proj": 2})
    with pytest.raises(UnknownName, match="There are: none"):
        Muon([nn.Parameter(torch.ones(2, 2))], stacked={"weight": 2})
