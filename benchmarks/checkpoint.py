"""Checkpoints under load: killed while saving, damaged on disk, and what they cost, beside the other savers.

`python benchmarks/checkpoint.py` prints the tables `kills damage times integrity steps` (by name: some of them;
`--quick`: a glance; `--json FILE`). Times are ratios within one round, whose parts run one after the other: median and
quartiles; of `integrity` the median and its 95 % interval, by order statistics, over rounds in random order.
"""

import argparse
import json
import logging
import os
import random
import shutil
import signal
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import xxhash
from scipy.stats import binom
from torch.distributed.checkpoint import CheckpointException

from checkpoint_savers import SAVERS, Saver, State, present
from dynaxx.checkpoints.finite import Finiteness

FAILED = (Exception, CheckpointException)  # the latter is no Exception


def content(step: int) -> State:
    """A small state from which its step can be told."""
    draw = torch.Generator().manual_seed(step)
    tensors = {f"weight.{i}": torch.randn(64, 64, generator=draw) for i in range(4)}
    return {**tensors, "step": torch.tensor(step)}


def outcome(saver: Saver, last: int | None) -> str:
    """What a training that starts again finds, `last` being the last step that was acknowledged."""
    try:
        state = saver.load(content(0))
    except FAILED:
        return "right" if last is None else "nothing loads"
    step = int(state["step"])
    if not all(torch.equal(state[name], tensor) for name, tensor in content(step).items()):
        return "torn"
    return "right" if last is None or step >= last else "acknowledged one lost"


