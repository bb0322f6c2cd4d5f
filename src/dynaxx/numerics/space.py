"""The space that curvature acts on: parameter vectors as rows of a matrix, this rank's part of them where sharded."""

import copy
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from dynaxx.core.parameters import is_sharded, local
from dynaxx.core.ranks import Ranks
from dynaxx.core.task import derive_seed

Draw = Literal["normal", "rademacher"]


class Space:
    """Vectors over chosen parameters: k vectors are a matrix of shape (k, n), one in each row.

    Where parameters are sharded, n counts this rank's entries, every function that combines vectors is a collective,
    and random vectors are the same whole vectors however they are cut. Parameters in half precision have vectors in
    float32.

    Args:
        parameters: The tensors, DTensors among them.
        names: One name each.
    """

    def __init__(self, parameters: Sequence[Tensor], names: Sequence[str] = ()) -> None:
        self.parameters = tuple(parameters)
        self.names = tuple(names) or tuple(str(i) for i in range(len(self.parameters)))
        locals_ = [local(p.detach()) for p in self.parameters]
        self.shapes = [p.shape for p in locals_]
        self.sizes = [p.numel() for p in locals_]
        self.n = sum(self.sizes)
        """Entries on this rank."""
        self.numel = sum(p.numel() for p in self.parameters)
        """Dimension of the space."""
        self.kinds = [p.dtype for p in locals_]
        self._kind = self.kinds[0] if len(set(self.kinds)) == 1 else None
        self.dtype = torch.float64 if torch.float64 in self.kinds else torch.float32
        self.device = locals_[0].device
        self.ranks = Ranks.of_parameters(self.parameters)
        self._own = self._counted_here() if self.ranks.groups else None

    @classmethod
    def plain(cls, n: int, dtype: torch.dtype = torch.float64, device: str | torch.device = "cpu") -> "Space":
        """A space of vectors with n entries, of no parameters in particular.

        Args:
            n: Dimension.
            dtype: Of the vectors.
            device: Where they are.

        Returns:
            The space.
        """
        return cls([torch.empty(n, dtype=dtype, device=device)])

    def flatten(self, tensors: Sequence[Tensor]) -> Float[Tensor, " n"]:
        """One vector from one tensor per parameter.

        Args:
            tensors: In the order of the parameters, sharded as they are or this rank's parts.

        Returns:
            A new vector of shape (n,).
        """
        return torch.cat([local(t.detach()).reshape(-1).to(self.dtype) for t in tensors])

    def split(self, vector: Float[Tensor, " n"]) -> list[Tensor]:
        """The parts of a vector, shaped and typed as the parameters are on this rank.

        Args:
            vector: Shape (n,).

        Returns:
            One tensor per parameter; views where the type is the same.
        """
        parts = [part.view(shape) for part, shape in zip(vector.split(self.sizes), self.shapes, strict=True)]
        if vector.dtype == self._kind:
            return parts
        return [part.to(kind) for part, kind in zip(parts, self.kinds, strict=True)]

    def in_float64(self) -> "Space":
        """The same space with vectors and their parts in float64."""
        wide = copy.copy(self)
        wide.dtype = torch.float64
        wide.kinds = [torch.float64] * len(self.kinds)
        wide._kind = torch.float64
        wide._own = None if self._own is None else self._own.to(torch.float64)
        return wide

    def slices(self) -> dict[str, slice]:
        """Where each parameter's entries are within a vector, by name."""
        found: dict[str, slice] = {}
        start = 0
        for name, size in zip(self.names, self.sizes, strict=True):
            found[name] = slice(start, start + size)
            start += size
        return found

    def gram(self, a: Float[Tensor, "k n"], b: Float[Tensor, "m n"]) -> Float[Tensor, "k m"]:
        """All inner products of the rows of two matrices, ⟨aᵢ, bⱼ⟩, over all shards.

        Args:
            a: Shape (k, n).
            b: Shape (m, n).

        Returns:
            Shape (k, m), on every rank, in the type of the vectors.
        """
        if self._own is not None:
            a = a * self._own
        return self.total(a @ b.T)

    def norms(self, rows: Float[Tensor, "k n"]) -> Float[Tensor, " k"]:
        """Norms of the rows over all shards.

        Args:
            rows: Shape (k, n).

        Returns:
            Shape (k,).
        """
        if self._own is None:
            return torch.linalg.vector_norm(rows, dim=1)
        return self.total((rows * self._own).square().sum(1)).sqrt()

    def total(self, value: Tensor) -> Tensor:
        """Sum over the ranks that hold shards; the value itself where nothing is sharded.

        Args:
            value: This rank's part of a sum.

        Returns:
            The sum on every rank.
        """
        return self.ranks.total(value)

    def random(self, k: int, *, seed: int, kind: Draw = "normal") -> Float[Tensor, "k n"]:
        """Random vectors with independent entries of mean 0 and variance 1, drawn outside the global streams.

        Args:
            k: How many.
            seed: Chooses them; the j-th vector depends on the seed and on j alone.
            kind: "normal" or "rademacher" (±1).

        Returns:
            Shape (k, n).
        """
        rows = torch.empty(k, self.n, dtype=self.dtype, device=self.device)
        for j in range(k):
            generator = torch.Generator().manual_seed(derive_seed(seed, "vector", j))
            start = 0
            for parameter, size in zip(self.parameters, self.sizes, strict=True):
                if kind == "normal":
                    whole = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
                else:
                    whole = torch.randint(0, 2, parameter.shape, generator=generator).mul_(2).sub_(1)
                rows[j, start : start + size] = _cut(whole, parameter).reshape(-1).to(rows)
                start += size
        return rows

    def _counted_here(self) -> Tensor:
        """1 for entries that this rank counts in sums, 0 for copies that another rank counts."""
        mesh = next(cast(Any, p).device_mesh for p in self.parameters if is_sharded(p))
        coordinate = cast(tuple[int, ...], mesh.get_coordinate())
        own = torch.empty(self.n, dtype=self.dtype, device=self.device)
        start = 0
        for parameter, size in zip(self.parameters, self.sizes, strict=True):
            placements = cast(Any, parameter).placements if is_sharded(parameter) else (None,) * mesh.ndim
            copies = [c for p, c in zip(placements, coordinate, strict=True) if p is None or not p.is_shard()]
            own[start : start + size] = 0.0 if any(copies) else 1.0
            start += size
        return own


def _cut(whole: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of a tensor that every rank holds whole."""
    if not is_sharded(parameter):
        return whole
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    tensor = cast(Any, parameter)
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return whole[tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))]
