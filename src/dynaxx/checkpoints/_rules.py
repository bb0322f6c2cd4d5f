"""How much each part counts: the rules by name, from fixed weights to soups that are tried out."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dynaxx.catalog import read_words
from dynaxx.checkpoints._mean import Mean
from dynaxx.checkpoints._parts import Part
from dynaxx.checkpoints.judge import Judge
from dynaxx.errors import BadInput, NotApplicable, UnknownName
from dynaxx.numerics.blend_weights import DECAYS, Decay, decayed, exponential, half_life

TEMPERATURES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Tried as shares of the range of the scores: from one or two parts that count to nearly equal weights (the worst part
then counts 1/e of the best)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """What a rule chooses from.

    Args:
        parts: Oldest first, run by run.
        losses: Shape (parts, groups) on the choosing split; None without a judge.
        judge: Scores soups; None where there is none.
    """

    parts: Sequence[Part]
    losses: np.ndarray | None = None
    judge: Judge | None = None

    def scored(self, rule: str) -> tuple[np.ndarray, Judge]:
        """Losses and judge, which a rule cannot do without.

        Args:
            rule: Its name.

        Returns:
            Both. Raises `NotApplicable` without them.
        """
        if self.losses is None or self.judge is None:
            raise NotApplicable(f'blend(how="{rule}") needs validation losses. Give a task or a judge.')
        return self.losses, self.judge

    def scores(self) -> np.ndarray:
        """Mean losses on the choosing split."""
        assert self.losses is not None
        assert self.judge is not None
        return self.losses @ self.judge.shares("choose")

    def steps(self, rule: str) -> np.ndarray:
        """The steps of one run's parts.

        Args:
            rule: Who asks.

        Returns:
            Increasing. Raises `BadInput` where there are several runs.
        """
        if len(runs := {part.line: part.run for part in self.parts}) > 1:
            names = ", ".join(runs.values())
            raise BadInput(f'blend(how="{rule}") follows the steps of one run. Got {len(runs)} runs: {names}.')
        return np.array([float(part.step) for part in self.parts])

    def soup(self, weights: np.ndarray) -> Mean:
        """The weighted mean of the parts; each is read once.

        Args:
            weights: 0 or more.

        Returns:
            The mean.
        """
        mean = Mean()
        for age, (part, weight) in enumerate(zip(self.parts, weights, strict=True)):
            if weight > 0:
                mean.add(part.tensors(), float(weight), age)
        return mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """All parts count alike."""

    def weights(self, candidates: Candidates) -> tuple[np.ndarray, str]:
        """1/K each."""
        n = len(candidates.parts)
        return np.full(n, 1 / n), f"uniform over {n} parts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Alike over the newest parts of a run, as many as give the lowest loss on the choosing split: 2, 4, 8, …, all.

    How long the window lasts matters more than how densely it is sampled (Tian et al. 2025, merge duration).
    """

    def weights(self, candidates: Candidates) -> tuple[np.ndarray, str]:
        """Found in one pass over the parts, newest first."""
        n = len(candidates.parts)
        if candidates.judge is None or n < 3 or len({part.line for part in candidates.parts}) > 1:
            return Uniform().weights(candidates)
        sizes, found, mean = {n, *(2**k for k in range(1, n.bit_length()))}, dict[int, float](), Mean()
        for age in reversed(range(n)):
            mean.add(candidates.parts[age].tensors(), 1.0, age)
            if (size := n - age) in sizes:
                candidates.judge.put(iter(mean.tensors.items()), f"the mean of the newest {size}")
                found[size] = candidates.judge.score(candidates.judge.losses("choose"), "choose")
        best = min(found, key=lambda size: found[size])
        spent = candidates.parts[-1].step - candidates.parts[-best].step
        weights = np.where(np.arange(n) >= n - best, 1 / best, 0.0)
        return weights, f"uniform over the newest {best} of {n}, {spent} steps: the best of {len(found)} windows"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exponential:
    """wⱼ ∝ exp(−lossⱼ / T).

    Args:
        temperature: T, in the unit of the loss; None: the one of `TEMPERATURES` whose blend has the lowest loss on
            examples that gave no scores.
    """

    temperature: float | None = None

    def __post_init__(self) -> None:
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise BadInput(f'blend(how="exponential:temperature=…") must be more than 0. Got {self.temperature}.')

    def weights(self, candidates: Candidates) -> tuple[np.ndarray, str]:
        """At the temperature given, or the one that is found."""
        losses, judge = candidates.scored("exponential")
        if self.temperature is not None:
            return exponential(
                candidates.scores(), float(self.temperature)
            ), f"exponential, T = {self.temperature:g} as given"
        shares = judge.shares("score")
        scores = losses[:, : len(shares)] @ shares
        spread = float(np.ptp(scores)) or 1.0
        tried: dict[float, float] = {}
        for share in TEMPERATURES:
            judge.put(iter(candidates.soup(exponential(scores, share * spread)).tensors.items()), "an exponential mean")
            tried[share * spread] = judge.score(judge.losses("tune"), "tune")
        best = min(tried, key=lambda t: tried[t])
        return exponential(scores, best), f"exponential, T = {best:.3g} tuned on examples of its own"


