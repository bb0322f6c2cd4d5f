"""The class of a terrain from measured readings, with what speaks for and against each class."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One number that a map has measured.

    Args:
        value: The number.
        low: Lower end of its interval; None: the value itself.
        high: Its upper end.
        source: The probe that measured it.
    """

    value: float
    low: float | None = None
    high: float | None = None
    source: str = ""

    @property
    def interval(self) -> tuple[float, float]:
        """From the smallest to the largest value that the measurement leaves open."""
        return (self.value if self.low is None else self.low), (self.value if self.high is None else self.high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3g}" + (f" ({low:.3g} to {high:.3g})" if high > low else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a terrain looks like in one reading.

    Args:
        reading: Name of the reading.
        words: What the rule says, in words.
        above: The reading is above this in such a terrain; or
        below: below this.
        origin: Where the threshold comes from.
        needed: Without it there is no such terrain, whatever else fits.
    """

    reading: str
    words: str
    above: float | None = None
    below: float | None = None
    origin: str
    needed: bool = False

    def score(self, reading: Reading) -> float:
        """How well the reading fits: 1 where its whole interval does, −1 where none of it does, 0 at the threshold.

        Between, in proportion to the side of the interval that the threshold is on: an interval may reach far one way.

        Args:
            reading: The reading.

        Returns:
            In [−1, 1].
        """
        low, high = reading.interval
        threshold = self.above if self.above is not None else self.below
        assert threshold is not None
        lead = reading.value - threshold
        room = reading.value - low if lead > 0 else high - reading.value
        beyond = max(-1.0, min(1.0, lead / room)) if room > 0 else 1.0 if lead > 0 else -1.0
        return beyond if self.above is not None else -beyond


SMOOTH_BOWL, RAVINE, FLAT_VALLEY = "smooth bowl", "ill-conditioned ravine", "long flat valley"
PLATEAU, RUGGED, SHARP, EDGE = "plateau", "rugged", "sharp and narrow", "at the edge of stability"
STEEP = 30.0
"""λ₁ over the mean curvature, where bowls end and ravines begin: ten times what examples alone can make of a bowl."""

RULES: Mapping[str, tuple[Rule, ...]] = {
    SMOOTH_BOWL: (
        Rule(reading="convexity", words="lines through the point are convex", needed=True, above=0.9,
             origin="of a convex function all are; a tenth is left to rounding and coarse lines"),
        Rule(reading="negative_share", words="hardly any negative curvature", needed=True, below=0.05,
             origin="|λ_min| / λ₁: 0.02, 0.03 behind short trainings of digits, stdlib-lm; 0.5 at planted saddles"),
        Rule(reading="anisotropy", words="curvature alike in all directions", needed=True, below=STEEP,
             origin="d·λ₁ / tr H: 1 in a planted bowl, at most 4 where d Gaussian examples make it (Marchenko-Pastur)"),
    ),
    RAVINE: (
        Rule(reading="anisotropy", words="a few directions are far steeper than the mean", needed=True, above=STEEP,
             origin="d/k at most where k of d are steep; 6000 and 23000 behind short trainings of two tasks"),
        Rule(reading="roughness", words="lines are smooth", below=0.1,
             origin="the bound of rugged terrain from the other side"),
    ),
    FLAT_VALLEY: (
        Rule(reading="noise_ratio", words="the gradient is ruled by noise", needed=True, above=10.0,
             origin="S/B: a step is worth 1/(1 + S/B) of a noiseless one (McCandlish et al. 2018)"),
        Rule(reading="progress", words="the loss still falls", above=0.0, needed=True, origin="any descent at all"),
        Rule(reading="sharpness_rate", words="far from the edge of stability", below=0.2,
             origin="λ₁·η over its threshold: the rate could be five times higher"),
    ),
    PLATEAU: (
        Rule(reading="progress", words="short trainings do not lower the loss", needed=True, below=0.001,
             origin="of the loss, at the best of all rates tried: the range test's bound of no descent"),
        Rule(reading="descending_rates", words="no rate of the sweep descends", below=0.5,
             origin="1 where the sweep found a descent, 0 where it did not"),
    ),
    RUGGED: (
        Rule(reading="roughness", words="lines go up and down", needed=True, above=0.1,
             origin="a line's variation beyond a single valley's: 0.88 on planted hills, 0 behind trainings"),
        Rule(reading="seed_spread", words="seeds end at different losses", above=0.1,
             origin="standard deviation over mean of the final losses: a choice, not calibrated"),
        Rule(reading="convexity", words="lines through the point are not convex", below=0.8,
             origin="of noise a half is, of planted hills finer than the line's points 0.68, of bowls all"),
    ),
    SHARP: (
        Rule(reading="worst_case", words="a small step uphill multiplies the loss", needed=True, above=1.0,
             origin="worst rise within SAM's ρ = 0.05 (Foret et al. 2021) over the loss: it doubles"),
    ),
    EDGE: (
        Rule(reading="sharpness_rate", words="λ₁·η is up to its threshold", needed=True, above=0.8,
             origin="full batches settle at 1.0-1.1 of it, mini-batches at 0.5-0.9 (Cohen et al. 2021, 2022)"),
        Rule(reading="sharpness_rate", words="λ₁·η is not far beyond it", needed=True, below=1.5,
             origin="beyond, the rate in force where λ₁ was measured must have been lower than the peak"),
    ),
}  # fmt: skip
"""By terrain. Rules whose reading a map lacks are left out and said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terrain:
    """What a map says of the terrain.

    Args:
        name: The class that fits best; None where none fits.
        confidence: In [0, 1]: how far it is ahead of the next, times the share of its rules that could be read.
        scores: Every class that could be judged, in [−1, 1].
        supporting: What speaks for the class that was chosen, in words with figures.
        opposing: What speaks against it.
        missing: Readings that the map lacks.
    """

    name: str | None
    confidence: float
    scores: Mapping[str, float] = field(default_factory=dict[str, float])
    supporting: tuple[str, ...] = ()
    opposing: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def sure(self) -> str:
        """The confidence in words: its third of the scale, how many rules fit, and which class stands beside."""
        if self.name is None:
            return "low: no class fits what was measured"
        words = ("low", "fair", "high")[min(2, int(3 * self.confidence))]
        fits, read = len(self.supporting), len(self.supporting) + len(self.opposing)
        others = [name for name in self.scores if name != self.name and self.scores[name] > 0]
        rival = max(others, key=lambda name: self.scores[name], default=None)
        beside = f"; {rival} scores {self.scores[rival]:+.2f} beside {self.scores[self.name]:+.2f}" if rival else ""
        return f"{words}: {fits} of {read} rules that were read fit{beside}"


