"""Do per-layer learning rates (meso) win against none? Both with their own best rate, over seeds, on three tasks.

`python benchmarks/methods_meso.py [--seeds 3] [--steps 200] [--tasks digits diabetes stdlib-lm]` prints a table: for
each task the validation loss at the end with and without meso, each at the learning rate that is best for it among 0.5,
1, 2 times the task's own (and further powers of two while the best one is at the edge, at most to 1/16 and 16), as mean
and standard deviation over seeds; the difference is paired by seed, with twice its standard error. Meso wins outside
the noise where the whole interval is below zero.
"""

import argparse
import math
import tempfile
from itertools import count
from pathlib import Path

import numpy as np
import torch

import dynaxx
from dynaxx import catalog
from dynaxx.core.loop import epoch_seed, evaluate, train_steps, validation_seed
from dynaxx.core.task import derive_seed
from dynaxx.schedules import Meso, Rates

RATES = (0.5, 1.0, 2.0)
"""Where the search for the best rate begins."""
WIDEST = 16.0


def final_loss(name: str, rate: float, meso: bool, seed: int, steps: int) -> float:
    """Validation loss after a training of the task's smallest size, its own schedule and optimizer included."""
    task = catalog.get("tasks", name)()
    task.steps = steps
    torch.manual_seed(derive_seed(seed, "global"))
    model = task.model()
    optimizer = task.optimizer(model)
    for group in optimizer.param_groups:
        group["lr"] *= rate
    scheduler = task.scheduler(optimizer)
    rates = Rates(meso=Meso()) if meso else None
    with tempfile.TemporaryDirectory() as folder:
        run = dynaxx.watch(model, optimizer, Path(folder) / "run", signals=(), rates=rates, steps=steps, quiet=True)
        for epoch in count():
            batches = run.batches(task.batches("train", epoch_seed(seed, epoch)))
            for _ in train_steps(task, model, optimizer, batches, scheduler=scheduler):
                if run.step == steps:
                    break
            if run.step == steps:
                break
        run.close()
    return evaluate(task, model, task.batches("validation", validation_seed(seed)))["loss"]


def tuned(name: str, meso: bool, seeds: int, steps: int) -> tuple[float, np.ndarray]:
    """The best rate, and the losses at it by seed."""

    def losses(rate: float) -> np.ndarray:
        return np.array([final_loss(name, rate, meso, seed, steps) for seed in range(seeds)])

    found = {rate: losses(rate) for rate in RATES}
    while True:
        best = min(found, key=lambda rate: float(np.nan_to_num(found[rate].mean(), nan=math.inf)))
        beyond = best / 2 if best == min(found) else best * 2
        if beyond in found or not 1 / WIDEST <= beyond <= WIDEST:
            return best, found[best]
        found[beyond] = losses(beyond)


def compare(name: str, seeds: int, steps: int) -> str:
    """One row of the table."""
    (rate, none), (rate_with, with_meso) = (tuned(name, meso, seeds, steps) for meso in (False, True))
    difference = with_meso - none
    error = 2 * difference.std(ddof=1) / math.sqrt(seeds)
    verdict = "wins" if difference.mean() + error < 0 else "loses" if difference.mean() - error > 0 else "within noise"
    return (
        f"| {name} | {none.mean():.4f} ± {none.std(ddof=1):.4f} (× {rate:g}) "
        f"| {with_meso.mean():.4f} ± {with_meso.std(ddof=1):.4f} (× {rate_with:g}) "
        f"| {difference.mean():+.4f} ± {error:.4f} | {verdict} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tasks", nargs="+", default=["diabetes", "digits", "stdlib-lm"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| task | none (best rate) | meso (best rate) | difference ± 2 standard errors | meso |")
    print("|---|---|---|---|---|")
    for name in options.tasks:
        print(compare(name, options.seeds, options.steps), flush=True)


if __name__ == "__main__":
    main()
