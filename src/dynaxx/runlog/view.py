"""RunView: what a run folder holds, to read, while it is being written or years later."""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from dynaxx.core.plotting import draw
from dynaxx.core.records import Column
from dynaxx.errors import DynaxxWarning
from dynaxx.runlog.array import LabelledArray, optional
from dynaxx.runlog.columnar import Columnar
from dynaxx.runlog.events import EventReader
from dynaxx.runlog.gather import Gathered, Standing, columns
from dynaxx.runlog.manifest import MISSING, ROLLED_BACK, Attempt, read_attempts, read_manifest
from dynaxx.runlog.overtaken import Excursion, excursions
from dynaxx.runlog.problems import Problem
from dynaxx.runlog.segments import Segment, find_segments
from dynaxx.runlog.writer import flush_live


class RunView(Columnar):
    """The log of one run. `view["grad_norm"]` is a column; `open_run` makes a view.

    What cannot be read is missing and listed in `problems`.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: Mapping[str, Any] = {}
        self.attempts: tuple[Attempt, ...] = ()
        self.columns: Mapping[str, Column] = {}
        self._segments: dict[str, Segment] = {}
        self._events = EventReader(folder)
        self._problems: dict[Problem, None] = {}
        self._told: set[Problem] = set()
        self._cache: WeakValueDictionary[str, LabelledArray] = WeakValueDictionary()
        self._recent: LabelledArray | None = None
        self.refresh()

    def refresh(self) -> None:
        """Read what was written since; arrays handed out before stay as they are."""
        flush_live(self.folder.resolve())
        self.manifest, wrong = read_manifest(self.folder)
        # Before the segments: an attempt that has ended has written all of them.
        attempts, problems, self._notes = read_attempts(self.folder)
        self.attempts = tuple(attempts.values())
        for segment in find_segments(self.folder):
            self._segments.setdefault(segment.file, segment).extend()
        self._events.extend()
        segments = sorted(self._segments.values(), key=lambda s: (s.attempt, s.number, s.stream))
        self.columns, changed = columns(segments)
        left = {n for n, attempt in attempts.items() if attempt.status == ROLLED_BACK}
        starts = {n: attempt.start_step for n, attempt in attempts.items()}
        self._standing = Standing(segments, starts, {n for n in starts if n - 1 in left})
        self._cache.clear()
        self._recent = None
        self._problems.clear()
        if wrong is not None:  # missing with all the rest: killed at its start
            (problems if attempts or segments or wrong.what != MISSING else self._notes).append(wrong)
        problems += [*changed, *self._standing.problems]
        for segment in segments:
            problems += segment.problems
            self._judge_end(segment, attempts.get(segment.attempt), problems)
        self._report([*problems, *self._events.problems], f"RunView.refresh({str(self.folder)!r})")

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What could not be read so far; the values of a column are verified when it is first asked for."""
        return tuple(self._problems)

    @property
    def notes(self) -> tuple[Problem, ...]:
        """What is missing but no cause for concern: ends that a killed process left torn."""
        tail = self._events.tail
        return (*self._notes, *self._events.notes, *([] if tail is None else [tail]))

    @property
    def steps(self) -> np.ndarray:
        """Every step that has a row, int64 of shape (steps,), increasing."""
        return self._standing.steps[0]

    @property
    def attempt_of_steps(self) -> np.ndarray:
        """The attempt that each of `steps` comes from, int64 of shape (steps,)."""
        return self._standing.steps[1]

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The events in the order they were written, those of attempts that were overtaken included.

        Args:
            kind: Only events of this kind; None: all.

        Returns:
            One dict per event, with kind, step, time (UTC seconds), attempt and what the kind says.
        """
        return [event for event in self._events.events if kind is None or event.get("kind") == kind]

    def excursions(self, name: str) -> list[Excursion]:
        """What the run went through and left: rows that a resumption or a rollback has overtaken.

        Args:
            name: A column that is one number a step.

        Returns:
            One excursion per attempt, in order; none where nothing was overtaken or there is no such column.
        """
        column = self.columns.get(name)
        return [] if column is None or column.axis is not None else excursions(column, self._standing)

    def __getitem__(self, name: str) -> LabelledArray:
        array = self._cache.get(name)
        if array is None:
            array = self._cache[name] = super().__getitem__(name)
        self._recent = array  # the others live as long as somebody holds them
        return array

    def to_pandas(self) -> Any:
        """Every column that is one number a step, and the `.total` of the others, as a DataFrame indexed by step."""
        pandas = optional("pandas")
        names = [name for stored in self.columns for name in (stored, f"{stored}.total") if self.is_number(name)]
        frame = pandas.DataFrame(index=pandas.Index(self.steps, name="step"))
        for name in names:
            frame[name] = self[name].to_pandas()  # aligned by step; what was not measured is NaN
        return frame

    def plot(self, name: str) -> Any:
        """A column or a figure of the report, drawn.

        Args:
            name: Its name.

        Returns:
            A matplotlib `Figure`.
        """
        return draw(self, name)

    def __repr__(self) -> str:
        steps, last = self.steps, self.attempts[-1] if self.attempts else None
        end = "unknown" if last is None else last.status or "running or killed"
        reach = f"{len(steps)} steps up to {steps[-1]}" if len(steps) else "no steps"
        attempt = f"attempt {last.n if last else 0}: {end}"
        return f"<RunView {str(self.folder)!r}: {reach}, {len(self.columns)} columns, {attempt}>"

    def stored(self, column: Column) -> LabelledArray:
        """Read a stored column; parts that cannot be read are missing and listed in `problems`."""
        gathered = Gathered(column, self._standing)
        self._report(gathered.problems, f"RunView[{column.name!r}]", depth=5)
        return LabelledArray(column, gathered.steps, gathered.values, self, gathered.entry)

    def _judge_end(self, segment: Segment, attempt: Attempt | None, problems: list[Problem]) -> None:
        """A torn end is normal where the process was killed or gave the segment up, and a loss where it closed it."""
        if segment.closed:
            return
        tail = segment.tail
        unfinished = attempt is None or attempt.ended is None or segment.path.name in attempt.abandoned
        if tail is None and not unfinished:
            problems.append(Problem(file=segment.file, what="cut short", lost="what followed its last row"))
        elif tail is not None:
            (self._notes if unfinished and segment.torn else problems).append(tail)

    def _report(self, problems: Iterable[Problem], call: str, depth: int = 4) -> None:
        """Keep problems, and warn once of each, in the name of the caller so many calls up."""
        new = [problem for problem in dict.fromkeys(problems) if problem not in self._told]
        self._problems.update(dict.fromkeys(problems))
        self._told.update(new)
        if new:
            shown = "; ".join(map(str, new[:3])) + (f"; and {len(new) - 3} more" if len(new) > 3 else "")
            warnings.warn(
                f"{call}: {len(new)} part(s) of the log cannot be read, the rest can: {shown}. "
                "`view.problems` lists them.",
                DynaxxWarning,
                stacklevel=depth,
            )
