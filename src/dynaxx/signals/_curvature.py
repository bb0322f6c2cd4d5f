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

MOST = 10
"""Products of one search at most; 3 to 7 are needed where the last one is known, the first may take ten times that."""


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


def tracked(operator: Operator, state: Mapping[str, Any]) -> tuple[Eigenpairs, dict[str, Any]]:
    """The largest eigenvalue of an operator, searched from where the last measurement left off.

    Args:
        operator: At the current weights.
        state: What the last call returned; empty at the first, and of no use where the parameters are others.

    Returns:
        The eigenpair, and the state for the next call.
    """
    tracker, numel = CurvatureTracker(operator, max_products=MOST), operator.space.numel
    if state.get("numel") == numel:
        tracker.load_state_dict(state["tracker"])
    found = tracker.measure()
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
