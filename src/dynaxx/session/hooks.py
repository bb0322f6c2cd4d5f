"""Where Dynaxx touches an unchanged loop: the model's forward, the end of a backward, the optimizer's step."""

import contextlib
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Sequence
from types import MethodType
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from dynaxx.core.nested import is_nested
from dynaxx.core.parameters import Layout, own_parameters
from dynaxx.core.repeated import is_repeated, off_repeat, on_repeat
from dynaxx.errors import BadInput
from dynaxx.session import clipping
from dynaxx.session.scaler import ScalerStep

_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
_current_backward = cast(Any, torch)._C._current_graph_task_id
"""Looked up once: between the kernels of a small net every look at a module's table is a cache miss."""


class Listener(Protocol):
    """What the hooks report to."""

    def forward_begins(self, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """A training forward of the model begins."""
        ...

    def forward_ends(self, inputs: tuple[Any, ...], output: Any, *, failed: bool) -> None:
        """It has ended; where it failed by an exception there is no output."""
        ...

    def backward_seen(self) -> None:
        """A gradient has been accumulated."""
        ...

    def repeat_begins(self) -> None:
        """The gradients are complete, and the step is about to compute them once more elsewhere."""
        ...

    def clipping(self, threshold: float, total: torch.Tensor | None) -> None:
        """The loop is about to clip gradients, by their norm `total` or, where that is None, by value."""
        ...

    def step_begins(self, closure: Callable[[], Any] | None) -> Callable[[], Any] | None:
        """The optimizer's step begins; returns the closure it is to use instead of the loop's."""
        ...

    def step_ends(self) -> None:
        """The optimizer's step has ended."""
        ...

    def step_left_out(self) -> None:
        """The gradient scaler left the optimizer's step out."""
        ...

    def step_of_another(self, optimizer: Optimizer) -> None:
        """Another optimizer has updated watched parameters."""
        ...


class _Quiet(threading.local):
    on = False


_quiet = _Quiet()


@contextlib.contextmanager
def quietly() -> Generator[None]:
    """Forwards within are our own: no listener is told of them."""
    before, _quiet.on = _quiet.on, True
    try:
        yield
    finally:
        _quiet.on = before


class SilentInCopies:
    """A hook that stays behind: copies and pickles of the model carry one of the standard library's that does nothing.

    So a pickled model can be read where Dynaxx is not installed, and an averaged copy reports nothing.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return (getattr, (contextlib.nullcontext(), "__exit__"))  # takes any arguments, returns None


class _Hook(SilentInCopies):
    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return None if _is_compiling() else self._call(*args)


class Hooks:
    """Attaches a listener to a model, its optimizer, gradient clipping and, if there is one, the gradient scaler.

    Args:
        model: The watched model; forwards in evaluation mode or without gradients are passed over.
        layout: Its parameters.
        optimizer: The innermost optimizer.
        scaler: The `torch.amp.GradScaler`, whose skipped steps fire no hook of the optimizer's.
        listener: What to report to; the caller keeps it alive.
    """

    def __init__(self, model: nn.Module, layout: Layout, optimizer: Optimizer, scaler: Any, listener: Listener) -> None:
        self._training = False
        self._depth = 0
        self._steps = 0
        self._evaluation_too = not model.training
        self._model = model
        self._optimizer = optimizer
        self._handles: list[Any] = [
            optimizer.register_step_pre_hook(_uncompiled(self._before_step)),
            optimizer.register_step_post_hook(_uncompiled(self._after_step)),
            register_optimizer_step_post_hook(_uncompiled(_weakly(self._after_any_step))),
        ]
        self._in_place: Callable[..., Any] | None = model.__dict__.get("_compiled_call_impl")
        if isinstance(model, torch.jit.ScriptModule):  # takes no Python hooks
            pass
        elif self._in_place is None:
            self._handles += [
                model.register_forward_pre_hook(_Hook(self._before_forward), with_kwargs=True),
                model.register_forward_hook(_Hook(self._after_forward), always_call=True),
            ]
        else:  # `model.compile()` makes hooks of the model itself part of its graph, where nothing can be counted
            model.__dict__["_compiled_call_impl"] = self._compiled_in_place
        learning = next((p for p in layout.parameters if p.requires_grad), None)
        if learning is not None:
            self._handles.append(learning.register_post_accumulate_grad_hook(_Hook(_weakly(self._after_backward))))
        self._listener = listener
        self._begun = 0
        self._scaler_step = None
        if scaler is not None:
            self._scaler_step = ScalerStep(
                scaler, lambda o: innermost(o) is optimizer, lambda: self._begun, listener.step_left_out
            )
        self._watched = {id(p) for p in layout.parameters}
        self._strangers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        clipping.listen(self)
        on_repeat(self._before_repeat)

    def close(self) -> None:
        """Take everything out again; the loop goes on without Dynaxx."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._in_place is not None:
            self._model.__dict__["_compiled_call_impl"] = self._in_place
        if self._scaler_step is not None:
            self._scaler_step.close()
        clipping.leave(self)
        off_repeat(self._before_repeat)

    @contextlib.contextmanager
    def heard_by(self, listener: Listener) -> Generator[None]:
        """Report to another listener meanwhile.

        Args:
            listener: The other one.
        """
        own, self._listener = self._listener, listener
        try:
            yield
        finally:
            self._listener = own

    def clipping(self, parameters: list[torch.Tensor], threshold: float, total: torch.Tensor | None) -> None:
        """Pass a clip on if it concerns the watched parameters.

        Args:
            parameters: What is about to be clipped.
            threshold: Largest norm or value.
            total: Norm that clipping has found; None where it clips by value.
        """
        if any(id(p) in self._watched for p in parameters):
            self._listener.clipping(threshold, total)

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._depth += 1
        if self._depth == 1 and not _quiet.on and not is_repeated():
            if module.training:
                self._evaluation_too = False
            wanted = _is_grad_enabled() and (module.training or self._evaluation_too)
            # Within a backward it is activation checkpointing that computes the forward once more.
            self._training = wanted and _current_backward() == -1
            if self._training:
                self._listener.forward_begins(args, kwargs)

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        del module
        if self._depth == 0:  # another hook failed before ours was called
            return
        self._depth -= 1
        if self._depth == 0 and self._training:
            self._training = False
            self._listener.forward_ends(args, output, failed=output is None and sys.exc_info()[1] is not None)

    def _compiled_in_place(self, *args: Any, **kwargs: Any) -> Any:
        assert self._in_place is not None
        self._before_forward(self._model, args, kwargs)
        output = None
        try:
            output = self._in_place(*args, **kwargs)
        finally:
            self._after_forward(self._model, args, output)
        return output

    def _after_backward(self, parameter: torch.Tensor) -> None:
        del parameter
        self._listener.backward_seen()

    def _before_repeat(self, parameters: Sequence[torch.Tensor]) -> None:
        if any(id(p) in self._watched for p in parameters):
            self._listener.repeat_begins()

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._steps and is_nested(optimizer):  # asked only where a step has begun and not ended, as after an error
            self._steps += 1
            return None
        self._steps = 1
        self._begun += 1
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer itself
        wrapped = self._listener.step_begins(closure)
        if wrapped is closure:
            return None
        if len(args) > 1:
            return (args[0], wrapped, *args[2:]), kwargs
        return args, {**kwargs, "closure": wrapped}

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        del optimizer, args, kwargs
        self._steps -= 1
        if self._steps == 0:
            self._listener.step_ends()

    def _after_any_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        del args, kwargs
        if optimizer is self._optimizer or optimizer in self._strangers:
            return
        if any(id(p) in self._watched for p in own_parameters(optimizer)):
            self._listener.step_of_another(optimizer)
        else:
            self._strangers.add(optimizer)


def _uncompiled(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook of the optimizer's step that stays Python where a loop compiles that step.

    Only there is torch's own way to it entered: between the kernels of a small net it takes 12 µs a call, this takes 4.
    """
    from torch._C._dynamo.eval_frame import get_eval_frame_callback as compiles  # pyright: ignore[reportMissingImports]
    from torch._dynamo.decorators import skip  # importing it takes seconds, which the command line needs not wait for

    apart = cast(Callable[..., Any], torch.compiler.disable(hook))

    def call(*args: Any) -> Any:
        return hook(*args) if compiles() is None else apart(*args)

    return skip(call)


def _weakly(method: Callable[..., None]) -> Callable[..., None]:
    """A method of an object that this does not keep alive.

    For hooks in torch's own table, which lives as long as the process, and on parameters, whose hooks are outside the
    reach of Python's collector of cycles.
    """
    bound = cast(MethodType, method)
    reference, function = weakref.ref(bound.__self__), bound.__func__  # a WeakMethod is Python, at every step

    def call(*args: Any) -> None:
        owner = reference()
        if owner is not None:
            function(owner, *args)

    return call


def innermost(optimizer: Any) -> Optimizer:
    """The `torch.optim.Optimizer` within wrappers such as Accelerate's.

    Args:
        optimizer: An optimizer or a wrapper with an attribute `optimizer`.

    Returns:
        The optimizer whose step hooks fire.

    Raises:
        BadInput: There is none.
    """
    inner, within = optimizer, getattr(optimizer, "optimizer", None)
    while within is not None and within is not inner:
        inner, within = within, getattr(within, "optimizer", None)
    if not isinstance(inner, Optimizer):
        kind = type(optimizer).__name__
        remedy = (
            " Several are watched as one: dynaxx.optim.Joint(*optimizers)." if isinstance(optimizer, Sequence) else ""
        )
        raise BadInput(f"watch(optimizer=...) must be a torch.optim.Optimizer or a wrapper of one. Got {kind}.{remedy}")
    return inner
