"""Looks into the model's training forwards at measured steps: outputs of modules, and functions called on tensors."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dynaxx.core.contracts import ForwardSignal, FunctionObserver, Tap
from dynaxx.core.parameters import bare_name, is_compiled
from dynaxx.session.hooks import SilentInCopies


class _TapHook(SilentInCopies):
    """A module's forward hook that calls its taps while the watch is on. Copies and pickles of the model stay silent.

    It runs inside compiled graphs: `on` is a plain attribute, so that turning it switches between two graphs.
    """

    def __init__(self, taps: list[Tap] | None = None) -> None:
        self.taps = taps or []
        self.on = False
        self.called = False

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if self.on:
            self.called = True
            with torch.no_grad():
                for tap in self.taps:
                    tap(inputs, output)


class _Functions(TorchFunctionMode):
    """Passes every call through, and shows the wanted ones to their observers."""

    def __init__(
        self,
        observers: Mapping[Callable[..., Any], list[FunctionObserver]],
        path: Callable[[], str],
        spent: Callable[[float], None],
    ) -> None:
        super().__init__()
        self._observers = observers
        self._spent = spent
        self._path = path
        self._calls: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        output = func(*args, **(kwargs or {}))
        observers = self._observers.get(func)
        if observers is not None:
            start = time.perf_counter()
            owner = self._path()
            name = f"{owner}.{func.__name__}" if owner else func.__name__
            self._calls[name] = self._calls.get(name, 0) + 1
            site = name if self._calls[name] == 1 else f"{name}#{self._calls[name]}"
            with torch.no_grad():
                for observer in observers:
                    observer(site, owner, args, kwargs or {}, output)
            self._spent(time.perf_counter() - start)
        return output


class ForwardWatch:
    """Installs the taps of forward signals, for the duration of a measured forward only.

    An eager model has no hooks of ours on its parts between measurements: no cost, and torch's fast paths, which look
    for hooks, stay on. Inside a compiled model hooks are traced once, so there they stay and are switched.

    Args:
        model: The watched model, wrapped or bare.
        signals: Forward signals with their first states.
    """

    def __init__(self, model: nn.Module, signals: Iterable[tuple[ForwardSignal[Any], Any]]) -> None:
        self.compiled = is_compiled(model)
        self.seconds = 0.0
        """Time spent in taps and observers since it was last set to zero; not known inside compiled graphs."""
        self._model = model
        self._modules = [(bare_name(name), module) for name, module in model.named_modules()]
        self._hooks: list[tuple[nn.Module, _TapHook]] = []
        self._root = _TapHook()
        self._observers: dict[Callable[..., Any], list[FunctionObserver]] = {}
        pairs = list(signals)
        for signal, state in pairs:
            for function, observer in signal.functions(state).items():
                self._observers.setdefault(function, []).append(observer)
        for i, (name, module) in enumerate(self._modules):
            taps = [t for signal, state in pairs if (t := signal.tap(state, name, module)) is not None]
            if i == 0:
                self._root.taps = taps
            elif taps:
                self._hooks.append((module, _TapHook(taps)))
        self._handles = [m.register_forward_hook(h) for m, h in self._hooks] if self.compiled else []
        self._temporary: list[Any] = []
        self._stack: list[str] = []
        self._mode: _Functions | None = None
        self._within = 0.0

    @property
    def deaf(self) -> bool:
        """Whether taps that should have been called inside a compiled model never were."""
        return self.compiled and bool(self._hooks) and not any(hook.called for _, hook in self._hooks)

    @property
    def late(self) -> bool:
        """Whether a part of the model has been compiled since the hooks were made."""
        return not self.compiled and is_compiled(self._model)

    def spent(self, seconds: float) -> None:
        """Time that a tap or an observer took within the forward.

        Args:
            seconds: To be added.
        """
        self._within += seconds

    def switch(self, on: bool) -> None:
        """Turn compiled taps on or off for the coming forwards.

        Args:
            on: Whether the coming step is measured.
        """
        if self.compiled:
            for _, hook in self._hooks:
                hook.on = on

    def enter(self) -> None:
        """A measured training forward begins: install what an eager model needs."""
        self._root.on = True
        if self.compiled:
            return
        start = time.perf_counter()
        for module, hook in self._hooks:
            hook.on = True
            self._temporary.append(module.register_forward_hook(_Timed(self, hook)))
        if self._observers:
            self._stack.clear()
            for name, module in self._modules[1:]:
                self._temporary.append(module.register_forward_pre_hook(_Push(self._stack, name)))
                self._temporary.append(module.register_forward_hook(_Pop(self._stack), always_call=True))
            self._mode = _Functions(self._observers, lambda: self._stack[-1] if self._stack else "", self.spent)
            self._mode.__enter__()
        self.seconds += time.perf_counter() - start

    def leave(self, inputs: tuple[Any, ...], output: Any) -> float:
        """The measured forward has ended, or failed (then there is no output): take everything out again.

        Args:
            inputs: The model's positional inputs.
            output: What it returned, or None.

        Returns:
            Seconds that taps and observers took within the forward.
        """
        within = self._within
        if self._mode is not None:
            self._mode.__exit__(None, None, None)
            self._mode = None
        start = time.perf_counter()
        for handle in self._temporary:
            handle.remove()
        self._temporary.clear()
        if output is not None:
            with torch.no_grad():
                for tap in self._root.taps:
                    tap(inputs, output)
        self.seconds += within + time.perf_counter() - start
        self._within = 0.0
        return within

    def close(self) -> None:
        """Remove every hook for good."""
        self.switch(False)
        for handle in [*self._handles, *self._temporary]:
            handle.remove()


class _Timed:
    def __init__(self, watch: ForwardWatch, hook: _TapHook) -> None:
        self._watch = watch
        self._hook = hook

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        start = time.perf_counter()
        self._hook(module, inputs, output)
        self._watch.spent(time.perf_counter() - start)


class _Push:
    def __init__(self, stack: list[str], name: str) -> None:
        self._stack = stack
        self._name = name

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        self._stack.append(self._name)


class _Pop:
    def __init__(self, stack: list[str]) -> None:
        self._stack = stack

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._stack:
            self._stack.pop()
