"""A second place that follows a local store in the background: training waits for the disk, never for the network."""

import queue
import threading
import time
import warnings
from pathlib import Path

from dynaxx.checkpoints.manifest import CheckpointInfo
from dynaxx.checkpoints.places import LocalPlace
from dynaxx.checkpoints.pruning import prune
from dynaxx.checkpoints.remote import RemotePlace
from dynaxx.checkpoints.retention import Policy
from dynaxx.checkpoints.store import CheckpointStore
from dynaxx.errors import DynaxxError, DynaxxWarning


class Mirror:
    """Uploads committed checkpoints in the order they are offered, in a thread of its own.

    What fails is said in `problems`, and does not stop what comes after it. What still waits when the process ends is
    brought by the next one's `catch_up`.

    Args:
        store: The local store, or its folder.
        there: The place, or its URL.
        keep: What stays there; None: everything.

    Example:
        >>> import tempfile, torch
        >>> store = CheckpointStore(Path(tempfile.mkdtemp()) / "checkpoints")
        >>> with Mirror(store, "memory://mirrored") as mirror:
        ...     mirror.offer(store.save(10, {"weight": torch.ones(2)}))
        >>> [info.step for info in RemotePlace("memory://mirrored").list()]
        [10]
    """

    def __init__(
        self, store: CheckpointStore | str | Path, there: RemotePlace | str, *, keep: Policy | None = None
    ) -> None:
        self.here = LocalPlace(store)
        self.there = there if isinstance(there, RemotePlace) else RemotePlace(there)
        self.problems: list[str] = []
        """What could not be uploaded so far, in words; newest last."""
        self.uploaded = 0
        """Checkpoints that are there whole because of this mirror."""
        self._keep = keep
        self._queue: queue.SimpleQueue[CheckpointInfo | None] = queue.SimpleQueue()
        self._idle = threading.Condition()
        self._waiting = 0
        self._thread = threading.Thread(target=self._work, name="dynaxx-mirror", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Checkpoints that wait for their upload, the one under way included."""
        return self._waiting

    def offer(self, info: CheckpointInfo) -> None:
        """Upload a committed checkpoint when its turn comes; this returns at once.

        Args:
            info: A checkpoint of the local store.
        """
        with self._idle:
            self._waiting += 1
        self._queue.put(info)

    def catch_up(self) -> None:
        """Offer every local checkpoint that is not there: after a restart, or after problems.

        Raises:
            OSError: The place cannot be listed.
        """
        known = {info.path.name for info in self.there.list()}
        for info in self.here.list():
            if info.path.name not in known:
                self.offer(info)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until what was offered is there, or was given up.

        Args:
            timeout: Seconds; None: as long as it takes.

        Returns:
            Whether nothing waits any more.
        """
        with self._idle:
            return self._idle.wait_for(lambda: self._waiting == 0, timeout)

    def close(self, timeout: float | None = None) -> bool:
        """Finish what was offered, bring over what was said of the checkpoints, and stop.

        Args:
            timeout: Seconds; None: as long as it takes.

        Returns:
            Whether everything that was offered is there.
        """
        self._queue.put(None)
        began = time.monotonic()
        self._thread.join(timeout)
        left = None if timeout is None else max(0.0, timeout - (time.monotonic() - began))
        done = self.flush(left) and not self.problems
        if self.problems:
            message = f"{len(self.problems)} checkpoints are not in {self.there.name}. The last reason: "
            warnings.warn(message + self.problems[-1], DynaxxWarning, stacklevel=2)
        return done

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _work(self) -> None:
        while (info := self._queue.get()) is not None:
            try:
                self._bring(info)
            except (DynaxxError, OSError) as error:
                self.problems.append(str(error))
            except Exception as error:  # a client's own error must not end the thread: what comes later may succeed
                self.problems.append(f"{info.path.name}: {type(error).__name__}: {error}")
            finally:
                with self._idle:
                    self._waiting -= 1
                    self._idle.notify_all()

    def _bring(self, info: CheckpointInfo) -> None:
        self.there.upload(info.path)
        self.uploaded += 1
        self._bring_notes()
        if self._keep is not None:
            prune(self.there, self._keep)

    def _bring_notes(self) -> None:
        """What was said here of the checkpoints holds there too."""
        for kind in self.here.note_kinds():
            there = self.there.read_notes(kind)
            for name, data in self.here.read_notes(kind).items():
                if there.get(name) != data:
                    self.there.write_note(kind, name, data)
