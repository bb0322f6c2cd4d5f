"""Does a training by the map's plan reach the default recipe's loss in fewer passes, those of the map included?

`python benchmarks/map_plan.py [CASE …]` keeps every map and training in `map_plan_results.json`, by what determines it,
so a run that is interrupted goes on. Each case has a default recipe: the task's own, tuned one, or one at ten times or
a tenth of its rate. For each seed the default is trained over the task's own steps. A map of that recipe, made with
other seeds, gives the plan; what the map took is subtracted from the passes that the limit allows (90 % of the
default's; 60 % where it is off), and the plan is trained over the steps that are left, its whole schedule compressed.
It reaches the default where its final validation loss is no higher, on the same seed. A floor of 300 passes is a large
share of these short trainings; with `--budget` maps are made with less. The average of the weights that a plan keeps
beside is given, and does not count.
"""

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dynaxx import catalog
from dynaxx.runlog import open_run
from dynaxx.session.recipe import Recipe
from dynaxx.session.train import train
from dynaxx.survey.engines import Ended, Engine, Job
from dynaxx.survey.engines._engine import work
from dynaxx.survey.map import map_task
from dynaxx.survey.plan import Plan

RESULTS = Path(__file__).with_name("map_plan_results.json")
OFF = Path(__file__).with_name("map_plan_tasks.py")
CASES = {
    "stdlib-lm": ("stdlib-lm", 0.9),
    "stdlib-lm, rate × 10": (f"{OFF}:LMHigh", 0.6),
    "stdlib-lm, rate / 10": (f"{OFF}:LMLow", 0.6),
    "digits": ("digits", 0.9),
    "digits, rate × 10": (f"{OFF}:DigitsHigh", 0.6),
    "digits, rate / 10": (f"{OFF}:DigitsLow", 0.6),
}
"""What is trained, and the share of the default's passes that the issue allows."""


class Here(Engine):
    """Trains in this process: what is counted here is passes."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Ended]:
        """One after the other."""
        yield from map(work, jobs)


class Kept:
    """Results by what determines them, on disk after each.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def __call__(self, key: str, make: Callable[[], Any]) -> Any:
        """The result, made now if it is not there."""
        if key not in self.rows:
            self.rows[key] = make()
            self.path.write_text(json.dumps(self.rows, indent=1, sort_keys=True) + "\n")
            print(key, {k: v for k, v in self.rows[key].items() if k != "plan"}, flush=True)
        return self.rows[key]


def mapped(spec: str, seed: int, budget: float | None) -> dict[str, Any]:
    """A map: its plan, and the passes that it took."""
    with tempfile.TemporaryDirectory() as folder:
        found = map_task(spec, folder, seed=seed, budget=budget, engine=Here())
        text = (Path(folder) / "plan.toml").read_text().replace(str(OFF.parent) + "/", "")
    plan = found.plan
    return {
        "plan": text, "passes": found.spent, "terrain": found.terrain.name, "optimizer": plan.optimizer.name,
        "peak": plan.learning_rate.peak, "perturb": plan.optimizer.perturb,
    }  # fmt: skip


def final(spec: str, seed: int, steps: int, recipe: Recipe) -> dict[str, float]:
    """Validation loss after a training, of the weights and of their average."""
    with tempfile.TemporaryDirectory() as folder:
        outcome = train(
            catalog.task(spec, None), Path(folder) / "run", name="plan", seed=seed, steps=steps, recipe=recipe,
            navigate="off", quiet=True, signals=(), evaluations=1, checkpoints=1,
        )  # fmt: skip
        if outcome.status != "finished":
            raise SystemExit(f"{spec}: the training was {outcome.status} at step {outcome.step}; run again.")
        view = open_run(Path(folder) / "run")
        found = {"val_loss": float(np.asarray(view["val_loss"])[-1])}
        if recipe.averaging or recipe.phases:
            found["averaged"] = float(np.asarray(view["averaged_val_loss"])[-1])
        return found


def compare(kept: Kept, case: str, seeds: Sequence[int], maps: Sequence[int], budget: float | None) -> None:
    """Default and plan of one case, seed by seed."""
    spec, limit = CASES[case]
    steps = catalog.task(spec, None).steps
    words = "" if budget is None else f" budget={budget:g}"
    for number in maps:
        found = kept(f"{case}: map{words} seed={number}", partial(mapped, spec, number, budget))
        recipe = Plan.read(_written(found["plan"])).recipe()
        # A perturbed step takes two passes.
        each = 1.0 if found["perturb"] is None else 1.0 + 1.0 / _every(found["perturb"])
        left = math.floor((limit * steps - found["passes"]) / each)
        goals = [
            kept(f"{case}: default steps={steps} seed={seed}", partial(final, spec, seed, steps, Recipe()))
            for seed in seeds
        ]
        key = f"{case}: plan of map{words} seed={number} steps={left}"
        ends = [kept(f"{key} seed={seed}", partial(final, spec, seed, left, recipe)) for seed in seeds]
        pairs = [(end["val_loss"], goal["val_loss"]) for end, goal in zip(ends, goals, strict=True)]
        reached = sum(end <= goal for end, goal in pairs)
        end, goal = (statistics.mean(column) for column in zip(*pairs, strict=True))
        print(
            f"| {case} | {goal:.4g} in {steps} | {found['passes']:.0f} | "
            f"{found['optimizer']}, {found['peak'] or math.nan:.3g} | "
            f"{end:.4g} in {left} | {reached} of {len(pairs)} within {limit:.0%} |",
            flush=True,
        )


def _written(text: str) -> Path:
    path = Path(tempfile.mkdtemp()) / "plan.toml"
    path.write_text(text)
    return path


def _every(words: str) -> int:
    return int(words.partition("every=")[2].partition(",")[0] or 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="which; all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings")
    parser.add_argument("--map-seed", type=int, nargs="+", default=[100], help="of the maps, other ones")
    parser.add_argument("--budget", type=float, help="share of the training that a map may take; none: the default")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = Kept(options.results)
    print("| default | its loss in steps | passes of the map | plan | its loss in steps | reached |")
    print("|---|---|---|---|---|---|")
    for case in options.cases or CASES:
        compare(kept, case, options.seeds, options.map_seed, options.budget)


if __name__ == "__main__":
    main()
