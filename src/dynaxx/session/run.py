"""The run: what `dynaxx.watch` returns, and everything a loop can ask of it."""

import atexit
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from dynaxx.actuator import Actuator
from dynaxx.checkpoints import CheckpointInfo, Policy
from dynaxx.core.navigation import Mode
from dynaxx.core.objective import LossFunction
from dynaxx.core.records import Action, Receipt
from dynaxx.errors import BadInput, DynaxxWarning
from dynaxx.runlog import LogWriter, RunView, open_run
from dynaxx.runlog.recorder import Recorder
from dynaxx.session.calibration import Calibration
from dynaxx.session.checkpoints import RunCheckpoints
from dynaxx.session.data import Data
from dynaxx.session.hooks import Hooks
from dynaxx.session.instruments import Instruments
from dynaxx.session.live import Live
from dynaxx.session.logged import Logged
from dynaxx.session.moments import Due, Moments
from dynaxx.session.saving import Saving
from dynaxx.session.steering import Parts, Steering
from dynaxx.session.training import Training


class Run:
    """A training that is being watched. Made by `dynaxx.watch`; use it as a context manager or call `close`.

    Attributes:
        dir: The run's folder.
        resumed_from: The checkpoint that the run was restored from, or None.
    """

    def __init__(
        self,
        *,
        training: Training,
        writer: LogWriter | None,
        recorder: Recorder,
        instruments: Instruments,
        actuator: Actuator,
        live: Live,
        hooks: Hooks,
        data: Data,
        checkpoints: RunCheckpoints,
        receipt: Callable[[Receipt], None],
        loss: LossFunction | None,
        navigate: Mode,
        steps: int | None,
        quiet: bool,
        reserved: frozenset[str],
    ) -> None:
        self.dir: Path = checkpoints.store.folder.parent
        self.resumed_from: CheckpointInfo | None = None
        self._training = training
        self._writer = writer
        self._recorder = recorder
        self._instruments = instruments
        self._actuator = actuator
        self._live = live
        self._hooks = hooks
        self._data = data
        self._steps = steps
        self._saving = Saving(checkpoints, self._event, self._warn, steps)
        self._values = Logged(recorder, reserved, self._warn)
        self._moments = Moments(steps)
        self._closed = False
        parts = Parts(
            folder=self.dir,
            training=training,
            live=live,
            hooks=hooks,
            data=data,
            instruments=instruments,
            actuator=actuator,
            recorder=recorder,
            writer=writer,
            saving=self._saving,
            loss=loss,
            steps=steps,
            quiet=quiet,
            event=self._event,
            warn=self._warn,
            receipt=receipt,
        )
        self.steering = Steering(navigate, parts, self.save)
        self.steering.went_back = self._moments.clear
        self._calibration = Calibration(self.dir, training, live, instruments, self.steering, self._event, quiet=quiet)
        live.after_calibration = self._calibration.make
        weak = weakref.ref(self)
        self._at_exit = atexit.register(lambda: _close_at_exit(weak))  # of its own: unregistering goes by equality

    @property
    def step(self) -> int:
        """Completed optimizer updates."""
        return self._live.step

    @property
    def epoch(self) -> int:
        """Completed passes over the data, where batches come from `run.batches`."""
        return self._data.epoch

    @property
    def stopping(self) -> str | None:
        """Why the run is to end, once something has asked for it; None while it goes on."""
        return self._actuator.stopping

    @property
    def overhead(self) -> float:
        """Share of the step time that measuring took, since cadences were set (or so far, before that)."""
        return self._live.overhead

    def log(self, **values: torch.Tensor | float) -> None:
        """Log values of the step just finished, until the next training forward begins; then of the coming step.

        Several values of one name within a step (accumulation) are averaged. Tensors are welcome: nothing waits.

        Args:
            values: Name → number or tensor with one element.

        Raises:
            BadInput: A value's first occurrence is not a single number. Later ones are left out and counted.

        Example:
            `run.log(loss=loss, accuracy=0.9)`
        """
        self._values.take(self._live.current, values)

    def batches(self, loader: Any) -> Iterator[Any]:
        """One epoch of a loader's batches, from where the run is.

        On a resumed run completed epochs yield nothing and the interrupted one goes on behind its last batch. The
        iteration ends early when the run is asked to stop.

        Args:
            loader: Anything that can be iterated anew each epoch: a DataLoader, a list.

        Yields:
            The batches.

        Raises:
            BadInput: The loader is a one-shot iterator.
        """
        for batch in self._data.batches(loader):
            self._live.epoch = self._data.passes
            self.steering.batch(batch)
            yield batch

    def due(self, what: Due) -> bool:
        """Whether it is time for something; True once per step at most.

        Evaluation is due every max(1, steps // 50) steps, a checkpoint every max(1, steps // 20), both every 100 where
        `steps` is unknown, and both at the last step.

        Args:
            what: "evaluation" or "checkpoint".

        Returns:
            True when it is due.

        Raises:
            BadInput: Something else was asked for.
        """
        if not self._moments.due(what, self.step):
            return False
        self._live.pause()
        return True

    def apply(
        self, name: str, *, steps: int | None = None, reason: str = "asked for by the user", **arguments: Any
    ) -> Receipt:
        """Act on the run; the receipt goes to the log.

        Args:
            name: An entry of `dynaxx list actions`: learning_rate (factor), gradient_clip (max_norm), stop …
            steps: For how many steps; None: until lifted by `run.lift(name)`.
            reason: Why, in words.
            arguments: What the action takes.

        Returns:
            The receipt.

        Raises:
            UnknownName: There is no such action.
            BadInput: An argument breaks the action's rule.

        Example:
            `run.apply("learning_rate", factor=0.5, steps=200, reason="loss oscillates")`
        """
        if name == "accumulate" and not self.steering.accumulates:
            raise BadInput("run.apply('accumulate'): a loop of your own decides itself how many batches it takes.")
        return self._actuator.begin(Action(name=name, arguments=arguments, steps=steps, reason=reason), self.step)

    def lift(self, name: str) -> None:
        """End an action before its steps are over.

        Args:
            name: The action.
        """
        self._actuator.lift(name, self.step)

    def kick(self, factor: float = 3.0, *, steps: int | None = None, reason: str = "asked for by the user") -> Receipt:
        """Raise the learning rates at once, and let them die away to what they were: out of a wide plateau.

        Args:
            factor: Between 1 and 10; 2 to 5 is usual.
            steps: Over how many steps; None: a fiftieth of the planned ones, at least 20.
            reason: Why, in words.

        Returns:
            The receipt.

        Raises:
            BadInput: An option is out of range.

        Example:
            `run.kick(3)`
        """
        over = max(20, (self._steps or 0) // 50) if steps is None else steps
        return self.apply("kick", steps=over, reason=reason, factor=factor, over=over)

    def rollback(
        self,
        before: int | None = None,
        *,
        data: Literal["pass", "rewind"] = "pass",
        learning_rate: float | None = None,
        clip: float | None = None,
        reason: str = "asked for by the user",
    ) -> None:
        """Go back to the newest healthy checkpoint, in place, before `run.batches` gives the next batch.

        The log goes on from its step in a new attempt. Under several ranks every one must call it, at the same step.
        Where no checkpoint will do, the receipt in the log says why, and the run goes on.

        Args:
            before: The checkpoint must lie before this step; None: before the present one.
            data: "pass": go on with the batches that come next, those since the checkpoint are not trained on again.
                "rewind": take position and random streams back too, where the checkpoint lies in the same epoch.
            learning_rate: What the learning rates are multiplied by from there on.
            clip: Clip the total gradient norm at this value from there on.
            reason: Why, in words.

        Raises:
            BadInput: An option is out of range.
            NotApplicable: The loop does not take its batches from `run.batches`.
        """
        asked = (("learning_rate", "factor", learning_rate), ("gradient_clip", "max_norm", clip))
        then = [Action(name=name, arguments={key: v}, reason=reason) for name, key, v in asked if v is not None]
        self.steering.ask_rollback(max(1, self.step) if before is None else before, data, then, reason)

    def check(self, name: str, **arguments: Any) -> Mapping[str, Any]:
        """Look at the live run between two steps, leaving no trace; what is found goes to the log.

        Args:
            name: An entry of `dynaxx list checks`.
            arguments: What it takes.

        Returns:
            What was found.

        Raises:
            UnknownName: There is no such check.
            NotApplicable: It cannot speak, with the reason: no `loss=`, no batches from `run.batches`.
            BadInput: An argument breaks its rule.

        Example:
            `run.check("replay_batch")["ratio"]`
        """
        self._live.pause()
        return self.steering.remedies.check(name, **arguments)

    def save(self, *, keep: int | Policy = 3, wait: bool = True, **facts: Any) -> CheckpointInfo | None:
        """Commit a full-state checkpoint of this step; call it after `log`, outside an accumulation.

        Under several ranks it is a collective: every rank must call it, at the same step, and rank 0 writes. A disk
        that is full or gone costs the checkpoint and a warning, not the training.

        Args:
            keep: How many of the latest stay, or a retention policy; pinned and the last two healthy ones do besides.
            wait: Return when it is on disk; False: when the state is copied, and write it beside the training.
            facts: What a reader should know of it, as JSON: metrics, reasons; "step", "id", "time" … are the log's own.

        Returns:
            What was written; None where it could not be, while it is still being written, and on ranks other than the
            first.
        """
        self._live.pause()
        if self._live.partial:
            self._warn(
                "run.save() within an accumulation: the gradients so far are not kept, so a resumed run will differ."
            )
        state = {
            **self._training.capture(),
            "run": {
                "step": self.step,
                "skipped": self._live.skipped,
                "asked": self._moments.state_dict(),
                "data": self._data.state_dict(),
                "instruments": self._instruments.state_dict(),
                "actuator": self._actuator.state_dict(),
                "steering": self.steering.state_dict(),
                "saving": self._saving.state_dict(),
            },
        }
        if not self._saving.checkpoints.writes:
            return None
        self.flush(fsync=wait)
        return self._saving.save(self.step, state, facts, keep=keep, wait=wait)

    def view(self) -> RunView:
        """The run's log so far, to read."""
        return open_run(self.dir)

    def flush(self, *, fsync: bool = False) -> None:
        """Bring everything measured so far to disk.

        Args:
            fsync: Wait until it would survive a loss of power.
        """
        self._recorder.drain()
        if self._writer is not None and not self._writer.closed:
            self._writer.flush(fsync=fsync)

    def close(self, status: str = "finished") -> None:
        """End the watch: the log is complete, the loop goes on without Dynaxx. A second call does nothing.

        Args:
            status: "finished", "interrupted" or "failed", for the reader of the log.
        """
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self._at_exit)
        if not self._calibration.tested:
            self._calibration.test(self.overhead)
        self.steering.finish()
        self._hooks.close()
        self._instruments.close()
        self._recorder.drain()
        self._saving.close(self.step if status == "finished" else None)
        self._event("run_end", overhead=self.overhead, status=status, refused=self._values.refused)
        if self._writer is not None:
            self._writer.close(status)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt | SystemExit)
        self.close("finished" if kind is None else "interrupted" if interrupted else "failed")

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()

    def __repr__(self) -> str:
        return f"<Run {self.dir} at step {self.step}, overhead {self.overhead:.1%}>"

    def restore(self, state: Mapping[str, Any], info: CheckpointInfo) -> None:
        """Take up counters, position, instruments and actions of a checkpoint; the training is restored already.

        Args:
            state: The checkpoint's state.
            info: What it is.
        """
        run = state["run"]
        self.resumed_from = info
        self._moments.load_state_dict(run["asked"])
        self._live.begin_at(run["step"], run["skipped"])
        self._data.load_state_dict(run["data"])
        self._instruments.load_state_dict(run["instruments"])
        self._actuator.load_state_dict(run["actuator"])
        self.steering.load_state_dict(run.get("steering", {}))
        self._saving.load_state_dict(run.get("saving", {}))
        if self._training.rank == 0:
            self._saving.store.continue_from(info)
        self._calibration.tested = self._instruments.calibrated
        self._event("resumed", id=info.id, level=self._training.level, reasons=list(self._training.reasons))

    def _event(self, kind: str, **fields: Any) -> None:
        if self._writer is not None and not self._writer.closed:
            self._writer.event(kind, step=self.step, **fields)

    def _warn(self, message: str) -> None:
        self._event("warning", message=message)
        warnings.warn(message, DynaxxWarning, stacklevel=3)


def _close_at_exit(reference: Callable[[], Run | None]) -> None:
    if (run := reference()) is not None:
        run.close("finished" if getattr(sys, "last_value", None) is None else "failed")
