"""The probe `lr_range`: loss while the learning rate rises, and the rate that short annealed trainings do best with."""

import math
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dynaxx.core.chart import Chart, Estimate
from dynaxx.core.contracts import Probe
from dynaxx.core.isolation import isolated_random
from dynaxx.core.objective import Objective
from dynaxx.core.panels import Line, Lines
from dynaxx.core.records import Cost
from dynaxx.core.task import derive_seed
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.landscape._common import Meter, title
from dynaxx.landscape._lr_curve import LEAST_DESCENT, Descent, basin, descent, search, smoothed
from dynaxx.landscape._training import OptimizerSource, Scratch, stretch

RATIO = 2.0
"""Between neighbouring rates looked at: final losses a factor 2 apart differ by about the 5 % that matters."""
WARMUP = 0.1
"""Share of a look in which the rate rises; the field's usual share for short trainings."""
HORIZON_EXPONENT = 1 / 3
"""Of the fall of the best rate with the length of a training: 0.32 was measured on language models (Bjorck 2024);
theory of convex problems has ½, and what is limited by stability alone 0."""
MEMORY = 5.0
"""Steps that the exponential mean reaches back by which divergence is told from one bad batch."""
SHORTEST = 8
"""Steps of a curve below which it is not read."""
AS_GOOD = 0.05
"""Relative excess over the best loss that still counts as good: the figure the recommendation is held to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sweep:
    """Losses at rising rates, one array per data order, each as long as it went."""

    rates: np.ndarray
    losses: list[np.ndarray]
    reason: str

    @property
    def common(self) -> np.ndarray:
        """The mean over orders, as far as all went."""
        length = min(map(len, self.losses))
        return np.mean([part[:length] for part in self.losses], axis=0)

    @property
    def start(self) -> float:
        return self.mean.start if self.mean else float(np.mean([part[0] for part in self.losses]))

    @property
    def mean(self) -> Descent | None:
        """What the mean shows; None where it is too short to say."""
        return descent(self.common) if len(self.common) >= SHORTEST else None

    @property
    def diverges(self) -> float | None:
        """The rate from which on the mean is above its start, or the last rate where a sweep was stopped."""
        assert self.mean is not None
        if self.mean.returned is not None:
            return float(self.rates[self.mean.returned])
        return float(self.rates[len(self.common) - 1]) if len(self.common) < len(self.rates) else None

    def place(self, what: Literal["steepest", "lowest"], about: str) -> Estimate:
        """The rate at a point of the curves: geometric mean over orders."""
        seen = [descent(part) for part in self.losses]
        logs = np.log(self.rates[[each.steepest if what == "steepest" else each.lowest for each in seen]])
        return _geometric(logs, about)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Looks:
    """Losses after short trainings, (rates, orders), infinite where one diverged; and the loss before them.

    `shift` is what the rates of a training as long as planned are of those of a look.
    """

    rates: np.ndarray
    losses: np.ndarray
    before: float
    shift: float

    @property
    def means(self) -> np.ndarray:
        return self.losses.mean(1)

    @property
    def descends(self) -> bool:
        best = float(self.means.min())
        return best < self.before - LEAST_DESCENT * abs(self.before)

    @property
    def at_edge(self) -> bool:
        return int(self.means.argmin()) in (0, len(self.rates) - 1)

    @property
    def good(self) -> tuple[float, float]:
        """Between which rates the loss is within `AS_GOOD`, or one standard deviation over orders, of the best."""
        best = int(self.means.argmin())
        spread = float(self.losses[best].std(ddof=1)) if self.losses.shape[1] > 1 else 0.0
        return self._basin(self.means, spread)

    @property
    def recommended(self) -> Estimate:
        """The geometric middle of those; its error is the spread of the orders' own."""
        own = [math.sqrt(math.prod(self._basin(column))) for column in self.losses.T if np.isfinite(column).any()]
        value = math.sqrt(math.prod(self.good))
        spread = float(np.log(own).std(ddof=1)) / math.sqrt(len(own)) if len(own) > 1 else None
        about = "rate to train with: middle of those as good as the best after short trainings"
        return Estimate(value=value, error=None if spread is None else value * spread, about=about)

    def _basin(self, losses: np.ndarray, spread: float = 0.0) -> tuple[float, float]:
        best = float(losses.min())
        low, high = basin(np.log(self.rates), losses, best + max(AS_GOOD * abs(best), spread))
        return self.shift * math.exp(low), self.shift * math.exp(high)


