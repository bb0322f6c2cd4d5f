"""Curvature by Dynaxx and by its peers: one process, the same networks, the same batches; the unit is one gradient.

`python benchmarks/curvature.py` prints every table; name some of `product`, `eigenvalues`, `tracking`, `trace`,
`density`, `memory` to have only those; `--json FILE` keeps the figures. Peers that are not installed are left out.

Times are taken in rounds in which every contender has its turn, in an order that changes from round to round, and
divided by the time of a gradient taken in the same round: medians of ratios are given, with the quartiles. Errors are
against float64: the dense matrix, or eigenvalues converged to 1e-8.
"""

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from curvature_peers import densities, hessian_products, top_eigenvalues, traces
from dynaxx.core.objective import Objective
from dynaxx.numerics.density import density
from dynaxx.numerics.hessian import Hessian
from dynaxx.numerics.lanczos import eigenpairs
from dynaxx.numerics.operator import Dense
from dynaxx.numerics.trace import trace
from dynaxx.numerics.tracker import CurvatureTracker

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A network with a batch.

    Args:
        name: What it is.
        model: The network, in evaluation mode.
        batch: Inputs and labels.
        limit: What a product may cost, in gradients.
    """

    name: str
    model: nn.Module
    batch: Batch
    limit: float

    @property
    def objective(self) -> Objective:
        """The cross-entropy at the network's weights."""
        return Objective(self.model, loss, [self.batch])


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


class Transformer(nn.Module):
    """Two blocks of width 128 over 32 positions, classified at the mean position."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, 128)
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True, activation="gelu")
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(128, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of shape (batch, 256)."""
        return self.head(self.blocks(self.embed(tokens)).mean(1))


def product_cases() -> list[Case]:
    torch.manual_seed(0)
    mlp = nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )  # fmt: skip
    cnn = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    return [
        Case(name="MLP 784-512-512-10, batch 256", model=mlp.eval(), limit=1.6,
             batch=(torch.randn(256, 784), torch.randint(0, 10, (256,)))),
        Case(name="CNN on 3×16×16, batch 64", model=cnn.eval(), limit=2.1,
             batch=(torch.randn(64, 3, 16, 16), torch.randint(0, 10, (64,)))),
        Case(name="transformer width 128, 2 blocks, 8×32", model=Transformer().eval(), limit=2.6,
             batch=(torch.randint(0, 256, (8, 32)), torch.randint(0, 256, (8,)))),
    ]  # fmt: skip


def digits(standardised: bool = True) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32)
    x = (x - x.mean(0)) / (x.std(0) + 1e-6) if standardised else x / 16
    return x, torch.tensor(data.target)


def digits_cnn() -> Case:
    """The CNN of 151 306 parameters after 100 steps of SGD, batch 512."""
    x, y = digits(standardised=False)
    x = x.view(-1, 1, 8, 8)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    train(model, x, y, steps=100, rate=0.1)
    return Case(name="digits CNN, 151 306 parameters, batch 512", model=model, batch=(x[:512], y[:512]), limit=0)


def digits_mlp(steps: int) -> Case:
    """A net of 910 parameters whose whole Hessian can be had, after gradient descent on 500 examples."""
    x, y = (part[:500] for part in digits(standardised=False))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, (x, y)).backward()
        optimizer.step()
    model.zero_grad()
    return Case(name=f"digits MLP, 910 parameters, step {steps}", model=model, batch=(x, y), limit=0)


def train(model: nn.Module, x: Tensor, y: Tensor, *, steps: int, rate: float) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(0, len(y), (128,), generator=generator)
        optimizer.zero_grad()
        loss(model, (x[rows], y[rows])).backward()
        optimizer.step()
    model.eval()
    model.zero_grad()


def gradient(case: Case) -> Callable[[], Any]:
    parameters = list(case.model.parameters())
    return lambda: torch.autograd.grad(loss(case.model, case.batch), parameters)


def timed(contenders: Mapping[str, Callable[[], Any]], unit: Callable[[], Any], rounds: int) -> dict[str, list[float]]:
    """Ratios of each contender's time to the unit's in the same round."""
    for call in [unit, *contenders.values()]:
        call()
    ratios: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for i in range(rounds):
        start = time.perf_counter()
        for _ in range(5):
            unit()
        one = (time.perf_counter() - start) / 5
        for name in order[i % len(order) :] + order[: i % len(order)]:
            start = time.perf_counter()
            contenders[name]()
            ratios[name].append((time.perf_counter() - start) / one)
    return ratios


