"""Learning rates at three scales as one composition: macro × meso × micro, with the state that resumes it."""

from collections.abc import Mapping, Sequence
from typing import Any

from dynaxx.core.methods import Curve
from dynaxx.core.rates import RateFactors
from dynaxx.core.records import Axis
from dynaxx.errors import BadInput
from dynaxx.schedules._meso import History, Meso
from dynaxx.schedules._micro import Micro


class Rates:
    """What multiplies the loop's own learning rates in each step; give it to `dynaxx.watch(..., rates=...)`.

    rate(layer l, step t) = base · macro(t) · micro(t) · meso_l(t) · reactive(t). The base is what the loop and its
    scheduler left in the parameter group, so any scheduler of torch may be the macro curve: then leave `macro` out.
    The reactive factor is that of the actions in force (`run.apply("learning_rate", factor=...)`).

    Macro and micro are pure functions of the step. Only meso has a state; the run's checkpoints hold it.

    Args:
        macro: A curve over the whole training, on top of the loop's own schedule; None: 1.
        micro: A periodic modulation; None: 1.
        meso: Factors by layer; None: all 1.

    Raises:
        BadInput: An argument is of another kind.

    Example:
        >>> from dynaxx.schedules.cosine import Cosine
        >>> rates = Rates(macro=Cosine(steps=100), micro=Micro(period=4, amplitude=0.5, shape="triangular"))
        >>> [round(rates.factors(t).group, 4) for t in (0, 50, 51)]
        [1.0, 0.5, 0.2421]
    """

    def __init__(self, *, macro: Curve | None = None, micro: Micro | None = None, meso: Meso | None = None) -> None:
        for name, value, kind in (("macro", macro, Curve), ("micro", micro, Micro), ("meso", meso, Meso)):
            if value is not None and not isinstance(value, kind):
                raise BadInput(f"Rates({name}=...) must be a {kind.__name__} of dynaxx.schedules. Got {value!r}.")
        self.macro = macro
        self.micro = micro
        self.meso = meso
        self._names: tuple[str, ...] | None = None
        self._weights: tuple[float, ...] = ()
        self._history: History | None = None
        self._layers: tuple[float, ...] | None = None

    def bind(self, layers: Axis) -> None:
        """Say which layers there are; a state that was loaded before must be of these.

        Args:
            layers: Names of the layers, and how many parameters each has.

        Raises:
            BadInput: The state is of other layers.
        """
        if self.meso is None:
            return
        if self._names is not None and self._names != layers.labels:
            raise BadInput(
                f"watch(rates=...): these rates are of a model with {len(self._names)} layers ({self._names[0]}, …), "
                f"and this one has {len(layers)} ({layers.labels[0]}, …). Make new Rates for it."
            )
        self._names, self._weights = layers.labels, layers.weights
        if self._history is None:
            self._history = self.meso.begin(len(layers))
        self._layers = self._asked()

    def factors(self, step: int) -> RateFactors:
        """The factors of a step.

        Args:
            step: Completed optimizer steps when the update is taken, from 0.

        Returns:
            Macro, micro and meso; no reactive one.
        """
        return RateFactors(
            macro=1.0 if self.macro is None else self.macro.factor(step),
            micro=1.0 if self.micro is None else self.micro.factor(step),
            layers=self._layers,
        )

    def observe(self, ratios: Sequence[float], gradients: Sequence[float]) -> None:
        """Take in what a step showed of the layers; the factors change at once.

        Args:
            ratios: ‖Δθ_l‖ / ‖θ_l‖ of each layer, before its factor.
            gradients: ‖g_l‖ of each layer.
        """
        assert self.meso is not None
        assert self._history is not None, "bind comes first"
        self._history = self.meso.observe(self._history, ratios, gradients)
        self._layers = self._asked()

    def state_dict(self) -> dict[str, Any]:
        """Plain values: the layers and the history of each; empty without meso."""
        if self.meso is None or self._history is None:
            return {}
        return {"layers": list(self._names or ()), "history": self.meso.as_plain(self._history)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; options stay as they were given.

        Args:
            state: What `state_dict` returned.
        """
        if self.meso is None or not state:
            return
        self._names = tuple(state["layers"])
        self._history = self.meso.from_plain(state["history"])

    def _asked(self) -> tuple[float, ...] | None:
        assert self.meso is not None
        assert self._history is not None
        asked = self.meso.factors(self._history, self._weights)
        return None if all(f == 1.0 for f in asked) else asked
