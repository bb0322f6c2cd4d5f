"""Small trainings with drawn settings, recorded whole, that can be gone on with from any evaluation at another rate.

They differ in what decides about stopping: whether the validation loss comes to rest, when, and under which schedule.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynaxx.runlog import Table
from dynaxx.tasks.diabetes import Diabetes
from dynaxx.tasks.digits import Digits
from dynaxx.tasks.stdlib_lm import StdlibLM

EVALUATIONS = 50
Split = tuple[Tensor, Tensor]
Columns = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What determines a training.

    Args:
        task: A key of `TASKS`.
        seed: Of the data order, the initialisation and the label noise.
        steps: Planned optimizer steps.
        optimizer: "sgd" (momentum 0.9) or "adam".
        rate: Peak learning rate.
        schedule: "constant", "cosine", "short" (a cosine that ends after a fifth of the steps, at a hundredth of the
            peak) or "wsd" (linear to zero over the last fifth).
        batch: Examples of a batch.
        width: Of the hidden layer.
        decay: Weight decay.
        noise: Share of the training labels that are drawn at random, or deviations added to the targets.
    """

    task: str
    seed: int
    steps: int
    optimizer: str
    rate: float
    schedule: str
    batch: int
    width: int
    decay: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Data and a model for them.

    Args:
        train: Inputs and targets.
        validation: Likewise.
        model: Width → model.
        loss: Outputs and targets → mean loss.
    """

    train: Split
    validation: Split
    model: Callable[[int], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]


def _whole(task: Digits | Diabetes, split: str) -> Split:
    task.batch_size = 10_000
    [batch] = list(task.batches(split, 0))
    return batch[0].flatten(1), batch[1]


def _noisy_labels(targets: Tensor, share: float, classes: int, random: torch.Generator) -> Tensor:
    drawn = torch.rand(len(targets), generator=random) < share
    return torch.where(drawn, torch.randint(classes, targets.shape, generator=random), targets)


def digits(setting: Setting, random: torch.Generator) -> Problem:
    """Images of digits, some labels drawn at random."""
    (inputs, targets), validation = _whole(Digits("tiny"), "train"), _whole(Digits("tiny"), "validation")
    return Problem(
        train=(inputs, _noisy_labels(targets, setting.noise, 10, random)),
        validation=(validation[0], _noisy_labels(validation[1], setting.noise, 10, random)),
        model=lambda width: nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)),
        loss=F.cross_entropy,
    )


def diabetes(setting: Setting, random: torch.Generator) -> Problem:
    """Ten measurements of 354 patients: a net without decay memorises them."""
    del setting, random
    return Problem(
        train=_whole(Diabetes("tiny"), "train"),
        validation=_whole(Diabetes("tiny"), "validation"),
        model=lambda width: nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, 1), nn.Flatten(0)),
        loss=F.mse_loss,
    )


def teacher(setting: Setting, random: torch.Generator) -> Problem:
    """A random net of eight units with noise on its answers: the noise's variance is the floor."""
    weights = torch.randn(20, 8, generator=random) / math.sqrt(20)
    inputs = torch.randn(2500, 20, generator=random)
    targets = torch.relu(inputs @ weights).sum(1) + setting.noise * torch.randn(2500, generator=random)
    return Problem(
        train=(inputs[:2000], targets[:2000]),
        validation=(inputs[2000:], targets[2000:]),
        model=lambda width: nn.Sequential(nn.Linear(20, width), nn.ReLU(), nn.Linear(width, 1), nn.Flatten(0)),
        loss=F.mse_loss,
    )


def text(setting: Setting, random: torch.Generator) -> Problem:
    """The next byte of Python source from the eight before it."""
    del setting
    task = StdlibLM("tiny")

    def windows(data: Tensor, count: int) -> Split:
        starts = torch.randint(len(data) - 9, (count,), generator=random)
        rows = data[starts[:, None] + torch.arange(9)].long()
        return rows[:, :8], rows[:, 8]

    return Problem(
        train=windows(task.text.train, 60_000),
        validation=windows(task.text.validation, 1000),
        model=lambda width: nn.Sequential(
            nn.Embedding(256, 8), nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 256)
        ),
        loss=F.cross_entropy,
    )


