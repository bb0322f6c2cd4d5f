"""Reasons in the model for a loss that does not fall, from the log: cut off, vanishing, dead, normalised twice."""

import numpy as np

from dynaxx.core.findings import Log, Remedy
from dynaxx.detectors._acts import advice
from dynaxx.detectors._read import Track, optional
from dynaxx.detectors._weigh import Suspect

BELIEVED = 0.5
"""Confidence above which a reason is likelier than not."""
SMALL = 1e-3
"""Gradient norm of the first layer over that of the last from which it has vanished (AutoTrainer 2021)."""
DEAD = 0.9
"""Share of a layer's units that are never active from which nothing of note passes it (AutoTrainer 2021 has 0.7)."""
LOST = Remedy(
    text="Look at what lies between backward() and step(): a loss scale that is too small (GradScaler, at least 2¹⁶; "
    "or bfloat16), or a zero_grad() in the wrong place."
)
ROWS = 200
"""Rows that are looked at, the last ones: what keeps a loss from falling persists."""


def structural(run: Log) -> tuple[Suspect, ...]:
    """Weigh what would keep any optimizer from lowering the loss.

    Args:
        run: The log.

    Returns:
        Suspects; those that the log cannot judge or that it exonerates keep a low confidence.
    """
    typical = _typical(optional(run, "grad_norm"))
    dead = _share(optional(run, "activations.dead"))
    twice = normalised(run)
    none = gradientless(run)
    some = None if typical is None or len(typical) < 2 else bool((typical == 0).any() and typical.any())
    faded = None if typical is None or len(typical) < 3 else bool(0 < typical[0] < SMALL * typical[-1])
    passed = None if dead is None else dead > DEAD
    apart = Suspect("loss_disconnected", 0.1, (advice("Look for detach, no_grad or a wrong variable in the loss."),))
    apart.weigh(none, 8, "no layer has a gradient", against=0.7)
    apart.weigh(some, 12, "some layers have no gradient at all", against=0.4)
    apart.weigh(passed, 0.1, "")
    units = Suspect("dead_units", 0.06, (advice("Use an activation with a slope everywhere, or a smaller bias."),))
    units.weigh(passed, 60, f"{dead or 0:.0%} of the units of a layer are never active", against=0.2)
    lost = Suspect("vanishing_gradients", 0.08, (advice("Use normalisation or residual connections."),))
    lost.weigh(faded, 10, "gradients of the first layer are below a thousandth of those of the last", against=0.3)
    rounded = Suspect("underflow", 0.04, (LOST,))
    rounded.weigh(none, 60, "no layer has a gradient, not even the last: torch refuses a backward that reaches nothing")
    probable = Suspect("double_softmax", 0.03, (advice("Give the loss logits, not probabilities."),))
    probable.weigh(twice, 100, "the outputs sum to one before the loss", against=0.3)
    return apart, units, lost, probable, rounded


def blocked(run: Log) -> bool:
    """Whether the model itself, likelier than not, keeps any rate from lowering the loss.

    Args:
        run: The log.

    Returns:
        True where a structural reason is believed.
    """
    return max(reason.confidence for reason in structural(run)) > BELIEVED


def gradientless(run: Log) -> bool | None:
    """Whether the gradient of every layer is exactly zero in most rows.

    A loss that is cut off from the whole model has no backward in torch. One that has a backward moves the last layer
    at least, unless its gradient was lost on the way: rounded to zero, or cleared before the update.

    Args:
        run: The log.

    Returns:
        The answer; None where gradients were not measured.
    """
    typical = _typical(optional(run, "grad_norm"))
    return None if typical is None else not typical.any()


def normalised(run: Log) -> bool | None:
    """Whether the outputs are probabilities already.

    Args:
        run: The log.

    Returns:
        The answer; None where it was not measured.
    """
    found = optional(run, "outputs.normalised")
    good = None if found is None else found.finite
    return None if good is None or len(good) == 0 else bool(np.median(good.values) > 0.5)


def _typical(norms: Track | None) -> np.ndarray | None:
    """Median gradient norm of each layer."""
    if norms is None or norms.values.ndim != 2:
        return None
    values = norms.rows(slice(-ROWS, None)).finite.values
    return np.median(values, axis=0) if len(values) >= 5 else None


def _share(found: Track | None) -> float | None:
    """The largest layer's median share."""
    if found is None:
        return None
    values = found.values[-ROWS:]
    values = values.reshape(len(values), -1)
    values = values[:, np.isfinite(values).any(axis=0)]  # rows of steps that were not measured hold no number at all
    return float(np.nanmedian(values, axis=0).max()) if values.size else None
