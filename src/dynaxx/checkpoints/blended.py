"""A blend: weights, where they are from, whether they are better than their parts, and ways to keep them."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from dynaxx.checkpoints._blend_chart import Verdict
from dynaxx.checkpoints.manifest import CheckpointInfo
from dynaxx.checkpoints.store import CheckpointStore
from dynaxx.core.chart import Chart
from dynaxx.errors import BadInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Blended:
    """What `blend` returns.

    Args:
        weights: Parameters and persistent buffers by bare name.
        verdict: The blend against the best of its parts on examples that chose neither.
        chart: Scores, weights, the comparison and its price.
        lineage: How it was made, as plain data: rule, parts with their weights, verdict.
        frame: What of a model's state is not averaged: the newest part's.
    """

    weights: Mapping[str, Tensor]
    verdict: Verdict
    chart: Chart
    lineage: Mapping[str, Any]
    frame: Mapping[str, Any]

    def __str__(self) -> str:
        return str(self.chart)

    def state(self) -> dict[str, Any]:
        """The model's state as `checkpoints.model_state.capture_model` gives it and `restore_model` takes it."""
        return {**self.frame, "state": {**self.weights, **self.frame["state"]}}

    def save(self, path: str | Path) -> Path:
        """Write the weights as one safetensors file, the lineage as JSON under "dynaxx" in its metadata.

        Args:
            path: The file, whose name ends in .safetensors; it replaces one that is there, at once or not at all.

        Returns:
            The file.

        Raises:
            BadInput: The name ends otherwise.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise BadInput(f"Blended.save(path=...) must end in .safetensors. Got {str(path)!r}.")
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{os.getpid()}.part")
        # Tied tensors are one memory, which the format cannot say.
        tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in self.weights.items()}
        save_file(tensors, aside, metadata={"format": "pt", "dynaxx": json.dumps(dict(self.lineage))})
        aside.replace(path)
        return path

    def commit(self, store: CheckpointStore) -> CheckpointInfo:
        """Save the blend as a checkpoint of the newest part's step: weights only, so that it is a warm start.

        Args:
            store: Not that of a run which goes on: it would be resumed from the blend.

        Returns:
            The checkpoint; its facts hold the lineage under "blend".

        Raises:
            BadInput: The store is that of one of the parts' runs.
            NotSaved: The disk is full, read-only or broken.
        """
        if str(store.folder) in {part["place"] for part in self.lineage["parts"]}:
            raise BadInput(
                f"Blended.commit(store): {store.folder} is where a part of the blend is from, and a run that goes on "
                "there would begin from the blend. Give a folder of its own."
            )
        state = {"model": self.state(), "optimizer": None, "scheduler": None, "scaler": None}
        state |= {"extra": {}, "random": {}, "fingerprint": {}}
        step = max(part["step"] for part in self.lineage["parts"])
        return store.save(step, state, facts={"reason": "blend", "blend": dict(self.lineage)})