def addition(setting: Setting, random: torch.Generator) -> Problem:
    """Sums modulo 13, 60 % of the pairs to learn from: the validation loss falls late, if at all."""
    del setting
    pairs = torch.cartesian_prod(torch.arange(13), torch.arange(13))[torch.randperm(169, generator=random)]
    inputs, targets = F.one_hot(pairs, 13).flatten(1).float(), pairs.sum(1) % 13
    return Problem(
        train=(inputs[:101], targets[:101]),
        validation=(inputs[101:], targets[101:]),
        model=lambda width: nn.Sequential(nn.Linear(26, width), nn.ReLU(), nn.Linear(width, 13)),
        loss=F.cross_entropy,
    )


TASKS: Mapping[str, Callable[[Setting, torch.Generator], Problem]] = {
    "digits": digits,
    "diabetes": diabetes,
    "teacher": teacher,
    "text": text,
    "addition": addition,
}


def draw(task: str, seed: int) -> Setting:
    """A setting from the ranges in which these trainings work, schedules and lengths at random."""
    rng = np.random.default_rng([seed, list(TASKS).index(task)])
    adam = task in ("text", "addition") or bool(rng.random() < 0.5)
    low, high = (1e-3, 1e-2) if adam else (0.01, 0.2)
    if task in ("diabetes", "teacher") and not adam:
        low, high = 0.003, 0.03
    return Setting(
        task=task,
        seed=seed,
        steps=int(rng.choice([1000, 2000, 4000])),
        optimizer="adam" if adam else "sgd",
        rate=float(np.exp(rng.uniform(np.log(low), np.log(high)))),
        schedule=str(rng.choice(["constant", "constant", "constant", "cosine", "wsd"])),
        batch=101 if task == "addition" else int(rng.choice([16, 32, 64, 128])),
        width=int(rng.choice([32, 64, 128])),
        decay=float(1.0 if task == "addition" else rng.choice([0.0, 1e-3, 1e-2])),
        noise=float({"digits": rng.choice([0.0, 0.1, 0.3]), "teacher": rng.choice([0.2, 0.5, 1.0])}.get(task, 0.0)),
    )


