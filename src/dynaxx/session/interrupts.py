"""A training that is asked to stop completes its step first."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interruptible() -> Generator[threading.Event]:
    """The first SIGINT or SIGTERM sets the event, so that the step is completed and saved; a second one is as usual.

    Yields:
        The event. Off the main thread, where signals cannot be handled, it is never set.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    usual = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def first(number: int, frame: Any) -> None:
        del frame
        event.set()
        for each, handler in usual.items():
            signal.signal(each, handler)

    for each in usual:
        signal.signal(each, first)
    try:
        yield event
    finally:
        for each, handler in usual.items():
            signal.signal(each, handler)
