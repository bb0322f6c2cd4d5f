"""Does the rate that `lr_range` suggests train as well as the best of a grid? Beside torch-lr-finder's suggestion.

`python benchmarks/map_lr.py --grid` trains twelve rates × five seeds on each task and keeps the final losses in
`map_lr_grid.json`; `python benchmarks/map_lr.py` suggests a rate at each seed's initial weights, trains with it and
compares. A training is a short one: the task's own optimizer and schedule over `STEPS` steps, the peak rate replaced.
Its final loss is that over fixed training batches in evaluation mode, since an optimizer minimises the training loss;
the validation loss is given beside it. A suggestion hits where its final loss is at most the best mean of the grid plus
the larger of 5 % of it and one standard deviation over seeds. Where the spread over seeds decides, the best rate of the
grid itself hits five times in six only: its own hits are given, and whether the mean over seeds hits.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynaxx import catalog
from dynaxx.core.isolation import isolated_random
from dynaxx.core.loop import epoch_seed, evaluate, train_steps, validation_seed
from dynaxx.core.objective import Objective
from dynaxx.core.task import Task, derive_seed
from dynaxx.landscape.lr_range import LrRange

KEPT = Path(__file__).with_name("map_lr_grid.json")
STEPS = {"digits": 150, "stdlib-lm": 100, "diabetes": 150}
SEEDS = {"digits": range(100, 110), "stdlib-lm": range(100, 105), "diabetes": range(100, 110)}
"""Looked at only once the estimator stood; it was set on seeds 0 to 4 (`--seeds 0 1 2 3 4 --kept FILE`)."""
FACTORS = [2.0**k for k in range(-6, 6)]
"""Of the task's default rate: twelve, around it."""
EVALUATED = 12
"""Training batches that the final loss is taken over."""
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "digits": nn.functional.cross_entropy,
    "stdlib-lm": lambda out, y: nn.functional.cross_entropy(out.flatten(0, 1), y.flatten()),
    "diabetes": nn.functional.mse_loss,
}
"""The tasks' losses as torch-lr-finder wants them; the same numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """What a tool said, and what it took.

    Args:
        rate: The rate; None: none.
        passes: Batches passed forward and backward.
        seconds: Wall clock.
    """

    rate: float | None
    passes: float
    seconds: float


class Endless:
    """A task's training batches, epoch after epoch.

    Args:
        task: Whose.
        seed: The run's.
    """

    def __init__(self, task: Task, seed: int) -> None:
        self.task, self.seed = task, seed

    def __iter__(self) -> Iterator[Any]:
        epoch = 0
        while True:
            yield from self.task.batches("train", epoch_seed(self.seed, epoch))
            epoch += 1


def begun(name: str, seed: int) -> tuple[Task, nn.Module]:
    task = catalog.task(name, None)
    task.steps = STEPS[name]
    with isolated_random():
        torch.manual_seed(derive_seed(seed, "global"))
        return task, task.model()


def trained(name: str, seed: int, rate: float) -> tuple[float, float]:
    """Final training and validation loss of a short run."""
    task, model = begun(name, seed)
    optimizer = task.optimizer(model)
    for group in optimizer.param_groups:
        group["lr"] = rate
    scheduler = task.scheduler(optimizer)
    torch.manual_seed(derive_seed(seed, "global"))
    for loss in train_steps(task, model, optimizer, islice(Endless(task, seed), STEPS[name]), scheduler=scheduler):
        if not math.isfinite(loss.item()):
            return math.inf, math.inf
    fixed = islice(task.batches("train", derive_seed(seed, "evaluated")), EVALUATED)
    held_out = task.batches("validation", validation_seed(seed))
    losses = evaluate(task, model, fixed)["loss"], evaluate(task, model, held_out)["loss"]
    return (losses[0], losses[1]) if all(map(math.isfinite, losses)) else (math.inf, math.inf)


def ours(name: str, seed: int) -> Suggestion:
    task, model = begun(name, seed)
    batches = list(islice(task.batches("train", epoch_seed(seed, 0)), 8))
    objective = Objective.of_task(task, model, batches)
    began = time.perf_counter()
    chart = LrRange(optimizer=task.optimizer, training=Endless(task, seed), horizon=task.steps).run(objective)
    rate = chart["recommended"] if "recommended" in chart.values else None
    return Suggestion(rate=rate, passes=chart.cost.backwards * len(batches), seconds=time.perf_counter() - began)


def torch_lr_finder(name: str, seed: int) -> Suggestion:
    """Its steepest point, with its defaults: 100 steps to rate 10, smoothing 0.05, stopped at 5 times the best loss."""
    import matplotlib as mpl

    mpl.use("Agg")
    from torch.utils.data import DataLoader
    from torch_lr_finder import LRFinder

    task, model = begun(name, seed)
    loader = DataLoader(list(islice(Endless(task, seed), 100)), batch_size=None)
    began = time.perf_counter()
    finder = LRFinder(model, task.optimizer(model), LOSSES[name])
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        finder.range_test(loader, start_lr=1e-7, end_lr=10, num_iter=100)
        try:
            rate = float(finder.plot(suggest_lr=True)[1])
        except (TypeError, ValueError):  # it returns the axes alone where it finds nothing
            rate = None
    return Suggestion(rate=rate, passes=len(finder.history["lr"]), seconds=time.perf_counter() - began)


def make_grid(names: list[str], seeds: Sequence[int] | None, file: Path) -> None:
    """Train the grid of the tasks named, beside what is kept already."""
    kept = json.loads(file.read_text()) if file.exists() else {"tasks": {}}
    kept |= {"command": "python benchmarks/map_lr.py --grid", "torch": torch.__version__}
    for name in names:
        own = list(seeds or SEEDS[name])
        task, model = begun(name, 0)
        default = max(group["lr"] for group in task.optimizer(model).param_groups)
        rows = []
        for factor in FACTORS:
            losses = [trained(name, seed, default * factor) for seed in own]
            rows.append(
                {"rate": default * factor, "training": [a for a, _ in losses], "validation": [b for _, b in losses]}
            )
            print(f"{name} {default * factor:.2e} {[round(a, 4) for a, _ in losses]}", flush=True)
        kept["tasks"][name] = {"steps": STEPS[name], "seeds": own, "rows": rows}
        file.write_text(json.dumps(kept, indent=1) + "\n")


def scored(
    name: str, tool: str, suggest: Callable[[str, int], Suggestion], seed: int
) -> tuple[Suggestion, tuple[float, float]]:
    """What a tool suggests, and how a training with it ends; said at once, as a whole table takes long."""
    said = suggest(name, seed)
    losses = (math.inf, math.inf) if said.rate is None else trained(name, seed, said.rate)
    print(f"{name}, seed {seed}: {tool} says {said.rate}, which ends at {losses[0]:.5g}, {losses[1]:.5g}", flush=True)
    return said, losses


def compare(names: list[str], seeds: Sequence[int] | None, file: Path) -> dict[str, Any]:
    """Suggest, train, and compare with the grid."""
    grid, found = json.loads(file.read_text())["tasks"], {}
    tools = {"dynaxx lr_range": ours, "torch-lr-finder": torch_lr_finder}
    for name in names:
        for kind in ("training", "validation"):
            row = min(grid[name]["rows"], key=lambda row, kind=kind: statistics.mean(row[kind]))
            best, spread = statistics.mean(row[kind]), statistics.stdev(row[kind])
            own = sum(final <= best + max(0.05 * best, spread) for final in row[kind])
            found[f"{name} {kind}"] = {"rate": row["rate"], "best": best, "spread": spread, "own": own, "tools": {}}
            found[f"{name} {kind}"]["seeds"] = len(row[kind])
        for tool, suggest in tools.items():
            try:
                rows = [scored(name, tool, suggest, seed) for seed in seeds or grid[name]["seeds"]]
            except ImportError as error:
                print(f"{tool}: left out, {error}")
                continue
            said, losses = zip(*rows, strict=True)
            for index, kind in enumerate(("training", "validation")):
                here = found[f"{name} {kind}"]
                limit = here["best"] + max(0.05 * here["best"], here["spread"])
                finals = [each[index] for each in losses]
                here["tools"][tool] = {
                    "rates": [s.rate for s in said],
                    "finals": finals,
                    "mean_hits": statistics.mean(finals) <= limit,
                    "hits": sum(final <= limit for final in finals),
                    "passes": statistics.mean(s.passes for s in said),
                    "seconds": statistics.mean(s.seconds for s in said),
                }
    return found


def show(found: dict[str, Any]) -> None:
    print(
        "| task, loss | best of grid (rate), its own hits | tool | rates | final losses | hits | batches | s |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for label, row in found.items():
        for tool, said in row["tools"].items():
            rates = " ".join("none" if rate is None else f"{rate:.2g}" for rate in said["rates"])
            finals = " ".join(f"{final:.3g}" for final in said["finals"])
            grid = f"{row['best']:.4g} ± {row['spread']:.2g} ({row['rate']:.2g}), {row['own']} of {row['seeds']}"
            price = f"{said['passes']:.0f} | {said['seconds']:.1f}"
            hits = f"{said['hits']} of {len(said['finals'])}, mean {'yes' if said['mean_hits'] else 'no'}"
            print(f"| {label} | {grid} | {tool} | {rates} | {finals} | {hits} | {price} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", choices=[*STEPS, []], help="which tasks; all by default")
    parser.add_argument("--grid", action="store_true", help="train the grid anew")
    parser.add_argument("--seeds", type=int, nargs="+", help="which; all of the grid by default")
    parser.add_argument("--kept", type=Path, default=KEPT, help="where the grid's final losses are kept")
    parser.add_argument("--json", help="keep the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # peers warn of each other's deprecations
    names = arguments.tasks or list(STEPS)
    if arguments.grid:
        make_grid(names, arguments.seeds, arguments.kept)
        return
    if not arguments.kept.exists():
        sys.exit(f"{arguments.kept} is missing: run with --grid first.")
    found = compare(names, arguments.seeds, arguments.kept)
    show(found)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
