"""A fleet: many short trainings at once, each in a run folder of its own; what is done is never done again."""

import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynaxx.core.records import Cost
from dynaxx.errors import BadInput
from dynaxx.survey.engines import Ended, Engine, Job, Processes
from dynaxx.survey.engines._engine import position
from dynaxx.survey.member import Addresses, Member
from dynaxx.survey.results import Result, read_result

RETRIES = 2
"""Further attempts of a member that was lost: a machine that kills three in a row will kill the fourth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetProgress:
    """Where a fleet is.

    Args:
        finished: Members that have a result.
        failed: Members that will have none.
        members: All members, equal ones counted once.
        step: Steps completed by all members together.
        steps: Steps planned for all together.
        seconds: Wall time so far.
        eta: Seconds left at the speed so far; None before any step was seen.
        said: What happened since the last call, in words.
    """

    finished: int
    failed: int
    members: int
    step: int
    steps: int
    seconds: float
    eta: float | None = None
    said: tuple[str, ...] = ()

    def __str__(self) -> str:
        left = "" if self.eta is None else time.strftime("  ETA %H:%M:%S", time.gmtime(self.eta))
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.finished}/{self.members} trainings{failed}  step {self.step}/{self.steps}{left}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What became of a fleet.

    Args:
        results: One per member, in the order in which they were given.
        reused: How many had a result from before.
        retried: How many further attempts there were.
        seconds: Wall time.
        cost: Passes of the members that were trained now.
    """

    results: tuple[Result, ...]
    reused: int = 0
    retried: int = 0
    seconds: float = 0.0
    cost: Cost = field(default_factory=Cost)

    @property
    def finished(self) -> tuple[Result, ...]:
        """The results of members that ran to their end."""
        return tuple(result for result in self.results if result.finished)

    @property
    def failed(self) -> tuple[Result, ...]:
        """The members that did not, with the reason."""
        return tuple(result for result in self.results if not result.finished)

    def __str__(self) -> str:
        """The fleet in a line, and one for each member that failed."""
        head = (
            f"{len(self.finished)} of {len(self.results)} trainings finished in {self.seconds:.0f} s; "
            f"{self.reused} from before, {self.retried} retried"
        )
        return "\n".join([head, *(f"  failed: {each.member}: {each.why}" for each in self.failed)])


def run_fleet(
    members: Sequence[Member],
    dir: str | Path,
    *,
    engine: Engine | None = None,
    retries: int = RETRIES,
    progress: Callable[[FleetProgress], None] = lambda _: None,
) -> Fleet:
    """Train every member, each in a folder of `dir` that is named by its content address.

    A member with a result is not trained again; one that was cut off goes on from its last checkpoint. One whose
    process is lost, or that raises an error, is begun again up to `retries` times; it then has the status "failed", and
    the others are trained all the same.

    Args:
        members: The specifications; equal ones are trained once.
        dir: The fleet's folder.
        engine: Where they are trained; None: processes of this machine.
        retries: Further attempts of a member.
        progress: Called after every change, and at least every few seconds.

    Returns:
        What became of them.

    Raises:
        BadInput: There is no member, or no such task, size or checkpoint.
        KeyboardInterrupt: SIGINT or SIGTERM; members under way have written a checkpoint.

    Example:
        ```python
        fleet = run_fleet(product("digits", steps=60, seeds=range(4), rates=(0.3, 1, 3)), "fleets/digits")
        best = min(fleet.finished, key=lambda result: result.final)
        ```
    """
    if not members:
        raise BadInput("run_fleet(members=...) must hold at least one member. Got none.")
    if retries < 0:
        raise BadInput(f"run_fleet(retries=...) must be at least 0. Got {retries}.")
    began = time.monotonic()
    jobs = _jobs(members, Path(dir))
    board = _Board(jobs.values(), progress)
    with _terminable():
        for attempt in range(retries + 1):
            if pending := board.pending:
                board.retried += len(pending) if attempt else 0
                _round(engine or Processes(), pending, board)
    board.give_up()
    board.report()
    results = tuple(board.results[jobs[member].folder] for member in members)
    return Fleet(
        results=results,
        reused=sum(jobs[member].folder in board.before for member in members),
        retried=board.retried,
        seconds=time.monotonic() - began,
        cost=board.cost(),
    )


