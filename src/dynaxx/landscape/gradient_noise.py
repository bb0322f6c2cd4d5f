"""The probe `gradient_noise`: how noisy mini-batch gradients are at a point, and the batch size that pays."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from dynaxx.core.chart import Chart, Estimate
from dynaxx.core.contracts import Probe
from dynaxx.core.displaced import Displaced
from dynaxx.core.objective import Objective
from dynaxx.core.panels import Line, Lines, Panel, Table
from dynaxx.core.records import Cost
from dynaxx.core.snapshot import Snapshot
from dynaxx.core.task import leading
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.landscape._common import CHECK_PASSES, Meter, title
from dynaxx.landscape._minibatches import Gradients, MiniBatch, each_gradient, gradients, minibatches
from dynaxx.landscape._noise import Change, Normality, change, critical_scale, normality, observed, simple_scale
from dynaxx.numerics.gradient_noise import NoiseScale
from dynaxx.numerics.hessian import Hessian
from dynaxx.numerics.sketch import Sketch
from dynaxx.numerics.space import Space
from dynaxx.numerics.tail_index import TailIndex, judged

MINIBATCHES = 64
"""Mini-batches by default: the jackknife's error of a variance is then a fifth at most for Gaussian noise."""
LEAST = 8
"""Mini-batches below which nothing is said: the tail index needs blocks, the jackknife degrees of freedom."""
AWAY = (0.01, 0.03)
"""Lengths of the steps down the gradient to where noise is compared, relative to ‖θ‖: some ten and some thirty updates
of the relative length 10⁻³ that trainings typically have."""
SUSPICIOUS = 0.01
"""p-value below which noise is called heavy-tailed or not Gaussian: one false alarm in a hundred of each."""
ROUNDING = 1e-12
"""Share of Σ nᵢ ‖gᵢ‖² below which deviations are rounding in float32, whose relative error of 6e-8 enters squared."""
CHANGED = 3.0
"""|z| beyond which noise is said to depend on the point: one false alarm in 370 for each comparison."""
AROUND = 2.0
"""The range is from B/2, which costs 3 × the fewest steps, to 2B, which costs 3 × the fewest examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Elsewhere:
    """The noise at another point: its name and the comparison."""

    name: str
    change: Change


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    here: Gradients
    simple: NoiseScale
    critical: NoiseScale | None
    tail: TailIndex
    normality: Normality
    elsewhere: Sequence[_Elsewhere]

    @property
    def chosen(self) -> tuple[str, NoiseScale] | None:
        """The scale that a range rests on: the critical one where it is known, else the simple one."""
        for name, scale in (("critical", self.critical), ("simple", self.simple)):
            if scale is not None and scale.scale > 0 and scale.low > 0 and math.isfinite(scale.high):
                return name, scale
        return None

    @property
    def range(self) -> tuple[float, float] | None:
        chosen = self.chosen
        return None if chosen is None else (max(1.0, chosen[1].scale / AROUND), max(1.0, chosen[1].scale * AROUND))


class GradientNoise(Probe):
    """Noise of mini-batch gradients at a point: scales, tails, normality, change over the landscape; a batch range.

    The simple noise scale tr Σ / ‖G‖² and the critical one tr(HΣ) / GᵀHG (McCandlish 2018) are the batch size at
    which noise and signal of a step are equal: below it a larger batch saves steps nearly in proportion, above it
    hardly. Both come unbiased from the gradients of mini-batches, with intervals by the jackknife. Tails and normality
    are judged against Gaussian noise of the same covariance, so that unequal scales are not called heavy tails; they
    are those of mini-batches of the size used, which averaging makes more Gaussian than single examples.

    Args:
        trajectory: Snapshots at which the noise is compared with that at the point; None: steps down the gradient.
        batch: Examples in a mini-batch; None: so many that there are 64.
        products: Curvature products for the critical scale; 0: leave it out.
        points: Most further points; 0: leave them out.
        seed: Of Gaussian samples and projections.

    Raises:
        BadInput: A number is out of its range.
    """

    def __init__(
        self,
        *,
        trajectory: Sequence[Snapshot] | None = None,
        batch: int | None = None,
        products: int = 16,
        points: int = 2,
        seed: int = 0,
    ) -> None:
        for name, value, least in (("batch", batch, 1), ("products", products, 0), ("points", points, 0)):
            if value is not None and value < least:
                raise BadInput(f"gradient_noise({name}=...) must be at least {least}. Got {value}.")
        if products == 1:
            raise BadInput("gradient_noise(products=...) must be 0 or at least 2: one has no spread. Got 1.")
        self._trajectory, self._batch, self._products = trajectory, batch, products
        self._points, self._seed = points, seed

    def price(self, objective: Objective) -> Cost:
        """One pass for each point, and one for the gradients that are multiplied."""
        curvature = 1 + CHECK_PASSES if self._products else 0
        points = 1 + self._points
        return Cost(forwards=points + curvature, backwards=points + curvature, products=self._products)

    def run(self, objective: Objective) -> Chart:
        """Measure."""
        if objective.sharded:
            raise NotApplicable("gradient_noise compares whole gradients; these parameters are sharded.")
        meter = Meter(objective)
        parts = self._parts(objective)
        here = gradients(objective, parts)
        noise = here.deviations()
        level = float(here.sizes @ here.rows.double().square().sum(1).cpu().numpy())
        if np.square(noise).sum() <= ROUNDING * level:
            raise NotApplicable("All mini-batches have the same gradient: there is no noise to measure.")
        critical, products, share = self._critical(objective, parts, here)
        elsewhere = [
            _Elsewhere(name=name, change=change(here, found)) for name, found in self._others(objective, parts, here)
        ]
        found = _Found(
            here=here,
            simple=simple_scale(here),
            critical=critical,
            tail=judged(noise, seed=self._seed),
            normality=normality(noise, self._seed),
            elsewhere=elsewhere,
        )
        passes = 1 + len(elsewhere) + share
        return Chart(
            probe="gradient_noise",
            title=f"{len(parts)} mini-batches of {here.sizes.mean():.3g} · {title(objective)}",
            values=_values(found),
            arrays=_arrays(found),
            panels=_panels(found),
            cost=meter.cost(products=products, forwards=passes, backwards=passes),
            notes=tuple(_notes(found)),
        )

    def _parts(self, objective: Objective) -> list[MiniBatch]:
        size = self._batch
        if size is None:
            # Batch statistics need two examples.
            size = max(1 if objective.mode == "evaluation" else 2, int(_entries(objective) // MINIBATCHES))
        parts = minibatches(objective, size)
        if len(parts) < LEAST:
            raise NotApplicable(
                f"gradient_noise needs at least {LEAST} mini-batches. There are {len(parts)}: give more examples, or a "
                "smaller batch=."
            )
        return parts

    def _critical(
        self, objective: Objective, parts: Sequence[MiniBatch], here: Gradients
    ) -> tuple[NoiseScale | None, int, float]:
        """B_crit, the products and the share of a pass that it took. Holds three vectors, not all gradients."""
        if self._products == 0:
            return None, 0, 0.0
        count = min(self._products, len(parts))
        rows = [i * len(parts) // count for i in range(count)]
        chosen = [parts[i] for i in rows]
        hessian, space = Hessian(objective), Space(objective.parameters, objective.names)
        own, along = np.empty(count), np.empty(count)
        for i, found in enumerate(each_gradient(objective, chosen)):
            vector = space.flatten(found)
            product = hessian(vector[None])[0].double()
            own[i], along[i] = float(product @ vector.double()), float(product @ here.mean.double())
        sizes = here.sizes[rows]
        total = float(here.sizes.sum())
        scale = critical_scale(own, along, sizes, total, len(parts))
        return scale, hessian.products, float(sizes.sum()) / total

    def _others(
        self, objective: Objective, parts: Sequence[MiniBatch], here: Gradients
    ) -> Iterator[tuple[str, Gradients]]:
        """Gradients of the same mini-batches elsewhere."""
        if self._points == 0:
            return
        moved = Displaced(objective)
        if self._trajectory is not None:
            for snapshot in _spread(self._trajectory, self._points):
                tensors = snapshot.load()
                missing = [name for name in objective.names if name not in tensors]
                if missing:
                    where = f"step {snapshot.step} of {snapshot.run}"
                    raise BadInput(f"gradient_noise(trajectory=...): {where} lacks {missing[0]!r}.")
                moved.move([tensors[name] for name in objective.names])
                buffers = {key: tensors[key].to(b) for key, b in objective.model.named_buffers() if key in tensors}
                with moved.substituted(buffers):
                    yield f"step {snapshot.step} of {snapshot.run}", gradients(moved, parts)
            return
        space = Space(objective.parameters, objective.names)
        centre = space.flatten(objective.parameters)
        for away in AWAY[: self._points]:
            step = here.mean * (away * torch.linalg.vector_norm(centre) / torch.linalg.vector_norm(here.mean))
            moved.move(space.split(centre - step))
            yield f"{away:.0%} of ‖θ‖ down the gradient", gradients(moved, parts)


def _entries(objective: Objective) -> int:
    return sum(leading(batch) or 1 for batch in objective.batches)


def _spread(trajectory: Sequence[Snapshot], count: int) -> list[Snapshot]:
    """So many, evenly, the first among them."""
    count = min(count, len(trajectory))
    return [trajectory[i * len(trajectory) // count] for i in range(count)]


def _values(found: _Found) -> dict[str, Estimate]:
    here, simple = found.here, found.simple
    size = float(here.sizes.mean())
    values = {
        "variance": replace(
            simple.trace,
            value=simple.trace.value / size,
            error=None if simple.trace.error is None else simple.trace.error / size,
            about=f"E‖g − G‖² of a batch of {size:.3g}",
        ),
        "trace": simple.trace,
        "gradient": simple.gradient,
        **_scale_values("simple", simple, "tr Σ / ‖G‖²"),
    }
    if found.critical is not None:
        values |= _scale_values("critical", found.critical, "tr(HΣ) / GᵀHG")
    values |= {
        "tail_index": replace(found.tail.alpha, about="stable tail index of whole gradients: 2 for finite variance"),
        "tail_null": replace(found.tail.null, about="the same of Gaussian noise of this covariance"),
        "tail_p": Estimate(value=found.tail.p_value, about="share of Gaussian samples with tails as heavy"),
        "normality_p": Estimate(value=found.normality.p_value, about="share of Gaussian samples as far from normal"),
    }
    if found.elsewhere:
        z = max((each.change.z for each in found.elsewhere), key=abs)
        values["change_z"] = Estimate(value=z, about="largest change of tr Σ elsewhere, in standard errors")
    if found.range is not None:
        low, high = found.range
        values["recommended_low"] = Estimate(value=low, unit="examples", about="smaller batches waste steps")
        values["recommended_high"] = Estimate(value=high, unit="examples", about="larger batches waste examples")
    return values


def _scale_values(name: str, scale: NoiseScale, formula: str) -> dict[str, Estimate]:
    percent = f"{scale.confidence:.0%} interval"
    return {
        f"{name}_scale": Estimate(value=scale.scale, unit="examples", about=formula),
        f"{name}_low": Estimate(value=scale.low, unit="examples", about=f"{percent}, lower end"),
        f"{name}_high": Estimate(value=scale.high, unit="examples", about=f"{percent}, upper end"),
    }


def _notes(found: _Found) -> list[str]:
    notes = [_range_note(found)]
    if found.here.sketched:
        notes.append(f"Gradients were kept as sketches: norms are within {Sketch().relative_error:.1%}.")
    if found.critical is not None and found.critical.gradient.value <= 0:
        notes.append("Curvature along the gradient is not positive here, so there is no critical scale.")
    heavy, normal = found.tail.p_value, found.normality.p_value
    if heavy < SUSPICIOUS:
        notes.append(
            f"Tails are heavier than Gaussian (p = {heavy:.2g}): single mini-batches dominate. Consider clipping."
        )
    if normal < SUSPICIOUS:
        notes.append(f"The noise is not Gaussian (p = {normal:.2g}).")
    changed = [each for each in found.elsewhere if abs(each.change.z) > CHANGED]
    notes += [
        f"The noise depends on the point: tr Σ is {each.change.ratio:.3g} × as large at {each.name}."
        for each in changed
    ]
    if found.elsewhere and not changed:
        notes.append("No change of tr Σ clear of its error was seen at the other points.")
    return notes


def _range_note(found: _Found) -> str:
    chosen = found.chosen
    if chosen is None:
        simple = found.simple
        return (
            f"No batch range: the interval of the noise scale, {simple.low:.3g} to {simple.high:.3g}, covers all; "
            "the gradient cannot be told from 0. Give more examples, or probe earlier in the training."
        )
    (name, scale), (low, high) = chosen, found.range or (math.nan, math.nan)
    seen = float(found.here.sizes.sum())
    beyond = f" It is beyond the {seen:,.0f} examples seen." if low > seen else ""
    return (
        f"Batches of {low:.3g} to {high:.3g}: around the {name} scale {scale.scale:.3g} "
        f"({scale.low:.3g} to {scale.high:.3g}), where a step costs twice the fewest steps and examples.{beyond}"
    )


def _arrays(found: _Found) -> dict[str, np.ndarray]:
    batches, variances = observed(found.here)
    return {
        "observed_batch": np.array(batches),
        "observed_variance": np.array(variances),
        "change_ratio": np.array([each.change.ratio for each in found.elsewhere]),
        "change_error": np.array([each.change.error for each in found.elsewhere]),
        "change_alignment": np.array([each.change.alignment for each in found.elsewhere]),
    }


def _panels(found: _Found) -> tuple[Panel, ...]:
    panels: list[Panel] = [_variance_panel(found)]
    if found.chosen is not None:
        panels.append(_efficiency_panel(found, found.chosen[1].scale))
    panels.append(_shape_table(found))
    return tuple(panels)


def _variance_panel(found: _Found) -> Lines:
    batches, variances = observed(found.here)
    grid = np.geomspace(1.0, max(4 * float(found.here.sizes.sum()), 4 * batches[-1]), 60)
    lines = [
        Line(label="tr Σ / B", x=grid, y=found.simple.trace.value / grid),
        Line(label="measured on groups of mini-batches", x=np.array(batches), y=np.array(variances), style="points"),
    ]
    if found.simple.gradient.value > 0:
        lines.append(Line(label="‖G‖²", x=grid, y=np.full(len(grid), found.simple.gradient.value), style="dashed"))
    return Lines(
        title="Noise of the gradient by batch size",
        lines=tuple(lines),
        x_label="batch size B, in examples",
        y_label="E‖g − G‖², in (loss/parameter)²",
        x_scale="log",
        y_scale="log",
        marks=_marks(found),
        note="Left of the crossing the noise of a step exceeds its signal.",
    )


def _efficiency_panel(found: _Found, scale: float) -> Lines:
    grid = np.geomspace(max(0.5, scale / 100), 100 * scale, 80)
    return Lines(
        title="What a batch size costs",
        lines=(
            Line(label="steps, over the fewest", x=grid, y=1 + scale / grid),
            Line(label="examples, over the fewest", x=grid, y=1 + grid / scale),
        ),
        x_label="batch size B, in examples",
        y_label="ratio",
        x_scale="log",
        y_scale="log",
        marks=_marks(found),
        note="1 + S/B and 1 + B/S (McCandlish 2018), S the noise scale at this point; it grows in training.",
    )


def _marks(found: _Found) -> dict[str, float]:
    marks = {"simple scale": found.simple.scale}
    if found.critical is not None:
        marks["critical scale"] = found.critical.scale
    if found.range is not None:
        marks |= {"recommended from": found.range[0], "recommended to": found.range[1]}
    return {name: at for name, at in marks.items() if math.isfinite(at) and at > 0}


def _shape_table(found: _Found) -> Table:
    tail, normal = found.tail, found.normality
    rows = [
        ("tail index", str(tail.alpha), f"Gaussian noise: {tail.null}", f"p = {tail.p_value:.2g}"),
        (
            "distance from normal, A²",
            f"{normal.statistic:.3g}",
            f"Gaussian noise: {normal.null:.3g}",
            f"p = {normal.p_value:.2g}",
        ),
    ]
    for each in found.elsewhere:
        ratio = Estimate(value=each.change.ratio, error=each.change.error)
        rows.append(
            (f"tr Σ at {each.name}", f"× {ratio}", f"alignment {each.change.alignment:.2f}", f"z = {each.change.z:.2g}")
        )
    return Table(title="Shape of the noise, and elsewhere", header=("", "here", "compared with", ""), rows=tuple(rows))
