"""What a controller has done before and what became of it, read from the decisions and outcomes of the situation."""

from dynaxx.core.navigation import Decision, Outcome, Situation


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