def spread(values: Sequence[float]) -> str:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:8.2f} ({low:.2f}–{high:.2f})"


def run_product(rounds: int = 40) -> dict[str, Any]:
    """One product, graph build excluded; beside it what a product costs when ten share one graph."""
    found: dict[str, Any] = {}
    with sdpa_kernel(SDPBackend.MATH):  # the peers need it around them
        for case in product_cases():
            print(f"\n{case.name}: one product, in gradients (limit {case.limit})")
            operator = Hessian(case.objective)
            v = operator.space.random(1, seed=1)
            contenders: dict[str, Callable[[], Any]] = {"dynaxx": lambda o=operator, v=v: o(v)}

            def ten(o: Hessian = operator, v: Tensor = v) -> None:
                o.update()
                for _ in range(10):
                    o(v)

            contenders["dynaxx, 10 with the graph's build"] = ten
            contenders |= {n: (lambda f=f, v=v: f(v[0])) for n, f in hessian_products(case.model, case.batch).items()}
            ratios = timed(contenders, gradient(case), rounds)
            ratios["dynaxx, 10 with the graph's build"] = [
                r / 10 for r in ratios["dynaxx, 10 with the graph's build"]
            ]  # fmt: skip
            for name, values in ratios.items():
                print(f"  {name:<36} {spread(values)}")
            found[case.name] = {name: statistics.median(values) for name, values in ratios.items()}
    return found


def run_eigenvalues(rounds: int = 5, k: int = 5) -> dict[str, Any]:
    """The five largest eigenvalues from nothing."""
    case = digits_cnn()
    truth = eigenpairs(Hessian(case.objective), k, tolerance=1e-6, max_products=600, seed=9).values.numpy()
    products: list[int] = []

    def ours() -> Sequence[float]:
        operator = Hessian(case.objective, check=False)
        values = eigenpairs(operator, k, tolerance=1e-3).values.tolist()
        products.append(operator.products)
        return values

    contenders = {"dynaxx, tolerance 1e-3": ours, **top_eigenvalues(case.model, case.batch, k)}
    print(f"\n{case.name}: top {k} eigenvalues from nothing, in gradients")
    ratios = timed(contenders, gradient(case), rounds)
    found: dict[str, Any] = {}
    for name, call in contenders.items():
        error = float(np.max(np.abs(np.array(call()) - truth) / truth))
        print(f"  {name:<36} {spread(ratios[name])}   largest relative error {error:.1e}")
        found[name] = {"gradients": statistics.median(ratios[name]), "error": error}
    print(f"  dynaxx took {products[-1]} products")
    return found


def run_tracking(steps: int = 3000) -> dict[str, Any]:
    """The largest eigenvalue along gradient descent on digits (MLP 64-100-100-10 tanh, squared error).

    At a rate of 0.05 the training stays below the edge of stability; its first 600 steps, in which the eigenvectors
    turn quickest, are given apart. At 0.3 it is measured from step 600 on, at the edge.
    """
    found: dict[str, Any] = {}
    print("\ntracking λ₁ along gradient descent: products per measurement and error against 1e-6")
    for every, rate, last in ((20, 0.05, 600), (50, 0.05, steps), (100, 0.05, steps), (50, 0.3, 1800)):
        first = 600 if rate == 0.3 else 0
        spent, errors = track(every, rate, range(first, last, every))
        early = slice(1, 600 // every)
        for name, part in {"": slice(1, None), ", first 600 steps": early}.items():
            if part is early and (first or last == 600):
                continue
            row = {"products": statistics.mean(spent[part]), "median_error": statistics.median(errors[part]),
                   "max": max(errors[part])}  # fmt: skip
            label = f"every {every}, {'at' if first else 'below'} the edge{name}"
            found[label] = row
            print(f"  {label:<42} {row['products']:5.1f} products (first {spent[0]}), "
                  f"median error {row['median_error']:.1e}, largest {row['max']:.1e}")  # fmt: skip
    for most in (3, 4, 6, 10):  # could a measurement be spread over steps?
        spent, errors = track(128, 0.05, range(0, 1300, 128), most)
        label = f"every 128, at most {most}"
        found[label] = {"products": statistics.mean(spent[1:]), "median_error": statistics.median(errors[1:])}
        print(
            f"  {label:<42} {found[label]['products']:5.1f} products, median error {found[label]['median_error']:.1e}"
        )
    return found


def track(every: int, rate: float, when: range, most: int = 10) -> tuple[list[int], list[float]]:
    """Products and relative errors of the measurements of one training."""
    x, y = digits()
    x, targets = x[:1000], functional.one_hot(y[:1000], 10).float()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 100), nn.Tanh(), nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 10))
    squared = lambda m, b: (m(b[0]) - b[1]).square().sum(1).mean() / 2  # noqa: E731
    operator = Hessian(Objective(model, squared, [(x, targets)]))
    tracker = CurvatureTracker(operator, max_products=most)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    spent: list[int] = []
    errors: list[float] = []
    for step in range(when.stop):
        if step in when:
            before = operator.products
            pair = tracker.measure()
            spent.append(operator.products - before)
            start = torch.cat([pair.vectors, pair.spare])
            truth = float(eigenpairs(operator, 1, tolerance=1e-6, start=start, max_products=300).values[0])
            errors.append(abs(float(pair.values[0]) - truth) / truth)
        optimizer.zero_grad()
        squared(model, (x, targets)).backward()
        optimizer.step()
    return spent, errors


