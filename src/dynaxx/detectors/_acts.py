"""Remedies that several findings name: words for a person, and the same as an action where the run can do it."""

from dynaxx.core.findings import Remedy
from dynaxx.core.records import Action


def scale_rate(factor: float, steps: int | None, why: str) -> Remedy:
    """Multiply the learning rates, for a while or until lifted."""
    span = "" if steps is None else f" for {steps} steps"
    action = Action(name="learning_rate", arguments={"factor": factor}, steps=steps, reason=why)
    return Remedy(text=f"Multiply the learning rate by {factor:g}{span}.", action=action)


def roll_back(before: int, why: str, *, pass_data: bool = True) -> Remedy:
    """Return to a checkpoint before a step."""
    action = Action(name="rollback", arguments={"before": before, "pass_data": pass_data}, reason=why)
    passing = " and pass over the batches since" if pass_data else ""
    return Remedy(text=f"Return to a checkpoint from before step {before}{passing}.", action=action)


def clip(why: str) -> Remedy:
    """Clip gradients that are unusual for this run."""
    return Remedy(text="Clip gradients that are unusual for this run.", action=Action(name="adaptive_clip", reason=why))


def skip(when: str, why: str) -> Remedy:
    """Leave out updates by their gradient."""
    action = Action(name="skip", arguments={"when": when}, reason=why)
    kind = "is not finite" if when == "non_finite" else "is far outside of what it was"
    return Remedy(text=f"Leave out updates whose gradient {kind}.", action=action)


def raise_epsilon(why: str) -> Remedy:
    """Bound Adam's steps where second moments have decayed."""
    return Remedy(
        text="Raise Adam's ε to 1e-6, or lower β₂.",
        action=Action(name="epsilon", arguments={"value": 1e-6}, reason=why),
    )


def lower_momentum(most: float, why: str) -> Remedy:
    """Bound the momentum, or Adam's β₁."""
    return Remedy(
        text=f"Lower the momentum (β₁) to {most:.3g} or less.",
        action=Action(name="momentum", arguments={"most": most}, reason=why),
    )


def stop(why: str) -> Remedy:
    """End the run, the best checkpoint kept."""
    return Remedy(text="Stop, and keep the best checkpoint.", action=Action(name="stop", reason=why))


def advice(text: str) -> Remedy:
    """What only a person can do."""
    return Remedy(text=text)
