"""How a run moves in a stretch of steps: the figures by which a rate that is too high or too low shows itself."""

from dataclasses import dataclass

import numpy as np

from dynaxx.core.findings import Evidence, Log, Threshold
from dynaxx.detectors._facts import adaptive, checked
from dynaxx.detectors._read import Track, optional
from dynaxx.detectors._weigh import Suspect

LARGE = Threshold(
    value=0.1,
    origin="update over weights above 0.1: TheDeepChecker (2022), torchmortem (2026)",
    false_alarms="0 of 10 healthy runs, alone in its study (references, 3.2)",
)
SMALL = Threshold(
    value=1e-4,
    origin="update over weights below 1e-4: TheDeepChecker (2022)",
    false_alarms="0 of 10 healthy runs, alone in its study (references, 3.2)",
)
AGREE = 0.3
"""Gradients of different batches that point the same way: cosine above it, ten errors of the sketch and more."""
GROWN = 3.0
"""Growth of updates before a loss that rose: healthy ones change by less within ten steps."""
BEYOND = 8.0
"""Growth of Adam's updates that gradients alone cannot make: (1 − β₁)/√(1 − β₂) = 3.2 at once, about 7 in ten steps."""
OPPOSE = -0.15
"""Successive gradients that undo each other: ten errors of the sketch below zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dynamics:
    """Medians over a stretch of steps; None where nothing was measured.

    Args:
        ratio: ‖Δθ‖/‖θ‖ of the whole model.
        margin: Stability margin: threshold over sharpness.
        agreement: Cosine of successive gradients.
        turning: Cosine of successive displacements.
        noise: Gradient noise scale over the batch.
        rate: Learning rate.
        peak: Largest learning rate of the run up to the end of the stretch.
        curvature: Curvature along the update over what its length allows, of a live check; above 1 the step overshoots.
    """

    ratio: float | None
    margin: float | None
    agreement: float | None
    turning: float | None
    noise: float | None
    rate: float | None
    peak: float | None
    curvature: float | None

    def evidence(self, first: int, last: int) -> tuple[Evidence, ...]:
        """The figures that there are, as evidence."""
        said = (
            ("update_ratio.total", self.ratio, "updates of {:.2g} of the weights' size"),
            ("stability_margin", self.margin, "stability margin {:.2g}; below 1 steps overshoot"),
            ("gradient_agreement", self.agreement, "cosine {:+.2f} between successive gradients"),
        )
        return tuple(
            Evidence(text=text.format(value), columns=(column,), steps=(first, last), value=value)
            for column, value, text in said
            if value is not None
        )


def dynamics(run: Log, first: int, last: int) -> Dynamics:
    """Read a stretch.

    Args:
        run: The log.
        first: Its first step.
        last: Its last one.

    Returns:
        The medians.
    """

    def middle(names: str) -> float | None:
        found = optional(run, names)
        if found is None or found.values.ndim != 1:
            return None
        return _median(found.between(first, last))

    rates = optional(run, "lr")
    rate = peak = None
    if rates is not None:
        rates = rates.largest()
        rate = _median(rates.between(first, last))
        before = rates.values[: np.searchsorted(rates.steps, last, "right")]
        peak = float(before.max()) if len(before) else None
    scale, batch = middle("gradient_noise"), middle("effective_batch")
    live = checked(run, "directional_curvature")
    along = live.get("ratio")
    return Dynamics(
        ratio=middle("update_ratio.total"),
        margin=middle("stability_margin"),
        agreement=middle("gradient_agreement"),
        turning=middle("trajectory.cosine"),
        noise=scale / batch if scale is not None and batch else None,
        rate=rate,
        peak=peak,
        curvature=None if along is None else float(along),
    )


def too_high(suspect: Suspect, seen: Dynamics) -> Suspect:
    """Weigh what speaks for steps that are too long."""
    ratio, margin, agreement = seen.ratio, seen.margin, seen.agreement
    suspect.weigh(_above(ratio, float(LARGE)), 6, f"updates are {ratio or 0:.2g} of the weights' size")
    suspect.weigh(_below(ratio, 1e-3), 0.3, "")
    suspect.weigh(_below(margin, 1.0), 5, f"the stability margin is {margin or 0:.2g}", against=0.7)
    suspect.weigh(
        _below(agreement, OPPOSE), 3, f"successive gradients oppose each other (cosine {agreement or 0:+.2f})"
    )
    suspect.weigh(
        _above(seen.curvature, 1.0),
        6,
        f"curvature along the gradient is {seen.curvature or 0:.2g} × what the step allows",
        against=0.4,
    )
    return suspect


def lagging(suspect: Suspect, run: Log, first: int, last: int) -> Suspect:
    """Weigh what speaks for second moments that lag behind the gradients (Adam and its kin)."""
    if not adaptive(run):
        suspect.odds = 0.0
        return suspect
    ratio = optional(run, "optimizer_state.momentum_ratio")
    if ratio is not None:
        near = ratio.largest().finite.between(first, last)
        large = None if len(near) == 0 else bool(near.values.max() > 2.0)
        top = float(near.values.max()) if len(near) else 0.0
        suspect.weigh(large, 5, f"first moments reach {top:.2g} × the root of the second ones", against=0.6)
    return suspect


def raised(run: Log, begin: int) -> bool | None:
    """Whether the learning rate around a step is at least half above what it was a while before.

    Args:
        run: The log.
        begin: The step.

    Returns:
        The answer; None where the rate was not logged around it.
    """
    rates = optional(run, "lr")
    if rates is None:
        return None
    rates = rates.largest()
    before, now = rates.between(begin - 80, begin - 17), rates.between(begin - 16, begin + 8)
    if len(before) == 0 or len(now) == 0:
        return None
    return bool(now.values.max() > 1.5 * np.median(before.values))


def lengthened(run: Log, begin: int) -> bool | None:
    """Whether updates had grown threefold by a step at which the loss rose: a loss is taken before its update.

    Args:
        run: The log.
        begin: The step at which the loss rose.

    Returns:
        The answer; None where too few updates were measured.
    """
    ratios = optional(run, "update_ratio.total")
    if ratios is None:
        return None
    before, now = ratios.between(begin - 80, begin - 13).finite, ratios.between(begin - 10, begin - 1).finite
    after = ratios.between(begin, begin + 16).finite
    if len(before) < 5 or len(now) + len(after) < 1:
        return None
    usual = float(np.median(before.values))
    if len(now) and now.values.max() > GROWN * usual:
        return True
    # Where steps are normalised a strange batch lengthens them by a bounded factor only.
    return adaptive(run) and len(after) > 0 and bool(after.values.max() > BEYOND * usual)


def _median(found: Track) -> float | None:
    values = found.values[np.isfinite(found.values)]
    return float(np.median(values)) if len(values) else None


def _above(value: float | None, limit: float) -> bool | None:
    return None if value is None else value > limit


def _below(value: float | None, limit: float) -> bool | None:
    return None if value is None else value < limit
