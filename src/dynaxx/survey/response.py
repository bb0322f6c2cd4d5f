"""How the final loss answers to the learning rate: best rate, sensitivity, divergence; pure functions of a scan."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from dynaxx.core.chart import Estimate
from dynaxx.errors import BadInput, NotApplicable

CONFIDENCE = 0.9
"""Of the intervals."""
RESAMPLES = 200
"""Bootstrap resamples of the seeds: enough for a standard error (Efron & Tibshirani, 1993), known then to 5 %."""
NEAR = 0.5
"""Decades on either side of the best rate: where the loss is fitted, and where the sensitivity is taken."""

Side = Literal["inside", "lowest", "highest", "beside divergence"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """Short trainings over rates × seeds.

    Args:
        rates: Learning rates, increasing, at least three.
        losses: Final losses; not finite where it ended so.
        diverged: Which diverged.
        initial: Loss before the first step, by seed.
    """

    rates: Float[np.ndarray, " rates"]
    losses: Float[np.ndarray, "seeds rates"]
    diverged: Bool[np.ndarray, "seeds rates"]
    initial: Float[np.ndarray, " seeds"]

    def __post_init__(self) -> None:
        if len(self.rates) < 3 or (np.diff(self.rates) <= 0).any() or self.rates[0] <= 0:
            raise BadInput(f"Scan(rates=...) must be at least three positive, increasing rates. Got {self.rates}.")
        if self.losses.shape != self.diverged.shape or self.losses.shape != (len(self.initial), len(self.rates)):
            raise BadInput(
                f"Scan(losses=...) must have the shape (seeds, rates), ({len(self.initial)}, {len(self.rates)}). "
                f"Got {self.losses.shape}."
            )

    @property
    def capped(self) -> Float[np.ndarray, "seeds rates"]:
        """min(ℓ, ℓ₀), and ℓ₀ where it diverged: no training is worse than none."""
        worst = np.broadcast_to(self.initial[:, None], self.losses.shape)
        bad = self.diverged | ~np.isfinite(self.losses)
        return np.minimum(np.where(bad, worst, self.losses), worst)


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The rate of the least final loss.

    Args:
        rate: The rate.
        low: Lower end of its interval.
        high: Upper end.
        decades: Standard error of its decimal logarithm; None with one seed.
        side: Where it lies: "inside" the grid, at its "lowest" or "highest" rate, or "beside divergence".
        fitted: Whether it is the vertex of a parabola; else a rate of the grid.
    """

    rate: float
    low: float
    high: float
    decades: float | None
    side: Side
    fitted: bool


def best(scan: Scan, *, seed: int = 0) -> Best:
    """The best rate: the vertex of a parabola in log η through the mean losses near the least one.

    The interval is ± t · s · √(n / (n − 1)) in log η around it, with s the bootstrap standard error over n seeds (the
    factor and Student's t because few seeds are too alike when resampled: Hesterberg, 2015). With one seed, at an end
    of the grid, or beside divergence it is at least the neighbouring rates.

    Args:
        scan: The scan.
        seed: Of the resampling.

    Returns:
        The best rate.

    Raises:
        NotApplicable: Every training diverged, or none lowered the loss.
    """
    _descends(scan)
    capped, x = scan.capped, np.log10(scan.rates)
    bad = np.asarray(scan.diverged.any(axis=0))
    at, fitted = _vertex(x, capped.mean(axis=0), bad)
    error = _bootstrap(len(capped), lambda rows: _vertex(x, capped[rows].mean(axis=0), bad)[0], seed)
    least = int(capped.mean(axis=0).argmin())
    low, high = x[max(least - 1, 0)], x[min(least + 1, len(x) - 1)]
    if error is not None:
        half = _students(len(capped)) * error
        inner = (at - half, at + half)
        low, high = inner if fitted else (min(low, inner[0]), max(high, inner[1]))
    return Best(
        rate=float(10**at),
        low=float(10**low),
        high=float(10**high),
        decades=error,
        side=_side(least, bad),
        fitted=fitted,
    )


def sensitivity(scan: Scan, around: float, *, seed: int = 0) -> Estimate:
    """How much a wrong learning rate costs: the mean of min(ℓ(η), ℓ₀) − ℓ* over a decade around the best rate.

    The mean is over log η, between the rates by straight lines; ℓ* is the least mean loss of the grid. It is the
    learning-rate sensitivity of Wortsman et al. (2023, arXiv:2309.14322), over one decade instead of their three.

    Args:
        scan: The scan.
        around: The middle of the decade, η*.
        seed: Of the bootstrap over the seeds.

    Returns:
        The sensitivity in the unit of the loss; its standard error where there are several seeds.

    Example:
        For ℓ = ℓ* + a (log₁₀ η/η*)² it is a / 12.
    """
    x, capped = np.log10(scan.rates), scan.capped
    low, high = max(math.log10(around) - NEAR, x[0]), min(math.log10(around) + NEAR, x[-1])
    inner = x[(x > low) & (x < high)]
    points = np.concatenate([[low], inner, [high]])

    def excess(rows: np.ndarray) -> float:
        mean = capped[rows].mean(axis=0)
        return float(np.trapezoid(np.interp(points, x, mean) - mean.min(), points) / (high - low))

    error = _bootstrap(len(capped), excess, seed)
    return Estimate(value=excess(np.arange(len(capped))), error=error, about="mean excess loss over a decade around η*")


