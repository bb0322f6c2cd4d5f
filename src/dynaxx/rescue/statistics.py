"""The statistics of the scores: sign-flip tests, mean ratios of matched runs, exact intervals of shares and rates."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from scipy.stats import beta, chi2, t

ENUMERATED = 16
"""Up to so many pairs all 2ⁿ flips are tried."""
DRAWS = 20_000
"""Random flips beyond that: the error of p = 0.05 is 0.0015."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """k of n, with its exact 95 % interval (Clopper and Pearson 1934).

    Args:
        hits: k.
        of: n.

    Example:
        >>> share = Share(hits=0, of=150)
        >>> round(share.low, 4), round(share.high, 4)
        (0.0, 0.0243)
    """

    hits: int
    of: int

    @property
    def value(self) -> float:
        """k/n; NaN where n is 0."""
        return self.hits / self.of if self.of else math.nan

    @property
    def low(self) -> float:
        """Lower end."""
        return 0.0 if self.hits == 0 else float(beta.ppf(0.025, self.hits, self.of - self.hits + 1))

    @property
    def high(self) -> float:
        """Upper end."""
        return 1.0 if self.hits == self.of else float(beta.ppf(0.975, self.hits + 1, self.of - self.hits))

    def __str__(self) -> str:
        if not self.of:
            return "–"
        return f"{self.value:.1%} ({self.hits}/{self.of}; {self.low:.0%}…{self.high:.0%})"

    def as_dict(self) -> dict[str, float]:
        """Plain data."""
        return {"hits": self.hits, "of": self.of, "value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Events per 10 000 steps, with the exact 95 % interval of a Poisson count.

    Args:
        events: How many.
        steps: In how many steps.

    Example:
        >>> rate = Rate(events=3, steps=10_000)
        >>> round(rate.low, 3), round(rate.high, 3)
        (0.619, 8.767)
    """

    events: int
    steps: int

    @property
    def value(self) -> float:
        """Per 10 000 steps; NaN without steps."""
        return 1e4 * self.events / self.steps if self.steps else math.nan

    @property
    def low(self) -> float:
        """Lower end."""
        return 0.0 if self.events == 0 else 1e4 * float(chi2.ppf(0.025, 2 * self.events)) / 2 / self.steps

    @property
    def high(self) -> float:
        """Upper end."""
        return 1e4 * float(chi2.ppf(0.975, 2 * self.events + 2)) / 2 / self.steps if self.steps else math.inf

    def __str__(self) -> str:
        return "–" if not self.steps else f"{self.value:.3g} ({self.low:.2g}…{self.high:.2g})"

    def as_dict(self) -> dict[str, float]:
        """Plain data."""
        return {"events": self.events, "steps": self.steps, "value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """The geometric mean of paired ratios, with its 95 % interval (Student's, of their logarithms).

    Args:
        value: The mean; infinite where a numerator is, NaN without pairs.
        low: Lower end; 0 with fewer than two pairs.
        high: Upper end; infinite likewise.
        of: Pairs.
    """

    value: float
    low: float
    high: float
    of: int

    def __str__(self) -> str:
        if not self.of:
            return "–"
        known = self.of > 1 and math.isfinite(self.value)
        return f"{self.value:.3f}×" + (f" ({self.low:.3f}…{self.high:.3f})" if known else "")

    def as_dict(self) -> dict[str, float]:
        """Plain data."""
        return {"value": self.value, "low": self.low, "high": self.high, "of": self.of}


def mean_ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """How many times larger matched values are: exp(mean(log(above / below))).

    Args:
        above: Positive values; an infinite one makes the mean infinite.
        below: Theirs, positive and finite, in the same order.

    Returns:
        The geometric mean of the ratios and its interval.

    Example:
        >>> found = mean_ratio([1.0, 2.42], [1.0, 2.0])
        >>> round(found.value, 6), found.of
        (1.1, 2)
    """
    logs = np.log(np.asarray(above, dtype=np.float64) / np.asarray(below, dtype=np.float64))
    count = len(logs)
    if count == 0:
        return Ratio(value=math.nan, low=0.0, high=math.inf, of=0)
    mean = float(logs.mean())
    if count == 1 or not math.isfinite(mean):
        return Ratio(value=float(np.exp(mean)), low=0.0, high=math.inf, of=count)
    half = float(t.ppf(0.975, count - 1)) * float(logs.std(ddof=1)) / math.sqrt(count)
    return Ratio(value=math.exp(mean), low=math.exp(mean - half), high=math.exp(mean + half), of=count)


def sign_flip(differences: Sequence[float]) -> float:
    """One-sided permutation test that paired differences are above zero on average.

    p = share of the sign patterns whose mean is at least the observed one; the pattern observed is among them, so that
    n pairs cannot give less than 2⁻ⁿ. An infinite difference counts as the largest finite one, since means of
    infinities cannot be compared.

    Args:
        differences: One per matched seed.

    Returns:
        p in (0, 1]; 1 without pairs.

    Example:
        >>> sign_flip([1.0, 2.0, 3.0, 4.0, 5.0])
        0.03125
    """
    values = _finite(np.asarray(differences, dtype=np.float64))
    count = len(values)
    if count == 0:
        return 1.0
    observed = values.sum() - 1e-12 * np.abs(values).sum()
    if count <= ENUMERATED:
        signs = np.array(list(itertools.product((1, -1), repeat=count)))
    else:
        random = Random(0)
        signs = np.array([[1] * count, *([random.choice((1, -1)) for _ in range(count)] for _ in range(DRAWS - 1))])
    return float((signs @ values >= observed).mean())


def effect(worse: Sequence[float], better: Sequence[float]) -> float:
    """Size of an effect per run: the mean paired difference over the standard deviation of the better ones.

    Args:
        worse: One per seed.
        better: Its twin.

    Returns:
        Glass's Δ; infinite where a run did not end in a number, NaN with fewer than two seeds.
    """
    a, b = np.asarray(worse, dtype=np.float64), np.asarray(better, dtype=np.float64)
    if len(a) < 2:
        return math.nan
    if not np.isfinite(a).all():
        return math.inf
    spread = float(b.std(ddof=1))
    return float((a - b).mean()) / spread if spread > 0 else math.inf


def _finite(values: np.ndarray) -> np.ndarray:
    finite = np.abs(values[np.isfinite(values)])
    largest = float(finite.max()) if len(finite) else 1.0
    return np.nan_to_num(values, nan=0.0, posinf=2 * largest, neginf=-2 * largest)
