"""What a run that is resumed goes on from: the same checkpoint on every rank."""

from dynaxx.checkpoints import CheckpointStore
from dynaxx.checkpoints.fallback import Loaded
from dynaxx.errors import DynaxxError
from dynaxx.session.training import Training

TRIES = 3
"""Resumptions from a checkpoint without reaching the next save before the one before it is tried: as many restarts as
torchrun is commonly given (`--max-restarts=3` in its documentation). What comes again after them lies in the state."""


def latest(store: CheckpointStore, training: Training) -> Loaded | tuple[None, None]:
    """The latest valid checkpoint, chosen by the first rank; under several ranks a collective.

    One from which training went on `TRIES` times without reaching a save is passed over for the one before.

    Args:
        store: The run's checkpoints.
        training: What is to be restored from it.

    Returns:
        Its state and what it is; None twice where there is no checkpoint.

    Raises:
        CorruptData: All checkpoints are corrupted; every rank raises what the first one found.
    """
    loaded: Loaded | tuple[None, None] = (None, None)
    found: str | DynaxxError | None = None
    if training.rank == 0:
        try:
            if store.list():
                loaded = store.load(tries=TRIES)
                found = loaded[1].path.name
        except DynaxxError as error:
            found = error
    found = training.from_first(found)
    if isinstance(found, DynaxxError):
        raise found
    if training.rank != 0 and found is not None:
        return store.load(next(info for info in store.list() if info.path.name == found))
    return loaded
