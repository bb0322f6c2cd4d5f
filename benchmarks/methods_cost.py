"""What a wrapper costs while it does nothing, and SAM at every fifth step: `python benchmarks/methods_cost.py`.

Idle: the optimizer's step with and without the wrapper, in turns, on a task's model with fixed gradients; the median of
the paired differences, as a share of a whole step of the task (forward, backward, update). At most 2 % is asked for.

SAM: two trainings in turns, plain and perturbed at every fifth step. Ten Gaussian classes in 20 dimensions, 1000
examples of which a fifth has labels drawn anew, MLP 128 × 2, batches of 100, SGD with momentum, one cycle to 0.1, 150
epochs; three seeds. Shown are the ratio of their times and of the largest eigenvalues of the loss at the end; asked for
are 1.25 at most, of which 1.2 are the passes, and 3 at least.

Wall-clock time of one thread: take it while nothing else runs. Intervals are those of the median, 95 %, by ranks.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

from dynaxx import catalog
from dynaxx.core.loop import epoch_seed
from dynaxx.core.task import Task
from dynaxx.landscape import spectrum
from dynaxx.optim import Joint, OuterNesterov
from dynaxx.perturb import Sam
from dynaxx.phases import Phase, Phased
from dynaxx.schedules import as_scheduler
from dynaxx.schedules.constant import Constant

NEVER = 10**9
WORDS = "adamw:lr=1e-4"
CLASSES, EPOCHS, BATCH = 10, 150, 100


def median(values: list[float]) -> tuple[float, float, float]:
    """The median and its 95 % interval by ranks."""
    ranked, n = sorted(values), len(values)
    reach = 0.98 * math.sqrt(n)
    return statistics.median(ranked), ranked[max(0, int(n / 2 - reach))], ranked[min(n - 1, math.ceil(n / 2 + reach))]


def seconds(run: Callable[[], object], times: int) -> float:
    """Of one call, the mean of so many."""
    began = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - began) / times


def in_turns(
    one: Callable[[], object], other: Callable[[], object], turns: int, times: int
) -> list[tuple[float, float]]:
    """Seconds of both by turns; who is first alternates."""
    found: list[tuple[float, float]] = []
    for turn in range(turns):
        if turn % 2:
            second, first = seconds(other, times), seconds(one, times)
        else:
            first, second = seconds(one, times), seconds(other, times)
        found.append((first, second))
    return found


def wrapped(model: nn.Module) -> dict[str, Callable[[], object]]:
    """The update of a loop under each wrapper, which has nothing to do."""
    sam, inner = Sam(model, every=NEVER), catalog.choice("optim", WORDS).build(model)
    phased = Phased(model, [Phase(name="all", optimizer=WORDS)], steps=NEVER)
    outer = OuterNesterov(catalog.choice("optim", WORDS).build(model), every=NEVER)
    joint = Joint(catalog.choice("optim", WORDS).build(model))
    scheduled = catalog.choice("optim", WORDS).build(model)
    scheduler = as_scheduler(scheduled, Constant(steps=NEVER))

    def curve() -> None:
        scheduled.step()
        scheduler.step()

    return {
        "Phased, one phase": phased.step,
        "Sam, not due": lambda: sam.around(inner, lambda: None),
        "OuterNesterov, not due": outer.step,
        "Joint, of one": joint.step,
        "a constant curve": curve,
    }


def whole_step(task: Task, model: nn.Module) -> float:
    """Seconds of forward, backward and update; leaves gradients behind."""
    optimizer = catalog.choice("optim", WORDS).build(model)
    batch = next(iter(task.batches("train", epoch_seed(0, 0))))

    def step() -> None:
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()

    seconds(step, 5)
    return statistics.median(seconds(step, 5) for _ in range(15))


def idle(name: str, turns: int) -> Iterator[str]:
    """Rows of the table of one task."""
    task = catalog.task(name, None)
    model = task.model()
    step = whole_step(task, model)
    bare = catalog.choice("optim", WORDS).build(model)
    for who, update in wrapped(model).items():
        in_turns(bare.step, update, 4, 10)
        middle, low, high = median([b - a for a, b in in_turns(bare.step, update, turns, 20)])
        shares = " | ".join(f"{100 * each / step:.2f}" for each in (middle, low, high))
        yield f"| {name}, {1e3 * step:.1f} ms | {who} | {1e6 * middle:.1f} | {shares} |"


class Course:
    """One training of the small net.

    Args:
        seed: Of data, weights and order.
        every: SAM at each so many-th step, ρ = 0.5; None: plain.
    """

    def __init__(self, seed: int, every: int | None) -> None:
        draw = torch.Generator().manual_seed(seed)
        centres = torch.randn(CLASSES, 20, generator=draw)
        y = torch.randint(0, CLASSES, (1000,), generator=draw)
        self.x = centres[y] + torch.randn(1000, 20, generator=draw)
        wrong = torch.rand(1000, generator=draw) < 0.2
        self.y = torch.where(wrong, torch.randint(0, CLASSES, (1000,), generator=draw), y)
        torch.manual_seed(seed)
        self.model = nn.Sequential(
            nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, CLASSES)
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.sam = None if every is None else Sam(self.model, rho=0.5, every=every)
        steps = EPOCHS * (1000 // BATCH)
        self.curve = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.1, total_steps=steps + 1)
        self.order = torch.Generator().manual_seed(seed)

    def epoch(self) -> None:
        """Ten steps."""
        for chosen in torch.randperm(1000, generator=self.order).split(BATCH):
            x, y = self.x[chosen], self.y[chosen]

            def gradient(x: torch.Tensor = x, y: torch.Tensor = y) -> None:
                nn.functional.cross_entropy(self.model(x), y).backward()

            if self.sam is None:
                gradient()
                self.optimizer.step()
            else:
                self.sam.around(self.optimizer, gradient)
            self.curve.step()
            self.optimizer.zero_grad()

    @property
    def sharpness(self) -> float:
        """λ₁ of the loss over all examples."""
        chart = spectrum(
            self.model,
            lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
            [(self.x, self.y)],
            eigenvalues=1,
            probes=2,
            steps=20,
            samples=2,
        )
        return float(chart["largest_eigenvalue"])


def sam(seeds: int) -> Iterator[str]:
    """Rows of the table of SAM."""
    ratios: list[float] = []
    for seed in range(seeds):
        plain, every = Course(seed, None), Course(seed, 5)
        times = in_turns(plain.epoch, every.epoch, EPOCHS // 3, 3)
        ratios += [b / a for a, b in times]
        a, b = plain.sharpness, every.sharpness
        step = 1e3 * statistics.median(first for first, _ in times) / (1000 // BATCH)
        yield f"seed {seed}: a step of {step:.2f} ms; λ₁ {a:.3f} plain, {b:.3f} at every 5th step: {a / b:.1f} × lower"
    middle, low, high = median(ratios)
    yield f"time: {middle:.3f} ({low:.3f}–{high:.3f}) × that of plain steps, {len(ratios)} turns of 30 steps"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=("idle", "sam"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.only != "sam":
        print("| task, a step | wrapper, idle | µs | % of a step | from | to |\n|---|---|---|---|---|---|")
        for name in ("digits", "stdlib-lm"):
            for row in idle(name, given.turns):
                print(row, flush=True)
    if given.only != "idle":
        for row in sam(given.seeds):
            print(row, flush=True)


if __name__ == "__main__":
    main()
