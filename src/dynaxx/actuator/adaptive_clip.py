"""Clip the gradient where its norm is unusual for this run: by its z-score or by a quantile of the last norms."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from dynaxx.actuator._norms import FLOOR, Window, counted, total_norm
from dynaxx.core.contracts import Actuation
from dynaxx.core.events import StepView
from dynaxx.errors import BadInput


class _Moments(NamedTuple):
    """Norms seen, their mean and their variance: scalars on the device."""

    seen: Tensor
    mean: Tensor
    variance: Tensor


class AdaptiveClip(Actuation):
    """g ← g · min(1, c_t / ‖g‖₂) with a threshold c_t from the norms of the steps before.

    By z-score (Kumar et al. 2025): with z = (‖g‖ − μ) / σ above `limit`, c_t = μ + σ limit² / z, else no clipping; μ
    and σ² are moving averages that take in the clipped norm. By quantile (Seetharaman et al. 2020, over a window
    instead of all of the past): c_t is the quantile of the last `window` norms, taken before clipping.

    Norms that are not finite neither count nor are clipped: `skip` is for them. The first `warmup` norms are only
    looked at. Everything is decided on the device.

    Args:
        by: "z_score" or "quantile".
        limit: Largest z-score that is let through. 2.5 is that paper's: of independent normal norms 0.6 % lie above.
        decay: Weight of the past in the moving averages per step; 0.97 is that paper's.
        quantile: 0.9 clips a tenth of the steps where norms keep their distribution; chosen, not tuned.
        window: Norms that the quantile is taken of.
        warmup: Norms to see first; 25 is that paper's.

    Raises:
        BadInput: An option is out of range.
    """

    def __init__(
        self,
        by: Literal["z_score", "quantile"] = "z_score",
        limit: float = 2.5,
        decay: float = 0.97,
        quantile: float = 0.9,
        window: int = 100,
        warmup: int = 25,
    ) -> None:
        rules = {
            "by": (by, by in ("z_score", "quantile"), "'z_score' or 'quantile'"),
            "limit": (limit, math.isfinite(limit) and limit > 0, "positive and finite"),
            "decay": (decay, 0 < decay < 1, "in (0, 1)"),
            "quantile": (quantile, 0 < quantile < 1, "in (0, 1)"),
            "window": (window, isinstance(window, int) and window >= 2, "an integer of at least 2"),
            "warmup": (warmup, isinstance(warmup, int) and warmup >= 2, "an integer of at least 2"),
        }
        for name, (value, holds, rule) in rules.items():
            if not holds:
                raise BadInput(f"apply('adaptive_clip', {name}=...) must be {rule}. Got {value!r}.")
        if by == "quantile" and warmup > window:
            raise BadInput(f"apply('adaptive_clip', warmup=...) must be at most window = {window}. Got {warmup}.")
        self.by, self.limit, self.decay, self.quantile, self.warmup = by, limit, decay, quantile, warmup
        self._window = Window(window)
        self._moments: _Moments | None = None

    def __str__(self) -> str:
        if self.by == "z_score":
            return f"gradient clipped beyond a z-score of {self.limit:g} of its norm"
        return f"gradient clipped to the {self.quantile:.0%} quantile of its last norms"

    def before(self, step: StepView) -> None:
        """Multiply in place, without waiting for the norm; a closure evaluated again meets the same threshold."""
        norm = total_norm(step)
        threshold = step.memo("adaptive_clip", lambda: self._threshold(norm))
        coefficient = torch.where(norm > threshold, threshold / norm, 1.0)  # false for NaN
        coefficient = torch.where(torch.isfinite(norm), coefficient, 1.0)
        gradients = [g for g in step.gradients if g is not None]
        if gradients:
            cast(Any, torch._foreach_mul_)(gradients, coefficient)  # pyright: ignore[reportPrivateUsage]
        if step.clip is None:
            step.clip = (norm, threshold)

    def state_dict(self) -> dict[str, Any]:
        """The moments or the window."""
        if self.by == "quantile":
            return self._window.state_dict()
        return {} if self._moments is None else self._moments._asdict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        if not state:
            return
        if self.by == "quantile":
            self._window.load_state_dict(state)
        else:
            self._moments = _Moments(**{name: value.clone() for name, value in state.items()})

    def _threshold(self, norm: Tensor) -> Tensor:
        """The threshold of this step, infinite where nothing is to be clipped; the norm is taken in."""
        if self.by == "quantile":
            return self._by_quantile(norm)
        zero = torch.zeros_like(norm)
        past = _Moments(*(m.to(norm) for m in self._moments)) if self._moments else _Moments(zero, zero, zero)
        threshold = z_threshold(norm, past.mean, past.variance, self.limit)
        threshold = torch.where(past.seen >= self.warmup, threshold, torch.inf)
        # An infinite norm would be limited to the mean, and count.
        limited = torch.where(torch.isfinite(norm), torch.minimum(norm, threshold), norm)
        self._moments = self._taken_in(limited, past)
        return threshold

    def _taken_in(self, norm: Tensor, past: _Moments) -> _Moments:
        """Plain mean and variance during the warm-up, moving averages afterwards."""
        count = past.seen + 1
        gain = torch.where(count <= self.warmup, 1 / count, 1 - self.decay)
        mean = past.mean + gain * (norm - past.mean)
        # Welford's update while 1 / count is the gain; that of the paper, around the new mean, afterwards.
        spread = torch.where(count <= self.warmup, (norm - past.mean) * (norm - mean), (norm - mean).square())
        variance = past.variance + gain * (spread - past.variance)
        finite = torch.isfinite(norm)
        new = (count, mean, variance)
        return _Moments(*(torch.where(finite, after, before) for after, before in zip(new, past, strict=True)))

    def _by_quantile(self, norm: Tensor) -> Tensor:
        values = self._window.values(norm)
        threshold = torch.nanquantile(values, self.quantile)
        threshold = torch.where(counted(values) >= self.warmup, threshold, torch.inf)
        self._window.add(norm)
        return threshold


def z_threshold(norm: Tensor, mean: Tensor, variance: Tensor, limit: float) -> Tensor:
    """What a norm is to be clipped to: μ + σ limit² / z where z = (norm − μ) / σ is above the limit, else infinity.

    Args:
        norm: The norm, a scalar.
        mean: μ.
        variance: σ².
        limit: Largest z-score that is let through.

    Returns:
        The threshold, a scalar; the larger the excess, the closer to μ.

    Example:
        >>> float(z_threshold(torch.tensor(6.0), torch.tensor(1.0), torch.tensor(1.0), 2.5))
        2.25
    """
    deviation = torch.maximum(variance.sqrt(), FLOOR * mean)
    z = (norm - mean) / deviation
    return torch.where(z > limit, mean + deviation * limit**2 / z, torch.inf)
