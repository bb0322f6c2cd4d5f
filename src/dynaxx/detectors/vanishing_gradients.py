"""Gradients that shrink by orders of magnitude from the last layers to the first."""

import numpy as np

from dynaxx.core.findings import Cause, Detector, Evidence, Finding, Log, Remedy, Test, Threshold
from dynaxx.detectors._depth import WINDOW, depth
from dynaxx.detectors._facts import adaptive, matrices, planned
from dynaxx.detectors._read import QUIETLY, end_of, fallen, rows
from dynaxx.detectors._remedies import NORMALISE
from dynaxx.detectors._spans import stretches, within
from dynaxx.detectors._weigh import ranked, suspect

DROP = Threshold(
    value=2.0,
    origin="decades per parameter over thirds of the depth; torchmortem alarms at 100-fold, AutoTrainer (2021) at 1000",
    false_alarms="no alarm in 132 healthy runs of the rescue suite, 52,800 steps, asked every 25",
)
PERSIST = Threshold(
    value=20.0,
    origin="rows on end; TheDeepChecker averages over 10, so that two windows agree without sharing a row",
    false_alarms="no alarm in 132 healthy runs of the rescue suite, 52,800 steps, asked every 25",
)
STARVED = Threshold(
    value=0.1,
    origin="update ratio of the first third over that of the last: the spread of healthy layers is within 10 (spec N6)",
    false_alarms="no alarm in 132 healthy runs of the rescue suite, 52,800 steps, asked every 25",
)


STUCK = 0.1
"""Share of its start by which the loss must have fallen for the first layers to be no hindrance."""
HIGH = 0.35
"""The same at half of the plan and later, from when a loss that has stopped high is underfitting (see there): however
large Adam makes the first layers' updates, they then have not helped."""


class VanishingGradients(Detector):
    """log₁₀ of the RMS gradient per parameter, first third of the weight layers against the last third.

    A warning where the updates of the first layers starve with their gradients; a note where the optimizer makes up
    for it.
    """

    code = "D1"
    title = "vanishing gradients"
    reads = ("grad_norm",)

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """A drop of three decades over the depth that lasts."""
        found = depth(run)
        first, last = found.ends()
        drop = last - first
        spans = stretches(found.steps, drop >= DROP.value, int(PERSIST.value), end_of(run))
        if not spans:
            return None
        inside = within(found.steps, spans)
        decades = float(np.nanmedian(drop[inside]))
        level = np.nanmedian(found.level[inside], axis=0)
        order = np.argsort(level)
        starved = _starvation(run, spans)
        follows = not adaptive(run)
        harmful = starved < STARVED.value if np.isfinite(starved) else follows
        gone, late = fallen(run), end_of(run) >= 0.5 * (planned(run) or np.inf)
        harmful |= (follows and gone < STUCK) or (late and gone < HIGH)
        evidence = [
            Evidence(
                text=f"gradients per parameter fall by {decades:.1f} decades from the last to the first layers",
                columns=("grad_norm",),
                steps=(spans[0][0], spans[-1][1]),
                value=decades,
                threshold=DROP.value,
            ),
            Evidence(
                text=f"smallest in {found.labels[order[0]]}: {10 ** level[order[0]]:.2g}, "
                f"largest in {found.labels[order[-1]]}: {10 ** level[order[-1]]:.2g}",
                columns=("grad_norm",),
            ),
        ]
        if np.isfinite(starved):
            evidence.append(
                Evidence(
                    text=f"relative updates of the first layers are {starved:.2g} of those of the last",
                    columns=("update_ratio",),
                    value=starved,
                    threshold=STARVED.value,
                )
            )
        return Finding(
            code=self.code,
            name="vanishing_gradients",
            title=f"gradients vanish towards the first layers: {decades:.1f} decades over the depth",
            severity="warning" if harmful else "note",
            spans=spans,
            layers=tuple(found.labels[i] for i in order if level[i] <= level[order[-1]] - 2),
            evidence=tuple(evidence),
            causes=_causes(run, level, spans),
            test=Test(
                text="Replay the batch with activations written down: a layer whose outputs sit in the flat ends is "
                "saturated, one whose outputs shrink from layer to layer began too small."
            ),
        )


