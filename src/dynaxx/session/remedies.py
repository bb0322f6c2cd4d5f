"""What the session does itself between two batches: live checks, rollbacks and branch trials."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dynaxx import catalog
from dynaxx.core.findings import Finding
from dynaxx.core.isolation import isolated_random
from dynaxx.core.navigation import Check, LivePoint
from dynaxx.core.records import Action, Receipt
from dynaxx.errors import BadInput, DynaxxError, NotApplicable
from dynaxx.session.hooks import quietly
from dynaxx.session.live import Live


class NotYet(Exception):
    """A remedy has to wait for the next epoch."""


class Remedies:
    """Remedies waiting for the next batch, where the loop stands between two steps and its gradients are clear.

    Args:
        live: The loop's hooks.
        point: The live run for a check; raises `NotApplicable` where there is no loss or no batch.
        rollback: Goes back: `(before, findings, data, then, further)`.
        trial: Tries arms: `(arms, steps, scale)`.
        event: Writes an event at the present step.
        receipt: Writes the receipt of a remedy that could not be carried out.
        first: Whether this is the first rank, the only one that checks.
    """

    def __init__(
        self,
        *,
        live: Live,
        point: Callable[[], LivePoint],
        rollback: Callable[..., None],
        trial: Callable[..., None],
        event: Callable[..., None],
        receipt: Callable[[Receipt], None],
        first: bool,
    ) -> None:
        self._live, self._point, self._rollback, self._trial = live, point, rollback, trial
        self._event, self._receipt, self._first = event, receipt, first
        self._waiting: list[Action] = []
        self.findings: Callable[[], Sequence[Finding]] = tuple
        """What stands against checkpoints."""
        self.found: Callable[[str, Mapping[str, Any], int], None] = lambda name, values, step: None
        """Called with what a check found."""

    @property
    def waiting(self) -> bool:
        """Whether anything waits for the next batch."""
        return bool(self._waiting)

    def ask(self, action: Action) -> None:
        """Have a remedy carried out before the next batch.

        Args:
            action: "check", "rollback" or "trial", with what it takes.
        """
        self._waiting.append(action)

    def carry_out(self) -> None:
        """Carry out what waits, unless the loop is in the middle of a step."""
        if not self._waiting or self._live.partial:
            return
        self._live.pause()
        later: list[Action] = []
        while self._waiting:  # a rollback may ask for a trial, before the first step is taken anew
            action = self._waiting.pop(0)
            try:
                self._one(action)
            except NotYet:
                later.append(action)
            except DynaxxError as error:
                self._receipt(Receipt(action=action, step=self._live.step, status="refused", detail=str(error)))
        self._waiting = later

    def check(self, name: str, **arguments: Any) -> Mapping[str, Any]:
        """Look at the live run; what is found goes to the log as an event of kind "check".

        Args:
            name: The check.
            arguments: What it takes.

        Returns:
            What was found.

        Raises:
            NotApplicable: It cannot speak, with the reason. UnknownName: there is no such check. BadInput: an argument
                breaks its rule.
        """
        kind = catalog.get("checks", name)
        try:
            check: Check = kind(**arguments)
        except TypeError as error:
            raise BadInput(f"check({name!r}, ...): {error}.") from None
        start = time.perf_counter()
        cost = {"forwards": check.cost.forwards, "backwards": check.cost.backwards}
        try:
            with quietly(), isolated_random():
                values = check.look(self._point())
        except NotApplicable as reason:
            self._event("check", name=name, arguments=arguments, not_applicable=str(reason))
            raise
        except DynaxxError:
            raise
        except Exception as error:  # of the user's loss or of a plug-in: a look must never stop a training
            self._event("check", name=name, arguments=arguments, not_applicable=f"it failed: {error!r}")
            raise NotApplicable(f"the check {name!r} failed: {error!r}") from error
        finally:
            seconds = time.perf_counter() - start
            self._live.spent(seconds)
        self._event("check", name=name, arguments=arguments, values=dict(values), cost=cost, seconds=seconds)
        self.found(name, values, self._live.step)
        return values

    def state_dict(self) -> list[dict[str, Any]]:
        """What waits, as plain data."""
        return [plain(action) for action in self._waiting]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Go on from a checkpoint.

        Args:
            state: What `state_dict` returned.
        """
        self._waiting = [Action(**each) for each in state]

    def _one(self, action: Action) -> None:
        given = dict(action.arguments)
        match action.name:
            case "check":
                if self._first:
                    self.check(given.pop("check"), **given)
            case "rollback":
                then = [Action(**each) for each in given.get("then", ())]
                data = "pass" if given.get("pass_data", True) else "rewind"
                further = int(given.get("further", 0))
                self._rollback(int(given["before"]), self.findings(), data=data, then=then, further=further)
            case _:
                arms = {arm: [Action(**each) for each in actions] for arm, actions in given["arms"].items()}
                scale = float(given.get("scale", 1.0))
                self._trial(arms, int(given["steps"]), scale=scale, reason=action.reason)


def plain(action: Action) -> dict[str, Any]:
    """An action as plain data, from which `Action(**it)` makes it again.

    Args:
        action: The action.

    Returns:
        Its fields.
    """
    return {"name": action.name, "arguments": dict(action.arguments), "steps": action.steps, "reason": action.reason}
