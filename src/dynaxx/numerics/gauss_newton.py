"""Gauss–Newton and Fisher products: the loss's curvature seen through the model's output, Jᵀ M J, never indefinite."""

from abc import abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dynaxx.core.objective import Objective
from dynaxx.core.task import derive_seed
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.numerics.explain import once_differentiable
from dynaxx.numerics.operator import Operator
from dynaxx.numerics.space import Space

Likelihood = Literal["categorical", "gaussian"]
FisherKind = Literal["exact", "monte_carlo", "empirical"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One microbatch's forward, cut at the model's output, with the graphs that products are taken through.

    Args:
        outputs: z = f(θ), one for each call of the model, with its graph back to the parameters.
        leaves: The same values, of which the loss was taken.
        loss: wᵢ ℓ(z) / Σ w.
        probes: Zeros shaped like the outputs, and `pullback` = Jᵀ·probes with its graph: its derivative is J.
        pullback: One tensor per parameter.
        share: wᵢ / Σ w.
        index: Of the microbatch, over which rank it is on.
    """

    outputs: list[Tensor]
    leaves: list[Tensor]
    loss: Tensor
    probes: list[Tensor]
    pullback: list[Tensor]
    share: float
    index: tuple[int, int]


class OutputCurvature(Operator):
    """Jᵀ M J with J = ∂z/∂θ of the model's output z and a symmetric M that a subclass gives.

    J·v is taken by differentiating Jᵀ·w by w, which every operation with two backward passes can do. With one
    microbatch the graphs are kept, and a product costs 1 to 2 gradients; with several they are built for each call, one
    at a time. It follows the weights: a product after they changed is taken where they are.

    Args:
        objective: The loss and the point. The model must return one tensor, and the loss see the parameters through it
            alone.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__(Space(objective.parameters, objective.names))
        self.objective = objective
        self.builds = 0
        """Forwards cut at the output so far, each the price of a gradient that records itself."""
        self._local = objective.local()
        self._kept: tuple[Pass, Any] | None = None
        self._versions = self._version()
        if self._local.sharded:
            raise NotApplicable(
                f"{type(self).__name__}: the loss computes on DTensors. Use FSDP2 (fully_shard), or take Hessian."
            )

    @abstractmethod
    def curvature(self, passed: Pass) -> Any:
        """What M needs of a forward, prepared once.

        Args:
            passed: The forward.

        Returns:
            What `middle` is given.
        """

    @abstractmethod
    def middle(self, prepared: Any, tangents: list[Tensor]) -> list[Tensor]:
        """M times a vector of the output's shape.

        Args:
            prepared: What `curvature` returned.
            tangents: One for each output.

        Returns:
            One for each output.
        """

    def apply(self, rows: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """The products at the current weights."""
        objective = self._local
        if self._version() != self._versions:
            self._kept, self._versions = None, self._version()
        out = torch.zeros_like(rows)
        with objective.prepared(second_order=True), torch.enable_grad():
            for i in range(len(objective.batches)):
                passed, prepared = self._kept if self._kept is not None else self._build(i)
                for k, row in enumerate(rows):
                    out[k] += self._product(passed, prepared, row)
                if len(objective.batches) == 1:
                    self._kept = passed, prepared
                del passed, prepared  # before the next ones are built
        return objective.total(out)

    def _product(self, passed: Pass, prepared: Any, row: Tensor) -> Tensor:
        live = [j for j, part in enumerate(passed.pullback) if part.requires_grad]
        if not live:  # the output does not depend on these parameters
            return torch.zeros_like(row)
        vector = self.space.split(row)
        tangents = torch.autograd.grad(
            [passed.pullback[j] for j in live], passed.probes, [vector[j] for j in live],
            retain_graph=True, materialize_grads=True,
        )  # fmt: skip
        weighted = self.middle(prepared, list(tangents))
        found = torch.autograd.grad(
            passed.outputs, self._local.parameters, weighted, retain_graph=True, materialize_grads=True
        )
        return self.space.flatten(found)

    def _build(self, i: int) -> tuple[Pass, Any]:
        objective = self._local
        self.builds += 1
        with _cut(objective.model, type(self).__name__) as (outputs, leaves):
            loss = objective.loss(i)
        self._refuse(objective, loss, outputs, leaves)
        probes = [torch.zeros_like(z).requires_grad_() for z in outputs]
        pullback = torch.autograd.grad(outputs, objective.parameters, probes, create_graph=True, materialize_grads=True)
        passed = Pass(
            outputs=outputs, leaves=leaves, loss=loss, probes=probes, pullback=list(pullback),
            share=objective.shares[i], index=(i, objective.ranks.rank),
        )  # fmt: skip
        return passed, self.curvature(passed)

    def _refuse(self, objective: Objective, loss: Tensor, outputs: list[Tensor], leaves: list[Tensor]) -> None:
        """What this decomposition would be wrong about."""
        name = type(self).__name__
        if not outputs:
            raise NotApplicable(f"{name}: loss_fn(model, batch) never calls the model itself. Let it call model(...).")
        if loss.requires_grad:
            direct = torch.autograd.grad(loss, objective.parameters, retain_graph=True, allow_unused=True)
            if any(part is not None for part in direct):
                raise NotApplicable(
                    f"{name}: the loss depends on parameters other than through the model's output, as a penalty does. "
                    "Leave that out of loss_fn and add its curvature yourself."
                )
        for j in range(1, len(outputs)):
            if outputs[j].grad_fn is None:
                continue
            earlier = torch.autograd.grad(
                outputs[j], leaves[:j], torch.zeros_like(outputs[j]), retain_graph=True, allow_unused=True
            )
            if any(part is not None for part in earlier):
                raise NotApplicable(
                    f"{name}: the model is called on its own output. Wrap the calls in a module that is called once."
                )

    def _version(self) -> int:
        return sum(p._version for p in self.objective.parameters)  # pyright: ignore[reportPrivateUsage]


class GaussNewton(OutputCurvature):
    """The generalised Gauss–Newton matrix Σᵢ wᵢ Jᵢᵀ (∇²_z ℓᵢ) Jᵢ / Σ w of an objective (Schraudolph 2002).

    It is the Hessian without the curvature of the model: equal to it where the model is linear in its parameters, and
    positive semi-definite where ℓ is convex in the output.

    Args:
        objective: The loss and the point.

    Raises:
        NotApplicable: The model returns no single tensor, the loss does not see the parameters through it alone, or has
            no second derivative by it.

    Example:
        >>> line = nn.Linear(2, 1, bias=False)
        >>> loss = lambda model, x: model(x).square().sum(1).mean() / 2
        >>> GaussNewton(Objective(line, loss, [torch.tensor([[3.0, 0.0], [0.0, 1.0]])])).dense()
        tensor([[4.5000, 0.0000],
                [0.0000, 0.5000]])
    """

    def curvature(self, passed: Pass) -> tuple[list[Tensor], list[Tensor]]:
        """∂ℓ/∂z with its graph, and z."""
        if not passed.loss.requires_grad:
            return [torch.zeros_like(z) for z in passed.leaves], passed.leaves
        if operation := once_differentiable(passed.loss):  # autograd would pass by it without a word
            raise NotApplicable(
                f"GaussNewton: the loss has no second derivative by the model's output: {operation} is marked "
                "once_differentiable. Write the loss in operations that have one."
            )
        slopes = torch.autograd.grad(passed.loss, passed.leaves, create_graph=True, materialize_grads=True)
        return list(slopes), passed.leaves

    def middle(self, prepared: tuple[list[Tensor], list[Tensor]], tangents: list[Tensor]) -> list[Tensor]:
        """∇²_z ℓ times the tangents."""
        slopes, leaves = prepared
        live = [j for j, slope in enumerate(slopes) if slope.requires_grad]
        if not live:  # ℓ is piecewise linear in the output
            return [torch.zeros_like(t) for t in tangents]
        found = torch.autograd.grad(
            [slopes[j] for j in live], leaves, [tangents[j] for j in live],
            retain_graph=True, materialize_grads=True,
        )  # fmt: skip
        return list(found)


class Fisher(OutputCurvature):
    """The Fisher information Σᵢ wᵢ (1/mᵢ) Σₙ Jₙᵀ Mₙ Jₙ / Σ w, a mean over the m rows of each batch's output.

    - categorical: rows are the entries of all dimensions but the last, which holds logits; Mₙ = diag p − p pᵀ, the
      Hessian of the cross-entropy: it is the Gauss–Newton matrix of a cross-entropy averaged over all rows.
    - gaussian: rows are the entries of the leading dimension; unit variance, Mₙ = 1, the Gauss–Newton matrix of
      ½‖f − y‖² averaged over the rows.

    Args:
        objective: The loss and the point; the loss itself matters for kind="empirical" alone.
        likelihood: How outputs are read: "categorical" or "gaussian".
        kind: "exact"; "monte_carlo", Mₙ = mean of g gᵀ over labels drawn from the model, unbiased (Kunstner 2019);
            "empirical", Mₙ = g gᵀ with g the gradient of the loss at the true labels, which is not the Fisher
            information and far from it where the model fits badly; it takes ℓ to be a mean over all rows.
        samples: Labels drawn per row for "monte_carlo".
        seed: Chooses them.

    Raises:
        BadInput: An argument is none of these.
        NotApplicable: The model is not called exactly once per batch, or returns no single tensor.

    Example:
        >>> line = nn.Linear(1, 1, bias=False)
        >>> loss = lambda model, x: model(x).square().mean()
        >>> Fisher(Objective(line, loss, [torch.tensor([[1.0], [3.0]])]), "gaussian").dense()  # mean of x²
        tensor([[5.]])
    """

    def __init__(
        self,
        objective: Objective,
        likelihood: Likelihood = "categorical",
        kind: FisherKind = "exact",
        *,
        samples: int = 1,
        seed: int = 0,
    ) -> None:
        if likelihood not in ("categorical", "gaussian"):
            raise BadInput(f"Fisher(likelihood=...) must be 'categorical' or 'gaussian'. Got {likelihood!r}.")
        if kind not in ("exact", "monte_carlo", "empirical"):
            raise BadInput(f"Fisher(kind=...) must be 'exact', 'monte_carlo' or 'empirical'. Got {kind!r}.")
        if samples < 1:
            raise BadInput(f"Fisher(samples=...) must be at least 1. Got {samples}.")
        super().__init__(objective)
        self.likelihood: Likelihood = likelihood
        self.kind: FisherKind = kind
        self.samples = samples
        self.seed = seed

    def curvature(self, passed: Pass) -> tuple[str, Tensor, float]:
        """Which M it is, the rows it is made of, and their weight."""
        if len(passed.leaves) != 1:
            raise NotApplicable(
                f"Fisher: the model is called {len(passed.leaves)} times for a batch, so rows have no one meaning. "
                "Wrap the calls in a module that is called once, or take GaussNewton."
            )
        output = self._rows(passed.leaves[0].detach())
        weight = passed.share / output.shape[0]
        if self.kind == "empirical":
            (slope,) = torch.autograd.grad(passed.loss, passed.leaves, retain_graph=True, materialize_grads=True)
            scores = self._rows(slope) / weight if weight else torch.zeros_like(output)
            return "scores", scores[None], weight
        if self.kind == "monte_carlo":
            return "scores", self._scores(output, passed.index), weight / self.samples
        return "exact", output.softmax(1) if self.likelihood == "categorical" else output, weight

    def middle(self, prepared: tuple[str, Tensor, float], tangents: list[Tensor]) -> list[Tensor]:
        """M times the tangents, row by row."""
        kind, rows, weight = prepared
        tangent = self._rows(tangents[0])
        if kind == "scores":
            product = ((rows * tangent).sum(2, keepdim=True) * rows).sum(0)
        elif self.likelihood == "categorical":
            product = rows * (tangent - (rows * tangent).sum(1, keepdim=True))
        else:
            product = tangent
        return [(product * weight).view_as(tangents[0])]

    def _rows(self, output: Tensor) -> Tensor:
        """The output as a matrix, a row for each likelihood."""
        if self.likelihood == "categorical":
            return output.reshape(-1, output.shape[-1])
        return output.reshape(output.shape[0], -1)

    def _scores(self, output: Tensor, index: tuple[int, int]) -> Tensor:
        """∂(−log likelihood)/∂z at labels drawn from the model, shape (samples, rows, width)."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "labels", *index))
        if self.likelihood == "gaussian":
            noise = torch.randn(self.samples, *output.shape, generator=generator, dtype=torch.float64)
            return noise.to(output)
        p = output.softmax(1)
        drawn = torch.multinomial(p.cpu().double(), self.samples, replacement=True, generator=generator)
        return p - nn.functional.one_hot(drawn.T.to(p.device), p.shape[1]).to(p)


@contextmanager
def _cut(model: nn.Module, name: str) -> Generator[tuple[list[Tensor], list[Tensor]]]:
    """Within it the model's outputs are kept, and leaves of the same values handed on in their places."""
    outputs: list[Tensor] = []
    leaves: list[Tensor] = []

    def hook(module: nn.Module, inputs: Any, output: Any) -> Tensor:
        del module, inputs
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.dim() == 0:
            found = f"a {output.dtype} tensor" if isinstance(output, Tensor) else type(output).__name__
            found = "a scalar" if isinstance(output, Tensor) and output.dim() == 0 else found
            raise NotApplicable(
                f"{name} needs a model that returns one tensor of which the loss is a function. Got {found}. "
                "Wrap the model in a module that returns its logits or predictions, and let loss_fn do the rest."
            )
        if not output.requires_grad:
            raise NotApplicable(
                f"{name}: the model's output has no gradient. Leave out .detach() and torch.no_grad() in its forward."
            )
        outputs.append(output)
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    handle = model.register_forward_hook(hook)
    try:
        yield outputs, leaves
    finally:
        handle.remove()
