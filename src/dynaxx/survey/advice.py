"""From what a map has found to a plan: each decision with its evidence, and what was not established."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dynaxx.core.chart import Chart, Estimate
from dynaxx.errors import BadInput
from dynaxx.survey import comparison
from dynaxx.survey._ground import Ground
from dynaxx.survey.comparison import CHANCE, RATES
from dynaxx.survey.conventions import warm_up, weight_decay
from dynaxx.survey.plan import Plan, PlannedBatch, PlannedOptimizer, PlannedPhase, PlannedRate, PlannedTask
from dynaxx.survey.terrain import EDGE, FLAT_VALLEY, RAVINE, RUGGED, SHARP, SMOOTH_BOWL, Reading, Terrain

SCULPTOR_PARAMETERS = 30e9
"""Largest model for second-order preconditioning (the survey's specification, M13)."""
SCULPTOR_MEMORY = 10.0
"""Copies of the parameters, in float32, that SOAP's state takes at most; on small transformers it takes 9.4 to 9.7."""
NARROW = 10**0.5
"""Width of an interval of rates that is called narrow: the ratio of neighbouring rates of the scan."""
WELL_KNOWN = 4.0
"""Width of the noise scale's interval up to which it is no wider than the range of batches that is recommended."""
DESCENT = 0.3
"""Share of the steps before perturbed ones begin: SAM over the last half is as flat as over all of them, over the last
quarter it is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What a plan depends on besides the measurements.

    Args:
        production: Variance between runs cannot be accepted.
        fine_tuning: The training begins from a good model.
        memory: Memory for the optimizer's state, in gigabytes; None: ample.
        passes: Passes per step that can be afforded; from 2 on, sharpness-aware steps at every step.

    Raises:
        BadInput: A number is out of its range.
    """

    production: bool = False
    fine_tuning: bool = False
    memory: float | None = None
    passes: float = 1.25

    def __post_init__(self) -> None:
        if self.memory is not None and not self.memory > 0:
            raise BadInput(f"map(memory=...) must be more than 0 gigabytes. Got {self.memory}.")
        if not self.passes >= 1:
            raise BadInput(f"map(passes=...) must be at least 1 pass per step. Got {self.passes}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Approach:
    """The recommended family of methods.

    Args:
        name: "Sculptor", "Explorer", "Perturber", a hybrid of them in phases, or "the task's own recipe".
        why: The rules that led there.
    """

    name: str
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What is said of the decisions while a plan is made.

    Args:
        evidence: Decision → what speaks for it.
        confidence: Decision → how sure it is.
        unknown: What was not established.
    """

    evidence: dict[str, str] = field(default_factory=dict[str, str])
    confidence: dict[str, str] = field(default_factory=dict[str, str])
    unknown: list[str] = field(default_factory=list[str])

    def note(self, decision: str, evidence: str, sure: str) -> None:
        """Say both of one decision."""
        self.evidence[decision], self.confidence[decision] = evidence, sure


def advise(
    ground: Ground,
    found: Mapping[str, Reading],
    terrain: Terrain,
    circumstances: Circumstances,
    left_out: Mapping[str, str],
) -> Plan:
    """The plan that follows from a map.

    Args:
        ground: The map's task and charts.
        found: Readings.
        terrain: The terrain.
        circumstances: What else it depends on.
        left_out: Probes without a chart, and why.

    Returns:
        The plan; decisions that the map does not support are left to the task, and said.
    """
    task, charts = ground.task, ground.charts
    said = Said(unknown=[f"{name}: {reason}" for name, reason in left_out.items()])
    said.note("terrain", _terrain_words(terrain), terrain.sure)
    if terrain.missing:
        said.unknown.append(f"terrain: not measured: {', '.join(terrain.missing)}.")
    optimizer = _optimizer(charts, said)
    ahead = None if "fleet" not in charts else optimizer.name != "task"
    approach = choose(terrain, circumstances, parameters=ground.parameters, ahead=ahead)
    sure = "low: rules of thumb on the terrain" if ahead is None else "fair: rules of thumb, and a measured comparison"
    said.note("approach", f"{approach.name}: {'; '.join(approach.why)}.", sure)
    optimizer, phases = composed(approach, circumstances, optimizer, task.steps)
    rate = _rate(charts, said)
    if (times := RATES.get(optimizer.name, 1.0)) != 1.0:
        rate = _scaled(rate, times)
        said.evidence["learning_rate"] += f" For {optimizer.name} {times:g} times that, as it was compared."
    batch = _batch(task.batch_size, ground.weight / task.batch_size, charts, said)
    _conventions(ground, optimizer.name, said)
    return Plan(
        task=PlannedTask(name=ground.spec, size=task.size, steps=task.steps),
        optimizer=optimizer,
        learning_rate=rate,
        batch=batch,
        phase=phases,
        evidence=said.evidence,
        confidence=said.confidence,
        not_established=tuple(said.unknown),
    )


def choose(terrain: Terrain, circumstances: Circumstances, *, parameters: int, ahead: bool | None = None) -> Approach:
    """The family of methods that suits terrain and circumstances (the rules of the specification, M13).

    Args:
        terrain: The terrain.
        circumstances: What else it depends on.
        parameters: Of the model.
        ahead: Whether a method of second order was measured to be ahead of the task's own; None: none was tried.

    Returns:
        The approach.

    Example:
        >>> rugged = Terrain(name=RUGGED, confidence=0.5)
        >>> choose(rugged, Circumstances(), parameters=10**6).name
        'Perturber'
    """
    name = terrain.name
    fits = circumstances.memory is None or SCULPTOR_MEMORY * 4 * parameters <= circumstances.memory * 1e9
    if circumstances.fine_tuning or name in (RUGGED, SHARP, EDGE):
        why = "fine-tuning" if circumstances.fine_tuning else f"the terrain is {name}"
        return Approach(name="Perturber", why=(f"{why}: flat regions are to be found and kept",))
    if circumstances.production:
        return Approach(name="Explorer", why=("variance between runs cannot be accepted, and averages have the least",))
    if ahead is False:
        why = "no method of second order was ahead of the task's own in short trainings; averaging is the default"
        return Approach(name="Explorer", why=(why,))
    if name in (SMOOTH_BOWL, RAVINE, FLAT_VALLEY) and parameters <= SCULPTOR_PARAMETERS and fits:
        return Approach(
            name="Sculptor, then Explorer",
            why=(
                f"curvature can be followed where the terrain is like this ({name})",
                "memory suffices" if circumstances.memory is not None else "memory was not said to be short",
                "averaging costs nothing beside it",
            ),
        )
    why = "memory does not suffice for a Sculptor" if not fits else "no class of terrain was established"
    return Approach(name="Explorer", why=(f"{why}; averaging is the default wherever nothing speaks against it",))


def composed(
    approach: Approach, circumstances: Circumstances, optimizer: PlannedOptimizer, steps: int
) -> tuple[PlannedOptimizer, tuple[PlannedPhase, ...]]:
    """The methods of an approach, put together.

    Averages follow the weights from the start, since they forget; perturbed steps begin when the first descent is
    over. A phase of its own is needed only where an optimizer by name hands over to averaging.

    Args:
        approach: The approach.
        circumstances: Passes that can be afforded.
        optimizer: The optimizer that was chosen.
        steps: Planned optimizer steps.

    Returns:
        The optimizer with what is composed into it, and the phases; none for a single one.
    """
    if approach.name == "Perturber":
        # Every fifth step with 2.5 times the radius is as flat as every step, for 1.2 times the cost instead of 2.
        words = "sam:rho=0.05" if circumstances.passes >= 2 else "sam:rho=0.125,every=5"
        perturb = f"{words},start={round(DESCENT * steps)}"
        return replace(optimizer, averaging="ema", perturb=perturb), ()
    if optimizer.name == "task":
        return replace(optimizer, averaging="ema"), ()
    return optimizer, (
        PlannedPhase(name="descend", until=0.5),
        PlannedPhase(name="stabilise", until=1.0, averaging="ema"),
    )


def _rate(charts: Mapping[str, Chart], said: Said) -> PlannedRate:
    scan, sweep = charts.get("sensitivity"), charts.get("lr_range")
    if scan is not None:
        best = scan.values
        found = tuple(best[name].value for name in ("learning_rate", "learning_rate_low", "learning_rate_high"))
        words = "short trainings end lowest at {:.3g} ({:.3g} to {:.3g}); ".format(*found)
        said.note(
            "learning_rate", f"{words}{scan.title}. {' '.join(scan.notes)}", _sure_of(best["learning_rate"], *found)
        )
    elif sweep is not None and "recommended" in sweep.values:
        found = tuple(sweep[name] for name in ("recommended", "recommended_low", "recommended_high"))
        words = f"the range test recommends {found[0]:.3g}."
        said.note("learning_rate", words, "low: no whole training was compared")
    else:
        said.unknown.append("learning_rate: no short training lowered the loss, so the task's own is kept.")
        return PlannedRate()
    peak, low, high = (float(f"{each:.4g}") for each in found)  # more digits would claim more than is known
    return PlannedRate(peak=peak, low=low, high=high)


def _sure_of(best: Estimate, peak: float, low: float, high: float) -> str:
    """How sure the rate of a scan is: by its seeds, and by how wide its interval is."""
    if best.error is None:
        return "low: one seed"
    width = f"an interval of a factor {high / low:.2g} over several seeds"
    return f"high: {width}" if high / low <= NARROW and low < peak < high else f"fair: {width}"


def _scaled(rate: PlannedRate, times: float) -> PlannedRate:
    """The rate and its interval for an optimizer whose rates are a multiple of the task's own."""
    parts = {name: None if part is None else part * times for name, part in
             (("peak", rate.peak), ("low", rate.low), ("high", rate.high))}  # fmt: skip
    return replace(rate, **parts)


def _optimizer(charts: Mapping[str, Chart], said: Said) -> PlannedOptimizer:
    """Another optimizer only where it was measured to be ahead."""
    chart = charts.get("fleet")
    if chart is None:
        said.unknown.append("optimizer: none was compared with the task's own, which is kept.")
        return PlannedOptimizer()
    finals = {name.partition(".")[2]: value.value for name, value in chart.values.items() if name.startswith("final.")}
    best = min(finals, key=lambda name: finals[name])
    ends = f"{', '.join(f'{name} {value:.4g}' for name, value in finals.items())}; {chart.title}."
    if best != "task" and chart["chance"] <= CHANCE:
        luck = f"{chart['chance']:.0%}"
        words = f"{best} ends lowest, by {chart.values['ahead']} on the same seeds: {ends}"
        said.note("optimizer", words, f"fair: by luck in {luck} of such comparisons, of short trainings")
        return PlannedOptimizer(name=best)
    words = f"none is clearly ahead of the task's own, which is kept: {ends}"
    said.note("optimizer", words, "fair: seen in short trainings")
    return PlannedOptimizer()


def _batch(own: int, weight: float, charts: Mapping[str, Chart], said: Said) -> PlannedBatch:
    """The range in examples of `Task.batch_size`; a chart counts in the task's weights, such as tokens."""
    chart = charts.get("gradient_noise")
    if chart is None or "recommended_low" not in chart.values:
        said.unknown.append("batch: the noise of the gradient does not say, so the task's own is kept.")
        return PlannedBatch()
    low, high, scale = (chart[name] / weight for name in ("recommended_low", "recommended_high", "simple_scale"))
    where = "within it" if low <= own <= high else "below it" if own < low else "above it"
    words = (
        f"noise scale {scale:.3g} examples; {low:.3g} to {high:.3g} waste neither steps nor examples. "
        f"The task's own, {own}, is {where} and is kept: another needs another learning rate."
    )
    known = chart["simple_high"] / chart["simple_low"] if chart["simple_low"] > 0 else math.inf
    grade = "fair" if known <= WELL_KNOWN else "low"
    said.note("batch", words, f"{grade}: the scale is known to a factor of {known:.2g}, and grows along a training")
    return PlannedBatch(low=float(f"{low:.3g}"), high=float(f"{high:.3g}"))


def _conventions(ground: Ground, optimizer: str, said: Said) -> None:
    """What was not varied is kept, and what is usual is said."""
    trained = [result for result in ground.results("sensitivity", "fleet") if comparison.name(result) == optimizer]
    scan = ground.charts.get("sensitivity")
    rate = scan["rate"] if scan is not None and optimizer == "task" else None
    said.note("warm_up", *warm_up(ground.task, trained, rate))
    said.note("weight_decay", *weight_decay(ground.task, optimizer))
    said.note("meso", "rates by layer are off: nothing has shown them to gain.", "low: they were not compared here")
    said.unknown.append("warm_up, weight_decay, meso: no others were compared; what is kept rests on convention.")


def _terrain_words(terrain: Terrain) -> str:
    if terrain.name is None:
        return "no class fits what was measured."
    words = [terrain.name, *terrain.supporting, *terrain.opposing]
    return "; ".join(words) + "."
