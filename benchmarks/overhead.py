"""What watching costs a training loop, in time and memory, beside other tools on the same loops.

`python benchmarks/overhead.py` prints the table; `--quick` is a glance, `--json FILE` keeps every figure.

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
import multiprocessing
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import DYNAXX, PEERS, Contender, Loop, Step

from dynaxx.session.cadence import CALIBRATION

GROUPS, RESAMPLES = 16, 2000
"""Pairs are resampled for the interval of the total in 16 runs of neighbours, so that periods stay together."""


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
QUICK = {"digits": 1024, "stdlib-lm": 32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was measured of one contender on one loop. Times are in seconds, intervals hold the ratio with 95 %."""

    name: str
    steps: int
    bare: float
    median: float
    median_interval: tuple[float, float]
    total: float
    total_interval: tuple[float, float]
    cpu: float


def turns(loops: Sequence[Step], pairs: int, turn: int) -> tuple[np.ndarray, np.ndarray]:
    """Wall and processor seconds of both loops' turns, each of shape (pairs, 2)."""
    wall, cpu = np.zeros((pairs, 2)), np.zeros((pairs, 2))
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 else (1, 0):
            step = loops[which]
            began, used = time.perf_counter(), time.process_time()
            for _ in range(turn):
                step()
            wall[pair, which], cpu[pair, which] = time.perf_counter() - began, time.process_time() - used
    return wall, cpu


def row(name: str, turn: int, wall: np.ndarray, cpu: np.ndarray) -> Row:
    """Both estimates, each with its bootstrap interval."""
    draw = np.random.default_rng(0)
    ratios = wall[:, 1] / wall[:, 0]
    medians = np.median(draw.choice(ratios, (RESAMPLES, len(ratios))), axis=1)
    groups = np.stack([part.sum(axis=0) for part in np.array_split(wall, min(GROUPS, len(wall)))])
    sums = groups[draw.integers(len(groups), size=(RESAMPLES, len(groups)))].sum(axis=1)
    bare, watched = wall.sum(axis=0)
    return Row(
        name=name,
        steps=turn * len(wall),
        bare=float(np.median(wall[:, 0])) / turn,
        median=float(np.median(ratios)),
        median_interval=interval(medians),
        total=float(watched / bare),
        total_interval=interval(sums[:, 1] / sums[:, 0]),
        cpu=float(cpu[:, 1].sum() / cpu[:, 0].sum()),
    )


def interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def compare(case: Case, contender: Contender, steps: int) -> list[Row]:
    """The rows of one contender on one loop: for Dynaxx the first steps, then the rest."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    planned = 2 * CALIBRATION + steps
    a, b = Loop(case.task, case.size, planned), Loop(case.task, case.size, planned)
    for _ in range(3):  # allocators and kernels settle
        a.step(), b.step()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        pair = a.step, contender.attach(b, Path(folder))
        rows: list[Row] = []
        if contender is DYNAXX or contender.name == DYNAXX.name:
            # Turns of ten: the calibration must see steps that follow one another, as they do outside a benchmark.
            rows.append(row(f"{contender.name}, first {CALIBRATION}", 10, *turns(pair, CALIBRATION // 10, 10)))
        rows.append(row(contender.name, case.turn, *turns(pair, steps // case.turn, case.turn)))
    return rows
