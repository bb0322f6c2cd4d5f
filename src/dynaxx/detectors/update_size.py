"""Updates of the whole model that are too large or too small for its weights."""

import numpy as np

from dynaxx.core.findings import Cause, Detector, Evidence, Finding, Log, Remedy, Test, Threshold
from dynaxx.detectors._depth import drop
from dynaxx.detectors._facts import groups, matrices, planned
from dynaxx.detectors._read import QUIETLY, Track, end_of, fallen, rows
from dynaxx.detectors._remedies import FAN_IN, rate
from dynaxx.detectors._spans import moving_mean, stretches, within
from dynaxx.detectors._start import elasticity, excess, trained, weights_left
from dynaxx.detectors._structure import LOST, blocked, gradientless
from dynaxx.detectors._weigh import ranked, suspect
from dynaxx.errors import NotApplicable

LARGE = Threshold(
    value=-1.0,
    origin="decades; TheDeepChecker (2022): log₁₀ of |Δw|/|w| above −1, mean over 10 steps; Karpathy (2019): near −3",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)
SMALL = Threshold(
    value=-4.0,
    origin="decades; TheDeepChecker (2022): below −4, mean over 10 steps",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)
VAST = Threshold(
    value=-0.6,
    origin="decades; a quarter of the weights a step, for ten steps on end: nothing is left of the initialisation, "
    "whatever was gained",
    false_alarms="none in 800 healthy rescue runs: the largest mean over ten rows is 0.166, at the edge of stability",
)
PERSIST = Threshold(
    value=10.0,
    origin="rows on end of a mean over 10: two windows that share no row",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)
WINDOW = 10
FULL_RATE = 0.5
"""Steps whose rate is below this share of the largest so far are warm-up or decay: small updates belong there."""


ENOUGH = 0.5
"""Share of the first loss gained from which large steps did no harm: in the first steps of a high rate, too."""
EARLY = 0.1
"""Share of the plan until which an even part of ENOUGH will do: of the rescue suite's rates too high none gains more
than 7 % in its first 20 steps and keeps it, descent at the edge of stability 27 and 52 %."""
FLAT = 0.2
"""‖g‖‖θ‖/L of the first steps, by how many per cent the loss changes with one per cent of the weights: 0.7 to 16 in the
clean runs of the rescue suite, 0.04 to 0.13 where the weights began too small."""


class UpdateSize(Detector):
    """log₁₀ ‖Δθ_l‖/‖θ_l‖, as really applied, a mean over 10 rows and the median over the weight layers, in [−4, −1]."""

    code = "D37"
    title = "updates too large or too small"
    reads = ("update_ratio",)

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """Most layers outside the band at once; one layer is a mismatch."""
        ratio = rows(run, "update_ratio", least=2 * WINDOW)
        level = _level(run, ratio)
        large = np.where(np.isfinite(level), level, 0.0 if np.isinf(level).any() else -3.0) > LARGE.value
        spans = stretches(ratio.steps, large & np.isfinite(level), int(PERSIST.value), end_of(run))
        if spans:
            return self._finding(run, spans, float(np.median(level[within(ratio.steps, spans)])), large=True)
        small = np.isfinite(level) & (level < SMALL.value) & _full_rate(run, ratio.steps)
        spans = stretches(ratio.steps, small, int(PERSIST.value), end_of(run))
        if spans:
            return self._finding(run, spans, float(np.median(level[within(ratio.steps, spans)])), large=False)
        return None

    def _finding(self, run: Log, spans: tuple[tuple[int, int], ...], level: float, *, large: bool) -> Finding:
        bound = LARGE.value if large else SMALL.value
        gone = fallen(run)
        enough = ENOUGH * min(1.0, end_of(run) / (EARLY * (planned(run) or 1))) if large else 0.2
        harmful = level > VAST.value or (not gone > enough and (large or not trained(run)))
        return Finding(
            code=self.code,
            name="update_size",
            title=f"a step changes the weights by {10**level:.2g} of their size",
            severity="warning" if harmful else "note",
            spans=spans,
            evidence=(
                Evidence(
                    text=f"the median layer's update is {10**level:.2g} of its weights; healthy runs lie between "
                    f"{10**SMALL.value:.2g} and {10**LARGE.value:.2g}",
                    columns=("update_ratio",),
                    steps=(spans[0][0], spans[-1][1]),
                    value=level,
                    threshold=bound,
                ),
                Evidence(text=f"the loss has fallen by {gone:.0%} of its start", columns=("loss",), value=gone),
            ),
            causes=_too_large(run, level, gone) if large else _too_small(run, level, gone),
            test=Test(
                text="Curvature along the update against 2/η: beyond it steps overshoot, far below it there is room.",
                check="directional_curvature",
            ),
        )


