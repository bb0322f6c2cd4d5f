"""Elastic weight consolidation: a pull towards an old task's weights, stiff where that task's information lies."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dynaxx.core.arguments import at_least
from dynaxx.core.methods import Perturber
from dynaxx.core.parameters import bare_name, is_sharded, local
from dynaxx.errors import BadInput, NotApplicable
from dynaxx.perturb._common import trainable
from dynaxx.perturb._fisher import fisher_diagonal
from dynaxx.perturb._pull import load, pull


class Ewc(Perturber):
    """Elastic weight consolidation: the penalty (λ/2) Σ F (θ − θ*)², as θ ← θ* + (θ − θ*)/(1 + η λ F) after each step.

    θ* are the weights when it is made, F the old task's Fisher information there. It is decoupled: as a term of the
    gradient an adaptive optimizer would rescale it, and it would diverge where η λ F > 2. It comes after the
    optimizer's step, so the logged update is that of the loss alone.

    Args:
        model: The model as the old task left it.
        fisher: Name → F, from `fisher_diagonal`; several tasks: their sum, each times its number of examples.
        old: Instead: a file of `save`, which holds θ* and F. That is how words name an old task:
            `dynaxx train TASK --perturber "ewc:old='old.safetensors',strength=1000"`.
        strength: λ; the number of the old task's examples would make it a posterior, more forgets less.

    Raises:
        BadInput: A number is out of its range, not one of `fisher` and `old` is given, the file cannot be read, or what
            is given is of another model.

    Example:
        `ewc = Ewc.of(model, old_batches, strength=1000.0)`, then `ewc.around(optimizer, closure)`

    Reference: Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks".
    """

    memory: ClassVar[str] = "2 × parameters"

    def __init__(
        self,
        model: nn.Module,
        *,
        fisher: Mapping[str, Tensor] | None = None,
        old: str | None = None,
        strength: float = 1.0,
    ) -> None:
        if (fisher is None) == (old is None):
            raise BadInput(
                "Ewc(fisher=..., old=...): give one of them, so that it is known what must stay. "
                "`Ewc.of(model, old_batches).save(path)` writes the file that `old` names."
            )
        self._strength = at_least("Ewc", "strength", strength, 0.0)
        self._named = trainable("Ewc", model)
        self._anchors: dict[Tensor, Tensor] = {p: local(p.detach()).clone() for p in self._named.values()}
        self._fisher: dict[Tensor, Tensor] = {p: torch.zeros_like(anchor) for p, anchor in self._anchors.items()}
        if old is not None:
            self.load_state_dict(_read(old))
        elif fisher is not None:
            load(self._fisher, self._named, {bare_name(n): local(f) for n, f in fisher.items()}, "Ewc(fisher=...)")

    @classmethod
    def of(cls, model: nn.Module, batches: Iterable[Any], *, strength: float = 1.0, **options: Any) -> "Ewc":
        """From batches of the old task.

        Args:
            model: The model as the old task left it.
            batches: Some of the old task's.
            strength: λ.
            options: Those of `fisher_diagonal`.

        Returns:
            The perturber.
        """
        return cls(model, fisher=fisher_diagonal(model, batches, **options), strength=strength)

    def save(self, path: str | Path) -> None:
        """Write θ* and F to a file, for a later training to keep to.

        Args:
            path: A file in the format of safetensors.

        Raises:
            NotApplicable: Parameters are sharded, so no rank has them whole.
        """
        if any(is_sharded(p) for p in self._named.values()):
            raise NotApplicable("Ewc.save(): parameters are sharded. Gather the model on one rank.")
        state = self.state_dict()
        save_file({f"{part}.{name}": t.contiguous() for part in state for name, t in state[part].items()}, path)

    def begin(self) -> None:
        """Nothing changes within the step."""

    def ascend(self) -> bool:
        """The gradients are those to be used."""
        return False

    def restore(self) -> None:
        """Nothing was changed."""

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Pull."""
        pull(optimizer, self._anchors, self._strength, self._fisher)

    def state_dict(self) -> dict[str, Any]:
        """θ* and F by name, this rank's parts."""
        return {
            "anchor": {name: self._anchors[p] for name, p in self._named.items()},
            "fisher": {name: self._fisher[p] for name, p in self._named.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        load(self._anchors, self._named, state["anchor"], "Ewc")
        load(self._fisher, self._named, state["fisher"], "Ewc")


def _read(path: str) -> dict[str, dict[str, Tensor]]:
    """The state in a file of `save`."""
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadInput(
            f"Ewc(old={path!r}) cannot be read: {error}. Write it with `Ewc.of(model, old_batches).save(path)`."
        ) from error
    return {
        part: {key.removeprefix(f"{part}."): t for key, t in found.items() if key.startswith(f"{part}.")}
        for part in ("anchor", "fisher")
    }
