"""Multiply the learning rates of single layers, without splitting parameter groups."""

import math
import re
from collections.abc import Mapping

from torch.optim import Optimizer

from dynaxx.core.contracts import Actuation
from dynaxx.core.events import StepView
from dynaxx.core.parameters import Layout
from dynaxx.core.rates import RateFactors
from dynaxx.errors import BadInput, UnknownName


class LayerRates(Actuation):
    """θ ← θ_before + m_l (θ_after − θ_before) in layer l, with the factor m_l of the first pattern that matches it.

    For SGD, Adam and their kin this is a rate of m_l η in that layer, up to rounding; the whole update is scaled,
    weight decay included. Layers whose factor is 1, or that no pattern matches, are not touched, bit for bit. Factor 0
    freezes a layer while the optimizer's moments go on.

    Memory: a copy of the scaled layers' parameters during the step. Price: six sweeps over them.

    Args:
        factors: Pattern → factor. A pattern is a regular expression for the whole name of a layer as the log shows it
            ("blocks.0.mlp", "blocks.[01].*"); factors are finite and not negative.

    Raises:
        BadInput: A pattern is no regular expression, or a factor is negative or not finite.
        UnknownName: A pattern matches no layer.
    """

    of_gradient = False

    def __init__(self, factors: Mapping[str, float]) -> None:
        if not isinstance(factors, Mapping) or not factors:
            raise BadInput(f"apply('layer_rates', factors=...) must be a mapping of layer → factor. Got {factors!r}.")
        self._factors: list[tuple[re.Pattern[str], float]] = []
        for pattern, factor in factors.items():
            if not (math.isfinite(factor) and factor >= 0):
                raise BadInput(
                    f"apply('layer_rates', factors=...) must be finite and not negative. Got {factor} for {pattern!r}."
                )
            try:
                self._factors.append((re.compile(pattern), float(factor)))
            except re.error as error:
                raise BadInput(
                    f"apply('layer_rates', factors=...): {pattern!r} is not a regular expression: {error}."
                ) from None
        self._by_layer: RateFactors | None = None

    def check(self, layout: Layout, optimizer: Optimizer) -> None:
        """Every pattern must match a layer: else a slip of the pen would go unnoticed."""
        del optimizer
        names = layout.axis.labels
        for pattern, _ in self._factors:
            if not any(pattern.fullmatch(name) for name in names):
                raise UnknownName("layer", pattern.pattern, names)

    def __str__(self) -> str:
        words = ", ".join(f"{pattern.pattern} × {factor:g}" for pattern, factor in self._factors[:3])
        return f"learning rates of {words}" + (", …" if len(self._factors) > 3 else "")

    def before(self, step: StepView) -> None:
        """Put the factors into the step; the actuator applies the product of all of them."""
        if self._by_layer is None:
            self._by_layer = RateFactors(layers=tuple(map(self._of, step.layout.axis.labels)))
        step.rates = step.rates * self._by_layer

    def _of(self, name: str) -> float:
        return next((factor for pattern, factor in self._factors if pattern.fullmatch(name)), 1.0)
