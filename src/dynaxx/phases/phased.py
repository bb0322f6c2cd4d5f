"""One optimizer object for a training in phases: schedulers, checkpoints and `dynaxx.watch` see a single one."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from dynaxx.core.arguments import at_least
from dynaxx.core.methods import Averager, ModelOptimizer, Perturber
from dynaxx.core.parameters import Layout
from dynaxx.errors import BadInput, UnknownName
from dynaxx.phases._groups import common_groups, multiplied, options_by_phase
from dynaxx.phases._release import Release
from dynaxx.phases.phase import Phase, Stage, stages
from dynaxx.phases.switch import Switch, refuse_unsound, transport, warmup_steps

_RECORD = "phased"
"""Under this key of the state stands what is not any parameter's."""
_IMPLEMENTATIONS = ("foreach", "fused")


class Phased(Optimizer):
    """Optimizer after optimizer over one set of parameter groups, with averages and perturbations by phase.

    The groups are the coarsest that fit the optimizers of all phases, and last through all of them. A rate written
    there is that of the first phase; a later one, whose optimizer was made with other rates, takes it times
    η_phase / η₁ (`rates`), so a scheduler's curve goes on across a switch. Weight decay that a phase does not name
    keeps η λ as before.

    A switch of the optimizer is prepared over the last `gradients` steps, whose gradients are kept (so many times the
    parameters' memory, in checkpoints too), and happens behind all hooks of a step: what they measure is still the old
    optimizer's. `transport` says what is handed over. Averages start anew at every switch.

    No rule in here looks at the loss: optimizers compare only where both have been annealed.

    Args:
        model: The model.
        phases: In their order.
        steps: Planned optimizer steps.
        switch_when: Asked with the number of each completed step; True: the next phase is due. All ranks must agree.
        gradients: Sets of gradients for a switch; 8 bootstrap Kronecker factors well (references: 8 to 32).
        force: Go from an adaptive method to SGD on a model with embeddings.

    Raises:
        UnknownName: A phase names what does not exist.
        BadInput: The plan breaks a rule, or one of its switches is known to fail.

    Example:
        ```python
        optimizer = Phased(model, [
            Phase(name="sculpt", until=0.6, optimizer="soap:every=10", averaging="ema:half_life=200"),
            Phase(name="flatten", until=0.8, perturb="sam:rho=0.5,every=5"),
            Phase(name="settle", until=1.0, optimizer="adamw:lr=1e-3", perturb="none"),
        ], steps=10_000)
        scheduler = as_scheduler(optimizer, WarmupStableDecay(steps=10_000, warmup=500))
        run = dynaxx.watch(model, optimizer, "runs/phased", scheduler=scheduler)
        ```
    """

    def __init__(
        self,
        model: nn.Module,
        phases: Sequence[Phase],
        *,
        steps: int,
        switch_when: Callable[[int], bool] | None = None,
        gradients: int = 8,
        force: bool = False,
    ) -> None:
        at_least("Phased", "gradients", gradients, 1)
        self.inner: Any = None  # torch's constructor adds groups, which is refused later on
        self._stages = stages(phases, steps)
        self._model, self._layout = model, Layout(model)
        self._switch_when, self._most, self._force = switch_when, gradients, force
        made = {str(stage.optimizer): cast(ModelOptimizer, stage.optimizer.build(model)) for stage in self._stages}
        self._made = [made[str(stage.optimizer)] for stage in self._stages]
        for before, after in zip(self._made, self._made[1:], strict=False):
            if after is not before:
                refuse_unsound(type(before), type(after), model, force=force)
        super().__init__(common_groups(model, list(made.values())), {})
        self._options = options_by_phase(self._stages, self._made, self.param_groups)
        self.phase, self.taken = 0, 0
        self.averager: Averager | None = None
        """The averager in force."""
        self.perturber: Perturber | None = None
        """The perturber in force; the loop asks for it before each step."""
        self.switches: list[Switch] = []
        """What was handed over so far."""
        self._since = self._grace_until = 0
        self._wanted: int | None = None
        self._kept: list[dict[str, Tensor]] = []
        self._release = Release(self._layout)
        self._use(self._made[0], self._options[0])
        self._engage(None, self._stages[0])
        self._hook = self.register_step_post_hook(self._behind)

    # ------------------------------------------------------------------------------------------------ what it is doing

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the phases."""
        return tuple(stage.name for stage in self._stages)

    @property
    def name(self) -> str:
        """The name of the phase that the coming step belongs to; `phase` is its number, `taken` the completed steps."""
        return self._stages[self.phase].name

    @property
    def rates(self) -> tuple[float, ...]:
        """η_phase / η₁ by group: by what the coming step multiplies the groups' rates."""
        return self._rates(self.phase)

    @property
    def factors(self) -> tuple[float, ...]:
        """By what the coming step is multiplied in each layer, so soon behind a switch that it is still matched."""
        return tuple(self._release.factors)

    def in_grace(self, step: int) -> bool:
        """Whether a step is so soon behind a switch that its loss and norms may be a transient.

        SAM lets the loss rise when it begins, and a new optimizer re-warms: twice max(10, 2 / (1 − β₂)) steps.

        Args:
            step: Its number; of the present phase.

        Returns:
            True within the window.
        """
        return self._since < step <= self._grace_until

    def planned_bytes(self) -> int:
        """Memory that the state of the largest phase will take; at a switch there are two, and the gradients."""
        return max(optimizer.planned_bytes() for optimizer in self._made)

    # ------------------------------------------------------------------------------------------------ stepping

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The step of the phase's optimizer.

        Args:
            closure: Handed on.

        Returns:
            What the optimizer returned.
        """
        # Behind every other hook, whoever came first: they measure, undo and average what is this phase's.
        self._hook.remove()
        self._hook = self.register_step_post_hook(self._behind)
        with multiplied(self.param_groups, self.rates), self._release.slowed():
            found = self.inner.step() if closure is None else self.inner.step(closure)
        if self._gathering():
            pairs = zip(self._layout.names, self._layout.parameters, strict=True)
            self._kept.append({name: p.grad.detach().clone() for name, p in pairs if p.grad is not None})
            del self._kept[: -self._most]
        return found

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients.

        Args:
            set_to_none: Drop them instead of writing zeros.
        """
        self.inner.zero_grad(set_to_none=set_to_none)

    def switch(self, name: str) -> None:
        """Go to another phase: at once where the optimizer stays, else as soon as enough gradients have been seen.

        Args:
            name: The phase; an earlier one lasts until the next switch by hand or signal.

        Raises:
            UnknownName: There is no such phase.
            BadInput: It is the present one, or the switch is known to fail.
        """
        if name not in self.names:
            raise UnknownName("phase", name, self.names)
        target = self.names.index(name)
        if target == self.phase:
            raise BadInput(f"Phased.switch({name!r}): this is the present phase. Name another of {self.names}.")
        if self._made[target] is not self.inner:
            refuse_unsound(type(self.inner), type(self._made[target]), self._model, force=self._force)
        self._wanted = target
        if self._made[target] is self.inner:
            self._go_on()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only while it is constructed.

        Args:
            param_group: Parameters and options.

        Raises:
            BadInput: Afterwards: the groups belong to the optimizers of all phases.
        """
        if self.inner is not None:
            raise BadInput(
                "Phased.add_param_group(...): the groups are those of all phases. Unfreeze before making it."
            )
        super().add_param_group(param_group)

    # ------------------------------------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """The state of the phase's optimizer, and `state["phased"]`, where the plan stands: tensors, plain values."""
        found = self.inner.state_dict()
        record = {
            "plan": self._plan(),
            "phase": self.phase,
            "taken": self.taken,
            "since": self._since,
            "grace_until": self._grace_until,
            "wanted": self._wanted,
            "gradients": [dict(each) for each in self._kept],
            "release": self._release.state_dict(),
            "switches": [asdict(each) for each in self.switches],
            "averager": None if self.averager is None else self.averager.state_dict(),
            "perturber": None if self.perturber is None else self.perturber.state_dict(),
        }
        return {**found, "state": {**found["state"], _RECORD: record}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, in the phase and at the place that it was saved at.

        Args:
            state_dict: What `state_dict` returned; it is copied.

        Raises:
            BadInput: It is no state of a `Phased`, or of another plan.
        """
        record = state_dict["state"].get(_RECORD)
        if record is None or record["plan"] != self._plan():
            what = "not the state of a Phased" if record is None else f"the plan was {record['plan']}"
            raise BadInput(f"Phased.load_state_dict(...): {what}; this one is {self._plan()}. Give the same phases.")
        record = deepcopy(record)
        stage = self._stages[record["phase"]]
        self._leave()
        self.phase, self.taken, self._since = record["phase"], record["taken"], record["since"]
        self._grace_until, self._wanted = record["grace_until"], record["wanted"]
        named = dict(zip(self._layout.names, self._layout.parameters, strict=True))
        self._kept = [{n: g.to(named[n].device) for n, g in each.items()} for each in record["gradients"]]
        self.switches = [Switch(**_tuples(each)) for each in record["switches"]]
        self._use(self._made[self.phase], self._options[self.phase])
        self._load_inner(state_dict)
        self._release.load_state_dict(record["release"])
        self._engage(None, stage)
        for part, saved in ((self.averager, record["averager"]), (self.perturber, record["perturber"])):
            if part is not None:
                part.load_state_dict(saved)

    def _load_inner(self, state_dict: Mapping[str, Any]) -> None:
        own = self._options[self.phase]
        groups = [  # fused or foreach is as the optimizer was made, not as that of the phase which loads
            {**then, **{key: now[key] for key in _IMPLEMENTATIONS if key in then and key in now}}
            for then, now in zip(state_dict["param_groups"], own, strict=True)
        ]
        state = {key: value for key, value in state_dict["state"].items() if key != _RECORD}
        self.inner.load_state_dict({"state": state, "param_groups": groups})
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    def _plan(self) -> list[list[Any]]:
        return [
            [s.name, s.end, str(s.optimizer), None if s.averaging is None else str(s.averaging),
             None if s.perturb is None else str(s.perturb)]
            for s in self._stages
        ]  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        raise BadInput(
            "Phased cannot be copied or pickled: its optimizers hold the model's own parameters. Make another one for "
            "the other model, and give it state_dict()."
        )

    # ------------------------------------------------------------------------------------------------ switching

    def _behind(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """A step is complete: average it, and go on to the next phase where that is due."""
        del optimizer, args, kwargs
        self.taken += 1
        self._release.tick()
        if self.averager is not None:
            self.averager.update()
        following = self.phase + 1 if self.phase + 1 < len(self._stages) else None
        asked = self._wanted is None and following is not None and self._switch_when is not None
        if asked and self._switch_when is not None and self._switch_when(self.taken):
            self._wanted = following
        left = self._left()
        if self._wanted is None and left is not None and left <= 0:
            self._wanted = following
            self._go_on()
        elif self._wanted is not None and (len(self._kept) >= self._most or self._made[self._wanted] is self.inner):
            self._go_on()

    def _left(self) -> int | None:
        """Steps until the planned end of the phase; None without one, or where it was entered behind it."""
        end = self._stages[self.phase].end
        planned = end is not None and end > self._since and self.phase + 1 < len(self._stages)
        return end - self.taken if planned and end is not None else None

    def _gathering(self) -> bool:
        """Whether the gradients of the step in progress are kept for a switch."""
        if self._wanted is not None:
            return True
        left = self._left()
        return left is not None and left <= self._most and self._made[self.phase + 1] is not self.inner

    def _go_on(self) -> None:
        assert self._wanted is not None
        target, self._wanted = self._wanted, None
        before, after, incoming = self._stages[self.phase], self._stages[target], self._made[target]
        window = 0
        if incoming is not self.inner or (after.perturb is not None and after.perturb != before.perturb):
            window = warmup_steps(self._options[target])
        if incoming is not self.inner:
            found = self._hand_over(target)
            self.switches.append(replace(found, source=before.name, target=after.name, step=self.taken))
            self._release.begin(found.factors, found.warmup)
            self._leave()
            self._use(incoming, self._options[target])
        self.phase, self._since, self._grace_until = target, self.taken, self.taken + 2 * window
        self._kept.clear()
        self._engage(before, after)

    def _hand_over(self, target: int) -> Switch:
        incoming, groups = self._made[target], zip(self.param_groups, self._options[target], strict=True)
        incoming.param_groups = [
            {**options, "params": g["params"], "param_names": g["param_names"], "lr": g["lr"]} for g, options in groups
        ]
        with multiplied(self.param_groups, self.rates), multiplied(incoming.param_groups, self._rates(target)):
            return transport(
                self.inner, incoming, self._kept, model=self._model, factors=self.factors, force=self._force
            )

    def _rates(self, phase: int) -> tuple[float, ...]:
        pairs = zip(self._options[phase], self._options[0], strict=True)
        return tuple(float(own["lr"]) / float(first["lr"]) if float(first["lr"]) else 1.0 for own, first in pairs)

    def _leave(self) -> None:
        """Drop what the optimizer in force holds."""
        self.inner.state = type(self.inner.state)(dict)
        self.inner.param_groups = []

    def _use(self, optimizer: ModelOptimizer, options: Sequence[Mapping[str, Any]]) -> None:
        """Put an optimizer in force; groups keep their identity, their rates and what schedulers have written there."""
        known = {key for each in self._options for group in each for key in group} - {"lr"}
        for group, own in zip(self.param_groups, options, strict=True):
            for key in known & group.keys():
                del group[key]
            group.update({key: value for key, value in own.items() if key != "lr" or "lr" not in group})
        optimizer.param_groups = self.param_groups
        self.inner, self.state, self.defaults = optimizer, optimizer.state, optimizer.defaults

    def _engage(self, before: Stage | None, after: Stage) -> None:
        """Averager and perturber of a phase: kept ones go on (the averages from nothing), others are made."""
        if before is None or after.averaging != before.averaging:
            self.averager = None if after.averaging is None else after.averaging.build(self._model)
        elif self.averager is not None:
            self.averager.restart()
        if before is None or after.perturb != before.perturb:
            self.perturber = None if after.perturb is None else after.perturb.build(self._model)


def _tuples(record: Mapping[str, Any]) -> dict[str, Any]:
    """Sequences of a record as tuples, as other formats than torch's bring them back as lists."""
    return {key: tuple(cast(Any, value)) if isinstance(value, list) else value for key, value in record.items()}
