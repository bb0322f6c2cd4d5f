"""Do the methods train faster than a tuned AdamW? Every contender is tuned by the same protocol, peers in the same run.

`python benchmarks/methods.py --tune` trains each contender at half length over a grid of learning rates × weight
decays and keeps the final validation losses in `methods_results.json`; `python benchmarks/methods.py` then trains each
at its best point with horizons of its own (the schedule always anneals to zero at the horizon), four of them, over the
seeds, and prints the steps that it takes to reach the final loss of AdamW at full length: the horizon at which its mean
loss, interpolated in the logarithm of the horizon, meets AdamW's. Results are kept by what determines them: a run that
is interrupted goes on. Seeds of tuning and of scoring differ. Schedule: linear warm-up over 4 %, linear decay to zero,
for all but schedule-free, which has the warm-up only. Passes are forward and backward passes over a batch: SAM's
second gradient counts.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynaxx import catalog
from dynaxx.averaging import recompute_batch_norm
from dynaxx.core.isolation import isolated_random
from dynaxx.core.loop import epoch_seed, evaluate, train_steps, validation_seed
from dynaxx.core.task import Task, derive_seed
from dynaxx.schedules import as_scheduler
from dynaxx.schedules.constant import Constant
from dynaxx.schedules.linear_decay import LinearDecay
from dynaxx.session.recipe import Recipe

RESULTS = Path(__file__).with_name("methods_results.json")
STEPS = {"stdlib-lm": 400, "digits": 300, "diabetes": 200}
DECAYS = (0.0, 0.1)
TUNING_SEEDS = (100,)
SEEDS = (0, 1, 2)
HORIZONS = (0.6, 0.7, 0.85, 1.0)
WARMUP = 0.04


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A method.

    Args:
        rates: The grid of peak learning rates, a factor of 2 apart.
        peer: Whether it is of another package.
        words: A recipe of ours: optimizer, averaging, perturb, phases; "{lr}" and "{wd}" are filled in.
        make: Otherwise, what makes the optimizer of model, rate and decay.
    """

    rates: tuple[float, ...]
    peer: bool = False
    words: dict[str, str] | None = None
    make: Callable[[nn.Module, float, float], Any] | None = None


class Both:
    """Two optimizers that step together, as Muon's authors use it: one for hidden matrices, one for the rest."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    def step(self) -> None:
        """Both take their step."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Both clear their gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)


def groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Decay on matrices only, for every contender alike."""
    kept = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in kept if p.dim() >= 2], "weight_decay": decay},
        {"params": [p for p in kept if p.dim() < 2], "weight_decay": 0.0},
    ]


def adamw(model: nn.Module, rate: float, decay: float) -> torch.optim.Optimizer:
    """torch's, with the momenta that language models are trained with."""
    return torch.optim.AdamW(groups(model, decay), lr=rate, betas=(0.9, 0.99), fused=True)


def torch_muon(model: nn.Module, rate: float, decay: float) -> Both:
    """torch.optim.Muon on hidden matrices at AdamW's scale, AdamW at the same rate on embeddings, head and vectors."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    outer = {named[0][0], named[-1][0]} | {n for n, p in named if "embed" in n or "head" in n}
    hidden = [p for n, p in named if p.dim() == 2 and n not in outer]
    chosen = {id(p) for p in hidden}
    rest = [p for _, p in named if id(p) not in chosen]
    shapes = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    return Both(
        torch.optim.Muon(hidden, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(shapes, lr=rate, betas=(0.9, 0.99), fused=True),
    )


def peer_soap(model: nn.Module, rate: float, decay: float) -> torch.optim.Optimizer:
    """pytorch_optimizer's SOAP at its defaults: refreshed every 10 steps."""
    from pytorch_optimizer import SOAP

    return SOAP(groups(model, decay), lr=rate, precondition_frequency=10)


def schedule_free(model: nn.Module, rate: float, decay: float, steps: int) -> torch.optim.Optimizer:
    """pytorch_optimizer's schedule-free AdamW; evaluated at its average."""
    from pytorch_optimizer import ScheduleFreeAdamW

    warmup = max(1, round(WARMUP * steps))
    return ScheduleFreeAdamW(groups(model, decay), lr=rate, weight_decay=decay, warmup_steps=warmup)


def rates(middle: float, below: int = 2, above: int = 2) -> tuple[float, ...]:
    """Powers of two around a rate."""
    return tuple(middle * 2.0**k for k in range(-below, above + 1))