def divergence(scan: Scan) -> tuple[float, float, float] | None:
    """Where training begins to diverge: between the last rate that did not and the first that did.

    Args:
        scan: The scan.

    Returns:
        The geometric mean over the seeds of the middles of these gaps, the lowest lower end and the highest upper end;
        None where no training diverged. A gap below the lowest rate has that rate as both ends; one above the highest
        likewise.
    """
    if not scan.diverged.any():
        return None
    gaps: list[tuple[float, float]] = []
    for row in scan.diverged:
        first = int(row.argmax()) if row.any() else len(row)
        gaps.append((scan.rates[max(first - 1, 0)], scan.rates[min(first, len(row) - 1)]))
    middle = np.exp(np.mean([math.log(low * high) / 2 for low, high in gaps]))
    return float(middle), float(min(low for low, _ in gaps)), float(max(high for _, high in gaps))


def early_curvature(
    lengths: Float[np.ndarray, "seeds rates"], losses: Float[np.ndarray, "seeds rates"]
) -> Estimate | None:
    """Curvature of the loss along the first update, c in ℓ(s) = ℓ(0) − b s + c s² / 2 with s the update's length.

    Trainings that differ in the learning rate alone take their first step in one direction and meet the same second
    batch: its loss as a function of the step's length is a slice through the landscape that costs nothing. It is fitted
    from the shortest step to one past the least loss.

    Args:
        lengths: ‖Δθ‖ of the first step.
        losses: Training loss of the second batch, before the second step.

    Returns:
        The mean over the seeds, its standard error where there are several; None where fewer than three steps can be
        used.

    Example:
        On ½ θᵀHθ under gradient descent it is gᵀHg / ‖g‖².
    """
    found = [c for c in map(_slice_curvature, lengths, losses) if c is not None]
    if not found:
        return None
    error = float(np.std(found, ddof=1) / math.sqrt(len(found))) if len(found) > 1 else None
    return Estimate(value=float(np.mean(found)), error=error, about="∂²ℓ/∂s² along the first update")


def _slice_curvature(lengths: np.ndarray, losses: np.ndarray) -> float | None:
    usable = np.isfinite(lengths) & np.isfinite(losses) & (lengths > 0)
    order = np.argsort(lengths[usable])
    s, y = lengths[usable][order], losses[usable][order]
    if len(s) < 3:
        return None
    last = max(3, min(len(s), int(y.argmin()) + 2))
    s, y = s[:last], y[:last]
    return float(2 * np.polyfit(s / s[-1], y, 2)[0] / s[-1] ** 2)


def _descends(scan: Scan) -> None:
    if (scan.diverged | ~np.isfinite(scan.losses)).all():
        raise NotApplicable(f"Every training diverged, from a rate of {scan.rates[0]:.3g} on. Look at lower rates.")
    if not (scan.capped < scan.initial[:, None]).any():
        raise NotApplicable(
            f"No rate between {scan.rates[0]:.3g} and {scan.rates[-1]:.3g} lowered the loss: there is no best one. "
            "Take more steps, or check that the loss depends on the parameters."
        )


def _vertex(x: np.ndarray, y: np.ndarray, bad: np.ndarray) -> tuple[float, bool]:
    """The least point in log₁₀ η, and whether it is the vertex of a fit with points on both sides."""
    least = int(y.argmin())
    if _side(least, bad) != "inside":
        return float(x[least]), False
    first, last = _reach(x, least, bad, -1), _reach(x, least, bad, 1)
    offsets = x[first : last + 1] - x[least]
    a, b, _ = np.polyfit(offsets, y[first : last + 1], 2)
    if a <= 0:
        return float(x[least]), False
    return float(x[least] + np.clip(-b / (2 * a), offsets[0], offsets[-1])), True


def _reach(x: np.ndarray, least: int, bad: np.ndarray, step: int) -> int:
    """The last point of the fit on a side: the neighbour, and further ones that are near and before any divergence."""
    i = least + step
    while 0 <= i + step < len(x) and abs(x[i + step] - x[least]) <= NEAR + 1e-9 and not bad[i + step]:
        i += step
    return i


def _side(least: int, bad: np.ndarray) -> Side:
    if least == 0:
        return "lowest"
    if least == len(bad) - 1:
        return "highest"
    return "beside divergence" if bad[least - 1] or bad[least + 1] else "inside"


def _bootstrap(seeds: int, statistic: Callable[[np.ndarray], float], seed: int) -> float | None:
    """Standard error over resampled seeds, with the factor for few of them; None for one."""
    if seeds < 2:
        return None
    rng = np.random.default_rng(seed)
    drawn = [statistic(rng.integers(seeds, size=seeds)) for _ in range(RESAMPLES)]
    return float(np.std(drawn) * math.sqrt(seeds / (seeds - 1)))


def _students(seeds: int) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1))