def terrain(readings: Mapping[str, Reading], rules: Mapping[str, Sequence[Rule]] = RULES) -> Terrain:
    """Judge the terrain: each class scores the mean of its rules that could be read, at most what a needed one scores.

    A class whose needed rules could not all be read is not judged.

    Args:
        readings: What was measured, by name; values that are not finite count as not measured.
        rules: By class.

    Returns:
        The judgement, with every rule that was applied.

    Example:
        >>> found = terrain({"anisotropy": Reading(value=900.0), "roughness": Reading(value=0.01)})
        >>> found.name, found.confidence
        ('ill-conditioned ravine', 1.0)
    """
    known = {name: reading for name, reading in readings.items() if math.isfinite(reading.value)}
    scores = {
        name: _score([rule for rule in each if rule.reading in known], known)
        for name, each in rules.items()
        if all(rule.reading in known for rule in each if rule.needed) and any(rule.reading in known for rule in each)
    }
    missing = tuple(sorted({rule.reading for each in rules.values() for rule in each} - set(known)))
    ranked = sorted(scores, key=lambda name: -scores[name])
    if not ranked or scores[ranked[0]] <= 0:
        return Terrain(name=None, confidence=0.0, scores=scores, missing=missing)
    best = ranked[0]
    ahead = scores[best] - max(0.0, scores[ranked[1]]) if len(ranked) > 1 else scores[best]
    read = [rule for rule in rules[best] if rule.reading in known]
    return Terrain(
        name=best,
        confidence=max(0.0, ahead) * len(read) / len(rules[best]),
        scores=scores,
        supporting=tuple(_said(rule, known[rule.reading]) for rule in read if rule.score(known[rule.reading]) > 0),
        opposing=tuple(_said(rule, known[rule.reading]) for rule in read if rule.score(known[rule.reading]) <= 0),
        missing=missing,
    )


def _score(read: Sequence[Rule], known: Mapping[str, Reading]) -> float:
    scores = [rule.score(known[rule.reading]) for rule in read]
    needed = [score for rule, score in zip(read, scores, strict=True) if rule.needed and score <= 0]
    return min([sum(scores) / len(scores), *needed])


def _said(rule: Rule, reading: Reading) -> str:
    sign, threshold = (">", rule.above) if rule.above is not None else ("<", rule.below)
    fits = "" if rule.score(reading) > 0 else "not so: "
    source = f", by {reading.source}" if reading.source else ""
    return f"{fits}{rule.words}: {rule.reading} {reading} {sign} {threshold:g}{source}"
