"""What watching costs a training loop, in time and memory, beside other tools on the same loops.

`python benchmarks/overhead.py` prints the table; `--quick` is a glance, `--json FILE` keeps every figure. On a loop
whose steps take a second the table is made in pieces: `--only NAME` takes one row, `--seconds S` ends it by the clock.

Each row is measured in a process of its own. It holds two copies of one training (model, optimizer, data order), one
bare and one watched, and lets them take turns of a few steps, so that what else the machine does meets both alike. The
order within a pair of turns alternates. Two estimates of the ratio watched : bare are given with 95 % intervals:

- the median of the pairs' ratios: robust against a disturbance, but blind to what is measured rarely;
- the ratio of total times: every step counts, and runs cover whole periods of what is measured rarely.

Both are of wall time; "cpu" is the ratio of the total processor times of all threads, which other programs on the
machine do not inflate. The schedule of what is measured is Dynaxx' default: everything in the first 100 steps, a row of
its own, then by calibrated cadences.
"""

import argparse
import json
import math
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from contenders import DYNAXX, PEERS, Contender, Loop, Step
from dynaxx.session.cadence import CALIBRATION

T = TypeVar("T")

GROUPS, RESAMPLES = 16, 2000
"""Pairs are resampled for the interval of the total in 16 runs of neighbours, so that periods stay together."""
FEWEST = 8
"""Pairs that a row has, however long they take: the 95 % interval of a median of fewer is their whole range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A loop to measure on.

    Args:
        task: Built-in task.
        size: Its size.
        steps: Watched steps of the Dynaxx row; peers take `peer_steps`, fewer where a step is slow.
        peer_steps: About so many steps for every other row.
        turn: Steps in one turn.
        limit: The ratio that Dynaxx must keep to.
    """

    task: str
    size: str
    steps: int
    peer_steps: int
    turn: int
    limit: float