def _geometric(logs: np.ndarray, about: str) -> Estimate:
    """The geometric mean, with its standard error over data orders."""
    value = math.exp(float(logs.mean()))
    error = value * float(logs.std(ddof=1)) / math.sqrt(len(logs)) if len(logs) > 1 else None
    return Estimate(value=value, error=error, about=about)


class LrRange(Probe):
    """Loss while the learning rate rises exponentially, and the rate to train with.

    A copy of model and optimizer is trained once per data order, its rate rising from `lowest` to `highest`, until the
    loss diverges (Smith 2015). That shows the rates at which the loss falls, but a rate is there for one step only. So
    single rates are then looked at: from the same point, `look_steps` steps with a warm-up of a tenth and linear decay
    to zero, after which the loss over the objective's batches is compared; rates a factor 2 apart are searched for the
    lowest. Rates are those of the group with the largest; the other groups' are in proportion.

    Args:
        optimizer: Makes the optimizer of a model, or the live one of this model; None: plain gradient descent.
        training: A re-iterable of training batches; None: the objective's own, shuffled.
        steps: Steps of a sweep; None: one epoch of the training batches.
        seeds: Data orders; their spread is the uncertainty.
        lowest: First rate of the sweep.
        highest: Last rate of the sweep.
        divergence: The sweep stops where the loss is above its best by so many times the first loss.
        looks: Most rates to look at; 0: none, and no recommendation.
        look_steps: Steps of a look.
        horizon: Steps of the training that the rate is for; None: that of a look. Best rates fall with its third root.
        seed: Of data orders and of random numbers within the model.

    Raises:
        BadInput: A number is out of its range.
    """

    def __init__(
        self,
        *,
        optimizer: OptimizerSource | None = None,
        training: Iterable[Any] | None = None,
        steps: int | None = 100,
        seeds: int = 3,
        lowest: float = 1e-7,
        highest: float = 10.0,
        divergence: float = 3.0,
        looks: int = 8,
        look_steps: int = 40,
        horizon: int | None = None,
        seed: int = 0,
    ) -> None:
        least = (
            ("steps", steps, SHORTEST),
            ("seeds", seeds, 1),
            ("looks", looks, 0),
            ("look_steps", look_steps, 2),
            ("horizon", horizon, 1),
        )
        for name, value, bound in least:
            if value is not None and value < bound:
                raise BadInput(f"lr_range({name}=...) must be at least {bound}. Got {value}.")
        if not 0 < lowest < highest < math.inf:
            raise BadInput(f"lr_range(lowest, highest) needs 0 < lowest < highest. Got {lowest} and {highest}.")
        if not divergence > 0:
            raise BadInput(f"lr_range(divergence=...) must be more than 0. Got {divergence}.")
        self._optimizer, self._training = optimizer, training
        self._steps, self._seeds, self._looks, self._look_steps = steps, seeds, looks, look_steps
        self._shift = 1.0 if horizon is None else (look_steps / horizon) ** HORIZON_EXPONENT
        self._lowest, self._highest, self._divergence, self._seed = lowest, highest, divergence, seed

    def price(self, objective: Objective) -> Cost:
        """At most; a sweep that diverges and a search that ends early take less."""
        n = len(objective.batches)
        trained = math.ceil(self._sweep_steps(objective) / n) + self._looks * math.ceil(self._look_steps / n)
        return Cost(forwards=1 + self._seeds * (trained + self._looks), backwards=self._seeds * trained)

    def run(self, objective: Objective) -> Chart:
        """Measure."""
        meter = Meter(objective)
        with isolated_random():
            before = self._scratch(objective).value()
            if not math.isfinite(before):
                objective.explain_not_finite()
            rates = np.geomspace(self._lowest, self._highest, self._sweep_steps(objective))
            sweep = self._swept(objective, rates)
            looks = self._looked(objective, sweep, before)
        taken = sum(map(len, sweep.losses)) + (looks.losses.size * self._look_steps if looks else 0)
        evaluations = 1 + (looks.losses.size if looks else 0)
        n = len(objective.batches)
        return Chart(
            probe="lr_range",
            title=title(objective),
            values=_values(sweep, looks),
            arrays=_arrays(sweep, looks),
            panels=(_sweep_panel(sweep, looks), *([_look_panel(looks, self._look_steps)] if looks else [])),
            cost=meter.cost(forwards=taken / n + evaluations, backwards=taken / n),
            notes=tuple(_notes(sweep, looks, self._look_steps)),
        )

    def _scratch(self, objective: Objective) -> Scratch:
        return Scratch(objective, self._optimizer, derive_seed(self._seed, "model"))

    def _swept(self, objective: Objective, rates: np.ndarray) -> _Sweep:
        ends = [self._swept_once(objective, rates, index) for index in range(self._seeds)]
        losses = [losses for losses, _ in ends]
        if not all(map(len, losses)):
            raise NotApplicable(
                "lr_range: the loss of a first training batch is not finite, before any step. Look for NaN in it."
            )
        shortest = min(range(len(ends)), key=lambda i: len(losses[i]))
        return _Sweep(rates=rates, losses=losses, reason=ends[shortest][1])

    def _swept_once(self, objective: Objective, rates: np.ndarray, index: int) -> tuple[np.ndarray, str]:
        """Losses of one sweep, and why it ended."""
        scratch, losses, mean, best = self._scratch(objective), list[float](), math.nan, math.inf
        for rate, batch in zip(rates, self._stretch(objective, index, len(rates)), strict=True):
            scratch.set_rate(float(rate))
            loss = scratch.step(batch)
            if not math.isfinite(loss):
                return np.array(losses), "the loss was not finite"
            losses.append(loss)
            mean = loss if len(losses) == 1 else mean + (loss - mean) / MEMORY
            best = min(best, mean)
            if mean > best + self._divergence * abs(losses[0]):
                return np.array(losses), f"the loss rose by {self._divergence:g} times its first value above its best"
        return np.array(losses), "all rates were tried"

    def _looked(self, objective: Objective, sweep: _Sweep, before: float) -> _Looks | None:
        """Short trainings, downhill from the rate of steepest descent; where that is lost in noise, of lowest loss."""
        if self._looks == 0 or sweep.mean is None:
            return None
        centre = float(sweep.rates[sweep.mean.steepest if sweep.mean.clear else sweep.mean.lowest])
        found: dict[int, list[float]] = {}

        def look(k: int) -> float:
            found[k] = [self._look(objective, centre * RATIO**k, index) for index in range(self._seeds)]
            return math.fsum(found[k]) / self._seeds

        ends = [math.log(rate / centre, RATIO) for rate in (self._lowest, self._highest)]
        places = search(look, self._looks, math.ceil(ends[0]), math.floor(ends[1]))
        losses = np.array([found[k] for k in places])
        return _Looks(
            rates=centre * RATIO ** np.array(places, dtype=float), losses=losses, before=before, shift=self._shift
        )

    def _look(self, objective: Objective, rate: float, index: int) -> float:
        """The objective's loss after a short annealed training; infinite where it diverged."""
        scratch, steps = self._scratch(objective), self._look_steps
        rise = max(1, round(WARMUP * steps))
        for step, batch in enumerate(self._stretch(objective, index, steps)):
            scratch.set_rate(rate * min((step + 1) / rise, 1 - step / steps))
            if not math.isfinite(scratch.step(batch)):
                return math.inf
        value = scratch.value()
        return value if math.isfinite(value) else math.inf

    def _stretch(self, objective: Objective, index: int, steps: int) -> Iterator[Any]:
        return stretch(self._training, objective.batches, index, steps, self._seed)

    def _sweep_steps(self, objective: Objective) -> int:
        """Steps of a sweep."""
        if self._steps is not None:
            return self._steps
        source = objective.batches if self._training is None else self._training
        if not isinstance(source, Sized):
            raise BadInput("lr_range(steps=None) needs training batches with a length. Give steps=.")
        return max(8, len(source))


