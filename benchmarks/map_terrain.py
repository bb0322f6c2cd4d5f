"""How often does a map name the wrong terrain? Planted landscapes with random sizes, and short trainings of many nets.

`python benchmarks/map_terrain.py` (kinds by name) draws landscapes of each kind (`--draws`), looks at them through the
probes that a map uses, and does the same where short trainings of several nets, widths, tasks and seeds ended. Of a
planted landscape the truth is known. Of a net it is not; but its lines through a trained point are known to be smooth
(Li et al. 2018 on nets with and without skip connections of such depths), so "rugged" or "plateau" there is a wrong
name. The readings' ranges show how far each threshold is from what it should part. Nothing was set on these draws but
the bound between bowl and ravine, on seeds 1000 to 1019 (one planted ravine has at most 50 for d·λ₁/tr H, as d is 50).
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn
from torch.nn import functional

from dynaxx import catalog, landscape
from dynaxx.survey._ground import Found, Ground
from dynaxx.survey.readings import readings
from dynaxx.survey.terrain import RAVINE, RUGGED, SMOOTH_BOWL, terrain

Formula = Callable[[Tensor], Tensor]
Loss = Callable[[nn.Module, Any], Tensor]
SPECTRUM = {"eigenvalues": 1, "probes": 2, "steps": 20, "samples": 4}
SLICES = {"dimensions": 1, "count": 3, "points": 41, "curvature": False}
EXPECTED = {
    "bowl": (SMOOTH_BOWL,),
    "ravine": (RAVINE,),
    "hills": (RUGGED,),
    "saddle": ("none",),
    "net": (SMOOTH_BOWL, RAVINE, "none"),
}
"""Names that are right, by kind; no class is that of a saddle."""
FIRST = 2000
"""First seed of the draws."""


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=3e-3),
}


@cache
def _data(name: str) -> tuple[Tensor, Tensor]:
    x, y = (load_digits if name == "digits" else load_diabetes)(return_X_y=True)
    inputs = torch.tensor(x / x.std(), dtype=torch.float32)
    return inputs, torch.tensor(y) if name == "digits" else torch.tensor((y - y.mean()) / y.std(), dtype=torch.float32)


class Place(nn.Module):
    """A point of a landscape given by a formula, a random one."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.randn(size, 1, generator=generator, dtype=torch.float64))


