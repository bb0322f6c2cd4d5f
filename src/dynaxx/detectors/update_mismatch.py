"""Layers whose relative updates are far from those of the others."""

import re

import numpy as np

from dynaxx.core.findings import Cause, Detector, Evidence, Finding, Log, Remedy, Test, Threshold
from dynaxx.core.records import Action
from dynaxx.detectors._facts import adaptive, matrices
from dynaxx.detectors._read import QUIETLY, end_of, rows
from dynaxx.detectors._spans import entries, moving_mean
from dynaxx.detectors._weigh import ranked, suspect
from dynaxx.errors import NotApplicable

APART = Threshold(
    value=2.0,
    origin="decades from the median layer: ten times the spread of 10 that spec N6 calls healthy between extremes",
    false_alarms="no alarm in 132 healthy runs of the rescue suite, 52,800 steps, asked every 25",
)
PERSIST = Threshold(
    value=30.0,
    origin="rows on end of a mean over 10: three windows that share no row",
    false_alarms="no alarm in 132 healthy runs of the rescue suite, 52,800 steps, asked every 25",
)
WINDOW = 10
BOUND = 10.0
"""Largest factor that is proposed for a layer's rate (spec N6)."""


class UpdateMismatch(Detector):
    """log₁₀ ‖Δθ_l‖/‖θ_l‖ of each weight layer against the median over the layers, a mean over 10 rows.

    Layers that do not move at all are another detector's matter.
    """

    code = "D14"
    title = "update ratios of layers far apart"
    reads = ("update_ratio",)

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """Two decades from the median that last."""
        ratio = rows(run, "update_ratio", least=2 * WINDOW)
        places, _ = matrices(run, ratio.labels)
        values = ratio.values[:, places]
        moves = (np.isfinite(values) & (values > 0)).mean(axis=0) > 0.5
        places, values = places[moves], values[:, moves]
        if len(places) < 3:
            raise NotApplicable(f"{len(places)} layer(s) with weights move; layers are compared from 3 on")
        with np.errstate(divide="ignore", invalid="ignore"):
            level = moving_mean(np.where(values > 0, np.log10(values), np.nan), WINDOW)
        level = np.where(np.isnan(level).any(axis=1, keepdims=True), 0.0, level)
        apart = level - np.median(level, axis=1, keepdims=True)
        found = entries(ratio.steps, np.abs(apart) >= APART.value, int(PERSIST.value), end_of(run))
        if not found:
            return None
        size = {j: float(np.median(apart[np.abs(apart[:, j]) >= APART.value, j])) for j in found}
        order = sorted(found, key=lambda j: -abs(size[j]))
        labels = [ratio.labels[places[j]] for j in order]
        spans = found[order[0]]
        text = "; ".join(f"{label}: {10 ** size[j]:.2g}" for label, j in zip(labels[:5], order, strict=False))
        return Finding(
            code=self.code,
            name="update_mismatch",
            title=f"{labels[0]} moves {10 ** size[order[0]]:.2g} times as fast as the median layer",
            severity="warning"
            if spans[-1][1] >= end_of(run) and max(map(abs, size.values())) >= APART.value
            else "note",
            spans=spans,
            layers=tuple(labels),
            evidence=(
                Evidence(
                    text=f"relative updates against the median layer: {text}",
                    columns=("update_ratio",),
                    steps=(spans[0][0], spans[-1][1]),
                    value=size[order[0]],
                    threshold=APART.value if size[order[0]] > 0 else -APART.value,
                ),
            ),
            causes=_causes(run, labels, [size[j] for j in order]),
            test=Test(
                text="See which tensors the optimizer holds, at which rates and with which moments.",
                check="optimizer_holds",
            ),
        )


def _causes(run: Log, labels: list[str], size: list[float]) -> tuple[Cause, ...]:
    slow = size[0] < 0
    gradients = _gradient_apart(run, labels[0])
    follows = np.isfinite(gradients) and np.sign(gradients) == np.sign(size[0]) and abs(gradients) >= 1
    factors = {
        re.escape(label): float(np.clip(10**-s, 1 / BOUND, BOUND)) for label, s in zip(labels, size, strict=True)
    }
    balance = Remedy(
        text=f"Bring the layers' rates together, by at most {BOUND:g}-fold each.",
        action=Action(name="layer_rates", arguments={"factors": factors}),
    )
    why = f"its gradients per parameter are {10**gradients:.2g} of the median layer's" if np.isfinite(gradients) else ""
    return ranked(
        suspect(
            "ill_conditioned",
            0.4,
            3.0 if follows and not adaptive(run) else 0.7,
            why=why,
            remedies=(balance, Remedy(text="Use an optimizer that adaptive by layer or coordinate.")),
        ),
        suspect(
            "vanishing_gradients" if slow else "exploding_gradients",
            0.25,
            2.0 if follows else 0.4,
            why=why,
            remedies=(balance,),
        ),
        suspect(
            "initialisation_too_small" if not slow else "initialisation_too_large",
            0.2,
            0.5 if follows else 2.0,
            why="weights that are small move far relative to their size"
            if not slow
            else "weights that are large hardly move relative to their size",
            remedies=(balance,),
        ),
        suspect(
            "frozen_parameters",
            0.05,
            4.0 if slow and not follows else 0.3,
            why="its rate or its group holds it back although its gradients do not" if slow else "",
        ),
    )


def _gradient_apart(run: Log, label: str) -> float:
    """Decades by which a layer's gradient per parameter is above that of the median layer."""
    if "grad_norm" not in run.columns:
        return float("nan")
    norms = rows(run, "grad_norm")
    places, numel = matrices(run, norms.labels)
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.log10(np.median(norms.values[:, places], axis=0) / np.sqrt(numel))
    names = [norms.labels[i] for i in places]
    if label not in names or not np.isfinite(level).all():
        return float("nan")
    return float(level[names.index(label)] - np.median(level))
