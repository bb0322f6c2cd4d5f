"""Where Dynaxx touches an unchanged loop: the model's forward, clipping, the gradient scaler, the optimizer's step."""

import weakref
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.nn.utils import clip_grad
from torch.optim import Optimizer

from dynaxx.core.parameters import Layout
from dynaxx.errors import BadInput


class Listener(Protocol):
    """What the hooks report to."""

    def forward_begins(self, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """A training forward of the model begins."""
        ...

    def forward_ends(self, inputs: tuple[Any, ...], output: Any) -> None:
        """It has ended; the output is None where it failed."""
        ...

    def backward_seen(self) -> None:
        """A gradient has been accumulated."""
        ...

    def clipping(self, parameters: list[torch.Tensor], max_norm: float, total: torch.Tensor) -> None:
        """The loop is about to clip gradients."""
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


class _Hook:
    """A hook that stays behind: copies and pickles of the model or parameter carry one that does nothing."""

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        if self._call is None or torch.compiler.is_compiling():
            return None
        return self._call(*args)

    def __deepcopy__(self, memo: Any) -> "_Hook":
        return _Hook()

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Hook, ())


class Hooks:
    """Attaches a listener to a model, its optimizer and, if there is one, its gradient scaler.

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
        self._evaluation_too = not model.training
        self._handles: list[Any] = [
            model.register_forward_pre_hook(_Hook(self._before_forward), with_kwargs=True),
            model.register_forward_hook(_Hook(self._after_forward), always_call=True),
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        learning = next((p for p in layout.parameters if p.requires_grad), None)
        if learning is not None:
            self._handles.append(learning.register_post_accumulate_grad_hook(_Hook(lambda _: listener.backward_seen())))
        self._scaler = scaler
        if scaler is not None:
            scaler.step = _scaler_step(scaler, optimizer, listener, self)
        self._listener = listener
        self.fired = False
        self._watched = {id(p) for p in layout.parameters}
        _clip_watchers.add(self)
        _wrap_clipping()

    def close(self) -> None:
        """Take everything out again; the loop goes on without Dynaxx."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._scaler is not None:
            self._scaler.__dict__.pop("step", None)
        _clip_watchers.discard(self)

    def clipping(self, parameters: list[torch.Tensor], max_norm: float, total: torch.Tensor) -> None:
        """Pass a clip on if it concerns the watched parameters.

        Args:
            parameters: What is about to be clipped.
            max_norm: Threshold.
            total: Norm that clipping has found.
        """
        if any(id(p) in self._watched for p in parameters):
            self._listener.clipping(parameters, max_norm, total)

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._depth += 1
        if self._depth == 1:
            self._training = torch.is_grad_enabled() and (module.training or self._evaluation_too)
            if self._training:
                self._listener.forward_begins(args, kwargs)

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        del module
        self._depth -= 1
        if self._depth == 0 and self._training:
            self._training = False
            self._listener.forward_ends(args, output)

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        del optimizer
        self.fired = True
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer itself
        wrapped = self._listener.step_begins(closure)
        if wrapped is closure:
            return None
        if len(args) > 1:
            return (args[0], wrapped, *args[2:]), kwargs
        return args, {**kwargs, "closure": wrapped}

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        del optimizer, args, kwargs
        self._listener.step_ends()


def innermost(optimizer: Any) -> Optimizer:
    """The `torch.optim.Optimizer` within wrappers such as Accelerate's.

    Args:
        optimizer: An optimizer or a wrapper with an attribute `optimizer`.

    Returns:
        The optimizer whose step hooks fire.

    Raises:
        BadInput: There is none.
    """
    inner = optimizer
    while not isinstance(inner, Optimizer) or isinstance(inner.__dict__.get("optimizer"), Optimizer):
        if "optimizer" not in getattr(inner, "__dict__", {}):
            kind = type(optimizer).__name__
            raise BadInput(f"watch(optimizer=...) must be a torch.optim.Optimizer or a wrapper of one. Got {kind}.")
        inner = inner.__dict__["optimizer"]
    return inner


def _scaler_step(scaler: Any, optimizer: Optimizer, listener: Listener, hooks: Hooks) -> Callable[..., Any]:
    original = scaler.step

    def step(stepped: Any, *args: Any, **kwargs: Any) -> Any:
        if innermost(stepped) is not optimizer:
            return original(stepped, *args, **kwargs)
        hooks.fired = False
        result = original(stepped, *args, **kwargs)
        if not hooks.fired:
            listener.step_left_out()
        return result

    return step


_clip_watchers: "weakref.WeakSet[Hooks]" = weakref.WeakSet()


def _wrap_clipping() -> None:
    """Wrap the function through which every `clip_grad_norm_` goes, however it was imported; once per process."""
    module = cast(Any, clip_grad)
    original = module._clip_grads_with_norm_
    if isinstance(original, _Clip):
        return
    module._clip_grads_with_norm_ = _Clip(original)


class _Clip:
    def __init__(self, original: Callable[..., None]) -> None:
        self._original = original

    def __call__(self, parameters: Any, max_norm: float, total_norm: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        tensors = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        for hooks in list(_clip_watchers):
            hooks.clipping(tensors, float(max_norm), total_norm)
        self._original(tensors, max_norm, total_norm, *args, **kwargs)