def kill_once(make: type[Saver], folder: Path, first: int, seconds: float) -> int | None:
    """Fork a process that saves without pause, kill it; the last step that it had acknowledged by then."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            saver = make(folder)
            for step in range(first, first + 10**6):
                saver.start(step, content(step))()
                os.write(write, step.to_bytes(8, "little"))
                saver.clean()
        finally:
            os._exit(0)
    os.close(write)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    return int.from_bytes(said[-8:], "little") if said else None


def kills(root: Path, quick: bool) -> dict[str, Any]:
    """Counts of what was found after each kill."""
    table: dict[str, Any] = {}
    for name, make in present().items():
        folder, draw, found = root / name, random.Random(0), Counter[str]()
        last, first, saves = None, 0, 0
        for _ in range(8 if quick else 600 if name.startswith("Dynaxx") else 60):
            acknowledged = kill_once(make, folder, first, draw.uniform(0.0, 0.25))
            if acknowledged is not None:
                last, saves = acknowledged, saves + acknowledged - first + 1
            found[outcome(make(folder), last)] += 1
            first = (last or first) + 100
        table[name] = dict(found) | {"saves acknowledged": saves}
        print(f"{name:24} {table[name]}")
    return table


def damage(root: Path, quick: bool) -> dict[str, Any]:
    """Counts of flipped bits and of truncations that a load refuses, bears or hands out."""
    table: dict[str, Any] = {}
    for name, make in present().items():
        if name in ("Dynaxx asynchronous", "dcp.async_save"):  # the same files
            continue
        folder, draw = root / name, random.Random(0)
        saver = make(folder)
        saver.start(1, content(1))()
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        weights = [path.stat().st_size for path in files]
        many = 20 if quick else 400 if name == "Dynaxx" else 100
        for kind in ("flipped bit", "truncation"):
            found = Counter[str]()
            for _ in range(many if kind == "flipped bit" else many // 2):
                (path,) = draw.choices(files, weights)
                good = path.read_bytes()
                data = bytearray(good)
                position = draw.randrange(len(data))
                if kind == "truncation":
                    del data[position:]
                else:
                    data[position] ^= 1 << draw.randrange(8)
                path.write_bytes(data)
                found[verdict(saver)] += 1
                path.write_bytes(good)
            table[f"{name}, {kind}"] = dict(found)
            print(f"{name:24} {kind:12} {dict(found)}")
    return table


def verdict(saver: Saver) -> str:
    """What a load of damaged files does."""
    try:
        state = saver.load(content(0))
    except FAILED:
        return "refused"
    same = all(torch.equal(state[name], tensor) for name, tensor in content(1).items())
    return "harmless" if same else "wrong, handed out"


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


def seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def large(quick: bool) -> State:
    """256 MiB in 64 tensors."""
    return {f"weight.{i}": torch.randn(1 << (10 if quick else 20)) for i in range(64)}


class Nothing:
    """In the place of a checksum."""

    def __init__(self, data: object = b"") -> None:
        del data

    def update(self, data: object) -> None:
        """Look at nothing."""

    def hexdigest(self) -> str:
        """As long as a digest."""
        return "0" * 32


@contextmanager
def without(hashes: bool, look: bool) -> Generator[None]:
    """Save without the checksums, without the look for what is not finite; what is saved so nobody reads."""
    real, looking = xxhash.xxh3_128, Finiteness.update
    try:
        if hashes:
            xxhash.xxh3_128 = Nothing
        if look:
            Finiteness.update = lambda self, chunk: None
        yield
    finally:
        xxhash.xxh3_128, Finiteness.update = real, looking


def integrity(root: Path, quick: bool) -> dict[str, Any]:
    """Whole saves of 256 MiB with checksums and the look for what is not finite, over the same without."""
    state, draw = large(quick), random.Random(0)
    arms = {"neither": (True, True), "checksums": (False, True), "checksums and look": (False, False)}
    wall: dict[str, list[float]] = {name: [] for name in arms}
    processor: dict[str, list[float]] = {name: [] for name in arms}
    for step in range(6 if quick else 24):
        for name in draw.sample(list(arms), len(arms)):
            folder = root / f"{name} {step}"
            saver = SAVERS["Dynaxx"][0](folder)
            with without(*arms[name]):
                began, spent = time.perf_counter(), time.process_time()
                saver.start(step, state)()
                took, spent = time.perf_counter() - began, time.process_time() - spent
            shutil.rmtree(folder)
            os.sync()  # what one arm leaves for the disk to do the next one does not pay
            if step:  # the first round meets the memory for the first time
                wall[name].append(took)
                processor[name].append(spent)
    table: dict[str, Any] = {}
    for name in list(arms)[1:]:
        for kind, found in (("time", wall), ("processor time", processor)):
            ratios = [a / b for a, b in zip(found[name], found["neither"], strict=True)]
            table[f"{name}: {kind} / neither"] = median_interval(ratios)
    table |= {f"seconds of a save, {name}": median_interval(values) for name, values in wall.items()}
    table |= {f"processor seconds, {name}": median_interval(values) for name, values in processor.items()}
    for row, found in table.items():
        print(f"{row:46} {found['median']:.3f} ({found['low']:.3f}–{found['high']:.3f})")
    return table


def median_interval(values: Sequence[float]) -> dict[str, float]:
    """The median and its 95 % interval: between two order statistics, whatever the distribution."""
    ordered = sorted(values)
    place = max(0, int(binom.ppf(0.025, len(ordered), 0.5)) - 1)
    return {"median": statistics.median(ordered), "low": ordered[place], "high": ordered[-1 - place]}


def times(root: Path, quick: bool) -> dict[str, Any]:
    """Blocking, whole saves and loads of 256 MiB; ratios to a copy, to dcp.load and to the other savers."""
    state = large(quick)
    memory = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    sync, dynaxx, plain, dcp, dcp_async = (
        SAVERS[name][0](root / name)
        for name in ("Dynaxx", "Dynaxx asynchronous", "torch.save", "dcp.save", "dcp.async_save")
    )
    rows: dict[str, list[float]] = {}

    def note(row: str, value: float) -> None:
        rows.setdefault(row, []).append(value)

    def block(saver: Saver) -> float:
        began = time.perf_counter()
        wait = saver.start(step, state)
        blocked = time.perf_counter() - began
        wait()
        return blocked

    for step in range(4 if quick else 14):
        copy = seconds(lambda: [memory[name].copy_(tensor) for name, tensor in state.items()])
        ours, theirs = block(dynaxx), block(dcp_async)
        whole = block(sync)
        with_torch, with_dcp = block(plain), block(dcp)
        for saver in (sync, dynaxx):
            saver.clean()
        load, load_dcp = seconds(lambda: sync.load(state)), seconds(lambda: dcp.load(state))
        load_torch = seconds(lambda: plain.load(state))
        if step < 2:  # memory is taken, files are met for the first time
            continue
        note("asynchronous save blocks / copy", ours / copy)
        note("dcp.async_save blocks / copy", theirs / copy)
        note("save / dcp.save", whole / with_dcp)
        note("save / torch.save, which syncs nothing", whole / with_torch)
        note("load, verified / dcp.load", load / load_dcp)
        note("load, verified / torch.load", load / load_torch)
        note("seconds of a copy", copy)
        note("seconds of a save", whole)
        note("seconds of a load", load)
    table = {row: spread(values) for row, values in rows.items()}
    for row, found in table.items():
        print(f"{row:42} {found['median']:.2f} ({found['low']:.2f}–{found['high']:.2f})")
    return table


def steps(root: Path, quick: bool) -> dict[str, Any]:
    """Time per training step while a save of 256 MiB is written, over steps without one."""
    state = large(quick)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(512, 2048), torch.nn.ReLU(), torch.nn.Linear(2048, 512))
    optimizer = torch.optim.AdamW(model.parameters())
    batch = torch.randn(64, 512)

    def step() -> float:
        def once() -> None:
            optimizer.zero_grad()
            (model(batch) - batch).square().mean().backward()
            optimizer.step()

        return seconds(once)

    savers = {name: SAVERS[name][0](root / name) for name in ("Dynaxx asynchronous", "dcp.async_save")}
    ratios: dict[str, list[float]] = {name: [] for name in savers}
    for turn in range(4 if quick else 10):
        for name, saver in savers.items():
            alone = statistics.mean(step() for _ in range(20))
            wait = saver.start(turn, state)
            beside = statistics.mean(step() for _ in range(20))  # about as long as a save takes
            wait()
            saver.clean()
            if turn:
                ratios[name].append(beside / alone)
    table = {name: spread(values) for name, values in ratios.items()}
    for name, found in table.items():
        print(f"steps beside {name:24} {found['median']:.2f} ({found['low']:.2f}–{found['high']:.2f})")
    return table


TABLES = {table.__name__: table for table in (kills, damage, times, integrity, steps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], help="which; default: all")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable()  # torch.distributed.checkpoint logs a traceback for each file that it misses
    warnings.simplefilter("ignore")  # torch.distributed.checkpoint says at each call that it runs in one process
    results: dict[str, Any] = {}
    for name in options.tables or TABLES:
        root = Path(tempfile.mkdtemp(prefix=f"checkpoint-{name}-"))
        try:
            results[name] = TABLES[name](root, options.quick)
        finally:
            shutil.rmtree(root)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
