"""What the run log costs to write and to read, beside SQLite with a row per scalar, JSON lines and bare bytes.

`python benchmarks/runlog.py` prints two tables; times are CPU seconds of this process, medians of three, as ratios to
Dynaxx where there is a peer.
"""

import json
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dynaxx.core.records import Axis, Column
from dynaxx.runlog import LogWriter, open_run

LAYERS, STATISTICS, BLOCK, STEPS = 500, 8, 64, 640
AXIS = Axis(name="layer", labels=tuple(f"transformer.blocks.{n}.mlp.weight" for n in range(LAYERS)))
COLUMNS = [Column(name=f"statistic_{n}", axis=AXIS, reduce="l2") for n in range(STATISTICS)]
LONG = 100_000


def values(steps: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((steps, LAYERS, STATISTICS), dtype=np.float32)


def write_dynaxx(folder: Path, data: np.ndarray) -> float:
    """Returns the caller's own seconds."""
    log = LogWriter(folder, manifest={"name": "benchmark"})
    own = 0.0
    for first in range(0, len(data), BLOCK):
        part = data[first : first + BLOCK]
        block = [(column, np.ascontiguousarray(part[:, :, n]), None) for n, column in enumerate(COLUMNS)]
        start = time.thread_time()
        log.rows("every", np.arange(first + 1, first + 1 + len(part)), block)
        own += time.thread_time() - start
    log.close()
    return own


def write_sqlite(folder: Path, data: np.ndarray) -> None:
    database = sqlite3.connect(folder / "log.db")
    database.execute("pragma journal_mode=wal")
    database.execute("create table log (name text, step integer, value real)")
    names = [f"statistic_{n}/{label}" for label in AXIS.labels for n in range(STATISTICS)]
    for first in range(0, len(data), BLOCK):
        for offset, row in enumerate(data[first : first + BLOCK].reshape(-1, len(names)).tolist()):
            rows = zip(names, [first + offset] * len(names), row, strict=True)
            database.executemany("insert into log values (?, ?, ?)", rows)
        database.commit()
    database.execute("create index series on log (name, step)")
    database.commit()
    database.close()


def write_lines(folder: Path, data: np.ndarray) -> None:
    with (folder / "log.jsonl").open("w") as file:
        for step, row in enumerate(data):
            record = {f"statistic_{n}": row[:, n].tolist() for n in range(STATISTICS)}
            file.write(json.dumps({"step": step, **record}) + "\n")


def write_bytes(folder: Path, data: np.ndarray) -> None:
    with (folder / "log.bin").open("wb") as file:
        for first in range(0, len(data), BLOCK):
            file.write(data[first : first + BLOCK].tobytes())


def series_sqlite(folder: Path) -> np.ndarray:
    database = sqlite3.connect(folder / "log.db")
    found = database.execute("select value from log where name = ? order by step", (f"statistic_0/{AXIS.labels[7]}",))
    result = np.array([value for (value,) in found])
    database.close()
    return result


def series_lines(folder: Path) -> np.ndarray:
    with (folder / "log.jsonl").open() as file:
        return np.array([json.loads(line)["statistic_0"][7] for line in file])


def series_bytes(folder: Path) -> np.ndarray:
    return np.memmap(folder / "log.bin", np.float32, "r").reshape(-1, LAYERS, STATISTICS)[:, 7, 0].copy()


def series_dynaxx(folder: Path) -> np.ndarray:
    return np.asarray(open_run(folder)["statistic_0"].layer(AXIS.labels[7]))


def median(action: Callable[[], object], repeats: int = 3) -> float:
    times: list[float] = []
    for _ in range(repeats):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return statistics.median(times)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def fresh(place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    return place


def compare(root: Path) -> None:
    data = values(STEPS)
    peers = {
        "Dynaxx": (write_dynaxx, series_dynaxx),
        "bare bytes": (write_bytes, series_bytes),
        "JSON lines": (write_lines, series_lines),
        "SQLite, row per scalar": (write_sqlite, series_sqlite),
    }
    place, figures = root / "peer", {}
    for name, (write, read) in peers.items():
        repeats = 3 if name in ("Dynaxx", "bare bytes") else 1
        writing = median(lambda write=write: write(fresh(place), data), repeats)
        assert np.allclose(read(place), data[:, 7, 0])
        figures[name] = (writing, size(place) / data.size, median(lambda read=read: read(place)))
    print(f"{STEPS} steps × {LAYERS} layers × {STATISTICS} statistics, float32, blocks of {BLOCK} steps")
    print(f"{'':24}{'write ms/step':>15}{'ratio':>8}{'bytes/value':>13}{'one series ms':>15}{'ratio':>8}")
    first = figures["Dynaxx"]
    for name, (writing, each, reading) in figures.items():
        row = f"{name:24}{writing / STEPS * 1e3:15.3f}{writing / first[0]:8.2f}{each:13.2f}{reading * 1e3:15.1f}"
        print(row + f"{reading / first[2]:8.2f}")
    own = statistics.median(write_dynaxx(fresh(place), data) for _ in range(3))
    print(f"of Dynaxx' writing, the training's own thread pays {own / STEPS * 1e3:.3f} ms/step\n")


def long_run(root: Path) -> None:
    folder = root / "long"
    log = LogWriter(folder, manifest={"name": "benchmark"})
    data = values(BLOCK)[:, :, 0]
    for first in range(0, LONG, BLOCK):
        rows = min(BLOCK, LONG - first)
        log.rows("every", np.arange(first + 1, first + 1 + rows), [(COLUMNS[0], data[:rows], None)])
        if first % 6400 == 0:  # faster than any training: more than 256 MiB must not wait
            log.flush()
    log.close()
    print(f"{LONG} steps × {LAYERS} layers, {size(folder) / 2**20:.0f} MiB, page cache warm")
    print(f"{'':24}{'wall s':>15}")
    for name, action in {
        "open": lambda: open_run(folder),
        "open, one layer": lambda: open_run(folder)["statistic_0"].layer(AXIS.labels[7]).values,
        "open, whole matrix": lambda: open_run(folder)["statistic_0"].values,
        "open, total": lambda: open_run(folder)["statistic_0.total"].values,
        "open, median": lambda: open_run(folder)["statistic_0.median"].values,
    }.items():
        times: list[float] = []
        for _ in range(5):
            start = time.perf_counter()
            action()
            times.append(time.perf_counter() - start)
        print(f"{name:24}{statistics.median(times):15.3f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root:
        compare(Path(root))
        long_run(Path(root))
