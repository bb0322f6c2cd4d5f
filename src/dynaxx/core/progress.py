"""How far a probe is: passes and products are reported where they are made, to whoever listens."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[float, float], None]
"""`(passes, products)`: losses of one batch taken, and vectors multiplied, since the last call."""

_LISTENER: ContextVar[Listener | None] = ContextVar("dynaxx_progress", default=None)


def report(*, passes: float = 0.0, products: float = 0.0) -> None:
    """Say that work was done; nothing happens where nobody listens.

    Args:
        passes: Losses of one batch that were taken.
        products: Vectors that were multiplied.
    """
    listener = _LISTENER.get()
    if listener is not None:
        listener(passes, products)


@contextmanager
def listening(listener: Listener) -> Generator[None]:
    """Hear of the work that is done within.

    Args:
        listener: Called with passes and products as they are made.
    """
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)