CONTENDERS: dict[str, Contender] = {
    "adamw": Contender(rates=rates(5e-3), peer=True, make=adamw),
    "torch_muon": Contender(rates=rates(1e-2), peer=True, make=torch_muon),
    "peer_soap": Contender(rates=rates(6e-3), peer=True, make=peer_soap),
    "schedule_free": Contender(rates=rates(1e-2), peer=True),
    "soap": Contender(rates=rates(6e-3), words={"optimizer": "soap:lr={lr},weight_decay={wd},every=10"}),
    "kl_shampoo": Contender(rates=rates(6e-3), words={"optimizer": "kl_shampoo:lr={lr},weight_decay={wd},every=10"}),
    "muon": Contender(rates=rates(1e-2), words={"optimizer": "muon:lr={lr},weight_decay={wd}"}),
    "soap+ema": Contender(
        rates=rates(6e-3),
        words={"optimizer": "soap:lr={lr},weight_decay={wd},every=10", "averaging": "ema:half_life=10"},
    ),
    "muon>soap+ema": Contender(
        rates=rates(1e-2),
        words={
            "descend": "until=0.6 optimizer=muon:lr={lr},weight_decay={wd}",
            "stabilise": "optimizer=soap:lr={lr},weight_decay={wd},every=10 averaging=ema:half_life=10",
        },
    ),
    "soap>adamw+ema": Contender(
        rates=rates(6e-3),
        words={
            "descend": "until=0.7 optimizer=soap:lr={lr},weight_decay={wd},every=10",
            "stabilise": "optimizer=adamw:lr={lr},betas=(0.9, 0.99),weight_decay={wd} averaging=ema:half_life=10",
        },
    ),
}


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


def recipe(words: dict[str, str], rate: float, decay: float) -> Recipe:
    """Ours, from words."""
    from dynaxx.phases import Phase

    # Braces of Python's format would meet those of dictionaries in options: plain replacement.
    filled = {k: w.replace("{lr}", repr(rate)).replace("{wd}", repr(decay)) for k, w in words.items()}
    if "descend" not in filled:
        return Recipe(**filled)  # pyright: ignore[reportArgumentType]
    phases: list[Phase] = []
    for name, text in filled.items():
        parts = dict(part.split("=", 1) for part in _parts(text))
        until = parts.pop("until", None)
        phases.append(Phase(name=name, until=None if until is None else float(until), **parts))
    return Recipe(phases=tuple(phases))


def _parts(text: str) -> list[str]:
    """Words between spaces, those inside parentheses kept together."""
    kept: list[str] = []
    for word in text.split(" "):
        if kept and kept[-1].count("(") > kept[-1].count(")"):
            kept[-1] += " " + word
        else:
            kept.append(word)
    return kept


def trained(name: str, who: str, rate: float, decay: float, steps: int, seed: int) -> dict[str, float]:
    """One training: final validation loss, of the averaged model where there is one, and what it took."""
    contender, task = CONTENDERS[who], catalog.task(name, None)
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    task.steps = steps
    with isolated_random():
        torch.manual_seed(derive_seed(seed, "global"))
        model = task.model()
    curve: Any = LinearDecay(steps=steps, warmup=WARMUP)
    averager = perturber = None
    if contender.words is not None:
        method = recipe(contender.words, rate, decay).method(task, model, steps)
        optimizer, perturber = method.optimizer, method.perturber
        if method.own_averager is not None:
            method.own_averager.attach(optimizer)
    elif who == "schedule_free":
        method, optimizer, curve = None, schedule_free(model, rate, decay, steps), Constant(steps=steps)
    else:
        method, optimizer = None, contender.make(model, rate, decay)  # type: ignore[misc]
    parts = optimizer.parts if isinstance(optimizer, Both) else (optimizer,)
    schedulers = [as_scheduler(part, curve) for part in parts]
    torch.manual_seed(derive_seed(seed, "global"))
    if who == "schedule_free":
        optimizer.train()
    model.train()
    began = time.process_time()
    for loss in train_steps(task, model, optimizer, islice(Endless(task, seed), steps), perturber=perturber):
        for scheduler in schedulers:
            scheduler.step()
        if not math.isfinite(loss.item()):
            return {"loss": math.inf, "seconds": time.process_time() - began}
    seconds = time.process_time() - began
    if who == "schedule_free":
        optimizer.eval()
    averager = None if method is None else method.averager
    held = task.batches("validation", validation_seed(seed))
    averaged = averager is not None and averager.ready
    with averager.swapped() if averaged and averager is not None else nullcontext():
        if averaged or who == "schedule_free":
            recompute_batch_norm(model, islice(Endless(task, seed), 16), task.loss)
        final = evaluate(task, model, held)["loss"]
    return {"loss": final if math.isfinite(final) else math.inf, "seconds": seconds}