def _level(run: Log, ratio: Track) -> np.ndarray:
    places, _ = matrices(run, ratio.labels)
    values = ratio.values[:, places]
    values = values[:, (np.isfinite(values) & (values > 0)).any(axis=0)]
    if values.shape[1] == 0:
        raise NotApplicable("no layer with weights was updated")
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(values > 0, np.log10(values), np.nan)
    means = moving_mean(logs, WINDOW)
    return np.where(np.isnan(means).any(axis=1), np.nan, np.median(means, axis=1))


def _full_rate(run: Log, steps: np.ndarray) -> np.ndarray:
    """Which steps have at least half of the largest rate so far; all where rates are not logged."""
    if "lr" not in run.columns or len(run["lr"].steps) == 0:
        return np.ones(len(steps), dtype=bool)
    lr = rows(run, "lr")
    highest = np.nanmax(lr.values, axis=1)
    full = highest >= FULL_RATE * np.maximum.accumulate(highest)
    full &= highest >= FULL_RATE * highest.max()
    place = np.clip(np.searchsorted(lr.steps, steps), 0, len(full) - 1)
    return full[place]


def _too_large(run: Log, level: float, gone: float) -> tuple[Cause, ...]:
    beta = max((float(g.get("momentum") or 0.0) for g in groups(run)), default=0.0)
    small_weights, begun = weights_left(run), excess(run)
    return ranked(
        suspect(
            "learning_rate_too_high",
            0.7,
            3.0 if level > LARGE.value + 0.5 else 1.0,
            2.0 if not gone > 0.2 else 0.7,
            0.3 if begun > 1 else 1.0,
            why=f"a step of {10**level:.2g} of the weights, and the loss has fallen by {gone:.0%}",
            remedies=(rate(0.1 if level > 0 else 0.3),),
        ),
        suspect(
            "momentum_too_high",
            0.1,
            8.0 if beta > 0.97 else 0.3,
            why=f"momentum {beta:g} multiplies a steady gradient's step {1 / (1 - min(beta, 0.999)):.0f}-fold",
            remedies=(rate(0.3),),
        ),
        suspect(
            "initialisation_too_large",
            0.1,
            15.0 if begun > 1 else 0.5,
            why=f"the model began {begun:.3g} nats worse than a guess" if begun > 1 else "",
            remedies=(FAN_IN,),
        ),
        suspect(
            "weight_decay_too_high",
            0.1,
            20.0 if small_weights < 0.2 else 0.4,
            why=f"the weights have shrunk to {small_weights:.0%} of their size at the start",
        ),
    )


def _too_small(run: Log, level: float, gone: float) -> tuple[Cause, ...]:
    epsilon = 0.0
    if "optimizer_state.epsilon_dominated" in run.columns:
        values = rows(run, "optimizer_state.epsilon_dominated").values[-WINDOW:]
        epsilon = float(np.median(values[np.isfinite(values)])) if np.isfinite(values).any() else 0.0
    clipped = 1.0
    if "clip_coefficient" in run.columns:
        clipped = float(np.median(rows(run, "clip_coefficient").values))
    missing, sloped, vanished = SMALL.value - level, elasticity(run), drop(run)
    if gradientless(run):  # nothing is to be learned from how the optimizer treats zeros
        return ranked(
            suspect("underflow", 0.7, why="no layer has a gradient, not even the last", remedies=(LOST,)),
            suspect("loss_disconnected", 0.3, why="no layer has a gradient"),
        )
    return ranked(
        suspect(
            "learning_rate_too_low",
            0.7,
            1.5 if missing > 0.5 else 1.0,
            0.2 if epsilon > 0.5 else 1.2,
            0.2 if sloped < FLAT or vanished >= 2 or blocked(run) else 1.0,
            why=f"a step of {10**level:.2g} of the weights, and the loss has fallen by {gone:.0%}",
            remedies=(rate(10.0 if missing > 1 else 3.0),),
        ),
        suspect(
            "weight_decay_too_high",
            0.1,
            20.0 if weights_left(run) < 0.1 else 0.2,
            why="the weights have all but gone",
            remedies=(Remedy(text="Lower the weight decay tenfold."),),
        ),
        suspect(
            "epsilon_too_large",
            0.1,
            30.0 if epsilon > 0.5 else 0.3,
            why=f"ε outweighs the second moments in {epsilon:.0%} of the coordinates",
        ),
        suspect(
            "vanishing_gradients",
            0.15,
            6.0 if sloped < FLAT or vanished >= 2 else 0.3,
            why=f"‖g‖‖θ‖/L began at {sloped:.2g}, gradients fall by {vanished:.1f} decades over the depth",
        ),
        suspect(
            "clipping_too_tight",
            0.1,
            10.0 if clipped < 0.1 else 0.3,
            why=f"clipping multiplies the gradient by {clipped:.2g}",
        ),
    )
