"""The tensors of a model that are averaged: read after a step, replaced by averages for a while, named for a state."""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]

from dynaxx.core.parameters import bare_name, is_sharded, local, some
from dynaxx.errors import BadInput

CHUNK = 1 << 22
"""Entries of half-precision weights that are widened at a time: 16 MB, whatever the size of the model."""
_STATISTICS = ("running_mean", "running_var")


class Weights:
    """Trainable parameters, and the running statistics of batch normalisation, by name.

    Parameters that are frozen when this is made stay as the model has them, and so do all other buffers: masks hold
    infinities, counters are no averages. Sharded tensors are taken as this rank's shards: nothing is communicated.

    Args:
        call: Whose they are, for messages ("Ema").
        source: The model, or names and parameters; then no statistics are averaged.

    Raises:
        BadInput: There is nothing to average, or a name occurs twice.
    """

    def __init__(self, call: str, source: nn.Module | Iterable[tuple[str, Tensor]]) -> None:
        self._call = call
        pairs = source.named_parameters() if isinstance(source, nn.Module) else source
        named = [(n, p) for n, p in pairs if p.requires_grad]
        self._parameters = [p for _, p in named]
        self._norms = [(bare_name(n), m) for n, m in norms(source)] if isinstance(source, nn.Module) else []
        self._buffers = [(m, key) for _, m in self._norms for key in _STATISTICS]
        statistics = [f"{n}.{key}" if n else key for n, _ in self._norms for key in _STATISTICS]
        self.names = (*(bare_name(n) for n, _ in named), *statistics)
        if not named:
            raise BadInput(f"{call}(model): no parameter requires a gradient, so nothing would be averaged.")
        if len(set(self.names)) != len(self.names):
            raise BadInput(f"{call}(named_parameters): a name occurs twice. Give each parameter its own.")

    def live(self) -> list[Tensor]:
        """This rank's part of each, sharing memory with the model."""
        held = [*self._parameters, *(m.get_buffer(key) for m, key in self._buffers)]
        return [local(t.detach()) for t in held]

    def copies(self, *, wide: bool) -> list[Tensor]:
        """Copies of this rank's parts.

        Args:
            wide: In float32 at least; else each in its own type, which is exact and smaller.

        Returns:
            One per name.
        """
        return [t.to(_wide(t.dtype) if wide else t.dtype, copy=True) for t in self.live()]

    def blend(self, averages: Sequence[Tensor], values: Sequence[Tensor], share: float) -> None:
        """Move averages towards values, a ← a + share·(x − a), in the averages' type; equal values stay as they are.

        Args:
            averages: Wide tensors, written.
            values: As `live` returns them.
            share: Between 0 and 1.

        Raises:
            BadInput: The model has been moved to another device.
        """
        if averages[0].device != values[0].device:
            raise BadInput(
                f"{self._call}: the model is on {values[0].device}, its averages are on {averages[0].device}. "
                "Make the averager after moving the model."
            )
        same = [(a, x) for a, x in zip(averages, values, strict=True) if a.dtype == x.dtype]
        half = [(a, x) for a, x in zip(averages, values, strict=True) if a.dtype != x.dtype]
        for pairs in ([same] if same else []) + list(_chunks(half)):
            widened = [x.to(a.dtype) for a, x in pairs]
            torch._foreach_lerp_([a for a, _ in pairs], widened, share)  # pyright: ignore[reportPrivateUsage]

    @contextmanager
    def replaced(self, averages: Sequence[Tensor]) -> Generator[None]:
        """Averages in the places of the weights; the model's own come back bit for bit, statistics and counters too.

        Args:
            averages: One per name.
        """
        live, kept = self.live(), self.copies(wide=False)
        counters = [c for _, m in self._norms if (c := m.num_batches_tracked) is not None]
        counts = [c.clone() for c in counters]
        try:
            _copy(live, averages)
            yield
        finally:
            # Where they are now: an evaluation may have moved a buffer.
            _copy(self.live(), kept)
            _copy(counters, counts)

    def named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Name → tensor, sharded as the parameter is; without copies.

        Args:
            tensors: One per name, this rank's parts.

        Returns:
            What `read` takes.
        """
        sharded = [is_sharded(p) for p in self._parameters] + [False] * len(self._buffers)
        if any(sharded):
            from dynaxx.core.sharded import layout_of  # imports torch.distributed

            tensors = [
                layout_of(self._parameters[i], None).wrapped(t) if sharded[i] else t for i, t in enumerate(tensors)
            ]
        return dict(zip(self.names, tensors, strict=True))

    def read(self, saved: Mapping[str, Any], *, wide: bool) -> list[Tensor]:
        """Copies of saved tensors, on the model's devices.

        Args:
            saved: What `named` returned.
            wide: As in `copies`.

        Returns:
            This rank's parts, one per name.

        Raises:
            BadInput: They are of another model; the message names the tensors.
        """
        call = f"{self._call}.load_state_dict"
        missing, further = [n for n in self.names if n not in saved], [n for n in saved if n not in self.names]
        if missing or further:
            parts = [("lacks", missing), ("has", further)]
            what = " and ".join(f"{verb} {some(names)}" for verb, names in parts if names)
            raise BadInput(f"{call}: it is the state of another model: against this one it {what}.")
        live = self.live()
        found = [local(saved[name]) for name in self.names]
        wrong = [n for n, a, b in zip(self.names, found, live, strict=True) if a.shape != b.shape]
        if wrong:
            raise BadInput(f"{call}: it is the state of another model: other shapes of {some(wrong)}.")
        return [
            a.detach().to(b.device, _wide(b.dtype) if wide else b.dtype, copy=True)
            for a, b in zip(found, live, strict=True)
        ]


def norms(model: nn.Module) -> list[tuple[str, _NormBase]]:
    """The modules that keep running statistics of batches, by path.

    Args:
        model: Any model.

    Returns:
        Batch and instance normalisation, except where they keep none.
    """
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, _NormBase)]
    return [(name, m) for name, m in found if m.running_mean is not None]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _chunks(pairs: list[tuple[Tensor, Tensor]]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    part: list[tuple[Tensor, Tensor]] = []
    for pair in pairs:
        if part and sum(a.numel() for a, _ in part) + pair[0].numel() > CHUNK:
            yield part
            part = []
        part.append(pair)
    if part:
        yield part


def _copy(to: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for a, b in zip(to, values, strict=True):
            a.copy_(b)
