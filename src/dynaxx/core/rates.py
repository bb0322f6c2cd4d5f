"""The factors that make up the learning rates of one step: base × macro × meso × micro × reactive."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RateFactors:
    """What the learning rates of a step are multiplied by; products commute, so factors compose in any order.

    The rate of layer l in group g is η_g · macro · micro · reactive · layers[l], where η_g is what the loop and its
    scheduler left in the group.

    Args:
        macro: Of a curve over the whole training.
        micro: Of a small periodic modulation.
        reactive: Of actions in force.
        layers: One factor per layer, in the order of the layout; None: all 1.

    Example:
        >>> both = RateFactors(macro=0.5, layers=(1.0, 2.0)) * RateFactors(reactive=0.1, layers=(3.0, 1.0))
        >>> both.group, both.layers
        (0.05, (3.0, 2.0))
    """

    macro: float = 1.0
    micro: float = 1.0
    reactive: float = 1.0
    layers: tuple[float, ...] | None = None

    @property
    def group(self) -> float:
        """What every group's rate is multiplied by."""
        return self.macro * self.micro * self.reactive

    def __mul__(self, other: "RateFactors") -> "RateFactors":
        a, b = self.layers, other.layers
        return RateFactors(
            macro=self.macro * other.macro,
            micro=self.micro * other.micro,
            reactive=self.reactive * other.reactive,
            layers=b if a is None else a if b is None else tuple(x * y for x, y in zip(a, b, strict=True)),
        )


NEUTRAL = RateFactors()
"""Nothing is multiplied: what every step begins with, one object, so that it can be told by identity."""