@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy:
    """From the best part on, each next one is kept if the soup's loss does not rise (Wortsman et al. 2022).

    Args:
        budget: Most soups that are scored; None: one for each part.
    """

    budget: int | None = None

    def __post_init__(self) -> None:
        if self.budget is not None and (type(self.budget) is not int or self.budget < 1):
            raise BadInput(f'blend(how="greedy:budget=…") must be a whole number of at least 1. Got {self.budget!r}.')

    def weights(self, candidates: Candidates) -> tuple[np.ndarray, str]:
        """On the choosing split; parts are tried from the best to the worst."""
        _, judge = candidates.scored("greedy")
        scores = candidates.scores()
        order = np.argsort(scores, kind="stable").tolist()
        kept, lowest, mean = [order[0]], float(scores[order[0]]), Mean()
        mean.add(candidates.parts[order[0]].tensors(), 1.0, order[0])
        tried = order[1:] if self.budget is None else order[1 : 1 + self.budget]
        for i in tried:
            judge.put(mean.with_one(candidates.parts[i].tensors(), 1.0), str(candidates.parts[i]))
            score = judge.score(judge.losses("choose"), "choose")
            if score <= lowest:
                mean.add(candidates.parts[i].tensors(), 1.0, i)
                kept, lowest = [*kept, i], score
        weights = np.zeros(len(order))
        weights[kept] = 1 / len(kept)
        return weights, f"greedy, {len(kept)} of {len(order)} parts kept after {len(tried)} trials"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ema:
    """The exponential moving average that saw these checkpoints alone, uneven gaps allowed for.

    Args:
        half_life: Steps after which a checkpoint counts half.
    """

    half_life: float

    def __post_init__(self) -> None:
        if not 0 < self.half_life < math.inf:
            raise BadInput(f'blend(how="ema:half_life=…") must be more than 0 steps. Got {self.half_life}.')

    def weights(self, candidates: Candidates) -> tuple[np.ndarray, str]:
        """By the steps."""
        return half_life(
            candidates.steps("ema"), float(self.half_life)
        ), f"EMA with a half-life of {self.half_life:g} steps"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decayed:
    """The weights that stand for a decay of the learning rate over the same steps (WSM, Tian et al. 2025).

    Args:
        shape: A name of `DECAYS`.
    """

    shape: str = "1-sqrt"

    def __post_init__(self) -> None:
        if self.shape not in DECAYS:
            raise UnknownName("decay", self.shape, DECAYS)

    def weights(self, candidates: Candidates) -> tuple[np.ndarray, str]:
        """By the steps."""
        decay: Decay = DECAYS[self.shape]
        return decayed(
            candidates.steps("decay"), decay
        ), f"weights of a {self.shape} decay of the rate over these steps"


Rule = Uniform | Window | Exponential | Greedy | Ema | Decayed
RULES: Mapping[str, type[Rule]] = {
    "window": Window,
    "uniform": Uniform,
    "exponential": Exponential,
    "greedy": Greedy,
    "ema": Ema,
    "decay": Decayed,
}


def rule(how: str) -> Rule:
    """A rule as it is written.

    Args:
        how: "name" or "name:option=value".

    Returns:
        The rule.

    Raises:
        UnknownName: There is no such rule or option.
        BadInput: An option is missing or out of its range.

    Example:
        >>> rule("ema:half_life=200")
        Ema(half_life=200)
    """
    name, given = read_words("blend(how=...)", how)
    if name not in RULES:
        raise UnknownName("rule of blending", name, RULES)
    options = inspect.signature(RULES[name]).parameters
    for key in given:
        if key not in options:
            raise UnknownName(f"option of the rule {name!r}", key, options)
    missing = [key for key, p in options.items() if p.default is p.empty and key not in given]
    if missing:
        raise BadInput(f'blend(how="{name}") needs {missing[0]}. Write {name}:{missing[0]}=200.')
    try:
        return RULES[name](**given)
    except TypeError as error:
        raise BadInput(f"blend(how={how!r}): {error}.") from None