def planted(kind: str, seed: int) -> tuple[nn.Module, Loss]:
    """A landscape of that kind."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    size = int(rng.choice([50, 200, 1000]))
    scale = 10 ** rng.uniform(-3, 3)
    formula = {"bowl": _bowl, "ravine": _ravine, "saddle": _saddle, "hills": _hills}[kind](size, rng)
    return Place(size, generator), lambda model, _: scale * (formula(model.theta[:, 0]) + 1.0)


def _bowl(size: int, rng: np.random.Generator) -> Formula:
    """Curvatures within a factor of 2 to 5, with a quartic part."""
    steep = torch.tensor(rng.uniform(1, rng.uniform(2, 5), size))
    quartic = rng.uniform(0, 0.1)
    return lambda t: (steep * t * t).mean() / 2 + quartic * (t**4).mean()


def _ravine(size: int, rng: np.random.Generator) -> Formula:
    """One direction in 200 or fewer, 10³ to 10⁵ times steeper than the others."""
    steep = torch.ones(size, dtype=torch.float64)
    count = int(rng.integers(1, max(1, size // 200) + 1))
    steep[:count] = torch.tensor(10 ** rng.uniform(3, 5, count))
    return lambda t: (steep * t * t).mean() / 2


def _saddle(size: int, rng: np.random.Generator) -> Formula:
    """A tenth to a half of all directions fall."""
    signs = torch.ones(size, dtype=torch.float64)
    signs[: int(size * rng.uniform(0.1, 0.5))] = -rng.uniform(0.3, 1.0)
    return lambda t: (signs * t * t).mean() / 2


def _hills(size: int, rng: np.random.Generator) -> Formula:
    """A bowl with hills half as high as it rises, three to ten along a line."""
    waves, height = torch.tensor(rng.normal(0, 1, (8, size)) / math.sqrt(size)), rng.uniform(0.3, 1.0)
    pitch = rng.uniform(10, 30) * math.sqrt(size)  # a random line meets a wave at about 1/√size of its pitch
    return lambda t: (t * t).mean() / 2 + height * torch.cos(pitch * (waves @ t)).mean()


MODELS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "ReLU": lambda i, w, o: nn.Sequential(nn.Linear(i, w), nn.ReLU(), nn.Linear(w, w), nn.ReLU(), nn.Linear(w, o)),
    "tanh": lambda i, w, o: nn.Sequential(nn.Linear(i, w), nn.Tanh(), nn.Linear(w, w), nn.Tanh(), nn.Linear(w, o)),
    "norm": lambda i, w, o: nn.Sequential(
        nn.Linear(i, w), nn.BatchNorm1d(w), nn.ReLU(), nn.Linear(w, w), nn.LayerNorm(w), nn.GELU(), nn.Linear(w, o)
    ),
    "conv": lambda i, w, o: nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, w, 3), nn.ReLU(), nn.Conv2d(w, w, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * w, o),
    ),
}  # fmt: skip


def nets(seeds: Sequence[int]) -> Iterator[tuple[str, nn.Module, Loss, list[Any]]]:
    """Where trainings of 60 steps ended: four nets, two widths, two data sets, two optimizers."""
    for seed in seeds:
        for data, width, kind, rule in product(("digits", "diabetes"), (16, 64), MODELS, OPTIMIZERS):
            if kind == "conv" and data != "digits":
                continue
            inputs, targets = _data(data)
            torch.manual_seed(seed)
            model = MODELS[kind](inputs.shape[1], width, 10 if data == "digits" else 1)
            loss = _classified if data == "digits" else _fitted
            optimizer = OPTIMIZERS[rule](model)
            for _ in range(60):
                rows = torch.randint(0, len(inputs), (64,))
                optimizer.zero_grad()
                loss(model, (inputs[rows], targets[rows])).backward()
                optimizer.step()
            yield f"{data} {kind} {width} {rule} {seed}", model.eval(), loss, [(inputs[:256], targets[:256])]


def _classified(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def _fitted(model: nn.Module, batch: Any) -> Tensor:
    return functional.mse_loss(model(batch[0])[:, 0], batch[1])


def looked(model: nn.Module, loss: Loss, batches: list[Any], *, raw: bool) -> Ground:
    """A map of spectrum and slices."""
    lines = {**SLICES, **({"normalisation": "raw", "radius": 1.0} if raw else {})}
    charts = {
        "spectrum": landscape.spectrum(model, loss, batches, **SPECTRUM),
        "slices": landscape.slices(model, loss, batches, **lines),
    }
    return Ground(
        folder=Path(), spec="digits", task=catalog.task("digits"), seed=0, engine=None, progress=lambda _: None,
        found={name: Found(chart=chart) for name, chart in charts.items()},
    )  # fmt: skip


def cases(kinds: Sequence[str], seeds: Sequence[int], net_seeds: Sequence[int]) -> Iterator[tuple[str, str, Ground]]:
    """Kind, which, and what the probes found there."""
    for kind in kinds:
        if kind == "net":
            for which, model, loss, batches in nets(net_seeds):
                yield kind, which, looked(model, loss, batches, raw=False)
            continue
        for seed in seeds:
            model, loss = planted(kind, seed)
            yield kind, str(seed), looked(model, loss, [torch.zeros(4, 1)], raw=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=[*EXPECTED, []], help="which; all by default")
    parser.add_argument("--draws", type=int, default=40, help="planted landscapes of each kind")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of each net")
    parser.add_argument("--first", type=int, default=FIRST, help="first seed of the draws")
    parser.add_argument("--json", type=Path, help="keep names and readings here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    seeds, net_seeds = (range(options.first, options.first + count) for count in (options.draws, options.seeds))
    for kind, which, ground in cases(options.kinds or list(EXPECTED), seeds, net_seeds):
        found = readings(ground)
        values = {name: reading.value for name, reading in found.items()}
        rows.append({"kind": kind, "which": which, "name": terrain(found).name or "none", **values})
        if rows[-1]["name"] not in EXPECTED[kind]:
            print("wrong:", {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def show(rows: list[dict[str, Any]]) -> None:
    print("| | named | wrong | convexity | roughness | negative share | anisotropy |\n|---|---|---|---|---|---|---|")
    for kind, right in EXPECTED.items():
        here = [row for row in rows if row["kind"] == kind]
        if not here:
            continue
        names = Counter(row["name"] for row in here)
        wrong = sum(count for name, count in names.items() if name not in right)
        ranges = [
            "{:.2g} to {:.2g}".format(
                *np.quantile([row[name] for row in here if name in row] or [math.nan], (0.05, 0.95))
            )
            for name in ("convexity", "roughness", "negative_share", "anisotropy")
        ]
        said = ", ".join(f"{name} {count}" for name, count in names.most_common())
        print(f"| {kind} | {said} | {wrong} of {len(here)} | {' | '.join(ranges)} |")


if __name__ == "__main__":
    main()
