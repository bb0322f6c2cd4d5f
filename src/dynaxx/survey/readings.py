"""What the charts of a map say, as the named numbers that terrain and plan are judged by."""

import math
from collections.abc import Callable, Mapping

import torch

from dynaxx.core.chart import Chart, Estimate
from dynaxx.core.isolation import isolated_random
from dynaxx.errors import NotApplicable
from dynaxx.numerics.preconditioner import preconditioning
from dynaxx.numerics.space import Space
from dynaxx.survey._ground import Ground
from dynaxx.survey.results import Result
from dynaxx.survey.terrain import Reading

Z = 2.0
"""Standard errors to either side of a value, in its interval: 95 % of a Gaussian."""


def readings(ground: Ground) -> dict[str, Reading]:
    """Everything that the charts say; what they lack is left out.

    Args:
        ground: A map's.

    Returns:
        Name → reading: `convexity`, `roughness`, `anisotropy` d·λ₁/tr H, `negative_share` −λ_min/λ₁, `noise_ratio`
        noise scale over batch, `progress` relative fall of the loss in the best short training, `descending_rates` 1 or
        0, `seed_spread`, `worst_case` rise over the loss, `sharpness_rate` λ₁·η over its threshold.
    """
    charts = ground.charts
    found: dict[str, Reading] = {}
    for name, read in _OF_CHARTS.items():
        reading = read(charts)
        if reading is not None and math.isfinite(reading.value):
            found[name] = reading
    found |= _of_results(ground)
    if "spectrum" in charts and "sensitivity" in charts:
        reading = _sharpness_rate(ground, charts["spectrum"], charts["sensitivity"]["learning_rate"])
        found |= {} if reading is None else {"sharpness_rate": reading}
    if "gradient_noise" in charts:
        found["noise_ratio"] = _noise_ratio(charts["gradient_noise"], ground.weight)
    return found


def estimated(estimate: Estimate, source: str) -> Reading:
    """A reading with the interval of an estimate: its bound, or two standard errors.

    Args:
        estimate: The number.
        source: The probe.

    Returns:
        The reading.
    """
    if estimate.error is None:
        return Reading(value=estimate.value, source=source)
    wide = estimate.error * (1.0 if estimate.bound else Z)
    return Reading(value=estimate.value, low=estimate.value - wide, high=estimate.value + wide, source=source)


def _value(chart: str, name: str) -> Callable[[Mapping[str, Chart]], Reading | None]:
    def read(charts: Mapping[str, Chart]) -> Reading | None:
        there = charts.get(chart)
        return estimated(there.values[name], chart) if there is not None and name in there.values else None

    return read


def _anisotropy(charts: Mapping[str, Chart]) -> Reading | None:
    chart = charts.get("spectrum")
    if chart is None:
        return None
    top, mean = chart.values["largest_eigenvalue"], chart.values["trace_per_parameter"]
    if not mean.value > 0:
        return None
    error = Z * (mean.error or 0.0)
    low = top.value / (mean.value + error)
    high = top.value / (mean.value - error) if mean.value > error else math.inf
    return Reading(value=top.value / mean.value, low=low, high=high, source="spectrum")


def _negative_share(charts: Mapping[str, Chart]) -> Reading | None:
    chart = charts.get("spectrum")
    if chart is None or not chart["largest_eigenvalue"] > 0:
        return None
    return Reading(value=max(0.0, -chart["smallest_eigenvalue"]) / chart["largest_eigenvalue"], source="spectrum")


def _worst_case(charts: Mapping[str, Chart]) -> Reading | None:
    chart = charts.get("flatness")
    if chart is None or not chart["loss"] > 0:
        return None
    return Reading(value=chart["worst_case"] / chart["loss"], source="flatness")


def _descending(charts: Mapping[str, Chart]) -> Reading | None:
    chart = charts.get("lr_range")
    return None if chart is None else Reading(value=float("steepest" in chart.values), source="lr_range")


_OF_CHARTS: Mapping[str, Callable[[Mapping[str, Chart]], Reading | None]] = {
    "convexity": _value("slices", "convexity"),
    "roughness": _value("slices", "roughness"),
    "seed_spread": _value("fleet", "seed_spread"),
    "anisotropy": _anisotropy,
    "negative_share": _negative_share,
    "descending_rates": _descending,
    "worst_case": _worst_case,
}


def _of_results(ground: Ground) -> dict[str, Reading]:
    results = [r for r in ground.results("sensitivity", "fleet") if math.isfinite(r.initial)]
    if not results:  # where no rate of the sweep descends, nothing is trained
        still = _descending(ground.charts)
        return {"progress": still} if still is not None and still.value == 0 else {}
    return {"progress": max((_progress(result) for result in results), key=lambda reading: reading.value)}


def _progress(result: Result) -> Reading:
    """Relative fall of the validation loss; a training that diverged has made none."""
    fallen = 0.0 if result.diverged or not math.isfinite(result.final) else 1 - result.final / result.initial
    return Reading(value=fallen, source="short trainings")


def _noise_ratio(chart: Chart, batch: float) -> Reading:
    low, high = chart["simple_low"] / batch, chart["simple_high"] / batch
    return Reading(value=chart["simple_scale"] / batch, low=low, high=high, source="gradient_noise")


def _sharpness_rate(ground: Ground, spectrum: Chart, rate: float) -> Reading | None:
    """Where the threshold is known before the first step: gradient descent with or without momentum."""
    with isolated_random():
        model = ground.task.model()
        optimizer = ground.task.optimizer(model)
    if type(optimizer) is not torch.optim.SGD:
        return None
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        found = preconditioning(optimizer, Space(parameters))
    except NotApplicable:
        return None
    return estimated(
        Estimate(
            value=spectrum["largest_eigenvalue"] * rate / found.threshold,
            error=(spectrum.values["largest_eigenvalue"].error or 0.0) * rate / found.threshold,
            bound=True,
        ),
        "spectrum and sensitivity",
    )
