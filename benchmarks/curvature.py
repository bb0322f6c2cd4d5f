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
from typing import Any

import numpy as np
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from curvature_cases import Case, digits, digits_cnn, digits_mlp, loss, product_cases
from curvature_peers import densities, hessian_products, top_eigenvalues, traces
from dynaxx.core.objective import Objective
from dynaxx.numerics.density import density
from dynaxx.numerics.hessian import Hessian
from dynaxx.numerics.lanczos import eigenpairs
from dynaxx.numerics.operator import Dense
from dynaxx.numerics.trace import trace
from dynaxx.numerics.tracker import CurvatureTracker


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
    """One product, graph build excluded; beside it what a product costs when ten share one graph.

    Ours are taken as a search takes them, modes and random streams set once for all; PyHessian sets its modes for good
    and leaves the streams alone. A product alone sets them and puts them back.
    """
    found: dict[str, Any] = {}
    with sdpa_kernel(SDPBackend.MATH):  # the peers need it around them
        for case in product_cases():
            print(f"\n{case.name}: one product, in gradients (limit {case.limit})")
            operator, single = Hessian(case.objective), Hessian(case.objective)
            v = operator.space.random(1, seed=1)

            def ten(o: Hessian = single, v: Tensor = v) -> None:
                o.update()
                with o.opened():
                    for _ in range(10):
                        o(v)

            contenders: dict[str, Callable[[], Any]] = {
                "dynaxx, within a search": lambda o=operator, v=v: o(v),
                "dynaxx, alone": lambda o=single, v=v: o(v),
                "dynaxx, 10 with the graph's build": ten,
                **{n: (lambda f=f, v=v: f(v[0])) for n, f in hessian_products(case.model, case.batch).items()},
            }
            with operator.opened():
                ratios = timed(contenders, gradient(case), rounds)
                ratios["dynaxx, 10 with the graph's build"] = [
                    r / 10 for r in ratios["dynaxx, 10 with the graph's build"]
                ]  # fmt: skip
                for name, values in ratios.items():
                    print(f"  {name:<36} {spread(values)}")
                row: dict[str, Any] = {name: statistics.median(values) for name, values in ratios.items()}
                if "PyHessian" in contenders:
                    row["over PyHessian"] = neighbours(
                        *(contenders[n] for n in ("dynaxx, within a search", "PyHessian"))
                    )
                    middle, low, high = row["over PyHessian"]
                    print(
                        f"  within a search / PyHessian next to it {middle:.3f} (median's 95 %: {low:.3f}–{high:.3f})"
                    )
            found[case.name] = row
    return found


def neighbours(ours: Callable[[], Any], peer: Callable[[], Any], pairs: int = 200) -> tuple[float, float, float]:
    """Median ratio of two calls' times, taken next to each other in turn, with its 95 % interval."""
    ratios: list[float] = []
    for i in range(pairs):
        times: dict[int, float] = {}
        for which in (i % 2, 1 - i % 2):
            start = time.perf_counter()
            (ours, peer)[which]()
            times[which] = time.perf_counter() - start
        ratios.append(times[0] / times[1])
    ratios.sort()
    half = round(0.98 * pairs**0.5)  # of the ranks around the median, by the binomial law
    return statistics.median(ratios), ratios[pairs // 2 - half], ratios[pairs // 2 + half - 1]


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


def run_tracking(steps: int = 1500, seeds: Sequence[int] = range(1, 9)) -> dict[str, Any]:
    """The largest eigenvalue along gradient descent on digits (MLP 64-100-100-10 tanh, squared error), by seed.

    At a rate of 0.05 the training stays below the edge of stability; its first 600 steps, in which the eigenvectors
    turn quickest, are given apart. At 0.3 it is measured from step 600 on, at the edge.
    """
    found: dict[str, Any] = {}
    print("\ntracking λ₁ along gradient descent: products per measurement and median error, over seeds")
    for every, rate, last in ((20, 0.05, 600), (50, 0.05, steps), (100, 0.05, 600), (50, 0.3, 1800)):
        first = 600 if rate == 0.3 else 0
        runs = [track(every, rate, range(first, last, every), seed=seed) for seed in seeds]
        for name, until in {"": None, ", first 600 steps": 600 // every}.items():
            if until and (first or last == 600):
                continue
            products = [statistics.mean(spent[1:until]) for spent, _ in runs]
            medians = [statistics.median(errors[:until]) for _, errors in runs]
            label = f"every {every}, {'at' if first else 'below'} the edge{name}"
            found[label] = {"products": products, "median_error": medians}
            print(f"  {label:<42} {statistics.mean(products):5.2f} ({min(products):.2f}–{max(products):.2f}) products, "
                  f"median errors {min(medians):.1e}–{max(medians):.1e}")  # fmt: skip
    for most in (3, 4, 6, 10):  # could a measurement be spread over steps?
        spent, errors = track(128, 0.05, range(0, 1300, 128), most)
        label = f"every 128, at most {most}"
        found[label] = {"products": statistics.mean(spent[1:]), "median_error": statistics.median(errors[1:])}
        print(
            f"  {label:<42} {found[label]['products']:5.1f} products, median error {found[label]['median_error']:.1e}"
        )
    return found


def track(every: int, rate: float, when: range, most: int = 10, *, seed: int = 0) -> tuple[list[int], list[float]]:
    """Products and relative errors of the measurements of one training."""
    x, y = digits()
    x, targets = x[:1000], functional.one_hot(y[:1000], 10).float()
    torch.manual_seed(seed)
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
        for k in (3, 10):  # what found them is not counted, or counted
            known = eigenpairs(operator, k, tolerance=0.1, max_products=28)
            for name, less in (("known", 0), (f"found by {known.products} of the products", known.products)):
                ours[f"dynaxx, {k} vectors {name}"] = lambda n, s, o=operator, p=known, less=less: (
                    trace(o, n - less, known=p, seed=s).value
                )
        print(f"\n{case.name}: relative RMSE of the trace at 30 and 90 products")
        for name, estimate in {**ours, **traces(matrix)}.items():
            row = [float(np.sqrt(np.mean([(estimate(n, s) / truth - 1) ** 2 for s in range(seeds)]))) for n in (30, 90)]
            print(f"  {name:<48} {row[0]:.4f}  {row[1]:.4f}")
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
