"""Settings that are set back to what is usual where they are the cause: momentum and Adam's ε."""

from dynaxx.controllers._limits import limits
from dynaxx.controllers._suspects import Suspect
from dynaxx.core.navigation import Situation
from dynaxx.core.records import Action

USUAL_EPSILON = 1e-8
"""ε of torch.optim.Adam and of its paper (Kingma and Ba 2015)."""
USUAL_MOMENTUM = 0.9
"""Momentum of SGD and β₁ of Adam that nearly all published recipes use."""
LONG = 0.05
"""Memory of a momentum, 1 / (1 − μ) steps, as a share of the planned ones, from which on it is blamed before the rate:
so few independent steps fit into the run that no rate makes up for it. 0.9 reaches it in runs of 200 steps."""
SETTINGS = frozenset({"momentum_too_high", "epsilon_too_large"})
"""Causes that a usual setting answers."""


def usual(situation: Situation, suspect: Suspect) -> Action | None:
    """What sets the accused setting back.

    Args:
        situation: Where the run is.
        suspect: The cause; a rate that is too high is the momentum's doing where its memory is long for the run.

    Returns:
        The action; None where the cause is no such setting, the run cannot change it, or it is usual already.
    """
    because = f"{suspect.finding.title} ({suspect.cause}, {suspect.confidence:.0%})"
    if suspect.cause == "epsilon_too_large":
        action = Action(
            name="epsilon",
            arguments={"value": 0.0, "most": USUAL_EPSILON},
            reason=f"{because}: ε is set to {USUAL_EPSILON:g}",
        )
    elif suspect.cause == "momentum_too_high" or (suspect.cause == "learning_rate_too_high" and _long(situation)):
        held = momentum(situation)
        if held is None or held <= USUAL_MOMENTUM:
            return None
        action = Action(
            name="momentum",
            arguments={"most": USUAL_MOMENTUM},
            reason=f"{because}: a momentum of {held:g} remembers {1 / (1 - held):.0f} steps; it is set to "
            f"{USUAL_MOMENTUM:g}",
        )
    else:
        return None
    return action if action.name in situation.able and action.name not in situation.in_force else None


def momentum(situation: Situation) -> float | None:
    """The largest momentum, or β₁, of the optimizer's groups, as the manifest has it.

    Args:
        situation: Where the run is.

    Returns:
        The number, below 1; None where there is none.
    """
    groups = (situation.run.manifest.get("optimizer") or {}).get("groups") or ()
    found: list[float] = []
    for group in groups:
        first = str(group.get("betas", group.get("momentum"))).strip("()[] ").partition(",")[0]  # written as text
        try:
            found.append(float(first))
        except ValueError:
            continue
    return max((value for value in found if 0 <= value < 1), default=None)


def _long(situation: Situation) -> bool:
    held = momentum(situation)
    return held is not None and held > USUAL_MOMENTUM and 1 / (1 - held) > LONG * limits(situation).steps
