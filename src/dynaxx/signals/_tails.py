"""The tail index of gradient noise along a run: successive gradients in pairs, one window of them after another."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dynaxx.numerics.tail_index import judged_pairs

PAIRS = 64
"""Differences in a window, of two measured steps each: at p ≤ 0.01 stable noise of α = 1.5 is found in 9 of 10 windows
(with 32 differences in 4 of 10). Gaussian noise is called heavy in 0 to 1 % of them; the more directions it has, the
more rarely."""
DRAWS = 100
"""Gaussian windows that one is compared with, so that p can be below 0.01. They take 6 ms of a CPU core, once in 128
measured steps."""
SIZE = 1024
"""Entries that are kept of a sketch, its buckets added up in fours: norms are then within 2 %, and a window 256 KB."""

Tails = tuple[Tensor, Tensor, Tensor]
"""α, that of Gaussian noise, and the share of Gaussian windows with an α as small."""


def nothing() -> dict[str, Any]:
    """The state before the first gradient."""
    return {"odd": None, "pairs": None}


def tailed(state: Mapping[str, Any], sketch: Tensor) -> tuple[dict[str, Any], Tails | None]:
    """Take a gradient in; every 2 · `PAIRS` of them are a window.

    Each gradient is in one pair only, as differences that share one would cancel in the sums that the index is made of.

    Args:
        state: `nothing()`, or what the last call returned.
        sketch: Of the gradient, before clipping; a power of two of at least `SIZE` entries.

    Returns:
        The next state, and the tails where a window is full.
    """
    folded = sketch.view(-1, SIZE).sum(0)
    if state["odd"] is None:
        return {"odd": folded, "pairs": state["pairs"]}, None
    pair = (folded - state["odd"])[None]
    pairs = pair if state["pairs"] is None else torch.cat([state["pairs"], pair])
    if len(pairs) < PAIRS:
        return {"odd": None, "pairs": pairs}, None
    unit = pairs / torch.linalg.vector_norm(pairs, dim=1).amax()
    return nothing(), judged_pairs(unit @ unit.T, draws=DRAWS)