def _values(sweep: _Sweep, looks: _Looks | None) -> dict[str, Estimate]:
    found = {"start": Estimate(value=sweep.start, about="loss at the lowest rates")}
    if sweep.mean is not None and sweep.mean.clear:
        found |= {
            "best": Estimate(value=sweep.mean.best, error=sweep.mean.noise, about="lowest smoothed loss of the sweep"),
            "steepest": sweep.place("steepest", "rate of steepest descent"),
            "safe_maximum": sweep.place("lowest", "rate of the sweep's lowest loss: beyond it the loss rises"),
        }
        if sweep.diverges is not None:
            about = "rate that takes back all descent, or ends the sweep"
            found["divergence"] = Estimate(value=sweep.diverges, about=about)
    if looks is not None and looks.descends:
        low, high = looks.good
        found |= {
            "recommended": looks.recommended,
            "recommended_low": Estimate(value=low, about="lowest rate that does as well"),
            "recommended_high": Estimate(value=high, about="highest rate that does as well"),
        }
    return found


def _notes(sweep: _Sweep, looks: _Looks | None, steps: int) -> list[str]:
    if sweep.mean is None:
        return ["No suggestion: the loss diverged within the first steps, at the lowest rates. Lower `lowest`."]
    notes = [f"The sweeps ended at rate {sweep.rates[len(sweep.common) - 1]:.3g}: {sweep.reason}."]
    if not sweep.mean.clear:
        fall = f"{sweep.mean.start - sweep.mean.best:.3g} ± {sweep.mean.noise:.2g}"
        notes.append(f"No suggestion from the sweep: the loss falls by {fall} at most, which is not clear of noise.")
    elif sweep.mean.lowest >= len(sweep.common) - 2 and sweep.diverges is None:
        notes.append("The loss still fell at the highest rate. Raise `highest`.")
    if looks is None:
        return [*notes, "No rate was looked at, so none is recommended."]
    if not looks.descends:
        best = f"{float(looks.means.min()):.6g}"
        notes.append(f"No suggestion: of the rates looked at none lowered the loss, {looks.before:.6g}; best {best}.")
        return [*notes, "The point may be a minimum already."]
    if looks.at_edge:
        notes.append("The search ended at its edge: a rate beyond may do better. Raise `looks`.")
    if len(looks.losses[0]) == 1:
        notes.append("One data order shows no uncertainty. Raise `seeds`.")
    if looks.shift != 1.0:
        notes.append(f"The recommendation is {looks.shift:.3g} × the best of the looks: (look_steps / horizon)^⅓.")
    return [*notes, f"Recommended for a short warm-up and decay, as in the looks of {steps} steps."]


