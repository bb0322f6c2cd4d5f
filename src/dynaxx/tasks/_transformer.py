"""A small decoder-only transformer over bytes: pre-norm, rotary positions, causal attention, GELU."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

VOCABULARY = 256


class Transformer(nn.Module):
    """From bytes to the logits of each next byte.

    Args:
        width: Features per position, a multiple of 2 · `heads`.
        depth: Blocks.
        heads: Attention heads.
        context: Longest input, in bytes.
    """

    def __init__(self, *, width: int, depth: int, heads: int, context: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(_Block(width, heads, context) for _ in range(depth))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.apply(_initialise)
        for block in self.blocks:
            # The 2 · depth branches add up in the residual stream: its variance at the start is that of one.
            for last in (cast(_Block, block).attention.output, cast(_Block, block).shrink):
                nn.init.normal_(last.weight, std=0.5 * (2 * depth * last.in_features) ** -0.5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits of the byte after each position.

        Args:
            inputs: Bytes, int64 of shape (batch, length), length at most `context`.

        Returns:
            float32 of shape (batch, length, 256).
        """
        x = self.embedding(inputs)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention = _Attention(width, heads, context)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.expand = nn.Linear(width, 4 * width, bias=False)
        self.shrink = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.shrink(F.gelu(self.expand(self.mlp_norm(x))))


class _Attention(nn.Module):
    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        half = width // heads // 2
        angles = torch.outer(torch.arange(context), 10_000.0 ** (-torch.arange(half) / half))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = self.project(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        # Normalised queries and keys bear a learning rate that raw ones do not.
        query, key = self._rotate(F.layer_norm(parts[:2], parts.shape[-1:]))
        mixed = F.scaled_dot_product_attention(query, key, parts[2], is_causal=True)
        return self.output(mixed.transpose(1, 2).reshape(batch, length, width))

    def _rotate(self, x: torch.Tensor) -> torch.Tensor:
        cos, sin = self.cos[: x.shape[-2]], self.sin[: x.shape[-2]]
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.5)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.5 * module.in_features**-0.5)
