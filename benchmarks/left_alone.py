"""A NaN batch and a hundredfold one at random steps of a run that is left alone: where it ends, beside its clean twin.

`python benchmarks/left_alone.py` trains `digits` and `stdlib-lm` (by name: some of them; `--seeds 0 1 2`; `--steps N`;
`--json FILE` keeps each run, and goes on from what is kept). On `digits` the images are multiplied by NaN or 100, on
`stdlib-lm` the loss of the batch is. Three twins of each run share its seed:

- clean: the same run without the two batches spoilt;
- without: the two batches are not in the data at all, which is the most that passing them over can give back;
- watched: both spoilt, `navigate="off"`: what becomes of a run that nobody helps.
"""

import argparse
import json
import math
import random
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dynaxx import catalog
from dynaxx.core.loop import epoch_seed
from dynaxx.core.navigation import Mode
from dynaxx.core.task import Task
from dynaxx.rescue.altered import indexed
from dynaxx.runlog import open_run
from dynaxx.session.train import train

STEPS = {"digits": 300, "stdlib-lm": 200}
TWINS: dict[str, tuple[str, Mode]] = {
    "clean": ("clean", "act"),
    "without": ("without", "act"),
    "acting": ("spoilt", "act"),
    "watched": ("spoilt", "off"),
}


def places(task: str, seed: int, steps: int) -> dict[int, float]:
    """Place in the data → what that batch is multiplied by: drawn anew for each seed, any but the first."""
    nan, hundred = random.Random(f"{task} {seed}").sample(range(1, steps), 2)
    return {nan: math.nan, hundred: 100.0}


class Spoilt(Task):
    """A task in whose training data some batches are multiplied by a number, or left away.

    Args:
        task: The task.
        seed: The run's, by which batches are told apart.
        factors: Place in the data → factor.
        away: Whether those batches are left away instead.
    """

    def __init__(self, task: Task, seed: int, factors: Mapping[int, float], *, away: bool = False) -> None:
        super().__init__()
        self.task, self.factors, self.away = task, factors, away
        self.steps, self.batch_size, self.threads = task.steps, task.batch_size, task.threads
        self.epochs = {epoch_seed(seed, epoch): epoch for epoch in range(256)}

    def model(self) -> torch.nn.Module:
        """The task's own."""
        return self.task.model()

    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """The task's own."""
        return self.task.optimizer(model)

    def scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        """The task's own."""
        self.task.steps = self.steps
        return self.task.scheduler(optimizer)

    def batches(self, split: Any, seed: int) -> Sequence[Any]:
        """The task's own, with two of them spoilt or left away."""
        own = indexed(self.task.batches(split, seed))
        if split != "train":
            return own
        begun = self.epochs[seed] * len(own)
        own = own[: self.steps + 50]  # no run takes more, and an epoch of stdlib-lm has thousands
        if self.away:
            return [batch for i, batch in enumerate(own) if begun + i not in self.factors]
        return [self._spoilt(batch, self.factors.get(begun + i)) for i, batch in enumerate(own)]

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """The task's own; of a spoilt batch of text, multiplied."""
        loss = self.task.loss(model, batch[:2])
        return loss * batch[2] if len(batch) == 3 else loss

    def weight(self, batch: Any) -> float:
        """The task's own."""
        return self.task.weight(batch[:2])

    def _spoilt(self, batch: Any, factor: float | None) -> Any:
        if factor is None:
            return batch
        inputs, targets = batch
        return (inputs * factor, targets) if inputs.is_floating_point() else (inputs, targets, factor)


def run_once(name: str, seed: int, steps: int, what: str, mode: Mode, folder: Path) -> dict[str, Any]:
    """Where one run ends, and what was done on the way."""
    factors = {} if what == "clean" else places(name, seed, steps)
    task = Spoilt(catalog.task(name, "tiny"), seed, factors, away=what == "without")
    outcome = train(task, folder, name=name, seed=seed, steps=steps, navigate=mode, quiet=True)
    view = open_run(folder)
    taken = [event["proposal"]["action"]["name"] for event in view.events("decision") if event["status"] == "taken"]
    return {
        "loss": outcome.validation["val_loss"],
        "status": outcome.status,
        "left out": [event["step"] for event in view.events("update_left_out")],
        "rolled back": [(event["came_from"], event["step"]) for event in view.events("rolled_back")],
        "taken": taken,
    }


def table(results: Mapping[str, Mapping[str, Any]], name: str) -> None:
    """Ratios to the clean twin, seed by seed, and their mean with its standard error."""
    seeds = sorted({key.split()[1] for key in results if key.startswith(f"{name} ")}, key=int)
    for twin in ("without", "acting", "watched"):
        pairs = [(results.get(f"{name} {seed} {twin}"), results.get(f"{name} {seed} clean")) for seed in seeds]
        ratios = [a["loss"] / b["loss"] for a, b in pairs if a is not None and b is not None]
        if not ratios:
            continue
        mean = statistics.mean(ratios)
        known = len(ratios) > 1 and math.isfinite(mean)
        error = statistics.stdev(ratios) / math.sqrt(len(ratios)) if known else math.nan
        each = " ".join(f"{ratio:.4f}" for ratio in ratios)
        print(f"{name:10} {twin:8} / clean: {mean:.4f} ± {error:.4f}   {each}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", choices=[*STEPS, []])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--twins", nargs="+", choices=TWINS, default=list(TWINS))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    for name in options.tasks or STEPS:
        steps = options.steps or STEPS[name]
        for seed in options.seeds:
            for twin in options.twins:
                key = f"{name} {seed} {twin}"
                if key in results:
                    continue
                what, mode = TWINS[twin]
                with tempfile.TemporaryDirectory() as folder:
                    results[key] = run_once(name, seed, steps, what, mode, Path(folder) / "run")
                print(key, places(name, seed, steps), results[key], flush=True)
                if options.json:
                    options.json.write_text(json.dumps(results, indent=1))
        table(results, name)


if __name__ == "__main__":
    main()
