"""Turns what the hooks see into numbered steps: prepares them, has them measured, acts on them, keeps their times."""

import time
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.optim import Optimizer

from dynaxx.actuator import Actuator
from dynaxx.core.events import Event, StepBatch, StepTimes, StepView
from dynaxx.core.parameters import Layout, is_sharded
from dynaxx.core.task import first_tensor
from dynaxx.numerics.flops import CountFlops
from dynaxx.numerics.reductions import accumulated_square
from dynaxx.runlog.recorder import Recorder
from dynaxx.session.counted import count
from dynaxx.session.instruments import Instruments
from dynaxx.session.no_grad import NoGrad
from dynaxx.session.trace import Trace

_COUNTED = 2
"""The forward whose operations are counted: the first may compile, pad or initialise lazily."""
_ASKED = "asked for by the action skip"
_OVERFLOW = "gradients overflowed under the gradient scaler"
_STRANGE = 10
"""Updates by another optimizer in a row, without one by the watched optimizer, before it is said."""


class Live:
    """One training loop as seen through its hooks. Step n is the n-th completed update.

    Args:
        layout: The model's parameters by layer.
        optimizer: The innermost optimizer.
        scaler: The gradient scaler, or None.
        instruments: The signals.
        actuator: The only writer.
        recorder: Where measurements go.
        world_size: Ranks that train together.
        left_out: Called with the step and the reason whenever an update is left out.
        warn: Called with a message where nothing can be measured.
    """

    def __init__(
        self,
        layout: Layout,
        optimizer: Optimizer,
        scaler: Any,
        instruments: Instruments,
        actuator: Actuator,
        recorder: Recorder,
        *,
        world_size: int,
        left_out: Callable[[int, str], None],
        warn: Callable[[str], None],
    ) -> None:
        self.layout = layout
        self.optimizer = optimizer
        self.scaler = scaler
        self.instruments = instruments
        self.actuator = actuator
        self.recorder = recorder
        self.step = 0
        self.epoch: float | None = None
        self.forwards_seen = 0
        self.clips_seen = False
        self.scaler_unseen = False
        """Whether a forward ran under float16 autocast while no gradient scaler could be seen."""
        self.had_gradient: set[int] = set()
        self.trace = Trace(())
        """What the batches leave in the model's buffers; of none until they are given."""
        self.after_calibration: Callable[[], None] = lambda: None
        self.after_step: Callable[[int], None] = lambda left_out: None
        """Called at the end of each step, with 0, and of each update left out, with how many were in a row."""
        self._world_size = world_size
        self._left_out = left_out
        self._warn = warn
        self._skipped = 0
        self._skipped_since = 0
        self._strange = 0
        self._flops_per_sample = 0.0
        self._counting: tuple[CountFlops, int] | None = None
        self._view = self._new_view()
        self._no_grad = NoGrad()
        self._measured = self._looking = self._backward = self._stepping = self._evaluated = False
        self._last_end = self._mark = time.perf_counter()
        self._pause = 0.0
        self._pause_began: float | None = None
        self._data = 0.0
        self._spent = self._passed = 0.0

    @property
    def overhead(self) -> float:
        """Seconds of measuring per second of the rest of the steps, since the last reset."""
        rest = self._passed - self._spent
        return self._spent / rest if rest > 0 else 0.0

    def reset_overhead(self) -> None:
        """Count the overhead anew: the calibration is over."""
        self._spent = self._passed = 0.0

    @property
    def skipped(self) -> int:
        """Updates left out so far."""
        return self._skipped

    def begin_at(self, step: int, skipped: int) -> None:
        """Go on behind a checkpoint.

        Args:
            step: Its completed updates.
            skipped: Updates left out by then.
        """
        self.step, self._skipped = step, skipped
        self._start_over()

    @property
    def current(self) -> int:
        """The step that a logged value belongs to: the one in progress once a training forward was seen.

        After an update that was left out the step is still in progress: the coming update is another attempt at it.
        """
        return self.step + (1 if self._backward or self._view.batch.forwards or self._skipped_since else 0)

    @property
    def partial(self) -> bool:
        """Whether gradients of an unfinished accumulation are at stake."""
        return self._backward

    def pause(self) -> None:
        """What follows until the next training forward is not part of a step (evaluation, saving)."""
        if self._pause_began is None:
            self._pause_began = time.perf_counter()

    def spent(self, seconds: float) -> None:
        """Time that a look at the run took within a pause: it counts as measuring."""
        self._spent += seconds
        self._passed += seconds

    def loaded(self, seconds: float) -> None:
        """Time spent waiting for data, where batches come from `run.batches`.

        Args:
            seconds: Of the batch just fetched.
        """
        self._data += seconds

    def forward_begins(self, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """Count the batch; look into the forward where it is due."""
        start = self._enter()
        view = self._view
        if view.batch.forwards == 0:
            view.times.data = self._data if self._data else start - self._last_end - self._pause
            self._looking, _ = self.instruments.needs(self.step + 1)
        self.forwards_seen += 1
        first = inputs[0] if inputs else None
        first = first if isinstance(first, torch.Tensor) else first_tensor((inputs, keywords))
        samples = self._samples = count(view.batch, first, self.layout, again=self._evaluated)
        if self.actuator.leaves_out:
            self.trace.begins(view.batch, first)
        self.instruments.forward_begins(view, samples)
        watch = self.instruments.forward
        if watch is not None and self._looking:
            watch.enter(view.batch.compute_dtype)
        if self.forwards_seen == _COUNTED and self.instruments.counts_flops:
            self._counting = (CountFlops(), samples)
            self._counting[0].__enter__()
        self._leave(start)

    def forward_ends(self, inputs: tuple[Any, ...], output: Any, *, failed: bool) -> None:
        """Take the looking glass out again."""
        start = time.perf_counter()
        view = self._view
        if failed:  # the loop may catch it and go on with the next batch: this one is in no gradient
            view.batch.forwards -= 1
            view.batch.samples -= self._samples
            self.forwards_seen -= 1
        if self._counting is not None:
            flops, samples = self._counting
            flops.__exit__(None, None, None)
            self._counting = None
            self._flops_per_sample = 0.0 if failed else flops.total / max(1, samples)
        watch = self.instruments.forward
        within = 0.0
        if watch is not None and self._looking:
            within = watch.leave(inputs, output)
        view.times.forward += start - self._mark - within
        view.times.measuring += within
        self._leave(start)

    def backward_seen(self) -> None:
        """A gradient arrived: a step is in progress even where its forward cannot be seen."""
        self._backward = self.instruments.microbatches.arrived = True
        if self._measured and not self._stepping:  # by a clip within an accumulation, or one whose step never came
            self._forget()

    def repeat_begins(self) -> None:
        """Take what is known of the microbatches before their gradients are cleared."""
        start = self._enter()
        self.instruments.accumulated(self._view)
        if self._view.microbatches is not None:
            accumulated_square(self._view)
        self._leave(start)

    def clipping(self, threshold: float, total: torch.Tensor | None) -> None:
        """Measure before the first clip of a step, when gradients are complete and whole."""
        start = self._enter()
        self.clips_seen = True
        if not self._measured:
            self._grads_ready(unscaled=self._unscaled())
        if self._view.clip is None and total is not None:
            # Of sharded gradients the norm may be partial; all ranks clip, so all meet here.
            whole = cast(Any, total).full_tensor() if is_sharded(total) else total
            self._view.clip = (whole.detach(), threshold)
        self._leave(start)

    def step_begins(self, closure: Callable[[], Any] | None) -> Callable[[], Any] | None:
        """Measure, act, and copy the parameters where the update is to be known."""
        start = self._enter()
        if self._stepping:  # the last step raised an error that the loop has caught
            self._abandon()
        self._stepping = True
        self._strange = 0
        if self._view.batch.compute_dtype is torch.float16 and self.scaler is None:
            scaled = getattr(self.optimizer, "found_inf", None) is not None
            self.scaler_unseen |= not scaled and self.layout.parameters[0].dtype is not torch.float16
        if closure is None and not self._measured:
            self._grads_ready(unscaled=True)
        if not self.actuator.idle:
            with torch.no_grad():
                self.actuator.before(self._view)
                if closure is None:
                    self.actuator.reshape(self._view)
        if self.instruments.needs(self._view.step)[1]:
            with torch.no_grad():
                self.instruments.keep(self._view)
        self._leave(start)
        return None if closure is None else self._wrapped(closure)

    def step_ends(self) -> None:
        """Complete the step, or note that its update was left out."""
        start = time.perf_counter()
        view = self._view
        view.times.optimizer += start - self._mark
        with self._no_grad:
            why = _ASKED if self.actuator.after(view) else None
            if why is not None:
                self.trace.put_back()
            found = getattr(self.optimizer, "found_inf", None)  # set by a GradScaler on fused optimizers
            if why is None and found is not None and bool(found):  # a host sync point: it is said nowhere else
                why = _OVERFLOW
            if why is not None:
                self._leave_out(why)
                self._leave(start)
                return
            self.instruments.compare(view)
            self.step += 1
            view.times.total = start - self._last_end - self._pause
            view.batch.epoch = self.epoch
            view.batch.flops_per_sample = self._flops_per_sample
            self.instruments.measure(Event.STEP_END, view)
        self.instruments.commit()
        self._leave(start)
        view.times.total = self._mark - self._last_end - self._pause
        self._spent += view.times.measuring
        self._passed += view.times.total
        ready = self.instruments.finish(view)
        self._start_over()
        if ready:
            self.after_calibration()
        self.recorder.tick(self.step)
        self.after_step(0)
        self._leave(self._last_end)

    def step_left_out(self) -> None:
        """The gradient scaler found gradients that are not finite and did not call the optimizer."""
        self._leave_out(_OVERFLOW)

    def step_of_another(self, optimizer: Optimizer) -> None:
        """Say it when the watched optimizer is no longer the one that trains."""
        self._strange += 1
        if self._strange == _STRANGE:
            other, own = type(optimizer).__name__, type(self.optimizer).__name__
            self._warn(
                f"Another optimizer ({other}) has updated the watched model {_STRANGE} times while the watched one "
                f"({own}) did not step, so nothing is measured. If the optimizer was made anew, close this run and "
                "watch the new one."
            )

    def _enter(self) -> float:
        """Dynaxx begins to work: since it last did, the loop's backward ran, if a forward came before."""
        now = time.perf_counter()
        if self._pause_began is not None:
            self._pause += now - self._pause_began
            self._pause_began = None
        elif self._view.batch.forwards:
            self._view.times.backward += max(0.0, now - self._mark - (self._data - self._view.times.data))
            if self._data:
                self._view.times.data = self._data
        return now

    def _leave(self, start: float) -> None:
        self._mark = time.perf_counter()
        self._view.times.measuring += self._mark - start

    def _leave_out(self, why: str) -> None:
        """The step is still to come: what was measured of this attempt at it is forgotten, its time counts."""
        self._skipped += 1
        self._skipped_since += 1
        self._left_out(self.step + 1, why)
        self._forget()
        self._view.batch = StepBatch()
        self._backward = self._stepping = self._evaluated = False
        self.after_step(self._skipped_since)

    def _forget(self) -> None:
        """Undo the measurements of the step in progress."""
        self.instruments.discard()
        left, self._view = self._view, self._new_view()
        self._view.times, self._view.batch = left.times, left.batch
        self._measured = False

    def _abandon(self) -> None:
        """The optimizer's step, or its closure, raised an error."""
        with torch.no_grad():
            self.actuator.after(self._view)
        self._forget()
        self._stepping = self._evaluated = False

    def _grads_ready(self, *, unscaled: bool) -> None:
        view = self._view
        self._measured = True
        if not self.instruments.calibrated:
            self.had_gradient.update(id(p) for p in self.layout.parameters if p.grad is not None)
        view.skipped = self._skipped
        view.loss_scale = self._loss_scale()
        fused = cast(Any, getattr(self.optimizer, "grad_scale", None))  # present during a fused step under a scaler
        if fused is not None:
            view.gradient_factor = fused.reciprocal()
            view.loss_scale = fused.detach().clone()
        elif not unscaled and view.loss_scale is not None:
            view.gradient_factor = view.loss_scale.reciprocal()
        self.instruments.accumulated(view)
        with self._no_grad:
            self.instruments.measure(Event.GRADS_READY, view)

    def _wrapped(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The loop's closure computes gradients within the step: measure after its first call, act after each."""

        def measured() -> Any:
            try:
                result = closure()
            except BaseException:
                self._abandon()
                raise
            start = time.perf_counter()
            if not self._measured:
                self._grads_ready(unscaled=True)
            if not self.actuator.idle:
                with torch.no_grad():
                    self.actuator.reshape(self._view, again=self._evaluated)
            self._evaluated = True
            self._view.times.measuring += time.perf_counter() - start
            return result

        return measured

    def _loss_scale(self) -> torch.Tensor | None:
        scale = getattr(self.scaler, "_scale", None)  # get_scale() would wait for the device
        return None if scale is None else scale.detach().clone()

    def _unscaled(self) -> bool:
        """Whether `scaler.unscale_` has been called in this step; without a scaler gradients are as they are."""
        if self.scaler is None or not self.scaler.is_enabled():
            return True
        stage = self.scaler._per_optimizer_states[id(self.optimizer)]["stage"]
        return stage.name == "UNSCALED"

    def _new_view(self) -> StepView:
        return StepView(
            step=self.step + 1,
            layout=self.layout,
            optimizer=self.optimizer,
            times=StepTimes(),
            batch=StepBatch(),
            world_size=self._world_size,
        )

    def _start_over(self) -> None:
        self._view = self._new_view()
        self._measured = self._backward = self._looking = self._stepping = self._evaluated = False
        self._skipped_since = 0
        self._last_end, self._pause, self._data = self._mark, 0.0, 0.0
