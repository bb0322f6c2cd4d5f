"""What a controller has done before and what became of it, read from the decisions and outcomes of the situation."""

from dynaxx.controllers._limits import ACTS_IN_ALL
from dynaxx.core.navigation import Decision, Outcome, Situation
from dynaxx.core.records import Action


def acts(situation: Situation, controller: str) -> tuple[Decision, ...]:
    """What was taken of a controller's proposals.

    Args:
        situation: Where the run is.
        controller: Its file name.

    Returns:
        Oldest first.
    """
    return tuple(d for d in situation.decisions if d.proposal.controller == controller)


def judged(situation: Situation, controller: str) -> tuple[Outcome, ...]:
    """What became of them.

    Args:
        situation: Where the run is.
        controller: Its file name.

    Returns:
        Oldest first.
    """
    return tuple(o for o in situation.outcomes if o.proposal.controller == controller)


def waiting(situation: Situation, controller: str) -> bool:
    """Whether a promise of the controller's is still to be judged; every one is, once.

    Args:
        situation: Where the run is.
        controller: Its file name.

    Returns:
        True while it is.
    """
    promised = sum(d.proposal.promise is not None for d in acts(situation, controller))
    return promised > len(judged(situation, controller))


def exhausted(situation: Situation) -> bool:
    """Whether the acts that one run may hold are done; then only stopping is left.

    Args:
        situation: Where the run is.

    Returns:
        True when they are.
    """
    return sum(d.proposal.action.name != "check" for d in situation.decisions) >= ACTS_IN_ALL


def repeated(situation: Situation) -> int:
    """How many updates the rollbacks that were taken have repeated.

    Args:
        situation: Where the run is.

    Returns:
        Their sum, which `Limits.rollback` bounds.
    """
    back = (d for d in situation.decisions if d.proposal.action.name == "rollback")
    return sum(d.step - int(d.proposal.action.arguments["before"]) + 1 for d in back)


def proven(situation: Situation) -> tuple[Action, ...]:
    """The acts in force that have kept their promise: a rollback keeps them.

    Args:
        situation: Where the run is.

    Returns:
        Those that hold until they are lifted, in the order of their names.
    """
    good = [o.proposal.action for o in situation.outcomes if o.kept]
    force = sorted(situation.in_force.items())
    return tuple(a for name, a in force if a.steps is None and any(same(a, b) for b in good if b.name == name))


def same(one: Action, other: Action) -> bool:
    """Whether two actions do the same, whatever they are done for.

    Args:
        one: An action.
        other: Another.

    Returns:
        True where name and arguments agree.
    """
    return one.name == other.name and dict(one.arguments) == dict(other.arguments)