def run_trace(seeds: int = 200) -> dict[str, Any]:
    """Relative root-mean-square error of the trace over seeds, on the dense matrix; 20 seeds leave it 16 % unsure."""
    found: dict[str, Any] = {}
    for steps in (0, 100, 1000):
        case = digits_mlp(steps)
        matrix = Hessian(case.objective.in_float64(), check=False).dense()
        truth, operator = float(matrix.trace()), Dense(matrix)
        ours = {f"dynaxx {m}": (lambda n, s, m=m, operator=operator: trace(operator, n, method=m, seed=s).value)
                for m in ("hutchinson", "hutch++", "xtrace")}  # fmt: skip
        print(f"\n{case.name}: relative RMSE of the trace at 30 and 90 products")
        for name, estimate in {**ours, **traces(matrix)}.items():
            row = [float(np.sqrt(np.mean([(estimate(n, s) / truth - 1) ** 2 for s in range(seeds)]))) for n in (30, 90)]
            print(f"  {name:<24} {row[0]:.4f}  {row[1]:.4f}")
            found[f"{steps} {name}"] = row
    return found


def run_density() -> dict[str, Any]:
    """Distance of the density to the dense spectrum by products, in shares of its width."""
    case = digits_mlp(100)
    truth = torch.linalg.eigvalsh(Hessian(case.objective.in_float64(), check=False).dense()).numpy()
    width = truth[-1] - truth[0]

    def ours(probes: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
        result = density(Hessian(case.objective, check=False), probes=probes, steps=steps)
        return result.nodes, result.weights.mean(0)

    print(f"\n{case.name}: Wasserstein distance of the density to the dense spectrum, over its width")
    found: dict[str, Any] = {}
    for name, estimate in {"dynaxx": ours, **densities(case.model, case.batch)}.items():
        row = {}
        for probes, steps in ((1, 20), (1, 40), (4, 20), (4, 40), (8, 40)):
            nodes, weights = estimate(probes, steps)
            row[probes * steps] = float(wasserstein_distance(truth, nodes, None, np.clip(weights, 0, None)) / width)
        print(f"  {name:<38} " + "  ".join(f"{n}: {e:.1e}" for n, e in row.items()))
        found[name] = row
    return found


def run_memory() -> dict[str, Any]:
    """Peak of torch's allocations during one product, the graph's build included, in those of one gradient."""
    found: dict[str, Any] = {}
    print("\npeak memory of a product with one vector, in gradients': graph freed on the way, graph kept")
    for case in product_cases():
        one = peak(gradient(case))
        row: list[float] = []
        for keep in (False, True):
            operator = Hessian(case.objective, keep_graph=keep)
            operator.update()
            v = operator.space.random(1, seed=1)
            row.append(peak(lambda o=operator, v=v: o(v)) / one)
        found[case.name] = {"freed": row[0], "kept": row[1]}
        print(f"  {case.name:<40} {row[0]:.2f}  {row[1]:.2f}")
    return found


def peak(call: Callable[[], Any]) -> float:
    """Largest sum of live allocations made within, in bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = call()
    del kept
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return float(np.max(np.cumsum(sizes))) if sizes else 0.0


RUNS: dict[str, Callable[[], dict[str, Any]]] = {
    "product": run_product,
    "eigenvalues": run_eigenvalues,
    "tracking": run_tracking,
    "trace": run_trace,
    "density": run_density,
    "memory": run_memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[*RUNS, []], help="which tables; all by default")
    parser.add_argument("--json", help="keep the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # peers warn of each other's deprecations
    found = {name: RUNS[name]() for name in arguments.what or RUNS}
    print(f"\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, torch {torch.__version__}, one thread")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
