"""The probe `connectivity`: what stands between two solutions, in a straight line, reordered, and along curves."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from torch import Tensor

from dynaxx.core.chart import Chart, Estimate
from dynaxx.core.contracts import Probe
from dynaxx.core.objective import Objective
from dynaxx.core.panels import Line, Lines, Panel, Table
from dynaxx.core.records import Cost
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.landscape._checkpoint import alike, distance, whole
from dynaxx.landscape._common import Meter, title
from dynaxx.landscape._path import ErrorFunction, Profile, Repair, along
from dynaxx.numerics.alignment import match_activations, match_weights
from dynaxx.numerics.batch_statistics import layers_with, normalisations, unit_statistics
from dynaxx.numerics.curves import Curve, Kind, segment, train_curve
from dynaxx.numerics.permutation import AxisName, Symmetry
from dynaxx.numerics.symmetry import FORWARDS, checked

Matching = Literal["both", "weights", "activations", "none"]
Curves = Literal["both", "bezier", "polygon", "none"]
RepairMode = Literal["statistics", "rescale", "none"]
NAMES = {
    "linear": "straight line",
    "weights": "after weight matching",
    "activations": "after activation matching",
    "bezier": "Bézier curve",
    "polygon": "polygonal chain",
    "initial": "from the start to here",
}
"""Path → what a reader calls it."""
_State = dict[str, Tensor]


class Connectivity(Probe):
    """What stands between two solutions: the barrier of the loss, and whether there is a way round it.

    The barrier of a path is max_t [L(t) − (1−t)·L(0) − t·L(1)] ≥ 0 on the objective's batches (Frankle et al. 2020). It
    is measured on the straight line; on the line to the other network with its hidden units reordered, which computes
    the same (Ainsworth, Hayase and Srinivasa 2023); and along curves trained between the two (Garipov et al. 2018).

    Args:
        other: Parameters and buffers by name of a second solution, of the same architecture.
        initial: Those that the training began with: the line from there to here is shown too (Goodfellow et al. 2015).
        error: `error(model, batch)` → mean error of a batch; its barriers are told beside those of the loss.
        matching: How units are reordered: by "weights", by "activations", "both" or "none".
        symmetry: Which units may be reordered: axis names by parameter; None: it is found and checked.
        restarts: Starts of weight matching; the best is kept.
        curves: Which curves are trained: "bezier" with one inner point, "polygon", "both" or "none".
        bends: Inner points of the polygonal chain.
        steps: Updates of each curve, of one batch each.
        learning_rate: Adam's for the curves, about how far a weight moves in a step.
        repair: "statistics" renews those of batch normalisation on the way, "rescale" also corrects the units of
            networks without it (REPAIR, Jordan et al. 2023), "none" interpolates what was saved.
        points: Points of each path, ends included.
        seed: Of restarts and of the curves' training.

    Raises:
        BadInput: A number is out of its range.
    """

    def __init__(
        self,
        *,
        other: Mapping[str, Tensor] | None = None,
        initial: Mapping[str, Tensor] | None = None,
        error: ErrorFunction | None = None,
        matching: Matching = "both",
        symmetry: Symmetry | Mapping[str, Sequence[AxisName]] | None = None,
        restarts: int = 3,
        curves: Curves = "both",
        bends: int = 3,
        steps: int = 300,
        learning_rate: float = 3e-3,
        repair: RepairMode = "statistics",
        points: int = 11,
        seed: int = 0,
    ) -> None:
        for name, value, choices in (
            ("matching", matching, ("both", "weights", "activations", "none")),
            ("curves", curves, ("both", "bezier", "polygon", "none")),
            ("repair", repair, ("statistics", "rescale", "none")),
        ):
            if value not in choices:
                raise BadInput(f"connectivity({name}=...) must be one of {', '.join(choices)}. Got {value!r}.")
        for name, value, least in (
            ("restarts", restarts, 1), ("bends", bends, 1), ("steps", steps, 1), ("points", points, 3),
        ):  # fmt: skip
            if value < least:
                raise BadInput(f"connectivity({name}=...) must be at least {least}. Got {value}.")
        if not 0 < learning_rate < float("inf"):
            raise BadInput(f"connectivity(learning_rate=...) must be more than 0. Got {learning_rate}.")
        self._other, self._initial, self._error = other, initial, error
        self._matchings = [m for m in ("weights", "activations") if matching in (m, "both")]
        self._kinds: list[Kind] = [k for k in ("bezier", "polygon") if curves in (k, "both")]
        self._symmetry, self._restarts = symmetry, restarts
        self._bends, self._steps, self._learning_rate = bends, steps, learning_rate
        self._repair: RepairMode = repair
        self._points, self._seed = points, seed

    def price(self, objective: Objective) -> Cost:
        """At most; nothing is spent on matching where no units can be reordered."""
        batches = len(objective.batches)
        rescales = self._repair == "rescale" and not normalisations(objective.model)
        each = 1 + (self._error is not None) + self._renews(objective) + rescales
        paths = (1 + len(self._matchings) + len(self._kinds)) * (self._other is not None) + (self._initial is not None)
        training = self._steps * len(self._kinds) / batches if self._other is not None else 0.0
        matching = 0.0
        if self._other is not None and self._matchings:
            matching = (1 + FORWARDS) * objective.shares[0] + 2 * len(self._matchings) * (1 + rescales)
        return Cost(forwards=paths * self._points * each + training + matching, backwards=training)

    def run(self, objective: Objective) -> Chart:
        """Measure."""
        if self._other is None and self._initial is None:
            raise NotApplicable("connectivity needs a second point: give other=... or initial=... by name.")
        meter, work = Meter(objective), _Work(objective)
        here, notes = whole(objective, "connectivity"), list[str]()
        curves: dict[str, Curve] = {}
        repairs: dict[str, Repair] = {}
        values: dict[str, Estimate] = {}
        if self._other is not None:
            there = alike(objective, self._other, "connectivity(other=...)")
            curves["linear"] = segment(here, there)
            self._reordered(objective, here, there, curves, repairs, notes, work)
            self._curved(objective, here, there, curves, notes, work)
        if self._initial is not None:
            curves["initial"] = segment(alike(objective, self._initial, "connectivity(initial=...)"), here)
        profiles = {name: self._measured(objective, curve, repairs.get(name), work) for name, curve in curves.items()}
        for name, (loss, error) in profiles.items():
            values |= _values(name, loss, error)
        for name in ("linear", "weights", "activations", "initial"):
            if name in curves:
                ends = curves[name].points
                about = f"‖θ₁ − θ₂‖, {NAMES[name]}"
                values[f"{name}_distance"] = Estimate(value=distance(objective, ends[0], ends[-1]), about=about)
        notes += self._notes(objective, profiles)
        return Chart(
            probe="connectivity",
            title=title(objective),
            values=values,
            arrays=_arrays(profiles),
            panels=tuple(_panels(profiles, values)),
            cost=meter.cost(forwards=work.forwards, backwards=work.backwards),
            notes=tuple(notes),
        )

    def _renews(self, objective: Objective) -> bool:
        return self._repair != "none" and bool(normalisations(objective.model))

    def _reordered(
        self,
        objective: Objective,
        here: _State,
        there: _State,
        curves: dict[str, Curve],
        repairs: dict[str, Repair],
        notes: list[str],
        work: "_Work",
    ) -> None:
        """The lines to the other network with its units reordered."""
        if not self._matchings:
            return
        try:
            found = checked(objective, self._symmetry, seed=self._seed)
        except NotApplicable as reason:
            notes.append(f"Matching: not applicable. {reason}")
            work.forwards += (1 + FORWARDS) * work.first
            return
        work.forwards += ((self._symmetry is None) + 2) * work.first
        for kind in self._matchings:
            if kind == "weights":
                own = {name: here[name] for name in objective.leaves()}
                matched = match_weights(found, own, there, restarts=self._restarts, seed=self._seed)
                notes.append(
                    f"Weight matching: ⟨θ₁, θ₂⟩ rose from {matched.start:.4g} to {matched.value:.4g} "
                    f"(the worst of {self._restarts} starts: {matched.spread:.4g})."
                )
            else:
                matched = match_activations(found, objective, here, there, seed=self._seed)
                work.forwards += 2
            end = found.apply(there, matched.permutation)
            curves[kind] = segment(here, end)
            if self._repair == "rescale" and not normalisations(objective.model):
                hidden = [n for n, axes in found.axes.items() if any(p.group for p in axes[0])]
                layers = layers_with(objective, hidden)
                ends = (unit_statistics(objective, here, layers), unit_statistics(objective, end, layers))
                repairs[kind] = Repair(layers={path: layers[path] for path in ends[0]}, ends=ends)
                work.forwards += 2
        units = sum(found.groups.values())
        notes.append(f"{units:,} units in {len(found.groups)} groups can be reordered without changing the function.")

    def _curved(
        self,
        objective: Objective,
        here: _State,
        there: _State,
        curves: dict[str, Curve],
        notes: list[str],
        work: "_Work",
    ) -> None:
        """Curves trained between the two as they are."""
        for kind in self._kinds:
            work.forwards += self._steps / len(objective.batches)
            work.backwards += self._steps / len(objective.batches)
            try:
                curves[kind], losses = train_curve(
                    objective, here, there, kind=kind, bends=1 if kind == "bezier" else self._bends, steps=self._steps,
                    learning_rate=self._learning_rate, seed=self._seed,
                )  # fmt: skip
            except NotApplicable as reason:
                notes.append(f"{NAMES[kind]}: not applicable. {reason}")
                continue
            tenth = max(1, len(losses) // 10)
            first, last = float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:]))
            notes.append(f"{NAMES[kind]}: mean loss {first:.4g} in the first tenth of {self._steps} steps, {last:.4g} "
                         "in the last.")  # fmt: skip

    def _measured(
        self, objective: Objective, curve: Curve, repair: Repair | None, work: "_Work"
    ) -> tuple[Profile, Profile | None]:
        renews = self._renews(objective)
        grid = np.linspace(0, 1, self._points).tolist()
        work.forwards += self._points * (1 + renews + (self._error is not None))
        work.forwards += (self._points - 2) * (repair is not None)
        return along(objective, curve, grid, error=self._error, statistics=renews, repair=repair)

    def _notes(self, objective: Objective, profiles: Mapping[str, tuple[Profile, Profile | None]]) -> list[str]:
        notes: list[str] = []
        if self._renews(objective):
            notes.append("Running statistics of batch normalisation were renewed at every point, the ends included.")
        elif normalisations(objective.model):
            notes.append("Running statistics were interpolated as saved: expect a barrier that they alone make.")
        if len(objective.batches) < 2:
            notes.append("One batch: no standard error. Split it by microbatch=.")
        for name, (loss, _) in profiles.items():
            if not np.isfinite(loss.values).all():
                notes.append(f"The loss is not finite somewhere on the {NAMES[name]}: its barrier is infinite.")
        return notes


class _Work:
    """Passes over all batches that were made."""

    def __init__(self, objective: Objective) -> None:
        self.forwards = self.backwards = 0.0
        self.first = objective.shares[0]
        """The first batch as a share of a pass."""


def _values(name: str, loss: Profile, error: Profile | None) -> dict[str, Estimate]:
    words = NAMES[name]
    found = {f"{name}_barrier": replace(loss.barrier, about=f"loss above its ends', {words}")}
    if name in ("bezier", "polygon"):
        found[f"{name}_top"] = Estimate(value=loss.top, about=f"largest loss, {words}")
    if name == "initial":
        found["initial_climb"] = Estimate(value=loss.climb, about="largest rise of the loss from the start to here")
    if error is not None:
        found[f"{name}_error_barrier"] = replace(error.barrier, about=f"error above its ends', {words}")
    return found


def _arrays(profiles: Mapping[str, tuple[Profile, Profile | None]]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name, (loss, error) in profiles.items():
        found["t"] = loss.t
        found[f"{name}_loss"] = loss.values
        found[f"{name}_loss_error"] = np.array([loss.standard_error(row) or 0.0 for row in loss.batches])
        if error is not None:
            found[f"{name}_error"] = error.values
    return found


def _panels(profiles: Mapping[str, tuple[Profile, Profile | None]], values: Mapping[str, Estimate]) -> Sequence[Panel]:
    panels: list[Panel] = []
    between = {name: pair for name, pair in profiles.items() if name != "initial"}
    for group, heading, label in (
        (between, "between two solutions", "t: 0 is here, 1 the other"),
        ({n: p for n, p in profiles.items() if n == "initial"}, "from the start to here", "t: 0 is the start, 1 here"),
    ):
        for index, what in ((0, "loss"), (1, "error")):
            lines = tuple(
                Line(label=NAMES[name], x=profile.t, y=np.where(np.isfinite(profile.values), profile.values, np.nan))
                for name, pair in group.items()
                if (profile := pair[index]) is not None
            )
            if lines:
                panels.append(Lines(title=f"{what.capitalize()} {heading}", lines=lines, x_label=label, y_label=what))
    rows = tuple(
        (
            NAMES[name],
            str(values[f"{name}_barrier"]),
            str(values.get(f"{name}_error_barrier", "")),
            f"{values[d].value:.4g}" if (d := f"{name}_distance") in values else "",
        )
        for name in profiles
    )
    header = ("path", "loss barrier", "error barrier", "distance")
    return [*panels, Table(title="Barriers", header=header, rows=rows)]