CASES = (
    Case(task="digits", size="tiny", steps=8192, peer_steps=2048, turn=16, limit=1.05),
    Case(task="stdlib-lm", size="medium", steps=512, peer_steps=128, turn=1, limit=1.02),
)
MEMORY = CASES[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was measured of one contender on one loop. Times are in seconds, intervals hold the ratio with 95 %.

    Without a total, the row ended before everything that is measured rarely had its turn.
    """

    name: str
    steps: int
    bare: float
    median: float
    median_interval: tuple[float, float]
    total: float | None
    total_interval: tuple[float, float] | None
    cpu: float


def turns(loops: Sequence[Step], pairs: int, turn: int, seconds: float = math.inf) -> tuple[np.ndarray, np.ndarray]:
    """Wall and processor seconds of both loops' turns, each of shape (pairs, 2); fewer where the time is over."""
    wall, cpu = np.zeros((pairs, 2)), np.zeros((pairs, 2))
    end = time.perf_counter() + seconds
    for pair in range(pairs):
        if pair >= FEWEST and time.perf_counter() > end:
            return wall[:pair], cpu[:pair]
        for which in (0, 1) if pair % 2 else (1, 0):
            step = loops[which]
            began, used = time.perf_counter(), time.process_time()
            for _ in range(turn):
                step()
            wall[pair, which], cpu[pair, which] = time.perf_counter() - began, time.process_time() - used
    return wall, cpu


def row(name: str, turn: int, wall: np.ndarray, cpu: np.ndarray, period: int = 1) -> Row:
    """Both estimates, each with its bootstrap interval; the total of whole periods only."""
    draw = np.random.default_rng(0)
    ratios = wall[:, 1] / wall[:, 0]
    medians = np.median(draw.choice(ratios, (RESAMPLES, len(ratios))), axis=1)
    groups = np.stack([part.sum(axis=0) for part in np.array_split(wall, min(GROUPS, len(wall)))])
    sums = groups[draw.integers(len(groups), size=(RESAMPLES, len(groups)))].sum(axis=1)
    bare, watched = wall.sum(axis=0)
    whole = turn * len(wall) >= period
    return Row(
        name=name,
        steps=turn * len(wall),
        bare=float(np.median(wall[:, 0])) / turn,
        median=float(np.median(ratios)),
        median_interval=interval(medians),
        total=float(watched / bare) if whole else None,
        total_interval=interval(sums[:, 1] / sums[:, 0]) if whole else None,
        cpu=float(cpu[:, 1].sum() / cpu[:, 0].sum()),
    )


def interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def compare(case: Case, contender: Contender, steps: int, seconds: float) -> list[Row]:
    """The rows of one contender on one loop; for Dynaxx the first steps, measured in full, are a row of their own."""
    warnings.simplefilter("ignore")
    a, b = prepared(case, steps), prepared(case, steps)
    rows: list[Row] = []
    with scratch() as folder:
        pair = a.step, contender.attach(b, folder)
        if contender.name == DYNAXX.name:
            # Turns of ten: the calibration must see steps that follow one another, as they do outside a benchmark.
            first = turns(pair, CALIBRATION // 10, 10)
            rows.append(row(f"{contender.name}, first {CALIBRATION}", 10, *first))
        taken = turns(pair, steps // case.turn, case.turn, seconds)
        rows.append(row(contender.name, case.turn, *taken, period=contender.period))
    return rows


def prepared(case: Case, steps: int) -> Loop:
    """A loop whose allocators, kernels and optimizer have settled; one thread, as cores may be busy."""
    torch.set_num_threads(1)
    loop = Loop(case.task, case.size, 2 * CALIBRATION + steps)
    for _ in range(3):
        loop.step()
    return loop


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def allocated(case: Case, watched: bool) -> float:
    """Peak of what torch's allocator handed out over five steps, in bytes, above what a settled loop holds."""
    loop = prepared(case, 0)
    with scratch() as folder, profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step = DYNAXX.attach(loop, folder) if watched else loop.step
        for _ in range(5):
            step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


def resident(case: Case, watched: bool) -> float:
    """Peak of the process' resident memory over 40 steps, in bytes, above what a settled loop holds; Linux only."""
    loop = prepared(case, 0)
    before = high_water(reset=True)
    with scratch() as folder:
        step = DYNAXX.attach(loop, folder) if watched else loop.step
        for _ in range(40):
            step()
    return high_water() - before


def high_water(*, reset: bool = False) -> float:
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("VmHWM"))
    return 1024.0 * int(line.split()[1])


def fresh(call: Callable[..., T], *arguments: Any) -> T:
    """The call's result from a process of its own, so that no tool's hooks or threads outlive its row."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


def measure(case: Case, contenders: Sequence[Contender], quick: bool, seconds: float) -> Iterator[Row | str]:
    """The rows of one loop as they come, or why there is none."""
    for contender in contenders:
        wanted = (case.steps if contender.name == DYNAXX.name else case.peer_steps) // (16 if quick else 1)
        steps = max(wanted, contender.period) // contender.period * contender.period // case.turn * case.turn
        if not contender.installed:
            yield f"{contender.name}: not installed"
        elif steps > 4 * wanted and seconds == math.inf:
            yield f"{contender.name}: left out, repeats itself only every {contender.period} steps"
        else:
            try:
                yield from fresh(compare, case, contender, steps, seconds)
            except Exception as error:
                yield f"{contender.name}: does not run here: {type(error).__name__}: {error}"


HEAD = f"{'':28}{'steps':>6}{'bare ms':>9}{'median ratio':>22}{'ratio of totals':>22}{'cpu':>7}"


def line(row: Row) -> str:
    def ratio(value: float | None, between: tuple[float, float] | None) -> str:
        return (
            "no whole period"
            if value is None or between is None
            else f"{value:7.3f} ({between[0]:.3f}-{between[1]:.3f})"
        )

    ratios = f"{ratio(row.median, row.median_interval):>22}{ratio(row.total, row.total_interval):>22}"
    return f"{row.name:28}{row.steps:6}{row.bare * 1e3:9.2f}{ratios}{row.cpu:7.3f}"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--quick", action="store_true", help="a sixteenth of the steps, no peers: a glance")
    arguments.add_argument("--task", choices=[case.task for case in CASES], help="one loop only")
    arguments.add_argument("--only", metavar="NAME", help="rows whose names hold this; 'memory' for the memory")
    arguments.add_argument("--seconds", type=float, default=math.inf, help="end every row by the clock")
    arguments.add_argument("--json", type=Path, metavar="FILE", help="write every figure here as well")
    given = arguments.parse_args()
    found: dict[str, Any] = {"load": os.getloadavg(), "cores": os.cpu_count(), "torch": torch.__version__}
    contenders = (DYNAXX,) if given.quick else (DYNAXX, *PEERS)
    contenders = [c for c in contenders if given.only is None or given.only in c.name]
    for case in CASES if contenders else ():
        if given.task in (None, case.task):
            print(f"\n{case.task} {case.size}, one thread; Dynaxx must keep to {case.limit:.2f}\n{HEAD}", flush=True)
            rows = found[case.task] = []
            for result in measure(case, contenders, given.quick, given.seconds):
                print(result if isinstance(result, str) else line(result), flush=True)
                rows.append(result if isinstance(result, str) else asdict(result))
            print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if given.task in (None, MEMORY.task) and given.only in (None, "memory"):
        found["memory"] = memory()
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2))


def memory() -> dict[str, float]:
    """Extra memory in copies of the parameters, as torch's allocator and as the operating system see it."""
    copy = sum(p.numel() * p.element_size() for p in Loop(MEMORY.task, MEMORY.size, 1).model.parameters())
    found = {
        call.__name__: (fresh(call, MEMORY, True) - fresh(call, MEMORY, False)) / copy for call in (allocated, resident)
    }
    print(
        f"\nextra memory of dynaxx.watch on {MEMORY.task} {MEMORY.size}, "
        f"in copies of the parameters ({copy / 1e6:.1f} MB)"
    )
    print(f"at the peak of torch's allocations {found['allocated']:.3f}, of resident memory {found['resident']:.3f}")
    return found


if __name__ == "__main__":
    main()
