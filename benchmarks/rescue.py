"""Who finds and who mends what is planted in small trainings: Dynaxx, its peers, chance and nobody, judged alike.

`python benchmarks/rescue.py` trains the whole suite (clean twins, faults, incidents and healthy oddities on four nets),
has every observer look at the recorded logs, trains treated twins of what can be repaired and of the healthy runs, and
writes `rescue.md`, `rescue.html` and `rescue.json` into its folder; what is done there is not done again. Rules of
peers are re-implementations from published parameters (dynaxx/rescue/observers). With `--recorded` nothing is trained:
whoever is named looks at the runs that the folder holds. With `--packages` each case is trained once more under
torchmortem's `Autopsy`, which needs a live run, and its report is judged beside them.
"""

import argparse
import importlib.util
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch

from dynaxx.core.loop import epoch_seed, train_steps
from dynaxx.core.task import derive_seed
from dynaxx.report import write_rescue
from dynaxx.rescue.faults import ALTERATIONS, names
from dynaxx.rescue.nets import NETS
from dynaxx.rescue.observer import Alarm, Observation
from dynaxx.rescue.observers import OBSERVERS
from dynaxx.rescue.report import report
from dynaxx.rescue.scores import untouched
from dynaxx.rescue.suite import cases, recorded, run_suite
from dynaxx.rescue.training import Case, Ended

ACTING = ("navigator", "halve", "chance")
PACKAGE = "torchmortem 0.1.1 (the package)"
CAUSES = {
    "dead_units": "dead_units",
    "saturation": "saturated_activations",
    "vanishing": "vanishing_gradients",
    "exploding": "exploding_gradients",
    "too low": "learning_rate_too_low",
    "too high": "learning_rate_too_high",
}
"""Category or a word of the title of a finding of torchmortem → what it means in our words."""


def main() -> None:
    """Train, look, score, write."""
    options = arguments()
    out = Path(options.out)
    runs = recorded(out) if options.recorded else trained(options, out)
    found = report(
        runs,
        options.observers.split(","),
        workers=options.workers,
        others=packages(runs) if options.packages else {},
    )
    into = Path(options.report or out)
    into.mkdir(parents=True, exist_ok=True)
    for path in (*found.write(into), write_rescue(found, into / "rescue.html")):
        print(path)
    print(found.to_markdown())


def trained(options: argparse.Namespace, out: Path) -> list[Ended]:
    """Every case that is asked for, untouched and treated."""
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    planted = [name for name in names() if options.plant is None or name in options.plant.split(",")]
    acted_on = [name for name in planted if ALTERATIONS[name].undone_by or ALTERATIONS[name].kind == "healthy"]
    nets = options.nets.split(",")
    chosen = cases(nets=nets, seeds=seeds, alterations=planted, steps=options.steps)
    policies = ["nothing", *options.act.split(",")]
    chosen += cases(
        nets=nets, seeds=seeds, alterations=acted_on, policies=policies, steps=options.steps, orders=options.orders
    )
    return run_suite(list(dict.fromkeys(chosen)), out, workers=options.workers, progress=said)


def arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--first-seed", type=int, default=0, help="thresholds were tuned on others: say which are fresh"
    )
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--plant", help="names, comma-separated; everything by default")
    parser.add_argument("--act", default=",".join(ACTING))
    parser.add_argument("--orders", type=int, default=4, help="orders of the data that acting is judged on")
    parser.add_argument("--observers", default=",".join(OBSERVERS))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", default="rescue", help="the folder of the runs")
    parser.add_argument("--report", help="where the report goes; beside the runs by default")
    parser.add_argument("--recorded", action="store_true", help="train nothing: look at the runs that are there")
    parser.add_argument("--packages", action="store_true", help="train under torchmortem's Autopsy, too")
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


def said(done: int, total: int, ended: Ended) -> None:
    """A line per case."""
    print(f"{done}/{total} {ended.case.key} {ended.status} {ended.final:.4g} {ended.seconds:.0f} s", flush=True)


def packages(runs: Sequence[Ended]) -> dict[str, dict[str, Observation]]:
    """What peers' own packages say, where they are installed."""
    if importlib.util.find_spec("torchmortem") is None:
        print("torchmortem is not installed: its published ratios stand for it")
        return {}
    logs = [run for run in untouched(runs) if run.status == "finished"]
    return {PACKAGE: {run.case.key: autopsy(run.case) for run in logs}}


def autopsy(case: Case) -> Observation:
    """Train a case under torchmortem's `Autopsy`; it speaks at the end."""
    from torchmortem import Autopsy

    torch.set_num_threads(1)
    torch.manual_seed(derive_seed(case.seed, "global"))
    task = case.task()
    model = task.model()
    optimizer = task.optimizer(model)
    watcher = Autopsy(model, optimizer=optimizer)
    watcher.attach()
    watcher._report_generated = True  # else it writes a report into the working directory at exit
    for loss in losses(case, task, model, optimizer):
        watcher.step(loss=float(loss))
    watcher.detach()
    findings = [f for f in watcher.get_report().findings if f.severity >= 1]
    findings.sort(key=lambda f: -f.severity)
    named = [cause for f in findings for word, cause in CAUSES.items() if word in f"{f.category} {f.title}".lower()]
    alarms = tuple(Alarm(step=task.steps, rule=finding.category) for finding in findings)
    return Observation(alarms=alarms, causes=tuple(dict.fromkeys(named)), missing={})


def losses(case: Case, task: Any, model: Any, optimizer: Any) -> Iterator[torch.Tensor]:
    """The bare loop, without Dynaxx."""
    scheduler, done = task.scheduler(optimizer), 0
    for epoch in count():
        for loss in train_steps(
            task, model, optimizer, task.batches("train", epoch_seed(case.seed, epoch)), scheduler=scheduler
        ):
            yield loss
            done += 1
            if done == task.steps:
                return


if __name__ == "__main__":
    main()
