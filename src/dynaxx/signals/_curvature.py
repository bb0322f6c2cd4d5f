"""What the curvature signals share: one Hessian a step, the gradient as a vector, a search that goes on."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dynaxx.core.events import StepView
from dynaxx.core.objective import Objective
from dynaxx.numerics.hessian import Hessian
from dynaxx.numerics.lanczos import Eigenpairs
from dynaxx.numerics.operator import Operator
from dynaxx.numerics.space import Space
from dynaxx.numerics.tracker import CurvatureTracker

MOST = 12
"""Products of one search at most; 3 to 7 are needed where the last one is known, the first may take ten times that."""
EXTRA = 1
"""Vectors that the search begins with beside the last first one: it may change places with them."""
TOLERANCE = 1e-2
"""Bound on the relative error; the error itself is some ten times less."""


def objective_of(step: StepView) -> Objective:
    """The loss whose curvature is measured.

    Args:
        step: A step for which `Need.CURVATURE` was met.

    Returns:
        The objective.
    """
    assert step.objective is not None, "the signal did not declare Need.CURVATURE"
    return step.objective


def hessian_of(step: StepView) -> Hessian:
    """The Hessian behind the update, with one graph for all signals of a step.

    Args:
        step: A step at `step_end`.

    Returns:
        The Hessian.
    """
    return step.memo("hessian", lambda: Hessian(objective_of(step), batched=False))


def gradient_row(step: StepView, objective: Objective, space: Space) -> Float[Tensor, "1 n"]:
    """The step's own gradient over the objective's parameters; a missing one counts as zero.

    Args:
        step: The step.
        objective: Gives the parameters.
        space: Its space.

    Returns:
        Shape (1, n).
    """
    held = {id(p): g for p, g in zip(step.layout.parameters, step.gradients, strict=True)}
    found = [held.get(id(p)) for p in objective.parameters]
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(objective.parameters, found, strict=True)]
    return space.flatten(parts)[None]


def tracked(
    operator: Operator, state: Mapping[str, Any], hints: Float[Tensor, "k n"]
) -> tuple[Eigenpairs, dict[str, Any]]:
    """The largest eigenvalue of an operator, searched from where the last measurement left off.

    Args:
        operator: At the current weights.
        state: What the last call returned; empty at the first, and of no use where the parameters are others.
        hints: Further directions to look along, shape (k, n); left out where they are zero or not finite.

    Returns:
        The eigenpair, and the state for the next call.
    """
    tracker = CurvatureTracker(operator, k=1, extra=EXTRA, tolerance=TOLERANCE, max_products=MOST)
    numel = operator.space.numel
    if state.get("numel") == numel:
        tracker.load_state_dict(state["tracker"])
    norms = operator.space.norms(hints)
    kept = hints[torch.isfinite(norms) & (norms > 0)]
    found = tracker.measure(hints=kept if kept.shape[0] else None)
    return found, {"numel": numel, "tracker": tracker.state_dict()}


def keep_pairs(step: StepView, found: Eigenpairs) -> None:
    """Let later signals of the step know the Hessian's eigenpairs.

    Args:
        step: The step.
        found: The eigenpairs.
    """
    step.memo("eigenpairs", lambda: found)


def pairs_of(step: StepView) -> Eigenpairs | None:
    """The Hessian's eigenpairs, where an earlier signal of the step has found some.

    Args:
        step: The step.

    Returns:
        The eigenpairs or None.
    """
    nothing: Eigenpairs | None = None
    return step.memo("eigenpairs", lambda: nothing)
