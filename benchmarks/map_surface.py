"""The loss surface by Dynaxx and by its peers: time per point of a 41 × 41 plane, and evaluations at equal error.

`python benchmarks/map_surface.py` prints both tables, `times` or `adaptive` one; `--json FILE` keeps the figures;
`--rounds N` takes more turns.
loss-landscapes and landscaper are measured where they are installed (both want neither of their plotting parts here).

Times are those of the processor, on one thread, so that other programs do not count. They are taken in rounds in which
every tool has its turn, in an order that changes, on one network and one batch; medians of the ratios to Dynaxx of the
same round are given with the smallest and largest. A point is what a plane of 41 × 41 takes beyond one of 21 × 21, by
the points between; the whole plane holds besides what is done once: directions and copies, and with Dynaxx standard
errors over the examples (100 more losses, of parts) and the relief in numbers.

Errors are RMS distances from a plane of 121 × 121 losses on equal directions. A full grid is read off linearly, as
matplotlib's contours and surfaces draw what both peers give, and by cubics, like the adaptive one: where a surface is
smooth, most of the gain is theirs. Beside them stands the standard error that the losses have over their examples: what
is below it is not a feature of the landscape.
"""

import argparse
import contextlib
import io
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dynaxx.core.objective import Objective
from dynaxx.landscape import slices
from dynaxx.landscape._directions import Cut
from dynaxx.landscape._sampling import Sampler
from dynaxx.numerics.quadtree import Quadtree

SIDE, FEWER, DENSE, EXAMPLES = 41, 21, 121, 256
Batch = tuple[Tensor, Tensor]
Surface = Callable[[nn.Module, Batch, int], Any]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def networks() -> dict[str, nn.Module]:
    """Small networks for the digits."""
    return {
        "MLP 64-32-10, ReLU": nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
        "MLP 64-32-10, tanh": nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)),
        "MLP 64-256-256-10, ReLU": nn.Sequential(
            nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
        ),
        "CNN 8-16, ReLU": nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
        ),
    }  # fmt: skip


def trained() -> list[tuple[str, nn.Module, Batch]]:
    """Each after 200 steps of SGD with rate 0.1, and the batch that is looked at."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
    torch.manual_seed(0)
    found: list[tuple[str, nn.Module, Batch]] = []
    for name, model in networks().items():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(200):
            chosen = torch.randint(0, len(x), (128,))
            optimizer.zero_grad()
            loss(model, (x[chosen], y[chosen])).backward()
            optimizer.step()
        found.append((name, model.eval(), (x[:EXAMPLES], y[:EXAMPLES])))
    return found


def tools() -> dict[str, Surface]:
    """Tool → a square plane of losses along two random directions, from nothing."""
    found: dict[str, Surface] = {"dynaxx": _dynaxx}
    with contextlib.suppress(ImportError):
        from loss_landscapes import random_plane
        from loss_landscapes.metrics import Loss

        def theirs(model: nn.Module, batch: Batch, side: int) -> Any:
            metric = Loss(functional.cross_entropy, *batch)
            return random_plane(model, metric, distance=1, steps=side, normalization="filter", deepcopy_model=True)

        found["loss-landscapes 3.0.6"] = theirs
    with contextlib.suppress(ImportError):
        from landscaper import LossLandscape

        def other(model: nn.Module, batch: Batch, side: int) -> Any:
            rows = [[torch.randn_like(p) for p in model.parameters()] for _ in range(2)]
            made = LossLandscape.compute(
                model, batch, rows, lambda m, b: float(loss(m, b)), steps=side, distance=1.0, dim=2, device="cpu"
            )
            return made.loss

        found["landscaper 1.3.1"] = other
    return found


def _dynaxx(model: nn.Module, batch: Batch, side: int) -> Any:
    chart = slices(model, loss, [batch], adaptive=False, resolution=side, curvature=False)
    return chart.arrays["points"]


def times(rounds: int) -> list[dict[str, Any]]:
    """Microseconds per point and of a whole plane per point, and ratios to Dynaxx."""
    rows: list[dict[str, Any]] = []
    for name, model, batch in trained():
        taken: dict[str, list[tuple[float, float]]] = {tool: [] for tool in tools()}
        for turn in range(rounds + 1):
            order = list(tools().items())
            for tool, surface in order[turn % len(order) :] + order[: turn % len(order)]:
                fewer, whole = (_seconds(surface, model, batch, side) for side in (FEWER, SIDE))
                if turn:  # the first turn warms up
                    taken[tool].append(((whole - fewer) / (SIDE**2 - FEWER**2), whole / SIDE**2))
        for tool, seconds in taken.items():
            row: dict[str, Any] = {"network": name, "tool": tool}
            for each, kind in enumerate(("point", "plane")):
                ratios = [a[each] / b[each] for a, b in zip(seconds, taken["dynaxx"], strict=True)]
                row[f"{kind} microseconds"] = 1e6 * statistics.median(pair[each] for pair in seconds)
                row |= {f"{kind} ratio": statistics.median(ratios), f"{kind} range": (min(ratios), max(ratios))}
            rows.append(row)
            said = (
                "{}: {:6.0f} µs, {:.2f} ({:.2f}-{:.2f})".format(
                    kind, row[f"{kind} microseconds"], row[f"{kind} ratio"], *row[f"{kind} range"]
                )
                for kind in ("point", "plane")
            )
            print(f"{name:26} {tool:22}", *said, sep="   ", flush=True)
    return rows


def _seconds(surface: Surface, model: nn.Module, batch: Batch, side: int) -> float:
    """Processor time of one plane; what a tool prints is swallowed."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        start = time.process_time()
        surface(model, batch, side)
        return time.process_time() - start