def _arrays(sweep: _Sweep, looks: _Looks | None) -> dict[str, np.ndarray]:
    losses = np.full((len(sweep.losses), len(sweep.rates)), np.nan)
    for row, part in zip(losses, sweep.losses, strict=True):
        row[: len(part)] = part
    found = {"rates": sweep.rates, "losses": losses}
    return found | ({"look_rates": looks.rates, "look_losses": looks.losses} if looks else {})


def _sweep_panel(sweep: _Sweep, looks: _Looks | None) -> Lines:
    values = _values(sweep, looks)
    names = ("steepest", "safe_maximum", "recommended", "divergence")
    seeds = [_line(f"order {i}", sweep.rates, part, sweep, "faint") for i, part in enumerate(sweep.losses)]
    mean = smoothed(sweep.common) if len(sweep.common) else sweep.common
    return Lines(
        title="Loss while the learning rate rises",
        lines=(*seeds, _line("smoothed mean", sweep.rates, mean, sweep, "line")),
        x_label="learning rate η",
        y_label="loss",
        x_scale="log",
        marks={name.replace("_", " "): values[name].value for name in names if name in values},
        note="A curve ends where it rose as far above the start as it had fallen below it.",
    )


def _line(label: str, x: np.ndarray, y: np.ndarray, sweep: _Sweep, style: Literal["line", "faint"]) -> Line:
    """A curve up to where it leaves the picture."""
    fall = sweep.start - float(sweep.common.min(initial=sweep.start))
    above = np.flatnonzero(y > sweep.start + max(fall, abs(sweep.start) / 10))
    end = int(above[0]) if len(above) else len(y)
    return Line(label=label, x=x[:end], y=y[:end], style=style)


def _look_panel(looks: _Looks, steps: int) -> Lines:
    ceiling = looks.before + abs(looks.before - float(looks.means.min()))

    def curve(label: str, losses: np.ndarray, style: Literal["line", "points"]) -> Line:
        kept = losses <= ceiling
        return Line(label=label, x=looks.rates[kept], y=losses[kept], style=style)

    return Lines(
        title=f"Loss after {steps} annealed steps, by peak rate",
        lines=(
            curve("mean", looks.means, "line"),
            *(curve(f"order {i}", column, "points") for i, column in enumerate(looks.losses.T)),
            Line(label="before", x=looks.rates, y=np.full(len(looks.rates), looks.before), style="dashed"),
        ),
        x_label="learning rate η",
        y_label="loss over the objective's batches",
        x_scale="log",
        marks={"recommended": looks.recommended.value} if looks.descends else {},
        note="Every training starts at the point; what rose far or diverged is left out.",
    )
