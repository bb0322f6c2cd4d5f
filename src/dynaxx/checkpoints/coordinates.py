"""Where checkpoints lie, in a few thousand numbers each: by their weights, or by what they do on a fixed batch."""

import base64
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dynaxx.checkpoints.manifest import CheckpointInfo
from dynaxx.checkpoints.places import Place
from dynaxx.core.objective import Objective
from dynaxx.core.parameters import Layout, bare_name
from dynaxx.numerics.dispersion import nearest
from dynaxx.numerics.representation import output_vector, similarity_vector
from dynaxx.numerics.sketch import Sketch
from dynaxx.numerics.symmetry import outputs, state

SKETCH = Sketch()
"""4,096 numbers: distances have a relative standard deviation of 1.1 %."""
_STATISTICS = ("running_mean", "running_var")


class Coordinates(ABC):
    """A point for each checkpoint, kept as a note beside it, so that no weights are read twice.

    Args:
        place: Where the checkpoints lie.
        kind: Of which notes.
    """

    def __init__(self, place: Place, kind: str) -> None:
        self.place = place
        self.kind = kind

    @property
    @abstractmethod
    def unit(self) -> str:
        """What a distance is."""

    @abstractmethod
    def compute(self, model: Mapping[str, Any]) -> Tensor:
        """The point of a model's state.

        Args:
            model: As `checkpoints.model_state.capture_model` gives it.

        Returns:
            A vector.
        """

    def remember(self, info: CheckpointInfo, model: Mapping[str, Any]) -> None:
        """Keep the point of a checkpoint that has just been saved, while its weights are in memory.

        Args:
            info: The checkpoint.
            model: What `capture_model` returned.
        """
        self._keep(info, self.compute(model).float().cpu())

    def of(self, infos: Sequence[CheckpointInfo]) -> np.ndarray:
        """The points; one that was not kept is computed from its weights, which are read and verified.

        Args:
            infos: Checkpoints of the place.

        Returns:
            float64 of shape (checkpoints, size).
        """
        notes = self.place.notes(self.kind)
        return np.stack([self._point(info, notes) for info in infos]) if infos else np.zeros((0, 0))

    def distances(self, infos: Sequence[CheckpointInfo]) -> np.ndarray:
        """Between all checkpoints.

        Args:
            infos: Checkpoints of the place.

        Returns:
            Shape (checkpoints, checkpoints), symmetric.
        """
        points = torch.from_numpy(self.of(infos))
        # Not by inner products: the points lie close together and far from the origin.
        return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").numpy()

    def nearest(self, infos: Sequence[CheckpointInfo]) -> dict[str, float]:
        """How far each checkpoint is from the nearest other, among those whose points are kept; no weights are read.

        Args:
            infos: Checkpoints of the place.

        Returns:
            Id → distance; none where there are not two such.
        """
        notes = self.place.notes(self.kind)
        known = [info for info in infos if info.id in notes]
        if len(known) < 2:
            return {}
        near = nearest(self.distances(known), range(len(known)))
        return {info.id: float(distance) for info, distance in zip(known, near, strict=True)}

    def _point(self, info: CheckpointInfo, notes: Mapping[str, Mapping[str, Any]]) -> np.ndarray:
        if info.id not in notes:
            self.remember(info, self.place.load(info, only=("model",))[0]["model"])
            notes = self.place.notes(self.kind)
        kept = base64.b64decode(notes[info.id]["point"])
        return np.frombuffer(kept, dtype="<f4").astype(np.float64)

    def _keep(self, info: CheckpointInfo, point: Tensor) -> None:
        data = point.numpy().astype("<f4").tobytes()
        self.place.note(self.kind, info.id, {"point": base64.b64encode(data).decode()})


class ByWeights(Coordinates):
    """CountSketches of the parameters: distances within a few per cent of ‖θ₁ − θ₂‖, whatever the size of the model.

    Running statistics of batch normalisation are left out. Two networks that differ in the order of hidden units alone
    are far apart here; `ByOutputs` sees that they are the same.

    Args:
        place: Where the checkpoints lie.
    """

    def __init__(self, place: Place) -> None:
        super().__init__(place, "sketches")

    @property
    def unit(self) -> str:
        """What a distance is."""
        return f"‖θ₁ − θ₂‖, ± {SKETCH.relative_error:.1%}"

    def compute(self, model: Mapping[str, Any]) -> Tensor:
        """One pass over the parameters; no copy of them is made."""
        holder = nn.Module()
        for name, value in model["state"].items():
            if isinstance(value, Tensor) and value.is_floating_point() and not name.endswith(_STATISTICS):
                holder.register_parameter(str(len(holder._parameters)), nn.Parameter(value, requires_grad=False))  # pyright: ignore[reportPrivateUsage]
        layout = Layout(holder)
        return SKETCH(layout.local_parameters(), layout)


class ByOutputs(Coordinates):
    """What the model puts out on one batch: the order of hidden units does not matter.

    Args:
        place: Where the checkpoints lie.
        objective: The model's architecture and the batch, its first; its weights stay as they are.
        measure: "outputs": root mean square distance of the outputs. "similarity": √(2 − 2·CKA), which neither a
            rotation nor a scale of them changes.
    """

    def __init__(
        self, place: Place, objective: Objective, measure: Literal["outputs", "similarity"] = "outputs"
    ) -> None:
        super().__init__(place, measure)
        self.objective = objective
        self.measure = measure

    @property
    def unit(self) -> str:
        """What a distance is."""
        return "RMS distance of the outputs" if self.measure == "outputs" else "√(2 − 2·CKA) of the outputs"

    def compute(self, model: Mapping[str, Any]) -> Tensor:
        """One forward of the batch."""
        saved = {**model["state"], **model["buffers"]}
        here = state(self.objective)
        there = {name: saved[bare_name(name)].to(own) for name, own in here.items() if bare_name(name) in saved}
        found = outputs(self.objective, {**here, **there})[1:]
        vector = output_vector if self.measure == "outputs" else similarity_vector
        whole = torch.cat([vector(each).cpu() for each in found])
        if len(whole) <= SKETCH.size:
            return whole
        holder = nn.ParameterList([nn.Parameter(whole.float(), requires_grad=False)])
        layout = Layout(holder)
        return SKETCH(layout.local_parameters(), layout)
