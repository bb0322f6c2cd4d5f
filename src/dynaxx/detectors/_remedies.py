"""Remedies for layers, data and precision that several detectors offer, each worded once; others are in `_acts`."""

from dynaxx.core.findings import Remedy
from dynaxx.core.records import Action
from dynaxx.detectors._acts import scale_rate

LEAKY = Remedy(text="Use a leaky activation, and re-initialise dead layers with zero bias.")
FAN_IN = Remedy(text="Initialise by fan-in (Kaiming for ReLU, Xavier for tanh), the last layer near zero.")
NORMALISE = Remedy(text="Put a normalisation between the layers, or skip connections around them.")
STANDARDISE = Remedy(text="Standardise the inputs to mean 0 and deviation 1.")


def rate(factor: float) -> Remedy:
    """Multiply the learning rate until that is lifted.

    Args:
        factor: By what.

    Returns:
        The remedy.
    """
    return scale_rate(factor, None, "steps are too long" if factor < 1 else "steps are too short")


def clip(max_norm: float, why: str) -> Remedy:
    """Clip the gradient at a norm.

    Args:
        max_norm: The threshold.
        why: Where it comes from.

    Returns:
        The remedy.
    """
    action = Action(name="gradient_clip", arguments={"max_norm": max_norm}, reason=why)
    return Remedy(text=f"Clip the gradient at {max_norm:.3g}, {why}.", action=action)
