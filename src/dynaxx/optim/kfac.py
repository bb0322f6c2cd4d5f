"""K-FAC and EKFAC: natural gradients by Kronecker factors of inputs and output gradients, layer by layer."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from dynaxx.errors import BadInput
from dynaxx.numerics.kronecker import eigenpairs
from dynaxx.optim import _options as options
from dynaxx.optim._adam import adam_step, blank_moments
from dynaxx.optim._capture import Capture, capturable
from dynaxx.optim._groups import decay_groups
from dynaxx.optim._method import Stepping
from dynaxx.optim._state import tensor_bytes

OMEGA = 0.95**5
"""By what the damping is adjusted."""


class KFAC(Stepping):
    """W ← (1 − ηλ) W − η B, B ← μ B + (G + …)⁻¹ ∇W (A + …)⁻¹ with A = E[a aᵀ], G = E[g gᵀ] (Martens, Grosse 2015).

    a are a layer's inputs (with 1 for the bias) and g the gradients of one term of the loss by its outputs: G is taken
    from N times the gradients of the mean loss, so that damping means the same at every batch size. Linear and Conv2d
    layers have factors, embeddings a diagonal; everything else, and all parameters given to the constructor without a
    model, take AdamW. Make it by `for_model`, which puts hooks on the layers.

    Args:
        params: Parameters, named parameters or groups; groups with `rule="kfac"` come from `for_model` only.
        lr: η; 0.01, at which the clipping below sets the length of early steps.
        momentum: μ; 0.9.
        weight_decay: λ, decoupled.
        damping: Added to the curvature, in its unit; KAISA's 1e-3.
        decay: Of the running means of the factors; 0.95 (Martens and Grosse).
        every: Steps between decompositions; 10.
        clip: Most squared length of a step in the metric of the Fisher information; KAISA's 1e-3; None: no clipping.
        corrected: EKFAC (George et al. 2018): second moments of each example's gradient in the eigenbases replace the
            products of eigenvalues; takes in × out more memory and one product an example.
        fisher: "empirical": the gradients of training; "sampled": those of labels drawn by the model, for which
            `observe` must be called before each backward.
        sharing: "expand" or "reduce" for layers used at many positions (Eschenhagen et al. 2023).
        loss_per: What the loss is a mean over, "example" or "position" (tokens).
        reduction: "mean" or "sum", of the loss.
        accumulate: Micro-batches a step; each backward is then of its share of the mean.
        betas: Decay rates of AdamW's moments.
        eps: ε of AdamW.

    Raises:
        BadInput: An option breaks its rule; a parameter is complex or sharded.
    """

    memory = "1 × parameters + 2 (in² + out²) a layer"
    passes = 1.0
    weight_decay: ClassVar[float] = 0.01
    rules: ClassVar[dict[str, options.Rule]] = {
        "lr": options.NOT_NEGATIVE, "momentum": options.SHARE, "weight_decay": options.NOT_NEGATIVE,
        "damping": options.POSITIVE, "decay": options.SHARE, "every": options.COUNT,
        "clip": options.optional(options.POSITIVE), "corrected": options.FLAG,
        "fisher": options.one_of("empirical", "sampled"), "sharing": options.one_of("expand", "reduce"),
        "loss_per": options.one_of("example", "position"), "reduction": options.one_of("mean", "sum"),
        "accumulate": options.COUNT,
        "betas": options.SHARES, "eps": options.NOT_NEGATIVE, "rule": options.one_of("kfac", "adamw"),
    }  # fmt: skip

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        momentum: float = 0.9,
        weight_decay: float = weight_decay,
        *,
        damping: float = 1e-3,
        decay: float = 0.95,
        every: int = 10,
        clip: float | None = 1e-3,
        corrected: bool = False,
        fisher: str = "empirical",
        sharing: str = "expand",
        loss_per: str = "example",
        reduction: str = "mean",
        accumulate: int = 1,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self._captures: list[Capture] = []
        self._moves: list[_Move] = []
        self._predicted: Tensor | None = None
        super().__init__(
            params,
            {
                "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "damping": damping, "decay": decay,
                "every": every, "clip": clip, "corrected": corrected, "fisher": fisher, "sharing": sharing,
                "loss_per": loss_per, "reduction": reduction, "accumulate": accumulate,
                "betas": betas, "eps": eps, "rule": "adamw",
            },
        )  # fmt: skip

    @classmethod
    def for_model(cls, model: nn.Module, *, adamw_lr: float | None = None, max_dim: int = 4096, **options: Any) -> Self:
        """The layers that K-FAC knows, and the rest by AdamW; decay for matrices and kernels only.

        Args:
            model: The model; frozen parameters are left out, weights used by two modules go to AdamW.
            adamw_lr: The rate of the rest; None: `lr`.
            max_dim: Longest side of a factor: a decomposition of 4096 takes some seconds on a CPU.
            options: Those of the constructor.

        Returns:
            The optimizer; its hooks stay on the model.
        """
        decay = options.pop("weight_decay", cls.weight_decay)
        users = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
        layers = [
            (path, module)
            for path, module in model.named_modules()
            if capturable(module, max_dim) and all(users[id(p)] == 1 for p in module.parameters(recurse=False))
        ]
        factored = {id(p) for _, module in layers for p in module.parameters(recurse=False)}
        groups: list[dict[str, Any]] = []
        for group in decay_groups(cls.__name__, model, decay):
            known = [pair for pair in group["params"] if id(pair[1]) in factored]
            rest = [pair for pair in group["params"] if id(pair[1]) not in factored]
            outside = {} if adamw_lr is None else {"lr": adamw_lr}
            groups += [
                {**group, "params": known, "rule": "kfac"},
                {**group, "params": rest, "rule": "adamw", **outside},
            ]
        made = cls([group for group in groups if group["params"]], weight_decay=decay, **options)
        for path, module in layers:
            how = made.defaults
            made._captures.append(Capture(path, module, how["sharing"], how["loss_per"], how["reduction"] == "mean"))
            made._captures[-1].listening = how["fisher"] == "empirical"
        return made

    def __getstate__(self) -> dict[str, Any]:  # a copy of model and optimizer together keeps its hooks
        return {**super().__getstate__(), "_captures": self._captures, "_moves": [], "_predicted": self._predicted}

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        options.check_whole("KFAC", group, why="a Kronecker factor")

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As torch's, in the precision it was saved in; what was captured of a batch is forgotten.

        Args:
            state_dict: What `state_dict` returned.
        """
        super().load_state_dict(state_dict)
        for capture in self._captures:
            capture.clear()
            self._lend_basis(capture)

    def planned_bytes(self) -> int:
        """Memory that the state will take, from the shapes alone."""
        layered = {id(c.weight): c for c in self._captures} | {
            id(c.bias): None for c in self._captures if c.bias is not None
        }
        return sum(
            tensor_bytes(self._blank(layered[id(p)], "meta") if id(p) in layered else blank_moments(p, "meta"))
            for group in self.param_groups
            for p in group["params"]
        )

    def observe(self, logits: Tensor) -> None:
        """Take the factors from labels drawn by the model itself: the true Fisher information in expectation.

        Call it behind the forward and before the backward; it costs one more backward and moves no gradient.

        Args:
            logits: Outputs of the model, categorical over the last dimension, with their graph.

        Raises:
            BadInput: The optimizer was not made with fisher="sampled".
        """
        if self.defaults["fisher"] != "sampled":
            raise BadInput('KFAC.observe(logits) is for fisher="sampled". Got "empirical". Leave the call out.')
        labels = torch.distributions.Categorical(logits=logits.detach()).sample()
        loss = nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
        loss = loss.sum() if self.defaults["reduction"] == "sum" else loss.sum() / self._terms(logits)
        for capture in self._captures:
            capture.listening = True
        try:
            torch.autograd.grad(loss, [c.weight for c in self._captures], retain_graph=True, allow_unused=True)
        finally:
            for capture in self._captures:
                capture.listening = False

    def _terms(self, logits: Tensor) -> int:
        return logits[..., 0].numel() if self.defaults["loss_per"] == "position" else len(logits)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient; what was captured before a closure is forgotten.

        Args:
            closure: Computes the loss and its gradients anew.

        Returns:
            The loss of the closure, or None.

        Raises:
            BadInput: A gradient is sparse; a layer has a gradient but its hook saw none; there are several ranks.
        """
        if closure is not None:
            self._clear()
        return super().step(closure)

    def _step(self) -> None:
        super()._step()
        moves, self._moves = self._moves, []
        if moves:
            self._move(moves)
        self._clear()

    def _step_group(self, group: dict[str, Any]) -> None:
        parts = list(options.dense_gradients("KFAC", group))
        if group["rule"] == "adamw":
            states = [(p, g, self._adam_state(p)) for _, p, g in parts]
            adam_step(states, group, group["betas"], float(group["lr"]))
        else:
            given = {id(p) for _, p, _ in parts}
            self._moves += [self._natural(c, group) for c in self._captures if id(c.weight) in given]

    def _clear(self) -> None:
        for capture in self._captures:
            capture.clear()

    def _adam_state(self, parameter: Tensor) -> dict[str, Tensor]:
        state = cast(dict[str, Tensor], self.state[parameter])
        if not state:
            state.update(blank_moments(parameter, parameter.device))
        return state

    def _blank(self, capture: Capture | None, device: torch.device | str) -> dict[str, Tensor]:
        """State of a layer, kept with its weight: the factors, and the momentum of weight and bias side by side."""
        if capture is None:
            return {}
        weight = capture.weight
        rows, columns = weight.shape[0], weight[0].numel() + (capture.bias is not None)
        step = blank_moments(weight[:0], device)["step"]
        state = {"step": step, "momentum_buffer": torch.zeros(rows, columns, device=device)}
        if isinstance(capture.module, nn.Embedding):
            return {**state, "diagonal": torch.zeros(rows, columns, device=device)}
        for key, size in (("inputs", columns), ("outputs", rows)):
            state[key] = torch.zeros(size, size, device=device)
            state[f"{key}_basis"] = torch.eye(size, device=device)
            state[f"{key}_values"] = torch.zeros(size, device=device)
        if self.defaults["corrected"]:
            state["diagonal"] = torch.zeros(rows, columns, device=device)
        return state

    def _natural(self, capture: Capture, group: dict[str, Any]) -> "_Move":
        """The damped natural gradient of a layer, weight and bias side by side."""
        weight, bias = capture.weight, capture.bias
        if not capture.backwards:
            raise BadInput(
                f"KFAC.step(): {capture.name!r} has a gradient, and its hook saw none. Run forward and backward of the "
                'model itself between steps; with fisher="sampled" call observe before backward.'
            )
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            raise BadInput("KFAC.step(): factors are those of one rank, and there are several. Use soap.")
        state = cast(dict[str, Tensor], self.state[weight])
        if not state:
            state.update(self._blank(capture, weight.device))
        assert weight.grad is not None
        gradient = weight.grad.flatten(1).float()
        if bias is not None:
            part = torch.zeros_like(gradient[:, :1]) if bias.grad is None else bias.grad[:, None].float()
            gradient = torch.cat([gradient, part], 1)
        state["step"].add_(1)
        decay, damping = group["decay"], group["damping"]
        bias_correction = 1 - decay ** float(state["step"])
        # Gradients of a mean over micro-batches are smaller by their number, and enter squared.
        again = group["accumulate"]
        share = 1 / again if group["fisher"] == "sampled" else again if group["reduction"] == "mean" else 1
        seconds = None if capture.second is None else capture.second * share
        if isinstance(capture.module, nn.Embedding):
            assert seconds is not None
            state["diagonal"].lerp_(seconds, 1 - decay)
            return _Move(capture, group, gradient / (state["diagonal"] / bias_correction + damping), gradient)
        assert capture.inputs is not None
        assert capture.outputs is not None
        state["inputs"].lerp_(capture.inputs / capture.backwards, 1 - decay)
        state["outputs"].lerp_(capture.outputs * share, 1 - decay)
        if seconds is not None:
            state["diagonal"].lerp_(seconds, 1 - decay)
        if (int(state["step"]) - 1) % group["every"] == 0:
            self._decompose(capture, state, bias_correction)
        left, right = state["outputs_basis"], state["inputs_basis"]
        turned = left.T @ gradient @ right / _curvature(state, decay, damping)
        return _Move(capture, group, left @ turned @ right.T, gradient)

    def _decompose(self, capture: Capture, state: dict[str, Tensor], bias_correction: float) -> None:
        for key in ("inputs", "outputs"):
            values, vectors, done = eigenpairs(state[key][None] / bias_correction)
            if not bool(done.all()):  # waits for the device, every `every` steps
                raise BadInput(
                    f"KFAC.step(): the factor of the {key} of {capture.name!r} could not be decomposed; one of its "
                    "last batches was not finite. Resume from a checkpoint, and lower the rate or raise the damping."
                )
            if "diagonal" in state:  # second moments are by axis: carried into the new ones by the Hadamard rule
                turn = (state[f"{key}_basis"].T @ vectors[0]).square()
                old = state["diagonal"]
                state["diagonal"].copy_(old @ turn if key == "inputs" else turn.T @ old)
            state[f"{key}_values"].copy_(values[0].clamp_min(0))
            state[f"{key}_basis"].copy_(vectors[0])
        self._lend_basis(capture)

    def _lend_basis(self, capture: Capture) -> None:
        state = self.state.get(capture.weight, {})
        if self.defaults["corrected"] and "inputs_basis" in state:
            capture.basis = state["inputs_basis"], state["outputs_basis"]

    def _move(self, moves: "list[_Move]") -> None:
        gains = torch.stack([(m.direction * m.gradient).sum() * m.rate for m in moves])
        clips = {id(m.group): m.group["clip"] for m in moves}.values()
        clip = None if None in clips else min(clips)
        lengths = torch.stack([gain * m.rate for gain, m in zip(gains, moves, strict=True)]).sum()
        scale = 1.0 if clip is None else (clip / lengths.clamp_min(1e-30)).sqrt().clamp_max(1.0)
        # With u = (F + λ)⁻¹ g the quadratic model of the step −ηu is (−η + η²/2) gᵀu: nothing more need be computed.
        self._predicted = (-gains.sum() * scale + 0.5 * lengths * scale**2).detach()
        for move in moves:
            weight, bias = move.capture.weight, move.capture.bias
            buffer = self.state[weight]["momentum_buffer"]
            buffer.mul_(move.group["momentum"]).add_(move.direction * scale)
            width = weight[0].numel()
            weight.mul_(1 - move.rate * move.group["weight_decay"])
            weight.add_(buffer[:, :width].reshape(weight.shape), alpha=-move.rate)
            if bias is not None:  # vectors are not decayed
                bias.add_(buffer[:, width], alpha=-move.rate)

    def adjust_damping(self, before: Tensor, after: Tensor) -> float:
        """Raise or lower the damping by how well the quadratic model foretold the last step (Levenberg, Marquardt).

        ρ = (L_after − L_before) / predicted; λ shrinks by (19/20)⁵ where ρ > 3/4 and grows by as much where ρ < 1/4, as
        Martens and Grosse have it for every fifth step. The model knows no momentum: use momentum=0. Waits for the
        device.

        Args:
            before: Loss of the batch before the step.
            after: Loss of the same batch behind it.

        Returns:
            The new damping.

        Raises:
            BadInput: There was no step of a layer with factors.
        """
        if self._predicted is None:
            raise BadInput("KFAC.adjust_damping(...) needs a step of a layer with factors before. Call step first.")
        ratio = float(after - before) / min(float(self._predicted), -1e-30)
        factor = OMEGA if ratio > 0.75 else 1 / OMEGA if not ratio >= 0.25 else 1.0
        for group in self.param_groups:
            group["damping"] *= factor
        return float(self.param_groups[0]["damping"])


class _Move(NamedTuple):
    """A layer's step before momentum, all with weight and bias side by side."""

    capture: Capture
    group: dict[str, Any]
    direction: Tensor
    gradient: Tensor

    @property
    def rate(self) -> float:
        return float(self.group["lr"])


def _curvature(state: dict[str, Tensor], decay: float, damping: float) -> Tensor:
    """The damped curvature by pair of axes, shape (out, in)."""
    seen = float(state["step"]) - 1  # second moments by axis exist from the second step on
    if "diagonal" in state and seen > 0:
        return state["diagonal"] / (1 - decay**seen) + damping
    left, right = state["outputs_values"], state["inputs_values"]
    # Tikhonov damping in factors, shared out by their mean eigenvalues (Martens and Grosse 2015, 6.3).
    ratio = (right.mean() / left.mean().clamp_min(1e-30)).clamp(1e-6, 1e6).sqrt()
    root = damping**0.5
    return (left + root / ratio)[:, None] * (right + root * ratio)[None, :]
