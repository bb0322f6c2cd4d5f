"""CountSketch of a parameter vector: 4096 numbers whose distances stand for distances between the whole vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from dynaxx.core.parameters import Layout, flat_real, is_sharded
from dynaxx.core.task import derive_seed
from dynaxx.errors import NotApplicable

CHUNK = 1 << 20
"""Coordinates that share two tables of signs, rotated anew for each chunk: 2 MB of memory however large the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """A random linear map from parameter space to `size` dimensions, the same in every process for one seed.

    Coordinate i of the parameter vector is multiplied by a random sign s(i) and added to bucket h(i) (Charikar, Chen
    and Farach-Colton 2002). It is linear, so the sketch of a difference is the difference of the sketches, and

        E ‖Sx‖² = ‖x‖²,   relative standard deviation of ‖Sx‖ ≈ 1/√(2·size)  (1.1 % at 4096).

    Vectors of at most `size` coordinates are mapped isometrically. Buckets run through consecutive coordinates and each
    chunk's are rotated at random, so that no index is stored; a sign is the product of two tables' entries, rotated
    apart, as one table would make the errors of different chunks add up. Temporaries of 5 MB.

    Args:
        size: Number of buckets, a power of two of at most `CHUNK`.
        seed: Chooses signs and rotations.
    """

    size: int = 4096
    seed: int = 0

    @property
    def relative_error(self) -> float:
        """Relative standard deviation of a sketched distance, 1/√(2·size)."""
        return (2 * self.size) ** -0.5

    def signs(self, device: torch.device) -> Tensor:
        """The two tables of signs.

        Args:
            device: Where to put them.

        Returns:
            int8 of shape (2, CHUNK).
        """
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "sketch"))
        return torch.randint(0, 2, (2, CHUNK), generator=generator, dtype=torch.int8).mul_(2).sub_(1).to(device)

    def __call__(self, tensors: Sequence[Tensor], layout: Layout) -> Float[Tensor, " size"]:
        """The sketch of one tensor per parameter, taken as one long vector in the order of the layout.

        Args:
            tensors: One per parameter: parameters, gradients, an update; this rank's shards where sharded.
            layout: The parameters by layer. All ranks must call where it is sharded.

        Returns:
            The sketch, float32 of shape (size,).

        Raises:
            NotApplicable: A parameter is sharded along another dimension than its first.

        Example:
            >>> model = torch.nn.Linear(3, 1)
            >>> layout = Layout(model)
            >>> s = Sketch(size=16)([torch.tensor([[3.0, 0.0, 4.0]]), torch.zeros(1)], layout)
            >>> float(s.norm())
            5.0
        """
        signs = layout.memo(("signs", self), lambda: self.signs(layout.device))
        out = torch.zeros(self.size, dtype=torch.float32, device=layout.device)
        start = 0
        for tensor, parameter in zip(tensors, layout.parameters, strict=True):
            width = 2 if parameter.is_complex() else 1
            offset = _shard_start(parameter, layout)
            if offset is not None:
                self._add(out, flat_real(tensor), start + offset * width, signs)
            start += parameter.numel() * width
        if layout.sharded:
            import torch.distributed as dist  # deferred: an unsharded run never needs it

            mesh = layout.mesh
            assert mesh is not None
            for dimension in range(mesh.ndim):
                dist.all_reduce(out, group=mesh.get_group(dimension))
        return out

    def _add(self, out: Tensor, values: Tensor, start: int, signs: Tensor) -> None:
        done = 0
        while done < values.numel():
            chunk, position = divmod(start + done, CHUNK)
            n = min(values.numel() - done, CHUNK - position)
            turn = derive_seed(self.seed, chunk)
            one, other = ((position + (turn >> bits)) % CHUNK for bits in (0, 20))
            front = (position + (turn >> 40)) % self.size
            padded = out.new_zeros(front + n + -(front + n) % self.size)
            sign = _products(signs, one, other, n)
            torch.mul(values[done : done + n], sign, out=padded[front : front + n])
            out += padded.view(-1, self.size).sum(0)
            done += n


def _products(signs: Tensor, one: int, other: int, count: int) -> Tensor:
    """Entry by entry the product of the two tables from a place each on; behind its end a table begins again."""
    products = signs.new_empty(count)
    edges = sorted({0, count, *(end for end in (CHUNK - one, CHUNK - other) if end < count)})
    for low, high in pairwise(edges):  # a copy of the rotated tables would be two reads more
        first, second = (one + low) % CHUNK, (other + low) % CHUNK
        n = high - low
        torch.mul(signs[0, first : first + n], signs[1, second : second + n], out=products[low:high])
    return products


def _shard_start(parameter: Tensor, layout: Layout) -> int | None:
    """Where this rank's shard begins in the flattened parameter; None where another rank counts the same copy."""
    mesh = layout.mesh
    if mesh is None:
        return 0
    coordinate = cast(tuple[int, ...], mesh.get_coordinate())
    if not is_sharded(parameter):
        return 0 if not any(coordinate) else None
    tensor = cast(Any, parameter)
    if any(p.is_shard() and p.dim != 0 for p in tensor.placements):
        raise NotApplicable("a sketch needs parameters sharded along their first dimension; this model shards another.")
    if any(not p.is_shard() and c != 0 for p, c in zip(tensor.placements, coordinate, strict=True)):
        return None
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    row = parameter.numel() // max(1, parameter.shape[0])
    return int(offset[0]) * row if offset else 0
