"""Hands out batches and knows the position in the data, so that a run can resume anywhere in an epoch."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from dynaxx.core.isolation import RandomState
from dynaxx.errors import BadInput


class Data:
    """The position in the training data: (epoch, batches handed out in it).

    A map-style sequence of batches is resumed by index. Any other loader is made anew from the random state that its
    epoch began with and fast-forwarded, so that shuffles and workers repeat themselves; then the random state of the
    checkpoint is put back.

    Args:
        loaded: Called with the seconds that each batch was waited for.
        stopping: Whether the run is to end.
    """

    def __init__(self, loaded: Callable[[float], None], stopping: Callable[[], bool]) -> None:
        self.between: Callable[[], None] = lambda: None
        """Called before each batch is fetched; it may take the position back by `load_state_dict`."""
        self.epoch = 0
        self.index = 0
        self.length: int | None = None
        self.notes: list[str] = []
        self._loaded = loaded
        self._stopping = stopping
        self._calls = 0
        self._began: dict[str, Any] | None = None
        self._resume: RandomState | None = None
        self._loader: Any = ()
        self._source_now: Iterator[Any] = iter(())
        self._ahead: deque[Any] = deque()

    @property
    def used(self) -> bool:
        """Whether the loop takes its batches from here."""
        return self._calls > 0

    @property
    def passes(self) -> float | None:
        """Passes over the data so far, as a real number where the loader has a length; None before the first batch."""
        if self._began is None and self._calls == 0:
            return None
        return self.epoch + (self.index / self.length if self.length else 0.0)

    def batches(self, loader: Any) -> Iterator[Any]:
        """One epoch. Completed epochs of a resumed run yield nothing; the one that was interrupted goes on.

        Args:
            loader: Anything that can be iterated anew for each epoch.

        Yields:
            Its batches.

        Raises:
            BadInput: The loader can be iterated only once, so no position in it can be found again.
        """
        if isinstance(loader, Iterator):
            raise BadInput(
                f"run.batches(loader): a {type(loader).__name__} can be iterated only once, so a resumed run could not "
                "find its place. Give the loader itself, or a list."
            )
        epoch, self._calls = self._calls, self._calls + 1
        if epoch < self.epoch or self._stopping():
            return
        resume, self._resume = self._resume, None
        if resume is None:
            self.index = 0
        self._begin(loader, resume)
        self._loader = loader
        self.length = len(loader) if hasattr(loader, "__len__") else None
        while True:
            self.between()
            if self._stopping():
                return
            self._follow()
            start = time.perf_counter()
            try:
                batch = self._ahead.popleft() if self._ahead else next(self._source_now)
            except StopIteration:
                break
            self.index += 1
            self._loaded(time.perf_counter() - start)
            yield batch
            if self._stopping():
                return
        self.epoch, self.index, self._began = epoch + 1, 0, None

    def ahead(self, count: int) -> list[Any]:
        """The next batches of this epoch, which will be handed out as if they had not been asked for.

        They are fetched now: a loader that draws from the global random streams draws earlier than it would have.

        Args:
            count: How many.

        Returns:
            As many as there are.
        """
        self._follow()
        self._ahead.extend(islice(self._source_now, max(0, count - len(self._ahead))))
        return list(islice(self._ahead, count))

    def pass_over(self, count: int) -> None:
        """Leave out the next batches of this epoch.

        Args:
            count: How many, or as many as there are.
        """
        self._follow()
        kept = min(count, len(self._ahead))
        for _ in range(kept):
            self._ahead.popleft()
        self.index += kept + sum(1 for _ in islice(self._source_now, count - kept))

    def state_dict(self) -> dict[str, Any]:
        """The position, and the random state that the current epoch began with."""
        return {"epoch": self.epoch, "index": self.index, "began": self._began}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a position; the global random streams must be in the state of the checkpoint.

        Args:
            state: What `state_dict` returned.
        """
        self.epoch, self.index, self._began = state["epoch"], state["index"], state["began"]
        self._resume = RandomState.capture()

    def _follow(self) -> None:
        """Go back with the run, where it has gone back in between."""
        if self._resume is not None:
            resume, self._resume = self._resume, None
            self._begin(self._loader, resume)

    def _begin(self, loader: Any, resume: RandomState | None) -> None:
        self._source_now = self._source(loader, resume)
        self._ahead.clear()

    def _source(self, loader: Any, resume: RandomState | None) -> Iterator[Any]:
        generators = _generators(loader)
        if resume is None or self._began is None:
            if resume is not None:
                resume.restore()
            now = RandomState.capture()
            self._began = {
                "random": {"cpu": now.cpu, "cuda": now.cuda, "numpy": now.numpy, "python": now.python},
                "generators": [g.get_state() for g in generators],
            }
            return iter(loader)
        source: Iterator[Any]
        if _seekable(loader):
            source = (loader[i] for i in range(self.index, len(loader)))
        else:
            if isinstance(loader, DataLoader) and loader.persistent_workers:
                self.notes.append("workers are kept between epochs: their random streams cannot be repeated")
            RandomState(**self._began["random"]).restore()
            for generator, state in zip(generators, self._began["generators"], strict=False):
                generator.set_state(state)
            source = iter(loader)
            for _ in range(self.index):
                next(source, None)
        resume.restore()
        return source


def _seekable(loader: Any) -> bool:
    """Whether any batch can be had by its number."""
    return isinstance(loader, Sequence) or (hasattr(loader, "__getitem__") and hasattr(loader, "__len__"))


def _generators(loader: Any) -> list[torch.Generator]:
    """Private random generators of a loader and its sampler, each once."""
    sampler = getattr(loader, "sampler", None)
    inner = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    found = [getattr(part, "generator", None) for part in (loader, sampler, inner)]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())
