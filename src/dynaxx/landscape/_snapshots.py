"""Checkpoints of runs, read one at a time: their order, their differences from a reference, their inner products."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from dynaxx.core.objective import Objective
from dynaxx.core.parameters import Layout
from dynaxx.core.snapshot import Snapshot
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.landscape._checkpoint import alike, whole
from dynaxx.numerics.sketch import Sketch
from dynaxx.numerics.trajectory import gram


class Snapshots:
    """Checkpoints of one or several runs, run by run and each in the order of its steps.

    Args:
        objective: The model whose checkpoints they are.
        given: The checkpoints, in any order.
        reference: Parameters by name of which differences are taken; None: where the objective stands.

    Raises:
        BadInput: A run has two checkpoints of one step.
        NotApplicable: There are fewer than three.
    """

    def __init__(
        self, objective: Objective, given: Sequence[Snapshot] | None, reference: Mapping[str, Tensor] | None
    ) -> None:
        if given is None or len(given) < 3:
            raise NotApplicable(
                f"trajectory_map needs three checkpoints or more: trajectory=[Snapshot(...), ...]. "
                f"Got {len(given or ())}. Save more often, or name further runs."
            )
        self.objective = objective
        self.all = sorted(given, key=lambda s: (list(dict.fromkeys(g.run for g in given)).index(s.run), s.step))
        self.runs: dict[str, list[int]] = {}
        for i, each in enumerate(self.all):
            indices = self.runs.setdefault(each.run, [])
            if indices and self.all[indices[-1]].step == each.step:
                raise BadInput(
                    f"trajectory_map(trajectory=...): the run {each.run!r} has two checkpoints of step {each.step}. "
                    "Give runs different names, or one checkpoint a step."
                )
            indices.append(i)
        self.here = whole(objective, "trajectory_map")
        call = "trajectory_map(reference=...)"
        self.reference = self.here if reference is None else alike(objective, reference, call)
        self.names = [name for name in objective.leaves() if self.here[name].is_floating_point()]

    def __len__(self) -> int:
        return len(self.all)

    def tensors(self, i: int) -> dict[str, Tensor]:
        """Parameters and buffers of a checkpoint, under the names of the model.

        Args:
            i: Which.

        Returns:
            Name → tensor.
        """
        each = self.all[i]
        call = f"trajectory_map(trajectory=...)[{each.run!r}, step {each.step}]"
        return alike(self.objective, each.load(), call)

    def difference(self, i: int) -> list[Tensor]:
        """A checkpoint minus the reference, parameter by parameter.

        Args:
            i: Which.

        Returns:
            One tensor a parameter.
        """
        found = self.tensors(i)
        return [found[name] - self.reference[name] for name in self.names]

    def products(self, *, sketch: int, gigabytes: float) -> np.ndarray:
        """Inner products of the differences.

        Args:
            sketch: Size of a CountSketch of each; 0: exact.
            gigabytes: Memory for exact ones, two checkpoints at least.

        Returns:
            Shape (n, n).
        """
        if sketch:
            rows = torch.stack(list(self._sketches(sketch))).double().cpu().numpy()
            return rows @ rows.T
        size = sum(self.here[name].numel() * self.here[name].element_size() for name in self.names)
        hold = max(1, int(gigabytes * 1e9 / size) - 1)
        return gram(self.difference, len(self), hold=min(hold, len(self)))

    def _sketches(self, size: int) -> Iterator[Tensor]:
        layout, sketch = Layout(self.objective.model), Sketch(size=size)
        for i in range(len(self)):
            yield sketch(self.difference(i), layout)

    def combinations(self, weights: np.ndarray) -> list[dict[str, Tensor]]:
        """Σᵢ wᵢ xᵢ of the differences for several w at once; each checkpoint is read once.

        Args:
            weights: Shape (n, k).

        Returns:
            k vectors by name.
        """
        found = [{name: torch.zeros_like(self.reference[name]) for name in self.names} for _ in range(weights.shape[1])]
        for i in range(len(self)):
            if not weights[i].any():
                continue
            for name, part in zip(self.names, self.difference(i), strict=True):
                for total, w in zip(found, weights[i], strict=True):
                    total[name].add_(part, alpha=float(w))
        return found

    def common_steps(self) -> list[list[int]]:
        """For each step that all runs have, the indices of their checkpoints."""
        by_step = [{self.all[i].step: i for i in indices} for indices in self.runs.values()]
        shared = sorted(set.intersection(*(set(each) for each in by_step)))
        return [[each[step] for each in by_step] for step in shared]
