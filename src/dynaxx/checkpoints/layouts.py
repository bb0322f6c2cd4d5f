"""Where each saved tensor belongs in a training that is sharded now, whatever it was when it was saved."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dynaxx.checkpoints.codec import encode
from dynaxx.checkpoints.manifest import Manifest
from dynaxx.core.parameters import is_sharded


def targets(manifest: Manifest, tree: Any, like: Mapping[str, Any]) -> dict[str, Tensor]:
    """Empty tensors to read a checkpoint into.

    A tensor is spread like the one of its name in the present state, and an optimizer's moment like its parameter,
    since a fresh optimizer has no moments yet; what has no such model is whole on every rank.

    Args:
        manifest: The checkpoint's.
        tree: Its tree.
        like: The present state: what `capture` returns of the training to be restored.

    Returns:
        Name → DTensor or plain tensor, of the saved shape and dtype.
    """
    models = {name: t for name, t in encode(dict(like), host=False, shards=True)[0].items() if is_sharded(t)}
    dtypes = {name: entry.torch_dtype for table in manifest.tensors.values() for name, entry in table.items()}
    parameters = _parameters(tree)
    found: dict[str, Tensor] = {}
    for name, shape in manifest.shapes().items():
        model = models.get(name)
        if model is None and name.startswith("optimizer/state/"):
            index = name.split("/")[2]
            model = models.get(f"model/state/{parameters.get(index)}")
        if model is None or tuple(model.shape) != shape:
            found[name] = torch.empty(shape, dtype=dtypes[name], device="cpu")
        else:
            found[name] = torch.empty_like(model, dtype=dtypes[name], requires_grad=False)
    return found


def _parameters(tree: Any) -> dict[str, str]:
    """Index in the optimizer's state → the parameter's name, where the tree is of a training."""
    match tree:
        case {"optimizer": {"names": [*names], "param_groups": [*groups]}}:
            pairs = zip(names, groups, strict=True)
            return {str(i): name for own, group in pairs for i, name in zip(group["params"], own, strict=True)}
        case _:
            return {}
