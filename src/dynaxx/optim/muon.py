"""Muon: orthogonalised momentum for hidden matrices, AdamW for everything else, in one optimizer."""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import groupby
from typing import Any, ClassVar, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from dynaxx.errors import BadInput, UnknownName
from dynaxx.numerics.polar import newton_schulz
from dynaxx.optim import _many as many
from dynaxx.optim import _options as options
from dynaxx.optim._adam import adam_step, blank_moments
from dynaxx.optim._groups import beneath, embeddings, group_of, output_head, trainable
from dynaxx.optim._heads import fused_heads
from dynaxx.optim._method import Stepping
from dynaxx.optim._state import tensor_bytes, wide
from dynaxx.optim._transport import Transportable, completed


class Muon(Transportable, Stepping):
    """W ← (1 − ηλ) W − η s · NS(G̃) for hidden matrices (Jordan 2024), AdamW for groups with `rule="adamw"`.

    B ← μ B + (1 − μ) G, G̃ = (1 − μ) G + μ B with Nesterov's form, else B; NS brings all singular values near 1.
    Kernels of more than two dimensions are matrices (outputs × the rest). `for_model` sorts the parameters. A parameter
    that holds several matrices, such as queries, keys and values of all heads, is orthogonalised as one, in which those
    of large gradients hold down the others, unless `stacked` says how many they are. A byte-level transformer then
    takes 0.76 of the steps (benchmarks/README.md).

    Args:
        params: Parameters, named parameters or groups; a group may say `rule="adamw"`.
        lr: η; torch's 1e-3. With `adjust="match_rms_adamw"` one rate serves both kinds of groups.
        weight_decay: λ, decoupled, by the rate before the adjustment; torch's 0.1.
        momentum: μ; torch's 0.95.
        nesterov: Look ahead along the momentum.
        steps: Newton–Schulz iterations; torch's 5.
        adjust: s. "match_rms_adamw": 0.2 √max(rows, columns), which moves entries as far as AdamW does (Liu et al.
            2025), so that a switch from it needs no new rate; "original": √max(1, rows / columns).
        rule: "muon" or "adamw", of groups that do not say.
        betas: Decay rates of the "adamw" groups; β₂ = 0.95 as in Jordan's runs.
        eps: ε of the "adamw" groups.
        stacked: Path of a module or name of a parameter, `*` for anything, ↦ how many equally high matrices its rows
            are: 3 · heads of a fused projection takes each head by itself ({"*.in_proj_weight": 24}).

    Raises:
        BadInput: An option breaks its rule; a "muon" group holds what is not a matrix; a parameter is complex or
            sharded; rows cannot be shared out as `stacked` says.
        UnknownName: `stacked` names no hidden matrix.

    Example:
        >>> optimizer = Muon.for_model(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))
        >>> [(group["rule"], group["param_names"]) for group in optimizer.param_groups]
        [('muon', ['0.weight']), ('adamw', ['2.weight']), ('adamw', ['0.bias', '2.bias'])]
    """

    memory = "1 × hidden matrices + 2 × the rest"
    weight_decay: ClassVar[float] = 0.1
    rules: ClassVar[dict[str, options.Rule]] = {
        "lr": options.NOT_NEGATIVE,
        "weight_decay": options.NOT_NEGATIVE,
        "momentum": options.SHARE,
        "nesterov": options.FLAG,
        "steps": options.COUNT,
        "adjust": options.one_of("match_rms_adamw", "original"),
        "rule": options.one_of("muon", "adamw"),
        "betas": options.SHARES,
        "eps": options.NOT_NEGATIVE,
        "stacked": options.COUNTS,
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        weight_decay: float = weight_decay,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        steps: int = 5,
        adjust: str = "match_rms_adamw",
        rule: str = "muon",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        stacked: dict[str, int] | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov, "steps": steps,
                "adjust": adjust, "rule": rule, "betas": betas, "eps": eps,
                "stacked": {} if stacked is None else stacked,
            },
        )  # fmt: skip
        hidden = [n for g in self.param_groups if g["rule"] == "muon" for n in g.get("param_names", ())]
        for pattern in stacked or ():
            if not any(_stands_for(pattern, name) for name in hidden):
                raise UnknownName("hidden matrix with a name for Muon(stacked=...)", pattern, hidden)

    @classmethod
    def for_model(
        cls, model: nn.Module, *, head: Sequence[str] | None = None, adamw_lr: float | None = None, **options: Any
    ) -> Self:
        """Hidden matrices by Muon; embeddings, the output head, norms and biases by AdamW.

        A hidden matrix has at least two dimensions of which both sides exceed 1, and belongs to no embedding and no
        head. Vectors get no weight decay, embeddings neither. Attention heads that are projected by one parameter are
        found, and each is taken by itself; `stacked={}` takes them together.

        Args:
            model: The model; frozen parameters are left out.
            head: Paths of modules or parameters that make the outputs; None: the outermost `nn.Linear` with a
                usual name (`lm_head`, `head`, `classifier`, …), else the last one registered; not the only matrix.
            adamw_lr: The rate of the AdamW groups; None: that of Muon.
            options: Those of the constructor.

        Returns:
            The optimizer.

        Raises:
            UnknownName: There is nothing at a path of `head`.
        """
        decay = options.pop("weight_decay", cls.weight_decay)
        named, tables = trainable("Muon", model), embeddings(model)
        outputs = beneath("Muon", model, sorted(output_head(model)) if head is None else head)
        matrices = {name for name, p in named if _is_matrix(p) and id(p) not in tables}
        hidden = matrices - outputs or (matrices if head is None else set[str]())
        if options.get("stacked") is None:
            options["stacked"] = {name: count for name, count in fused_heads(model).items() if name in hidden}
        outside = {"rule": "adamw"} if adamw_lr is None else {"rule": "adamw", "lr": adamw_lr}
        groups: list[dict[str, Any]] = [
            {"params": [(n, p) for n, p in named if n in hidden], "rule": "muon", "weight_decay": decay},
            {"params": [(n, p) for n, p in named if n in matrices - hidden], "weight_decay": decay, **outside},
            {"params": [(n, p) for n, p in named if n not in matrices], "weight_decay": 0.0, **outside},
        ]
        return cls([group for group in groups if group["params"]], weight_decay=decay, **options)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        options.check_whole("Muon", group, why="orthogonalisation")
        for index, parameter in enumerate(group["params"]):
            if group["rule"] == "muon" and parameter.dim() < 2:
                raise BadInput(
                    f"Muon(params=...): {options.parameter_name(group, index)} has {parameter.dim()} dimensions, "
                    'and needs two. Put it into a group with rule="adamw", or make the optimizer by for_model.'
                )
            count = _stack(group, index)
            if group["rule"] == "muon" and parameter.shape[0] % count:
                raise BadInput(
                    f"Muon(stacked=...): {options.parameter_name(group, index)} has {parameter.shape[0]} rows, which "
                    f"are not {count} equally high matrices. Give a divisor of it, such as 3 · heads."
                )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("stacked", {})  # checkpoints from before there was the option

    def planned_bytes(self) -> int:
        """Memory that the state will take, from the shapes alone."""
        return sum(
            tensor_bytes(_blank(p, group["rule"], "meta")) for group in self.param_groups for p in group["params"]
        )

    def _step_group(self, group: dict[str, Any]) -> None:
        found = [(p, g, self._state_of(p, group)) for _, p, g in options.dense_gradients("Muon", group)]
        if group["rule"] == "adamw":
            adam_step(found, group, group["betas"], float(group["lr"]))
        elif found:
            stacks = {id(p): _stack(group, index) for index, p in enumerate(group["params"])}
            _muon_step([_Part(*each, stacks[id(each[0])]) for each in found], group)

    def _state_of(self, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        state = cast(dict[str, Tensor], self.state[parameter])
        if not state:
            state.update(_blank(parameter, group["rule"], parameter.device))
        return state

    @torch.no_grad()
    def moments(self, parameter: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The first moment, and of parameters under AdamW the second.

        Args:
            parameter: One of the optimizer's.

        Returns:
            Bias-corrected copies; None before the first update, and for the second moment of a hidden matrix.
        """
        group, _ = group_of(self, parameter)
        state = cast(dict[str, Tensor], self.state.get(parameter, {}))
        if not state:
            return None, None
        steps = float(state["step"])
        if group["rule"] == "muon":
            return state["momentum_buffer"] / (1 - group["momentum"] ** steps), None
        beta1, beta2 = group["betas"]
        return state["exp_avg"] / (1 - beta1**steps), state["exp_avg_sq"] / (1 - beta2**steps)

    @torch.no_grad()
    def adopt(
        self,
        parameter: Tensor,
        first: Tensor | None,
        second: Tensor | None,
        steps: int,
        gradients: Sequence[Tensor] | None = None,
    ) -> None:
        """Take over moments; a hidden matrix needs the first only; arguments as in `Transportable.adopt`."""
        group, _ = group_of(self, parameter)
        hidden = group["rule"] == "muon"
        needed = first if hidden and second is None else second
        first, second = completed("Muon", first, needed, steps, gradients)
        state = _blank(parameter, group["rule"], parameter.device)
        state["step"].fill_(steps)
        if hidden:
            state["momentum_buffer"].copy_(first * (1 - group["momentum"] ** steps))
        else:
            beta1, beta2 = group["betas"]
            state["exp_avg"].copy_(first * (1 - beta1**steps))
            state["exp_avg_sq"].copy_(second * (1 - beta2**steps))
        self.state[parameter] = state


class _Part(NamedTuple):
    parameter: Tensor
    gradient: Tensor
    state: dict[str, Tensor]
    stack: int

    @property
    def kind(self) -> tuple[int, int, str]:
        """What must agree for a common orthogonalisation."""
        p = self.parameter
        return p.shape[0] // self.stack, p[0].numel(), f"{p.dtype} {p.device}"


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.dim() >= 2 and parameter.shape[0] > 1 and parameter[0].numel() > 1


def _stands_for(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _stack(group: Mapping[str, Any], index: int) -> int:
    """How many matrices a parameter of a group holds; the first pattern counts."""
    stacked: Mapping[str, int] = group["stacked"]
    found = (n for pattern, n in stacked.items() if _stands_for(pattern, group["param_names"][index]))
    return next(found, 1) if "param_names" in group else 1


def _blank(parameter: Tensor, rule: str, device: torch.device | str) -> dict[str, Tensor]:
    state = blank_moments(parameter, device)
    return state if rule == "adamw" else {"step": state["step"], "momentum_buffer": state["exp_avg"]}


def _muon_step(parts: list[_Part], group: Mapping[str, Any]) -> None:
    rate, momentum = float(group["lr"]), group["momentum"]
    buffers = [part.state["momentum_buffer"] for part in parts]
    gradients = [part.gradient.to(b.dtype) for part, b in zip(parts, buffers, strict=True)]
    many.lerp_(buffers, gradients, 1 - momentum)
    looked = many.lerp(gradients, buffers, momentum) if group["nesterov"] else buffers
    if group["weight_decay"]:
        many.mul_([part.parameter for part in parts], 1 - rate * group["weight_decay"])
    pairs = [(part, x) for part, x in zip(parts, looked, strict=True) if x.numel()]
    for (rows, columns, _), alike in groupby(sorted(pairs, key=lambda pair: pair[0].kind), lambda pair: pair[0].kind):
        same = list(alike)
        matrices = torch.cat([x.reshape(part.stack, rows, columns) for part, x in same])
        directions = newton_schulz(matrices, group["steps"]).split([part.stack for part, _ in same])
        scale = 0.2 * math.sqrt(max(rows, columns))
        if group["adjust"] == "original":
            scale = math.sqrt(max(1.0, rows / columns))
        updates = [
            d.to(wide(p.parameter.dtype)).reshape(p.parameter.shape) for (p, _), d in zip(same, directions, strict=True)
        ]
        many.add_([part.parameter for part, _ in same], updates, alpha=-rate * scale)
    for part in parts:
        part.state["step"].add_(1)
