"""The five signals of convergence, each stable, not stable or not applicable, with its figures."""

from dataclasses import dataclass

import numpy as np

from dynaxx.core.findings import Log, Threshold
from dynaxx.detectors._blocks import blocks
from dynaxx.detectors._progress import progress
from dynaxx.detectors._read import LOSS, track, unbroken
from dynaxx.detectors._validation import validation
from dynaxx.errors import NotApplicable
from dynaxx.numerics.two_sample import law_shift

RECENT = 0.1
"""Share of the steps so far in which the training loss must be smooth (specification V, signal 1)."""
PLATEAU = 0.2
"""Share of the steps so far for which the validation must have stood still (signal 2)."""
GAIN = Threshold(
    value=0.01,
    origin="a plateau of the validation is a gain of less than 1 % of its best: what a stop may cost",
    false_alarms="the stop itself is judged by the rescue suite: within 1 % of what the full run reaches",
)
SMOOTH = Threshold(
    value=0.1,
    origin="standard deviation of block medians of the training loss about their trend, as a share of the level",
    false_alarms="one signal of five",
)
SAME = Threshold(
    value=0.01,
    origin="p-value of Kolmogorov and Smirnov's test below which two stretches of gradient norms differ",
    false_alarms="one signal of five",
)
COLLAPSED = Threshold(
    value=1e-3,
    origin="a gradient a thousandth of the largest usual one has collapsed instead of settled",
    false_alarms="one signal of five",
)
FACTOR = 1.5
"""By which sharpness and gradient norms may wander within what is called stable."""
FAR = 2.0
"""Stability margin from which sharpness is called low: half of what the step allows."""
AGREE = 0.99
"""Agreement of successive outputs from which they have stopped changing: one label or token in a hundred."""
OUTPUTS = "samples.agreement|sample_agreement|val_agreement"
"""Agreement of the outputs on a fixed set between successive evaluations, where the loop logs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """One signal of convergence.

    Args:
        name: What is looked at.
        stable: Whether it is; None: it cannot be told here.
        text: The figures, or why it cannot be told.
        columns: What was read.
        value: The figure that was compared.
        threshold: What it was compared with.
    """

    name: str
    stable: bool | None
    text: str
    columns: tuple[str, ...] = ()
    value: float | None = None
    threshold: float | None = None


def signs(run: Log) -> tuple[Sign, ...]:
    """The five, in the order of the specification.

    Args:
        run: The log.

    Returns:
        Training loss, validation, gradient norms, sharpness, outputs.
    """
    found: list[Sign] = []
    for name, ask in (
        ("training loss", _training),
        ("validation", _validation),
        ("gradient norms", _gradients),
        ("sharpness", _sharpness),
        ("outputs", _outputs),
    ):
        try:
            found.append(ask(run, name))
        except NotApplicable as reason:
            found.append(Sign(name=name, stable=None, text=f"{name}: not applicable, {reason}"))
    return tuple(found)


def _training(run: Log, name: str) -> Sign:
    loss = unbroken(run, LOSS, 120)
    last = int(loss.steps[-1])
    now = progress(loss, share=RECENT)
    level = max(abs(now.level), 1e-300)
    noise = now.trend.noise / level
    cut = blocks(loss, size=max(8, len(loss) // 40))
    falling = now.trend.slope <= 2 * now.trend.error
    calm = noise < float(SMOOTH) * max(1.0, min(now.start / level, 10.0)) and bool(
        cut.medians[-1] <= cut.medians[-5:].min() + 4 * cut.noise
    )
    text = f"training loss {now.trend.slope / level:+.2e} of its level a step since {now.first}, residuals {noise:.1%}"
    return Sign(
        name=name,
        stable=falling and calm and last > 0,
        text=text,
        columns=(loss.name,),
        value=noise,
        threshold=float(SMOOTH),
    )


def _validation(run: Log, name: str) -> Sign:
    found = validation(run)
    steps = found.track.steps
    begin = steps[-1] - PLATEAU * steps[-1]
    recent = steps > begin
    if recent.sum() < 3 or (~recent).sum() < 3:
        raise NotApplicable(f"{int(recent.sum())} evaluations in the last {PLATEAU:.0%} of the steps; three are needed")
    best_before, best_now = float(found.smooth[~recent].min()), float(found.smooth[recent].min())
    scale = max(abs(best_before), 1e-300)
    gain = (best_before - best_now) / scale
    text = f"validation gained {gain:.2%} in the last {PLATEAU:.0%} of the steps, since step {int(begin)}"
    return Sign(
        name=name, stable=gain < float(GAIN), text=text, columns=(found.track.name,), value=gain, threshold=float(GAIN)
    )


def _gradients(run: Log, name: str) -> Sign:
    total = track(run, "grad_norm", 60).total().finite
    if len(total) < 60:
        raise NotApplicable(f"grad_norm has {len(total)} finite rows; 60 are needed")
    size = max(20, len(total) // 10)
    before, now = total.values[-2 * size : -size], total.values[-size:]
    _, p = law_shift(before, now)
    ratio = float(np.median(now) / max(float(np.median(before)), 1e-300))
    usual = float(np.median(total.values[: max(20, len(total) // 2)]))
    alive = float(np.median(now)) > float(COLLAPSED) * usual
    settled = p > float(SAME) or 1 / FACTOR < ratio < FACTOR
    text = f"gradient norms {ratio:.2f} times those of the stretch before (p = {p:.2g})"
    return Sign(
        name=name,
        stable=settled and alive,
        text=text if alive else f"{text}; collapsed to {np.median(now) / max(usual, 1e-300):.1g} of the usual",
        columns=("grad_norm",),
        value=ratio,
        threshold=FACTOR,
    )


def _sharpness(run: Log, name: str) -> Sign:
    found = track(run, "sharpness|stability_margin.sharpness", 6).finite
    good = found.rows(found.values > 0)
    if len(good) < 6:
        raise NotApplicable(f"{found.name} has {len(good)} positive values; 6 are needed")
    late = good.rows(slice(-max(4, len(good) // 3), None))
    half = len(late) // 2
    drift = float(np.median(late.values[half:]) / np.median(late.values[:half]))
    spread = float(late.values.max() / late.values.min())
    margins = track(run, "stability_margin", 2).finite.between(late.steps[0], late.steps[-1]).values
    if len(margins) == 0:
        raise NotApplicable("no stability margin beside the sharpness: low means nothing without it")
    margin = float(np.median(margins))
    text = f"sharpness drifts by ×{drift:.2f} and wanders by ×{spread:.2f}, margin {margin:.3g}"
    stable = drift < FACTOR and spread < FACTOR**2 and margin > FAR
    return Sign(
        name=name, stable=stable, text=text, columns=(found.name, "stability_margin"), value=drift, threshold=FACTOR
    )


def _outputs(run: Log, name: str) -> Sign:
    found = track(run, OUTPUTS, 3).finite
    if len(found) < 3:
        raise NotApplicable(f"{found.name} has {len(found)} finite rows; 3 are needed")
    middle = float(np.median(found.values[-3:]))
    text = f"successive outputs agree to {middle:.1%}"
    return Sign(name=name, stable=middle >= AGREE, text=text, columns=(found.name,), value=middle, threshold=AGREE)