def _losses(model: nn.Module, batch: Batch) -> Callable[[np.ndarray], np.ndarray]:
    objective = Objective(model, loss, [batch])
    cut = Cut(direction="random", normalisation="filter", dimensions=2, count=1, biases=False, seed=0)
    sampler = Sampler(objective, cut.axes(objective, None, None)[0].rows)

    def losses(points: np.ndarray) -> np.ndarray:
        with sampler.open() as at:
            return np.array([at(point) for point in points.tolist()])

    return losses


def _lattice(function: Callable[[np.ndarray], np.ndarray], side: np.ndarray) -> np.ndarray:
    x, y = np.meshgrid(side, side)
    return function(np.column_stack([x.ravel(), y.ravel()])).reshape(len(side), len(side))


def adaptive() -> list[dict[str, Any]]:
    """Evaluations at which refinement shows as much as the full grid of 1681."""
    from scipy.interpolate import RectBivariateSpline

    rows: list[dict[str, Any]] = []
    side, dense = np.linspace(-1, 1, SIDE), np.linspace(-1, 1, DENSE)
    cases: list[tuple[str, Callable[[np.ndarray], np.ndarray], float]] = [
        (name, _losses(model, batch), _standard_error(model, batch)) for name, model, batch in trained()
    ]
    cases.append(("cliff tanh(20(x + y/2 − 0.3))", lambda p: np.tanh(20 * (p[:, 0] + 0.5 * p[:, 1] - 0.3)), 0.0))
    cases.append(("canyon x² + log(1 + 200(y − 0.3x)²)", _canyon, 0.0))
    for name, function, spread in cases:
        truth, grid = _lattice(function, dense), _lattice(function, side)
        cubic = RectBivariateSpline(side, side, grid)(dense, dense)
        linear = RectBivariateSpline(side, side, grid, kx=1, ky=1)(dense, dense)
        targets = {"linear": _rms(linear - truth), "cubic": _rms(cubic - truth)}
        tree, reached, third = Quadtree((-1.0, 1.0), (-1.0, 1.0)), dict[str, int](), 0.0
        while tree.count < SIDE**2 and len(points := tree.ask(20)):
            tree.tell(function(points))
            error = _rms(tree.surface(dense, dense) - truth)
            third = error if tree.count <= SIDE**2 // 3 else third
            for kind, target in targets.items():
                if error <= target and kind not in reached:
                    reached[kind] = tree.count
        row = {"surface": name, "range": float(np.ptp(truth)), **{f"rms {k}": v for k, v in targets.items()}}
        row |= {f"evaluations {kind}": reached.get(kind) for kind in targets}
        rows.append(row | {"rms at a third": third, "standard error": spread})
        said = (f"{k} {v:.2e}: {_said(reached.get(k)):26}" for k, v in targets.items())
        print(f"{name:36}", *said, f"at a third {third:.2e}; standard error {spread:.1e}", flush=True)
    return rows


def _standard_error(model: nn.Module, batch: Batch) -> float:
    with torch.no_grad():
        each = functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return float(each.std() / len(each) ** 0.5)


def _said(count: int | None) -> str:
    return "not reached" if count is None else f"{count}, {SIDE**2 / count:.1f} times fewer"


def _canyon(p: np.ndarray) -> np.ndarray:
    return p[:, 0] ** 2 + np.log1p(200 * (p[:, 1] - 0.3 * p[:, 0]) ** 2)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", choices=["times", "adaptive", []], help="which; both by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = options.tables or ["times", "adaptive"]
    found = {"times": times(options.rounds) if "times" in wanted else []}
    found["adaptive"] = adaptive() if "adaptive" in wanted else []
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