@dataclass
class Training:
    """A training that can be copied: state, position in the data and log.

    Args:
        setting: What determines it.
    """

    setting: Setting
    step: int = 0
    factor: float = 1.0
    """Of the learning rate, beside the schedule's."""
    updates: int = 1
    """So many times fewer updates between evaluations, where each takes so many batches."""
    columns: Columns = field(default_factory=dict)
    layers: tuple[float, ...] = ()
    """Factors of the layers' rates that belong to the setting, in the order of the model; none: 1 each."""
    evened: tuple[float, ...] = ()
    """Those of an act on top of them."""
    ratios: list[list[float]] | None = None
    """Relative updates of the layers, a row an update, where they are wanted."""

    def __post_init__(self) -> None:
        setting, random = self.setting, torch.Generator().manual_seed(self.setting.seed)
        self._problem = TASKS[setting.task](setting, random)
        torch.manual_seed(setting.seed)
        self._model = self._problem.model(setting.width)
        groups = [{"params": layer} for layer in self._layers()]
        self._optimizer = (
            torch.optim.AdamW(groups, lr=setting.rate, weight_decay=setting.decay)
            if setting.optimizer == "adam"
            else torch.optim.SGD(groups, lr=setting.rate, momentum=0.9, weight_decay=setting.decay)
        )
        self._order = torch.Generator().manual_seed(setting.seed + 1)
        self._answers: Tensor | None = None

    @property
    def every(self) -> int:
        """Steps between evaluations."""
        return self.setting.steps // EVALUATIONS

    def log(self) -> Table:
        """What was recorded so far."""
        series = {name: tuple(zip(*rows, strict=True)) for name, rows in self.columns.items()}
        recipe = {"wsd": "wsd:decay=0.2", "short": "cosine"}.get(self.setting.schedule, self.setting.schedule)
        facts = {"facts": {"schedule": recipe}, "steps": self.setting.steps, "model": {"layers": []}}
        group = {"lr": self.setting.rate, "weight_decay": self.setting.decay}
        return Table(series, manifest={**facts, "optimizer": {"class": self.setting.optimizer, "groups": [group]}})

    def fork(self) -> "Training":
        """The same at the same place, to go on otherwise."""
        other = copy.copy(self)
        other.columns = {name: list(rows) for name, rows in self.columns.items()}
        other._model = copy.deepcopy(self._model)
        other.ratios = None if self.ratios is None else []
        other._optimizer = type(self._optimizer)([{"params": layer} for layer in other._layers()])
        other._optimizer.load_state_dict(copy.deepcopy(self._optimizer.state_dict()))
        other._order = torch.Generator()
        other._order.set_state(self._order.get_state())
        return other

    def advance(self) -> None:
        """Train to the next evaluation, and evaluate."""
        inputs, targets = self._problem.train
        for _ in range(self.every // self.updates):
            rate = self.setting.rate * self._planned() * self.factor
            for place, group in enumerate(self._optimizer.param_groups):
                group["lr"] = rate * math.prod(factors[place] for factors in (self.layers, self.evened) if factors)
            rows = torch.randint(len(inputs), (min(self.setting.batch, len(inputs)),), generator=self._order)
            loss = self._problem.loss(self._model(inputs[rows]), targets[rows])
            self._optimizer.zero_grad()
            loss.backward()
            norms = torch._foreach_norm([p.grad for p in self._model.parameters()])
            before = None if self.ratios is None else self._copied()
            self._optimizer.step()
            self._compare(before)
            self.step += self.updates
            self._log("loss", loss.item())
            self._log("grad_norm", torch.stack(norms).norm().item())
            self._log("lr", rate)
            self._log("lr.factor", self.factor)
        self._evaluate()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of parameters of the layers."""
        return tuple(sum(p.numel() for p in layer) for layer in self._layers())

    def _layers(self) -> list[list[nn.Parameter]]:
        owned = (list(module.parameters(recurse=False)) for module in self._model.modules())
        return [parameters for parameters in owned if parameters]

    def _copied(self) -> list[Tensor]:
        return [torch.cat([p.detach().flatten() for p in layer]) for layer in self._layers()]

    def _compare(self, before: list[Tensor] | None) -> None:
        if self.ratios is not None and before is not None:
            pairs = zip(self._copied(), before, strict=True)
            self.ratios.append([((now - then).norm() / then.norm()).item() for now, then in pairs])

    def _planned(self) -> float:
        setting, done = self.setting, self.step / self.setting.steps
        warm = min(1.0, (self.step + 1) / (0.02 * setting.steps))
        if setting.schedule == "short":
            return warm * max(0.01, 0.5 * (1 + math.cos(math.pi * min(1.0, done / 0.2))))
        if setting.schedule == "cosine":
            return warm * 0.5 * (1 + math.cos(math.pi * done))
        return warm * (min(1.0, (1 - done) / 0.2) if setting.schedule == "wsd" else 1.0)

    @torch.no_grad()
    def _evaluate(self) -> None:
        inputs, targets = self._problem.validation
        outputs = self._model(inputs)
        self._log("val_loss", self._problem.loss(outputs, targets).item())
        answers = outputs.argmax(1) if outputs.dim() == 2 else outputs
        if self._answers is not None and outputs.dim() == 2:
            self._log("samples.agreement", (answers[:64] == self._answers[:64]).float().mean().item())
        self._answers = answers

    def _log(self, name: str, value: float) -> None:
        self.columns.setdefault(name, []).append((self.step, value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A whole training and its state at every evaluation.

    Args:
        setting: What determines it.
        log: Of the whole.
        forks: One at each evaluation.
    """

    setting: Setting
    log: Table
    forks: tuple[Training, ...]


def record(setting: Setting) -> Recorded:
    """Train to the planned end."""
    training, forks = Training(setting), []
    for _ in range(EVALUATIONS):
        training.advance()
        forks.append(training.fork())
    return Recorded(setting=setting, log=training.log(), forks=tuple(forks))
