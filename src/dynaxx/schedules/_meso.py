"""The meso scale: slow, bounded factors of the layers' rates from the history of their update ratios and gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynaxx.errors import BadInput

Vector = NDArray[np.float64]
FAST = 5
"""How many times shorter the memory of the gradient norm's present is than that of its past."""


class History(NamedTuple):
    """What is remembered of each layer: vectors of shape (layers,), natural logarithms, averaged over measurements."""

    seen: Vector
    ratio: Vector
    recent: Vector
    past: Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Meso:
    """Factors m_l that even out how fast layers turn, and hold back those whose gradient grows.

    log m_l = −s · (r̄_l − r̄) − c · (g_l − ḡ), where r̄_l is the averaged logarithm of ‖Δθ_l‖ / ‖θ_l‖ before any factor,
    g_l that of the gradient norm's recent average over its past one, and r̄, ḡ are their means over layers weighted by
    parameters. It is then limited to ± ½ log spread around its mean, and shifted so that the geometric mean of the
    factors, weighted by parameters, is 1: the model as a whole keeps its rate.

    s = 1 would give all layers one update ratio, as LARS does (You et al. 2017); the default goes half of the way.
    Neither s nor c was tuned. On two small tasks the factors made no difference outside the noise
    (`benchmarks/methods_meso.py`), so they are off unless asked for.

    Args:
        strength: s in [0, 1].
        caution: c ≥ 0.
        spread: Bound on the highest factor over the lowest, at least 1.
        memory: Steps after which a measurement counts half; factors also rise to their strength over as many.
        every: Steps between measurements.

    Raises:
        BadInput: An option is out of range.
    """

    strength: float = 0.5
    caution: float = 0.5
    spread: float = 10.0
    memory: int = 100
    every: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise BadInput(f"Meso(strength=...) must be in [0, 1]. Got {self.strength}.")
        if not 0 <= self.caution < np.inf:
            raise BadInput(f"Meso(caution=...) must be finite and not negative. Got {self.caution}.")
        if not 1 <= self.spread < np.inf:
            raise BadInput(f"Meso(spread=...) must be a finite ratio of at least 1. Got {self.spread}.")
        for name, value in (("memory", self.memory), ("every", self.every)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BadInput(f"Meso({name}=...) must be an integer of at least 1 step. Got {value!r}.")

    def begin(self, layers: int) -> History:
        """Nothing remembered yet.

        Args:
            layers: How many.

        Returns:
            The first history.
        """
        return History(*(np.zeros(layers) for _ in History._fields))

    def observe(self, history: History, ratios: Sequence[float], gradients: Sequence[float]) -> History:
        """Take in one measurement; layers that have no finite positive numbers (frozen, all zero) keep their history.

        Args:
            history: The last one.
            ratios: ‖Δθ_l‖ / ‖θ_l‖ of each layer, before its factor.
            gradients: ‖g_l‖ of each layer.

        Returns:
            The next history.
        """
        r, g = np.asarray(ratios, dtype=np.float64), np.asarray(gradients, dtype=np.float64)
        valid = np.isfinite(r) & np.isfinite(g) & (r > 0) & (g > 0)
        r, g = np.log(np.where(valid, r, 1.0)), np.log(np.where(valid, g, 1.0))

        def averaged(old: Vector, new: Vector, memory: float) -> Vector:
            # The plain mean of what was seen, until the moving average has a memory as long: no bias at the start.
            gain = np.maximum(1 - 0.5 ** (self.every / memory), 1 / (history.seen + 1))
            return np.where(valid, old + gain * (new - old), old)

        return History(
            seen=history.seen + valid,
            ratio=averaged(history.ratio, r, self.memory),
            recent=averaged(history.recent, g, self.memory / FAST),
            past=averaged(history.past, g, self.memory),
        )

    def factors(self, history: History, weights: Sequence[float]) -> tuple[float, ...]:
        """The factors that a history asks for.

        Args:
            history: Of all layers.
            weights: Parameters of each layer.

        Returns:
            One factor per layer, in [1 / spread, spread]; 1 for layers without a history. Their geometric mean,
            weighted by parameters, is 1.

        Example:
            >>> meso = Meso(strength=1.0, memory=10)
            >>> history = meso.observe(meso.begin(2), [1e-3, 4e-3], [1.0, 1.0])
            >>> [round(f, 6) for f in meso.factors(history, [1.0, 1.0])]
            [2.0, 0.5]
        """
        w = np.asarray(weights, dtype=np.float64) * (history.seen > 0)
        if not w.sum() > 0:
            return (1.0,) * len(w)
        w = w / w.sum()
        ramp = np.minimum(1.0, history.seen * self.every / self.memory)
        wanted = -self.strength * (history.ratio - w @ history.ratio)
        growth = history.recent - history.past
        wanted = ramp * (wanted - self.caution * (growth - w @ growth))
        half = 0.5 * np.log(self.spread)
        middle = w @ wanted
        limited = np.clip(wanted, middle - half, middle + half)
        return tuple(np.exp(np.where(w > 0, limited - w @ limited, 0.0)).tolist())

    def as_plain(self, history: History) -> dict[str, list[float]]:
        """A history as plain values, for the checkpoint.

        Args:
            history: The history.

        Returns:
            Name → one number per layer.
        """
        return {name: values.tolist() for name, values in history._asdict().items()}

    def from_plain(self, plain: Mapping[str, Any]) -> History:
        """A history from plain values.

        Args:
            plain: What `as_plain` returned.

        Returns:
            The history.
        """
        return History(**{name: np.array(plain[name], dtype=np.float64) for name in History._fields})
