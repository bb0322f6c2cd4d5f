"""What the navigator's slower acts do to a training: a kick, a restart, a larger batch, each paired with nothing.

`python benchmarks/policies.py` trains each case once up to the moment of the act and goes on from copies of that state
on the same batches, with the act and without. A case is one in which the act should help, or one in which it should
not. Reported is the validation loss at the end (median of the last three evaluations) with the act over that without:
its geometric mean over `--seeds N` drawn settings (8), how many were better, and the p of an exact sign-flip test
either way. `--json FILE` keeps every pair. Layers are not evened out here: that takes the actuator (`methods_meso.py`).
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import stopping_runs
from dynaxx.numerics.sign_flip import sign_flip
from stopping_runs import EVALUATIONS, Setting, Training

Act = Callable[[Training, int], None]
"""Changes a training at an evaluation since the act began, counted from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An act in a kind of training.

    Args:
        name: The act.
        where: In which training, and what is expected.
        setting: Seed → setting.
        at: Evaluation after which the act begins.
        act: The act.
    """

    name: str
    where: str
    setting: Callable[[int], Setting]
    at: int
    act: Act


def kick(training: Training, since: int) -> None:
    """× 3 for a fiftieth of the steps."""
    training.factor = 3.0 if since == 0 else 1.0


def restart(factor: float) -> Act:
    """× `factor` for half of what is left, while the schedule goes on."""

    def act(training: Training, since: int) -> None:
        training.factor = factor if since < (EVALUATIONS - training.step // training.every + since) // 2 else 1.0

    return act


def accumulate(batches: int) -> Act:
    """So many batches to an update, the rate × √k (Adam) or k, and k times fewer updates: as many passes."""

    def act(training: Training, since: int) -> None:
        if since == 0:
            setting = training.setting
            training.factor = math.sqrt(batches) if setting.optimizer == "adam" else float(batches)
            training.setting = replace(setting, batch=setting.batch * batches)
            training.updates = batches

    return act


def _of(task: str, **changes: object) -> Callable[[int], Setting]:
    return lambda seed: replace(stopping_runs.draw(task, seed), steps=1000, **changes)


CASES = (
    Case(name="kick", where="rate 10 × too low at its rest: should help",
         setting=_of("digits", optimizer="sgd", rate=0.003, schedule="constant", noise=0.0), at=25, act=kick),
    Case(name="kick", where="on a noise floor: should not",
         setting=_of("teacher", optimizer="sgd", rate=0.01, schedule="constant", noise=0.5), at=25, act=kick),
    Case(name="restart", where="cosine of a fifth of the steps: should help",
         setting=_of("text", schedule="short", rate=5e-3), at=12, act=restart(5.0)),
    Case(name="restart", where="cosine of the right length: should not",
         setting=_of("text", schedule="cosine", rate=5e-3), at=30, act=restart(3.0)),
    Case(name="batch × 4", where="batch 4, at its floor: should help",
         setting=_of("teacher", optimizer="sgd", rate=0.01, schedule="constant", batch=4, noise=0.5), at=25,
         act=accumulate(4)),
    Case(name="batch × 4", where="batch 64, still falling: should not",
         setting=_of("text", rate=3e-3, schedule="constant", batch=64), at=10, act=accumulate(4)),
)  # fmt: skip


def final(training: Training) -> float:
    """Median of the last three evaluations."""
    return float(np.median([value for _, value in training.columns["val_loss"][-3:]]))


def pair(case: Case, seed: int) -> tuple[float, float]:
    """Final validation loss with the act and without."""
    before = Training(case.setting(seed))
    for _ in range(case.at):
        before.advance()
    ends = []
    for act in (case.act, None):
        training = before.fork()
        for since in range(EVALUATIONS - case.at):
            if act is not None:
                act(training, since)
            training.advance()
        ends.append(final(training))
    return ends[0], ends[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    table, kept = Table(title="validation loss with the act over that without"), []
    for head in ("act", "where", "geometric mean", "better", "p of helping", "p of harming"):
        table.add_column(head)
    for case in CASES:
        pairs = [pair(case, seed) for seed in range(given.first, given.first + given.seeds)]
        logs = [math.log(with_ / without) for with_, without in pairs]
        helps, harms = sign_flip([-each for each in logs]), sign_flip(logs)
        better = f"{sum(each < 0 for each in logs)} of {len(logs)}"
        table.add_row(case.name, case.where, f"{math.exp(np.mean(logs)):.3f}", better, f"{helps:.3f}", f"{harms:.3f}")
        kept.append({"act": case.name, "where": case.where, "pairs": pairs})
    Console(width=130).print(table)
    if given.json is not None:
        given.json.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