def member_steps(planned: int, members: int, passes: float, *, share: float = 0.1) -> int:
    """How long each of several trainings may be: a share of the planned one, shortened to the passes there are.

    Args:
        planned: Optimizer steps of the training that the fleet is to inform.
        members: How many trainings.
        passes: Training passes for all together.
        share: Longest, as a share of the planned steps (0.1: the survey's specification, M5).

    Returns:
        Steps of each, at least 1.

    Example:
        >>> member_steps(10_000, members=6, passes=3000), member_steps(1000, members=6, passes=3000)
        (500, 100)
    """
    return max(1, min(math.floor(share * planned), math.floor(passes / members)))


class _Board:
    """Results by folder as they come in, and what is still to be done."""

    def __init__(self, jobs: Iterable[Job], progress: Callable[[FleetProgress], None]) -> None:
        self.jobs: Mapping[str, Job] = {job.folder: job for job in jobs}
        self.results: dict[str, Result] = {}
        self.retried = 0
        self._lost: dict[str, Result] = {}
        self._said: list[str] = []
        self._progress = progress
        self._began = time.monotonic()
        for folder in self.jobs:
            result = read_result(Path(folder))
            if result is not None:
                self.results[folder] = result
        self.before = frozenset(self.results)
        self._start = self._step()

    @property
    def pending(self) -> list[Job]:
        """Longest first, so that no long one begins when all others have ended."""
        left = [job for folder, job in self.jobs.items() if folder not in self.results]
        return sorted(left, key=lambda job: -job.member.steps)

    def take(self, ended: Ended) -> None:
        folder = ended.job.folder
        result = read_result(Path(folder))
        if result is not None:
            self.results[folder] = result
            return
        failed = Result(member=ended.job.member, folder=folder, status="failed", why=ended.why or ended.status)
        self._said.append(f"{ended.job.member}: {ended.status}: {failed.why}")
        self._lost[folder] = failed
        if ended.status == "refused":
            self.results[folder] = failed

    def give_up(self) -> None:
        """No attempt is left: what has no result has failed."""
        for job in self.pending:
            silent = Result(member=job.member, folder=job.folder, status="failed", why="the engine said nothing of it")
            self.results[job.folder] = self._lost.get(job.folder, silent)

    def report(self) -> None:
        step, seconds = self._step(), time.monotonic() - self._began
        steps = sum(job.member.steps for job in self.jobs.values())
        done = step - self._start
        self._progress(
            FleetProgress(
                finished=sum(result.finished for result in self.results.values()),
                failed=sum(not result.finished for result in self.results.values()),
                members=len(self.jobs),
                step=step,
                steps=steps,
                seconds=seconds,
                eta=(steps - step) * seconds / done if done else None,
                said=tuple(self._said),
            )
        )
        self._said.clear()

    def cost(self) -> Cost:
        new = [result.cost for folder, result in self.results.items() if folder not in self.before]
        return Cost(
            forwards=math.fsum(cost.forwards for cost in new),
            backwards=math.fsum(cost.backwards for cost in new),
            seconds=math.fsum(cost.seconds for cost in new),
        )

    def _step(self) -> int:
        """Steps completed; a member that failed counts as a whole, since nothing of it is left to do."""
        return sum(
            job.member.steps if folder in self.results else min(position(job), job.member.steps)
            for folder, job in self.jobs.items()
        )


def _jobs(members: Sequence[Member], dir: Path) -> dict[Member, Job]:
    address = Addresses()
    return {
        member: Job(member=member.found(), folder=str(dir.resolve() / address(member)))
        for member in dict.fromkeys(members)
    }


def _round(engine: Engine, jobs: Sequence[Job], board: _Board) -> None:
    """One attempt of every job."""
    board.report()
    with closing(engine.run(jobs)) as events:
        for ended in events:
            if ended is not None:
                board.take(ended)
            board.report()


@contextmanager
def _terminable() -> Generator[None]:
    """SIGTERM ends a fleet as Ctrl-C does: members under way write a checkpoint first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    usual = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)
