"""Adam's ε outweighs the second moments, so that steps are no longer normalised."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Remedy, Test, Threshold
from dynaxx.detectors._facts import groups, layer_facts
from dynaxx.detectors._read import QUIETLY, Track, end_of, fallen, matching, rows
from dynaxx.detectors._remedies import rate
from dynaxx.detectors._spans import moving_mean, stretches
from dynaxx.detectors._weigh import ranked, suspect

SHARE = Threshold(
    value=0.5,
    origin="half of the coordinates that get a gradient: from there on the typical step is η g/ε, gradient descent",
    false_alarms="no alarm in 94 healthy runs of the rescue suite, 37,600 steps, asked every 25",
)
PERSIST = Threshold(
    value=20.0,
    origin="rows on end of a mean over 10",
    false_alarms="no alarm in 94 healthy runs of the rescue suite, 37,600 steps, asked every 25",
)
WINDOW = 10
USUAL = 1e-8
"""ε of torch.optim.Adam and of the paper (Kingma and Ba 2015)."""


class EpsilonDominates(Detector):
    """Share of coordinates with √v̂ < ε among those whose gradient is not exactly zero, over the whole model.

    Coordinates without a gradient (dead units, words that do not occur) have v = 0 and are left out.
    """

    code = "D17"
    title = "ε dominates the second moments"
    reads = ("optimizer_state.epsilon_dominated",)

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """More than half of them, that last."""
        under = rows(run, "optimizer_state.epsilon_dominated", least=2 * WINDOW)
        share = _of_living(run, under)
        level = moving_mean(share, WINDOW)
        spans = stretches(under.steps, np.nan_to_num(level) >= SHARE.value, int(PERSIST.value), end_of(run))
        if not spans:
            return None
        size = float(np.nanmax(level))
        epsilon = max((float(g.get("eps") or 0.0) for g in groups(run)), default=0.0)
        by_layer = np.nan_to_num(np.median(under.values[-WINDOW:], axis=0))
        order = np.argsort(-by_layer)
        gone = fallen(run)
        large = epsilon > 10 * USUAL
        return Finding(
            code=self.code,
            name="epsilon_dominates",
            title=f"ε = {epsilon:g} outweighs √v̂ in {size:.0%} of the coordinates",
            severity="warning" if spans[-1][1] >= end_of(run) and not gone > 0.9 else "note",
            spans=spans,
            layers=tuple(under.labels[i] for i in order if by_layer[i] >= SHARE.value),
            evidence=(
                Evidence(
                    text=f"√v̂ < ε in {size:.0%} of the coordinates that get a gradient",
                    columns=("optimizer_state.epsilon_dominated", "grad_zeros"),
                    steps=(spans[0][0], spans[-1][1]),
                    value=size,
                    threshold=SHARE.value,
                ),
                Evidence(text=f"ε is {epsilon:g}; {USUAL:g} is usual", value=epsilon, threshold=USUAL),
            ),
            causes=ranked(
                suspect(
                    "epsilon_too_large",
                    0.5,
                    12.0 if large else 0.2,
                    why=f"ε = {epsilon:g}",
                    remedies=(Remedy(text=f"Lower ε to {USUAL:g}."), rate(3.0)),
                ),
                suspect(
                    "vanishing_gradients",
                    0.4,
                    0.3 if large else 3.0,
                    why=f"gradients are below {max(epsilon, USUAL):g} in most coordinates",
                    remedies=(Remedy(text="Scale the loss up, or lower ε further."),),
                ),
                suspect("converged", 0.2, 6.0 if gone > 0.95 else 0.2, why=f"the loss has fallen by {gone:.0%}"),
            ),
            test=Test(text="Train a copy some steps at ε = 1e-12: if the loss falls faster, ε was too large."),
        )


def _of_living(run: Log, under: Track) -> np.ndarray:
    """The share over the whole model; coordinates without a gradient are left out where they are known."""
    facts = layer_facts(run)
    numel = np.array([facts.get(label, {}).get("numel", 1) for label in under.labels], dtype=np.float64)
    zeros = np.zeros_like(under.values)
    if "grad_zeros" in run.columns:
        known = rows(run, "grad_zeros")
        here, there = matching(under, known)
        zeros[here] = np.nan_to_num(known.values[there])
    living = np.where(np.isfinite(under.values), numel * (1 - zeros), 0.0)
    dominated = np.minimum(numel * np.maximum(np.nan_to_num(under.values) - zeros, 0.0), living)
    total = living.sum(axis=1)
    return np.divide(dominated.sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0)
