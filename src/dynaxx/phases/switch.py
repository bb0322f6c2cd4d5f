"""What one optimizer hands to the next mid-run: moments by parameter, and the length of its steps by layer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynaxx.core.parameters import Layout, own_parameters, some
from dynaxx.errors import BadInput
from dynaxx.optim._groups import embeddings
from dynaxx.optim._transport import Transportable
from dynaxx.optim.kfac import KFAC
from dynaxx.optim.lars import Lars
from dynaxx.optim.sgd import SGD
from dynaxx.phases._dry_run import step_lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """The record of a switch.

    Args:
        outgoing: Class of the optimizer that ends.
        incoming: Class of the one that begins.
        carried: Parameter → what was offered of the outgoing optimizer's: "both moments", "first moment", "from
            gradients" (it had neither) or "nothing" (the incoming one begins afresh). Each takes what it keeps.
        layers: Names of the layers.
        steady: Length ‖Δθ_l‖ of the outgoing optimizer's steps; empty where there was no gradient to find it with.
        first: The same of the incoming one, at its own rate.
        factors: By what the incoming steps are multiplied at first, by layer.
        warmup: Steps over which the factors go to 1; 0 where all are.
        gradients: How many sets of gradients were used.
        source: The phase that ends.
        target: The phase that begins.
        step: The step behind which it happened.

    The first step after the switch has about `first` · `factors`.
    """

    outgoing: str
    incoming: str
    carried: Mapping[str, str]
    layers: tuple[str, ...]
    steady: tuple[float, ...]
    first: tuple[float, ...]
    factors: tuple[float, ...]
    warmup: int
    gradients: int
    source: str = ""
    target: str = ""
    step: int = 0


@torch.no_grad()
def transport(
    outgoing: Optimizer,
    incoming: Optimizer,
    gradients: Sequence[Mapping[str, Tensor]] | None = None,
    *,
    model: nn.Module,
    factors: Sequence[float] | None = None,
    force: bool = False,
) -> Switch:
    """Let an optimizer go on where another one stops, and find by what its steps must be multiplied at first.

    First and second moments go from parameter to parameter, in the parameters' own basis (into an eigenbasis by the
    Hadamard rule, V' = (Q_L∘Q_L)ᵀ V (Q_R∘Q_R)), with the count of steps; what the outgoing optimizer does not keep is
    made from gradients, and then counts for as many steps as there were gradients. Then both optimizers take steps on
    copies, along the same gradients and at the rates in their groups; a layer l whose steps come out longer than the
    outgoing ones gets the factor steady_l / first_l, to be released over max(10, 2 / (1 − β₂)) steps. Shorter ones are
    left: on a small transformer, matching them upwards made Adam's hand-over to SOAP cost 0.02 to 0.06 nats, leaving
    them at most 0.01.

    Weights, gradients and the outgoing optimizer stay as they are. The incoming one shares no memory with it.

    Args:
        outgoing: The optimizer that has trained the model.
        incoming: Made for the same model; what state it has is replaced.
        gradients: Recent ones by parameter name, 8 to 32 sets; None: the parameters' own `.grad`, as one set for the
            lengths. Methods with Kronecker factors need them, and those whose second moment the outgoing one lacks.
        model: The model, for names, layers and embeddings.
        factors: What the outgoing optimizer's own steps are multiplied by at present, by layer.
        force: Go from an adaptive optimizer to SGD or LARS on a model with embeddings.

    Returns:
        The record.

    Raises:
        BadInput: The optimizers hold different parameters, or sharded ones; one of them is K-FAC; the incoming one
            needs gradients that were not given; or the switch is known to fail and is not forced.
    """
    refuse_unsound(type(outgoing), type(incoming), model, force=force)
    layout = Layout(model)
    named = _named(outgoing, incoming, layout)
    sets = list(gradients or ())
    carried = {name: _hand_over(outgoing, incoming, name, p, sets) for name, p in named.items()}
    shown = sets or [{name: p.grad for name, p in named.items() if p.grad is not None}]
    steady: list[float] = []
    first: list[float] = []
    found = [1.0] * len(layout.layers)
    warmup = warmup_steps(incoming.param_groups)
    if any(shown):
        lengths = step_lengths(outgoing, layout, shown)
        steady = [length * f for length, f in zip(lengths, factors or found, strict=True)]
        first = step_lengths(incoming, layout, shown)
        found = [_factor(a, b) for a, b in zip(steady, first, strict=True)]
    elif "nothing" in carried.values():  # no length to match: an ordinary linear warm-up
        found = [1 / warmup] * len(layout.layers)
    return Switch(
        outgoing=type(outgoing).__name__,
        incoming=type(incoming).__name__,
        carried=carried,
        layers=tuple(layer.name for layer in layout.layers),
        steady=tuple(steady),
        first=tuple(first),
        factors=tuple(found),
        warmup=warmup if any(f != 1.0 for f in found) else 0,
        gradients=len(sets),
    )


def refuse_unsound(outgoing: type[Optimizer], incoming: type[Optimizer], model: nn.Module, *, force: bool) -> None:
    """Refuse switches between two methods that cannot be, or are known to fail.

    Args:
        outgoing: Class of the optimizer that ends.
        incoming: Class of the one that begins.
        model: The model.
        force: Take the risk of the latter.

    Raises:
        BadInput: One is K-FAC, parameters are sharded, or it goes from an adaptive method to SGD with embeddings.
    """
    pair = f"{outgoing.__name__} → {incoming.__name__}"
    if issubclass(outgoing, KFAC) or issubclass(incoming, KFAC):
        raise BadInput(f"transport({pair}): K-FAC has no moments to hand over, and its hooks stay on the model.")
    layout = Layout(model)
    if layout.sharded:
        raise BadInput(
            f"transport({pair}): the parameters are sharded, and lengths by layer would differ between ranks. "
            "Use one optimizer for the whole training."
        )
    plain = (SGD, Lars)
    tables = embeddings(model)
    if force or not tables or issubclass(outgoing, plain) or not issubclass(incoming, plain):
        return
    names = [name for name, p in zip(layout.names, layout.parameters, strict=True) if id(p) in tables]
    raise BadInput(
        f"transport({pair}): refused, as the model has embeddings: {some(names)}. Rare rows get hardly any step from "
        "SGD, and one rate for all tensors diverges or stalls (Kunstner et al. 2024). Stay with an adaptive method, or "
        "say force=True."
    )


def warmup_steps(groups: Sequence[Mapping[str, Any]]) -> int:
    """max(10, 2 / (1 − β₂)): twice the memory of the second moment (Ma and Yarats 2021 for Adam), or 10 without one.

    Args:
        groups: Of an optimizer.

    Returns:
        Steps.

    Example:
        >>> warmup_steps([{"lr": 0.1, "betas": (0.9, 0.95)}])
        40
    """
    memories = [float(group["betas"][1]) for group in groups if "betas" in group]
    return max([10, *(math.ceil(2 / (1 - beta) - 1e-9) for beta in memories)])  # 2 / (1 − 0.95) is above 40


def _named(outgoing: Optimizer, incoming: Optimizer, layout: Layout) -> dict[str, Tensor]:
    """The parameters of the incoming optimizer by name; both must hold the same ones."""
    pairs = list(zip(layout.names, layout.parameters, strict=True))
    held = [{id(p) for p in own_parameters(optimizer)} for optimizer in (outgoing, incoming)]
    lost = [name for name, p in pairs if len({id(p) in ids for ids in held}) == 2]
    if lost or len(held[1]) != sum(id(p) in held[1] for _, p in pairs):
        what = f"{some(lost)} are in one of them only" if lost else "it has parameters that are not the model's"
        raise BadInput(
            f"transport({type(outgoing).__name__} → {type(incoming).__name__}): both optimizers must hold the same "
            f"parameters of the model; {what}. Make both by for_model(model)."
        )
    return {name: p for name, p in pairs if id(p) in held[1]}


def _hand_over(
    outgoing: Optimizer, incoming: Optimizer, name: str, parameter: Tensor, sets: Sequence[Mapping[str, Tensor]]
) -> str:
    given = [each[name] for each in sets if name in each]
    first, second, steps = None, None, 0
    if isinstance(outgoing, Transportable):
        first, second = outgoing.moments(parameter)
        steps = int(float(outgoing.state.get(parameter, {}).get("step", 0)))
    incoming.state.pop(parameter, None)
    if not isinstance(incoming, Transportable) or (first is None and second is None and not given):
        return "nothing"
    if second is None or steps < 1:
        # An estimate from few gradients must not weigh like a long memory: it would be forgotten as slowly.
        steps = min(steps, len(given)) if steps and given else max(steps, len(given), 1)
    incoming.adopt(parameter, first, second, steps, given or None)
    return "from gradients" if first is None else "first moment" if second is None else "both moments"


def _factor(steady: float, first: float) -> float:
    return steady / first if steady > 0 and first > steady else 1.0
