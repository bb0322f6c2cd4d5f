"""Progress of a training: a bar with ETA on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dynaxx.core.progress import listening
from dynaxx.core.records import Cost
from dynaxx.session.train import Progress as Position
from dynaxx.survey.fleet import FleetProgress

REFRESH = 0.5
"""Seconds between updates of the bar: reading the loss waits for an accelerator, so it is not done every step."""
LINES = 10.0
"""Seconds between plain lines; every evaluation has a line of its own."""


@contextmanager
def reporter(label: str, *, json: bool, quiet: bool) -> Generator[Callable[[Position], None]]:
    """What to call after every step.

    Args:
        label: The task.
        json: Keep standard output free for the one JSON object: progress goes to standard error.
        quiet: Show nothing.

    Yields:
        The callable.
    """
    console = Console(stderr=json or sys.stdout.isatty())
    if quiet:
        yield lambda _: None
    elif console.is_terminal:
        with _bar(console) as bar:
            yield _Bar(bar, label)
    else:
        yield _Lines(sys.stderr if json else sys.stdout)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[facts]}"),
        console=console,
    )


class _Bar:
    def __init__(self, bar: Progress, label: str) -> None:
        self._bar = bar
        self._label = label
        self._row: Any = None
        self._shown = 0.0

    def __call__(self, at: Position) -> None:
        if self._row is None:
            self._row = self._bar.add_task(self._label, total=at.steps, completed=at.step, facts="")
        now = time.monotonic()
        if now - self._shown > REFRESH or at.fresh or at.step == at.steps:
            self._shown = now
            self._bar.update(self._row, completed=at.step, facts=_facts(at))


class _Lines:
    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._began = self._shown = time.monotonic()
        self._first: int | None = None

    def __call__(self, at: Position) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = at.step - 1
        if not (at.fresh or at.step == at.steps or now - self._shown > LINES):
            return
        self._shown = now
        rate = (at.step - self._first) / max(now - self._began, 1e-9)
        left = time.strftime("%H:%M:%S", time.gmtime((at.steps - at.step) / rate))
        print(f"step {at.step}/{at.steps}  {_facts(at)}  {rate:.3g} steps/s  ETA {left}", file=self._stream, flush=True)


def _facts(at: Position) -> str:
    facts = [f"loss {float(at.loss):.4g}", f"lr {at.rate:.3g}"]
    facts += [f"{name} {value:.4g}" for name, value in at.validation.items()]
    return "  ".join(facts)


@contextmanager
def working(label: str, price: Cost, *, batches: int, json: bool, quiet: bool) -> Generator[None]:
    """Show how far a probe is, by the passes and products of its declared price.

    Args:
        label: The probe.
        price: What it declared.
        batches: Batches of one pass.
        json: Keep standard output free for the one JSON object.
        quiet: Show nothing.
    """
    console = Console(stderr=True)
    if quiet or json or not console.is_terminal:
        yield
        return
    total = price.forwards + price.backwards + 2 * price.products
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        row = bar.add_task(label, total=max(total, 1.0))

        def heard(passes: float, products: float) -> None:
            bar.update(row, advance=passes / batches + 2 * products)

        with listening(heard):
            yield


@contextmanager
def fleet_reporter(
    label: str, *, json: bool, quiet: bool
) -> Generator[tuple[Callable[[str], None], Callable[[FleetProgress], None]]]:
    """What a map calls with a line after each probe, and as its short trainings proceed.

    Args:
        label: The task.
        json: Keep standard output free for the one JSON object: progress goes to standard error.
        quiet: Show nothing.

    Yields:
        Both callables.
    """
    console = Console(stderr=json or sys.stdout.isatty())
    if quiet:
        yield lambda _: None, lambda _: None
        return
    if not console.is_terminal:
        stream = sys.stderr if json else sys.stdout
        yield lambda line: print(f"{label}  {line}", file=stream, flush=True), _FleetLines(stream)
        return
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[facts]}"),
        console=console, transient=True,
    ) as bar:  # fmt: skip
        row = bar.add_task(label, total=None, facts="")

        def moved(at: FleetProgress) -> None:
            bar.update(row, total=at.steps, completed=at.step, facts=str(at))

        yield bar.console.print, moved


class _FleetLines:
    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._shown = time.monotonic()

    def __call__(self, at: FleetProgress) -> None:
        for line in at.said:
            print(line, file=self._stream, flush=True)
        if time.monotonic() - self._shown > LINES:
            self._shown = time.monotonic()
            print(str(at), file=self._stream, flush=True)