def _starvation(run: Log, spans: tuple[tuple[int, int], ...]) -> float:
    """Geometric mean of the update ratios of the first third of the layers over that of the last third."""
    if "update_ratio" not in run.columns:
        return float("nan")
    ratio = rows(run, "update_ratio")
    places, _ = matrices(run, ratio.labels)
    values = ratio.values[within(ratio.steps, spans)][:, places]
    values = values[(np.isfinite(values) & (values >= 0)).all(axis=1)]
    if len(values) < WINDOW or values.shape[1] < 3:
        return float("nan")
    third = max(1, values.shape[1] // 3)
    level = np.median(values, axis=0)
    return float(np.median(level[:third]) / max(float(np.median(level[-third:])), 1e-30))


def _causes(run: Log, level: np.ndarray, spans: tuple[tuple[int, int], ...]) -> tuple[Cause, ...]:
    saturated, shrinking, dead = _activations(run)
    steady = float(np.mean(np.diff(level) > 0))  # shrinks from layer to layer, not at one place
    at_once = spans[0][0] <= 2 * WINDOW
    scale = Remedy(
        text="Initialise by fan-in (Kaiming for ReLU, Xavier for tanh) or put a normalisation between layers."
    )
    return ranked(
        suspect(
            "vanishing_gradients",
            0.6,
            2.0 if steady >= 0.6 else 0.7,
            1.5 if at_once else 1.0,
            0.4 if max(saturated, dead) >= 0.5 or shrinking >= 2 else 1.0,
            why=f"{steady:.0%} of the layers have smaller gradients than the next one",
            remedies=(
                Remedy(text="Replace sigmoid or tanh by ReLU or GELU, add skip connections or normalisation.")
                if _saturable(run)
                else NORMALISE,
                scale,
            ),
        ),
        suspect(
            "saturated_activations",
            0.15,
            12.0 if saturated >= 0.5 else 0.4,
            why=f"up to {saturated:.0%} of a layer's outputs are saturated",
            remedies=(Remedy(text="Lower the initial scale or the rate; normalise before the activation."),),
        ),
        suspect(
            "initialisation_too_small",
            0.15,
            12.0 if shrinking >= 2 else 0.5,
            1.5 if at_once else 0.3,
            why=f"the spread of outputs shrinks by {shrinking:.1f} decades over the depth at the start",
            remedies=(scale,),
        ),
        suspect(
            "dead_units",
            0.1,
            12.0 if dead >= 0.5 else 0.3,
            why=f"up to {dead:.0%} of a layer's units are dead",
            remedies=(Remedy(text="Use a leaky activation and re-initialise the dead layers."),),
        ),
    )


def _saturable(run: Log) -> bool:
    """Whether the model has activations with flat ends, as far as the log tells."""
    return "activations.saturated" not in run.columns or bool(
        np.isfinite(rows(run, "activations.saturated").values).any()
    )


def _activations(run: Log) -> tuple[float, float, float]:
    """Largest saturated share, decades by which the spread shrinks over the depth at the start, largest dead share."""

    def largest(name: str) -> float:
        if name not in run.columns:
            return 0.0
        values = rows(run, name).values[-WINDOW:]
        finite = values[np.isfinite(values)]
        return float(finite.max()) if len(finite) else 0.0

    shrinking = 0.0
    if "activations.std" in run.columns:
        spread = rows(run, "activations.std").values[:WINDOW]
        spread = np.median(spread, axis=0)
        spread = spread[np.isfinite(spread) & (spread > 0)]
        if len(spread) >= 3:
            shrinking = float(np.log10(spread[: len(spread) // 3].mean() / spread[-(len(spread) // 3) :].mean()))
    return largest("activations.saturated"), shrinking, largest("activations.dead")
