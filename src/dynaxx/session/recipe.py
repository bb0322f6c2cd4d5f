"""How a task is trained where it is not the task's own way: optimizer, rates, averages, perturbed steps."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dynaxx import catalog
from dynaxx.core.curriculum import Pacing
from dynaxx.core.methods import Averager, Curve, Perturber
from dynaxx.core.task import Task
from dynaxx.errors import BadInput
from dynaxx.phases import Phase, Phased
from dynaxx.schedules import Meso, Micro, Rates, as_scheduler
from dynaxx.session.optimizers import in_words, optimizer_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The methods of a training, in the words of the command line; what is None is as the task has it.

    Args:
        optimizer: "name:option=value,…" of `dynaxx list optim`, or of torch ("adamw:lr=3e-4").
        peak: Learning rate of the largest group before its schedule; the others' stay in proportion.
        rate: Multiplies the learning rate of every group and its schedule in proportion.
        schedule: A curve of `dynaxx list schedules` in place of the task's own ("wsd:warmup=0.05").
        averaging: An averager of `dynaxx list averaging` ("ema:half_life=200"); it is evaluated beside the model, and
            its weights are the training's second result.
        perturb: A perturber of `dynaxx list perturb` ("sam:rho=0.05,every=5").
        micro: A periodic modulation of the rates ("period=100,amplitude=0.1").
        meso: Rates by layer, with this ratio between the highest and the lowest at most.
        clip: Clip the total gradient norm at this value.
        phases: Methods one after the other; what the first leaves open is as said above.
        curriculum: Easy examples first, by this pacing ("root:start=0.01,until=0.5"), of a task that tells them apart.

    Raises:
        BadInput: A number is out of its range, or words cannot be read. UnknownName: there is no such method.
    """

    optimizer: str | None = None
    peak: float | None = None
    rate: float = 1.0
    schedule: str | None = None
    averaging: str | None = None
    perturb: str | None = None
    micro: str | None = None
    meso: float | None = None
    clip: float | None = None
    phases: tuple[Phase, ...] = ()
    curriculum: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("peak", self.peak), ("rate", self.rate), ("clip", self.clip), ("meso", self.meso)):
            if value is not None and not 0 < value < float("inf"):
                raise BadInput(f"train({name}=...) must be positive and finite. Got {value}.")
        for family, words in (("schedules", self.schedule), ("averaging", self.averaging), ("perturb", self.perturb)):
            if words is not None:
                catalog.choice(family, words)
        if self.micro is not None:
            _micro(self.micro)
        if self.curriculum is not None:
            Pacing.read(self.curriculum)

    def settings(self) -> dict[str, Any]:
        """What determines the run, for its manifest: the words that were given."""
        plain = {name: value for name, value in asdict(self).items() if value is not None}
        plain["phases"] = list(plain["phases"])  # as the manifest gives it back
        return {name: value for name, value in plain.items() if (name, value) not in (("rate", 1.0), ("phases", []))}

    def method(self, task: Task, model: nn.Module, steps: int) -> "Method":
        """Everything that takes steps, made for a model.

        Args:
            task: Gives what the recipe leaves to it.
            model: The model to train.
            steps: Planned optimizer steps, which curves are made for.

        Returns:
            The method.

        Raises:
            BadInput: An option breaks a rule of the method that it is for.
        """
        optimizer = self._optimizer(task, model, steps)
        own = max(float(group.get("lr", 0.0)) for group in optimizer.param_groups)
        if self.peak is not None and not own > 0:
            raise BadInput(f"train(peak={self.peak}): {type(optimizer).__name__} has no learning rate to scale.")
        factor = self.rate if self.peak is None else self.rate * self.peak / own
        scheduler = (
            task.scheduler(optimizer)
            if self.schedule is None
            else as_scheduler(optimizer, catalog.choice("schedules", self.schedule).build(steps=steps))
        )
        macro = None if factor == 1.0 else _Proportion(steps=steps, share=factor)
        micro = None if self.micro is None else _micro(self.micro)
        meso = None if self.meso is None else Meso(spread=self.meso)
        scaled = any(part is not None for part in (macro, micro, meso))
        return Method(
            optimizer=optimizer,
            scheduler=scheduler,
            own_averager=self._built("averaging", self.averaging, model),
            own_perturber=self._built("perturb", self.perturb, model),
            rates=Rates(macro=macro, micro=micro, meso=meso) if scaled else None,
            factor=factor,
        )

    def _optimizer(self, task: Task, model: nn.Module, steps: int) -> Optimizer:
        if not self.phases:
            return task.optimizer(model) if self.optimizer is None else optimizer_for(self.optimizer, model)
        first = self.phases[0]
        words = first.optimizer or self.optimizer or in_words(task.optimizer(model), model)
        averaging, perturb = first.averaging or self.averaging, first.perturb or self.perturb
        first = replace(first, optimizer=words, averaging=averaging, perturb=perturb)
        return Phased(model, [first, *self.phases[1:]], steps=steps)

    def _built(self, family: str, words: str | None, model: nn.Module) -> Any:
        """An entry for the whole training; phases have their own."""
        return None if words is None or self.phases else catalog.choice(family, words).build(model)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What takes the steps of a training.

    Args:
        optimizer: The optimizer.
        scheduler: Its scheduler, or None.
        own_averager: The average of the weights over the whole training, or None.
        own_perturber: What perturbs the steps of the whole training, or None.
        rates: Factors on the learning rates, or None.
        factor: The constant one among them.
    """

    optimizer: Optimizer
    scheduler: Any
    own_averager: Averager | None
    own_perturber: Perturber | None
    rates: Rates | None
    factor: float

    @property
    def averager(self) -> Averager | None:
        """The averager in force."""
        return self.optimizer.averager if isinstance(self.optimizer, Phased) else self.own_averager

    @property
    def perturber(self) -> Perturber | None:
        """The perturber in force."""
        return self.optimizer.perturber if isinstance(self.optimizer, Phased) else self.own_perturber

    @property
    def state(self) -> Mapping[str, Any]:
        """What belongs in checkpoints besides optimizer, scheduler and rates; phases are part of the optimizer."""
        parts = {"averager": self.own_averager, "perturber": self.own_perturber}
        return {name: part for name, part in parts.items() if part is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Proportion(Curve):
    """A constant factor: it scales any schedule, also one whose rates are absolute."""

    steps: int
    share: float

    def factor(self, step: int) -> float:
        del step
        return self.share


def _micro(words: str) -> Micro:
    form = "period=100,amplitude=0.1,shape=cosine"
    try:
        given = dict(part.strip().split("=", 1) for part in words.split(","))
        kinds: dict[str, Any] = {"period": int, "amplitude": float, "shape": str}
        return Micro(**{key: kinds[key](value) for key, value in given.items()})
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"train(micro={words!r}) cannot be read. Write it {form}.") from None
