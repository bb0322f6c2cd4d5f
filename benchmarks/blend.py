"""Does blending the last ten checkpoints of a run beat the best of them? And what does the diverse buffer cost?

`python benchmarks/blend.py [--seeds 5] [--steps 200] [--schedules cosine constant]` trains `stdlib-lm` (tiny) with each
seed, with its own schedule and at a constant rate, and blends the last ten of twenty checkpoints by each rule. The
difference is blend − best part on the half of the validation windows that chose neither, as mean and standard error
over the seeds, with the verdicts of the single runs. Before that 32 million parameters are sketched.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dynaxx import catalog
from dynaxx.checkpoints.blend import blend
from dynaxx.checkpoints.coordinates import ByWeights
from dynaxx.checkpoints.places import LocalPlace
from dynaxx.session.recipe import Recipe
from dynaxx.session.train import train

RULES = ("window", "uniform", "decay", "ema", "exponential", "greedy")
"""The half-life of "ema" is an eighth of the steps."""
SCHEDULES = ("cosine", "constant")
"""The task's own, half a cosine to 5 %; and none behind the warm-up."""


def trained(folder: Path, seed: int, steps: int, schedule: str) -> None:
    task = catalog.get("tasks", "stdlib_lm")("tiny")
    recipe = Recipe(schedule="constant:warmup=0.05") if schedule == "constant" else None
    train(task, folder, name="stdlib_lm", spec="stdlib_lm", seed=seed, steps=steps, recipe=recipe, signals=(), keep=20,
          quiet=True)  # fmt: skip


def blended(folder: Path, steps: int) -> dict[str, tuple[float, float, str, float]]:
    """Rule → difference, best part's loss, verdict, passes over the validation windows."""
    found = {}
    for how in RULES:
        words = f"ema:half_life={steps // 8}" if how == "ema" else how
        made = blend(folder, catalog.get("tasks", "stdlib_lm")("tiny"), how=words, last=10)
        chart = made.chart
        found[how] = chart["difference"], chart["best_part"], made.verdict, chart.cost.forwards
    return found


def soups(seeds: int, steps: int, schedules: Sequence[str]) -> None:
    for schedule in schedules:
        runs = []
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                trained(Path(folder) / "run", seed, steps, schedule)
                runs.append(blended(Path(folder) / "run", steps))
            print(f"{schedule}, seed {seed}: {runs[-1]}", file=sys.stderr, flush=True)
        best = np.array([run["window"][1] for run in runs])
        print(f"\nstdlib-lm tiny, {steps} steps, schedule: {schedule}; best part {best.mean():.4f} nats a byte")
        print(f"{'rule':<14}{'blend − best part':>24}  {'better':>7}{'open':>7}{'worse':>7}  {'passes':>7}")
        for how in RULES:
            apart = np.array([run[how][0] for run in runs])
            error = apart.std(ddof=1) / math.sqrt(len(apart)) if len(apart) > 1 else math.nan
            verdicts = [run[how][2] for run in runs]
            counts = [verdicts.count(word) for word in ("better", "not established", "worse")]
            passes = np.mean([run[how][3] for run in runs])
            told = "".join(f"{count:>7}" for count in counts)
            print(f"{how:<14}{apart.mean():>+14.4f} ± {error:.4f}  {told}  {passes:>7.1f}")


def sketching(rounds: int = 5) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1024, 1024)] * 30 + [(1024,)] * 60
    base = {f"w{i}": torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)}
    with tempfile.TemporaryDirectory() as folder:
        points, moved, seconds = ByWeights(LocalPlace(folder)), [], []
        for i in range(rounds):
            moved.append({n: t + 10.0**-i * torch.randn(t.shape, generator=generator) for n, t in base.items()})
            begun = time.perf_counter(), time.process_time()
            moved[-1]["point"] = points.compute({"state": moved[-1]})
            seconds.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    errors = []
    for i in range(rounds):
        for j in range(i):
            exact = math.sqrt(sum(float((moved[i][n] - moved[j][n]).double().square().sum()) for n in base))
            errors.append(abs(float((moved[i]["point"] - moved[j]["point"]).double().norm()) / exact - 1))
    size = sum(t.numel() for t in base.values())
    wall, cpu = (sorted(column) for column in zip(*seconds, strict=True))
    print(f"\nsketch of {size / 1e6:.1f} M parameters, {torch.get_num_threads()} thread: median "
          f"{wall[rounds // 2]:.3f} s (CPU {cpu[rounds // 2]:.3f} s), best {wall[0]:.3f} s")  # fmt: skip
    print(f"distances: error {np.mean(errors):.2%} on average, {max(errors):.2%} at most, over {len(errors)} pairs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=SCHEDULES)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sketching()
    soups(given.seeds, given.steps, given.schedules)


if __name__ == "__main__":
    main()
