"""The diagonal of the Fisher information, from the gradient of every example on its own."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from dynaxx.core.chosen import bare_model
from dynaxx.core.isolation import evaluation
from dynaxx.core.parameters import is_sharded
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.perturb._common import trainable

Likelihood = Literal["categorical", "gaussian"]


def fisher_diagonal(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    likelihood: Likelihood = "categorical",
    inputs: Callable[[Any], tuple[Tensor, ...]] | None = None,
    draws: int = 1,
    chunk: int | None = 32,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The diagonal F = E_x E_{y ~ p(y|x)} (∂ log p(y|x) / ∂θ)², with labels drawn from the model itself.

    The mean is of squares of single examples' scores. The square of a batch's mean score is smaller by about its size,
    and blind to examples that cancel; with labels of the data it is not the Fisher information at all.

    The model runs in evaluation mode; nothing of it changes. Where the outputs are of shape (examples, positions, …,
    classes), an example's score is that of all its positions.

    Args:
        model: The model; frozen parameters are left out.
        batches: Of the task that is not to be forgotten.
        likelihood: Outputs are "categorical" logits over the last dimension, or "gaussian" means of variance 1.
        inputs: `inputs(batch)` → the model's tensors, examples first; None: the batch, or the first of a tuple or list.
        draws: Labels per example.
        chunk: Examples whose gradients are held at once; None: a whole batch.
        seed: Of the labels.

    Returns:
        Name → F, of the parameter's shape.

    Raises:
        BadInput: There is no example, or the likelihood has another name.
        NotApplicable: Parameters are sharded.

    Reference: Kunstner et al. 2019, "Limitations of the Empirical Fisher Approximation".
    """
    if likelihood not in ("categorical", "gaussian"):
        raise BadInput(f"fisher_diagonal(likelihood=...) must be 'categorical' or 'gaussian'. Got {likelihood!r}.")
    if draws < 1:
        raise BadInput(f"fisher_diagonal(draws=...) must be at least 1. Got {draws!r}.")
    net = bare_model(model)
    chosen = {name: p.detach() for name, p in net.named_parameters() if p.requires_grad}
    trainable("fisher_diagonal", net)
    if any(is_sharded(p) for p in chosen.values()):
        raise NotApplicable("fisher_diagonal: parameters are sharded. Gather the model on one rank.")

    def surprise(parameters: dict[str, Tensor], example: tuple[Tensor, ...], label: Tensor) -> Tensor:
        output = functional_call(net, parameters, tuple(x.unsqueeze(0) for x in example))[0]
        if likelihood == "gaussian":
            return (output - label).square().sum() / 2
        return cross_entropy(
            output.flatten(0, -2) if output.dim() > 1 else output[None], label.flatten(), reduction="sum"
        )

    scores = vmap(grad(surprise), in_dims=(None, 0, 0), chunk_size=chunk)
    total = {name: torch.zeros_like(p) for name, p in chosen.items()}
    count = 0
    generator = torch.Generator().manual_seed(seed)
    with evaluation(net), sdpa_kernel(SDPBackend.MATH):
        for batch in batches:
            example = (inputs or _first)(batch)
            outputs = net(*example)
            for _ in range(draws):
                found = scores(chosen, example, _labels(outputs, likelihood, generator))
                for name, score in found.items():
                    total[name] += score.square().sum(0)
                count += len(outputs)
    if count == 0:
        raise BadInput("fisher_diagonal(batches=...): there is no example. Give at least one batch.")
    return {name: sums / count for name, sums in total.items()}


def _labels(outputs: Tensor, likelihood: Likelihood, generator: torch.Generator) -> Tensor:
    """Drawn on the CPU, so that every device sees the same."""
    if likelihood == "gaussian":
        return outputs + torch.randn(outputs.shape, generator=generator).to(outputs)
    weights = outputs.detach().float().softmax(-1).cpu()
    drawn = torch.multinomial(weights.flatten(0, -2), 1, generator=generator)
    return drawn.view(outputs.shape[:-1]).to(outputs.device)


def _first(batch: Any) -> tuple[Tensor, ...]:
    return (batch[0] if isinstance(batch, list | tuple) else batch,)
