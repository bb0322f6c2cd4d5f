"""What the navigator's slower acts do to a training: kick, restart, larger batch, layers evened out, against nothing.

`python benchmarks/policies.py` trains each case once up to the moment of the act and goes on from copies of that state
on the same batches, with the act and without. A case is one in which the act should help, or one in which it should
not. Reported is the validation loss at the end (median of the last three evaluations) with the act over that without:
its geometric mean over `--seeds N` drawn settings (8), how many were better, and the p of an exact sign-flip test
either way. An end that is no number counts as ten times worse; where both are none the pair is left out. `--json FILE`
keeps every pair.
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
from dynaxx.controllers.layer_balance import ROWS, balanced
from dynaxx.numerics.sign_flip import sign_flip
from stopping_runs import EVALUATIONS, Setting, Training

Act = Callable[[Training, int], None]
"""Changes a training at an evaluation since the act began, counted from 0."""
WORST = 10.0
"""How much worse an end that is no number counts."""
SLOW = 0.01
"""Rate of a layer that lags: from here on the detector of unlike layers speaks (two decades from the median)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An act in a kind of training.

    Args:
        name: The act.
        where: In which training, and what is expected.
        setting: Seed → setting.
        at: Evaluation after which the act begins.
        act: The act.
        layers: Factors of the layers' rates from the first step on.
    """

    name: str
    where: str
    setting: Callable[[int], Setting]
    at: int
    act: Act
    layers: tuple[float, ...] = ()


def kick(training: Training, since: int) -> None:
    """× 3 for a fiftieth of the steps."""
    training.factor = 3.0 if since == 0 else 1.0


def restart(factor: float) -> Act:
    """× `factor` for half of what is left, while the schedule goes on."""

    def act(training: Training, since: int) -> None:
        training.factor = factor if since < (EVALUATIONS - training.step // training.every + since) // 2 else 1.0

    return act


def accumulate(batches: int) -> Act:
    """So many batches to an update at the same rate, and as many times fewer updates: as many passes."""

    def act(training: Training, since: int) -> None:
        if since == 0:
            training.setting = replace(training.setting, batch=training.setting.batch * batches)
            training.updates = batches

    return act


def balance(training: Training, since: int) -> None:
    """Every second evaluation the layers' rates by the controller's own formula, within 10 × of each other."""
    if training.ratios is None:
        training.ratios, training.evened = [], (1.0,) * len(training.sizes)
    elif since % 2 == 0 and len(training.ratios) >= ROWS:
        ratios = np.log(np.array(training.ratios[-ROWS:])).mean(axis=0)
        wanted = balanced(np.log(training.evened), ratios, np.array(training.sizes, dtype=np.float64))
        training.evened = tuple(np.exp(wanted).tolist())


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
    Case(name="layers", where="hidden layer at 1/100 of its rate: should help",
         setting=_of("text", rate=5e-3, schedule="cosine"), at=10, act=balance, layers=(1.0, SLOW, 1.0)),
    Case(name="layers", where="as they are: should not",
         setting=_of("text", rate=5e-3, schedule="cosine"), at=10, act=balance),
)  # fmt: skip


def final(training: Training) -> float:
    """Median of the last three evaluations."""
    return float(np.median([value for _, value in training.columns["val_loss"][-3:]]))


def pair(case: Case, seed: int) -> tuple[float, float]:
    """Final validation loss with the act and without."""
    before = Training(case.setting(seed), layers=case.layers)
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


def change(with_: float, without: float) -> float | None:
    """The logarithm of the ratio, as far as there is one."""
    if math.isfinite(with_) and math.isfinite(without):
        return math.log(with_ / without)
    if not math.isfinite(with_) and not math.isfinite(without):
        return None
    return math.log(WORST) if math.isfinite(without) else -math.log(WORST)


def row(case: Case, pairs: list[tuple[float, float]]) -> tuple[str, ...]:
    """One line of the table."""
    logs = [each for each in (change(*pair) for pair in pairs) if each is not None]
    if not logs:
        return case.name, case.where, "no number in any run", "", "", ""
    helps, harms = sign_flip([-each for each in logs]), sign_flip(logs)
    better = f"{sum(each < 0 for each in logs)} of {len(logs)}"
    return case.name, case.where, f"{math.exp(np.mean(logs)):.3f}", better, f"{helps:.3f}", f"{harms:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first", type=int, default=1000)
    parser.add_argument("--only", help="acts by name, comma-separated; all by default")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    table, kept = Table(title="validation loss with the act over that without"), []
    for head in ("act", "where", "geometric mean", "better", "p of helping", "p of harming"):
        table.add_column(head)
    for case in CASES:
        if given.only is not None and case.name not in given.only.split(","):
            continue
        pairs = [pair(case, seed) for seed in range(given.first, given.first + given.seeds)]
        cells = row(case, pairs)
        print(*cells, sep=" | ", flush=True)
        table.add_row(*cells)
        kept.append({"act": case.name, "where": case.where, "pairs": pairs})
        if given.json is not None:
            given.json.write_text(json.dumps(kept, indent=1))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