class Kept:
    """Results by what determines them, on disk after each.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}

    def __call__(self, name: str, who: str, rate: float, decay: float, steps: int, seed: int) -> dict[str, float]:
        """The result, trained now if it is not there."""
        key = f"{name} {who} lr={rate:.3g} wd={decay:g} steps={steps} seed={seed}"
        if key not in self.rows:
            row = trained(name, who, rate, decay, steps, seed)
            self.rows[key] = {k: None if math.isinf(v) else round(v, 6) for k, v in row.items()}  # type: ignore[misc]
            self.path.write_text(json.dumps(self.rows, indent=0, sort_keys=True) + "\n")
            print(key, self.rows[key], flush=True)
        return {k: math.inf if v is None else v for k, v in self.rows[key].items()}


def best(kept: Kept, name: str, who: str) -> tuple[float, float]:
    """Rate and decay of the smallest mean loss at half length: rates at the second decay, then both at the best."""
    half = STEPS[name] // 2

    def mean(rate: float, decay: float) -> float:
        return statistics.fmean(kept(name, who, rate, decay, half, seed)["loss"] for seed in TUNING_SEEDS)

    grid = CONTENDERS[who].rates
    rate = min(grid, key=lambda r: mean(r, DECAYS[-1]))
    while rate in (grid[0], grid[-1]) and len(grid) < 9:  # the best is at the edge: look beyond it, for everyone alike
        grid = (grid[0] / 2, *grid) if rate == grid[0] else (*grid, grid[-1] * 2)
        rate = min(grid, key=lambda r: mean(r, DECAYS[-1]))
    return rate, min(DECAYS, key=lambda d: mean(rate, d))


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How a contender did.

    Args:
        who: Its name.
        rate: Tuned.
        decay: Tuned.
        loss: Mean final validation loss at full length, over the seeds.
        spread: Standard deviation over the seeds.
        share: Steps to AdamW's final loss over AdamW's; NaN where no horizon reaches it.
        seconds: Processor seconds per step, against AdamW's.
    """

    who: str
    rate: float
    decay: float
    loss: float
    spread: float
    share: float
    seconds: float


def scores(kept: Kept, name: str) -> list[Score]:
    """Every contender, from kept results or new ones."""
    full = STEPS[name]
    made: list[Score] = []
    target = pace = math.nan
    for who in CONTENDERS:
        rate, decay = best(kept, name, who)
        means: list[tuple[float, float]] = []
        for share in HORIZONS if who != "adamw" else (1.0,):
            rows = [kept(name, who, rate, decay, round(share * full), seed) for seed in SEEDS]
            losses = [row["loss"] for row in rows]
            means.append((share, statistics.fmean(losses)))
        spread = statistics.stdev(losses)
        step = statistics.median(row["seconds"] for row in rows) / full
        if who == "adamw":
            target, pace = means[-1][1], step
        made.append(
            Score(
                who=who, rate=rate, decay=decay, loss=means[-1][1], spread=spread,
                share=1.0 if who == "adamw" else reached(means, target), seconds=step / pace,
            )
        )  # fmt: skip
    return made


def reached(means: list[tuple[float, float]], target: float) -> float:
    """The share at which the loss meets the target: linear in its logarithm between horizons.

    Example:
        >>> round(reached([(0.5, 2.0), (1.0, 1.0)], 1.5), 4)
        0.7071
    """
    if means[0][1] <= target:
        return means[0][0]
    for (low, above), (high, below) in pairwise(means):
        if below <= target < above:
            part = (above - target) / (above - below)
            return math.exp(math.log(low) + part * (math.log(high) - math.log(low)))
    return math.nan


def main() -> None:
    """Tune, then score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=["stdlib-lm"])
    parser.add_argument("--tune", action="store_true", help="the grid only")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    kept = Kept(arguments.results)
    for name in arguments.tasks:
        if arguments.tune:
            print({who: best(kept, name, who) for who in CONTENDERS})
            continue
        print(f"{name}: {STEPS[name]} steps at full length, seeds {SEEDS}")
        print("| method | rate | decay | final val_loss | steps to AdamW's | processor time per step |")
        print("|---|---|---|---|---|---|")
        for score in scores(kept, name):
            row = asdict(score)
            print(
                f"| {row['who']} | {row['rate']:.3g} | {row['decay']:g} | {row['loss']:.4f} ± {row['spread']:.4f} "
                f"| {row['share']:.2f} | {row['seconds']:.2f} |"
            )


if __name__ == "__main__":
    main()
