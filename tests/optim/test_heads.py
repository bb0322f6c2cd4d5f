import pytest
import torch
from torch import nn

from dynaxx import catalog
from dynaxx.optim._heads import fused_heads
from dynaxx.optim.muon import Muon


class Attention(nn.Module):
    """Grouped keys and values, an ordinary fused projection, and layers that only look like one."""

    def __init__(self, outputs=24, count="num_heads"):
        super().__init__()
        setattr(self, count, 4)
        self.qkv = nn.Linear(8, outputs)
        self.out = nn.Linear(8, 8)


@pytest.mark.parametrize("count", ["num_heads", "num_attention_heads", "n_head", "n_heads", "heads"])
def test_a_module_that_counts_its_heads_is_believed(count):
    assert fused_heads(Attention(count=count)) == {"qkv.weight": 12}


def test_what_is_no_fused_projection_is_left_alone():
    assert fused_heads(Attention(outputs=16)) == {}  # four heads of queries, two of keys and values
    assert fused_heads(nn.Sequential(nn.Linear(8, 24))) == {}  # nothing counts heads
    assert fused_heads(Attention(count="num_heads_or_so")) == {}
    uneven = Attention()
    uneven.num_heads = 5
    assert fused_heads(uneven) == {}


def test_torchs_attention_says_it_itself():
    assert fused_heads(nn.MultiheadAttention(8, 2)) == {"in_proj_weight": 6}
    assert fused_heads(nn.MultiheadAttention(8, 2, kdim=4)) == {}  # three projections apart


def test_the_language_model_is_taken_apart():
    model = catalog.get("tasks", "stdlib-lm")(size="tiny").model()
    assert fused_heads(model) == {f"blocks.{i}.attention.project.weight": 9 for i in range(3)}


def test_muon_finds_them_and_can_be_told_not_to():
    def stepped(**options):
        torch.manual_seed(0)
        model = nn.Sequential(Attention(), nn.Linear(8, 2))
        optimizer = Muon.for_model(model, lr=0.1, **options)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        return model[0].qkv.weight.detach()

    assert torch.equal(stepped(), stepped(stacked={"0.qkv.weight": 12}))
    assert not torch.allclose(stepped(), stepped(stacked={}))
