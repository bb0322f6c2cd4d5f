"""Recurrent models, transformers with their fast path, and attention under autocast."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

QUICK = {"test_recurrent_models": ["LSTM"]}


def sequences(n, batch=3, length=7, width=6):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(batch, length, width, generator=generator) for _ in range(n)]


@pytest.mark.parametrize("cell", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_models(both, agrees, cell):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.core = cell(6, 8, num_layers=2, batch_first=True, dropout=0.1)
            self.head = nn.Linear(8, 1)

        def forward(self, x):
            return self.head(self.core(x)[0])

    def loop(watch, book):
        model = Recurrent()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        return book.train(model, optimizer, watch, sequences(3), lambda x: model(x).square().mean())

    view, book = both(loop)
    agrees(view, book)
    assert view["activations.mean"].labels == ("core", "head")


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.attend = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 1)

    def forward(self, x):
        x = self.encoder(x)
        return self.head(self.attend(x, x, x, need_weights=False)[0])


def test_transformers_and_their_fast_path(both, agrees):
    """In evaluation torch takes a fused path through encoder layers unless it finds hooks; it finds none of ours."""
    fused = []

    def loop(watch, book):
        model = Encoder()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        run = watch(model, optimizer)
        taken, original = [], torch._transformer_encoder_layer_fwd

        def counted(*args):
            taken.append(True)
            return original(*args)

        torch._transformer_encoder_layer_fwd = counted
        try:
            for x in sequences(4):
                loss = model(x).square().mean()
                loss.backward()
                book.take_step(model, optimizer)
                model.eval()
                with torch.no_grad():
                    out = model(x)
                model.train()
                book.note("out", out.sum())
                run.log(out=out.sum())
        finally:
            torch._transformer_encoder_layer_fwd = original
        fused.append(len(taken))
        return model, optimizer, out

    view, book = both(loop)
    agrees(view, book)
    assert fused == [8, 8]
    np.testing.assert_array_equal(view["out"].values, book.values["out"])
    assert "attention.entropy" in view.columns
    assert (view["attention.entropy"].values > 0).all()
    assert (view["attention.entropy"].values <= np.log(7) + 1e-5).all()


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(6, 18)

    def forward(self, x):
        q, k, v = self.project(x).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        self.seen = q.detach(), k.detach()
        return functional.scaled_dot_product_attention(q, k, v)


def test_attention_is_measured_in_full_precision_under_autocast(both):
    """From the very queries and keys that the model uses, in 16 bits, but computed in 32."""

    def loop(watch, book):
        model = Attending()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def loss(x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = model(10 * x)
            q, k = model.seen
            assert q.dtype is torch.bfloat16
            book.note("largest", (q.float() @ k.float().mT / 3**0.5).max())
            return out.float().square().mean()

        return book.train(model, optimizer, watch, sequences(2), loss)

    view, book = both(loop)
    np.testing.assert_allclose(view["attention.logit_max"].values.max(1), book.values["largest"], rtol=1e-6)
