"""How each tool saves and loads a state: Dynaxx, plain torch, torch.distributed.checkpoint, Lightning, Accelerate."""

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from dynaxx.checkpoints import CheckpointStore

State = Mapping[str, Tensor]
Wait = Callable[[], object]
"""Returns once the save is acknowledged, or raises."""


class Saver:
    """One way to save; `start` returns when training may go on, what it returned when the save is acknowledged.

    Args:
        folder: Where the checkpoints go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, step: int, state: State) -> Wait:
        """Begin a save."""
        raise NotImplementedError

    def load(self, like: State) -> State:
        """What a training that starts again would load; `like` has the names, shapes and dtypes."""
        raise NotImplementedError

    def clean(self) -> None:
        """Make room, as a training would."""


class _Dynaxx(Saver):
    def __init__(self, folder: Path) -> None:
        self.store = CheckpointStore(folder)

    def start(self, step: int, state: State) -> Wait:
        self.store.save(step, state)
        return lambda: None

    def load(self, like: State) -> State:
        return self.store.load(self.store.list()[-1])[0]  # the latest: older ones must not stand in for it

    def clean(self) -> None:
        self.store.prune(keep=2)


class _DynaxxAsync(_Dynaxx):
    def start(self, step: int, state: State) -> Wait:
        return self.store.save_async(step, state).result


class _TorchSave(Saver):
    """The file is written over."""

    def start(self, step: int, state: State) -> Wait:
        torch.save(dict(state), self.folder / "last.pt")
        return lambda: None

    def load(self, like: State) -> State:
        return torch.load(self.folder / "last.pt", weights_only=True)


class _TorchRename(_TorchSave):
    """What careful users write: another file first, then a rename; no sync."""

    def start(self, step: int, state: State) -> Wait:
        torch.save(dict(state), self.folder / "next.pt")
        os.replace(self.folder / "next.pt", self.folder / "last.pt")
        return lambda: None


class _Dcp(Saver):
    """One folder written over, which is its default."""

    def start(self, step: int, state: State) -> Wait:
        dcp.save(dict(state), checkpoint_id=self.folder / "last", no_dist=True)
        return lambda: None

    def load(self, like: State) -> State:
        found = {name: torch.empty_like(tensor) for name, tensor in like.items()}
        dcp.load(found, checkpoint_id=self.folder / "last", no_dist=True)
        return found


class _DcpAsync(_Dcp):
    def start(self, step: int, state: State) -> Wait:
        future = dcp.async_save(dict(state), checkpoint_id=self.folder / "last", no_dist=True)
        return future.result


class _Lightning(Saver):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

        self.io = TorchCheckpointIO()

    def start(self, step: int, state: State) -> Wait:
        self.io.save_checkpoint(dict(state), self.folder / "last.ckpt")
        return lambda: None

    def load(self, like: State) -> State:
        return self.io.load_checkpoint(self.folder / "last.ckpt", weights_only=True)


class _Accelerate(Saver):
    """Its `save_state` of a model that holds the state; it saves no optimizer here."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from accelerate import Accelerator

        self.accelerator = Accelerator(cpu=True)
        self.model: nn.ParameterDict | None = None

    def start(self, step: int, state: State) -> Wait:
        with torch.no_grad():
            for parameter, tensor in zip(self._held(state).values(), state.values(), strict=True):
                parameter.copy_(tensor)
        self.accelerator.save_state(str(self.folder / "last"))
        return lambda: None

    def load(self, like: State) -> State:
        held = self._held(like)
        self.accelerator.load_state(str(self.folder / "last"))
        return {name: p.detach() for name, p in zip(like, held.values(), strict=True)}

    def _held(self, state: State) -> Any:
        if self.model is None:
            plain = {f"p{i}": nn.Parameter(t.clone(), requires_grad=False) for i, t in enumerate(state.values())}
            self.model = self.accelerator.prepare(nn.ParameterDict(plain))
        return self.model


SAVERS: dict[str, tuple[type[Saver], str]] = {
    "Dynaxx": (_Dynaxx, "torch"),
    "Dynaxx asynchronous": (_DynaxxAsync, "torch"),
    "torch.save": (_TorchSave, "torch"),
    "torch.save and rename": (_TorchRename, "torch"),
    "dcp.save": (_Dcp, "torch"),
    "dcp.async_save": (_DcpAsync, "torch"),
    "Lightning": (_Lightning, "lightning"),
    "Accelerate": (_Accelerate, "accelerate"),
}
"""Name → how, and the package that it needs."""


def present() -> dict[str, type[Saver]]:
    """The savers whose package is installed; the others are named on standard output."""
    found: dict[str, type[Saver]] = {}
    for name, (saver, package) in SAVERS.items():
        if importlib.util.find_spec(package):
            found[name] = saver
        else:
            print(f"{name}: not measured, {package} is not installed")
    return found
