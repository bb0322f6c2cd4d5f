"""Remedies that several detectors offer, each worded once."""

from dynaxx.core.findings import Remedy
from dynaxx.core.records import Action

LEAKY = Remedy(text="Use a leaky activation, and re-initialise dead layers with zero bias.")
FAN_IN = Remedy(text="Initialise by fan-in (Kaiming for ReLU, Xavier for tanh), the last layer near zero.")
NORMALISE = Remedy(text="Put a normalisation between the layers, or skip connections around them.")
STANDARDISE = Remedy(text="Standardise the inputs to mean 0 and deviation 1.")


def rate(factor: float) -> Remedy:
    """Multiply the learning rate.

    Args:
        factor: By what.

    Returns:
        The remedy.
    """
    verb = "Lower" if factor < 1 else "Raise"
    return Remedy(
        text=f"{verb} the learning rate {factor:g}-fold.",
        action=Action(name="learning_rate", arguments={"factor": factor}),
    )


def clip(max_norm: float, why: str) -> Remedy:
    """Clip the gradient.

    Args:
        max_norm: The threshold.
        why: Where it comes from.

    Returns:
        The remedy.
    """
    return Remedy(
        text=f"Clip the gradient at {max_norm:.3g}, {why}.",
        action=Action(name="gradient_clip", arguments={"max_norm": max_norm}),
    )
