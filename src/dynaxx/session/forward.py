"""Looks into the model's training forwards at measured steps: outputs of modules, and functions called on tensors."""

import time
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dynaxx.core.contracts import ForwardSignal, FunctionObserver, Tap
from dynaxx.core.parameters import bare_name, is_compiled
from dynaxx.session.hooks import SilentInCopies

_NoFunctions = cast(Any, torch)._C.DisableTorchFunction
"""Under it a tap's own operations, dozens in each, do not pass through our function mode."""


class _TapHook(SilentInCopies):
    """A module's forward hook that calls its taps while the watch is on. Copies and pickles of the model stay silent.

    It runs inside compiled graphs: `on` is a plain attribute, so that turning it switches between two graphs.
    """

    def __init__(self) -> None:
        self.taps: list[Tap] = []
        self.owners: list[ForwardSignal[Any]] = []
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

    def __init__(self, watch: "ForwardWatch") -> None:
        super().__init__()
        self._watch = watch
        self._calls: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        output = func(*args, **(kwargs or {}))
        observers = self._watch.observers.get(func)
        if observers:
            start = time.perf_counter()
            owner = self._watch.path[-1] if self._watch.path else ""
            name = f"{owner}.{func.__name__}" if owner else func.__name__
            self._calls[name] = self._calls.get(name, 0) + 1
            site = name if self._calls[name] == 1 else f"{name}#{self._calls[name]}"
            with torch.no_grad():
                for signal, observer in tuple(observers):
                    self._watch.guarded(signal, observer, site, owner, args, kwargs or {}, output)
            self._watch.spent(time.perf_counter() - start)
        return output


class ForwardWatch:
    """Installs the taps of forward signals, for the duration of a measured forward only.

    An eager model has no hooks of ours on its parts between measurements: no cost, and torch's fast paths, which look
    for hooks, stay on. Inside a compiled model hooks are traced once, so there they stay and are switched.

    Args:
        model: The watched model, wrapped or bare.
        signals: Forward signals with their first states.
        broken: Called when a tap or an observer fails in a forward, which goes on; its signal is not called again.
    """

    def __init__(
        self,
        model: nn.Module,
        signals: Iterable[tuple[ForwardSignal[Any], Any]],
        broken: Callable[[ForwardSignal[Any], Exception], None],
    ) -> None:
        self.compiled = is_compiled(model)
        self.muffled = False
        """Whether taps stay off because a look would change the training: in a compiled model that rounds to 16 bits.

        There a compiler keeps values in 32 bits where it fuses operations; what is looked at is stored, so rounded.
        """
        self.transformed = False
        """Whether the forward runs inside a transform of `torch.func`, whose tensors must not leave it."""
        self.seconds = 0.0
        """Time spent in taps and observers since it was last set to zero; not known inside compiled graphs."""
        self._model = model
        modules = [(bare_name(name), module) for name, module in model.named_modules()]
        self._modules = [
            pair for pair in modules if pair[1] is model or not isinstance(pair[1], torch.jit.ScriptModule)
        ]
        self._hooks: list[tuple[nn.Module, _TapHook]] = []
        self._root = _TapHook()
        self._broken = broken
        self.observers: dict[Callable[..., Any], list[tuple[ForwardSignal[Any], FunctionObserver]]] = {}
        self.path: list[str] = []
        """The modules whose forwards are running, innermost last."""
        pairs = list(signals)
        for signal, state in pairs:
            for function, observer in signal.functions(state).items():
                self.observers.setdefault(function, []).append((signal, observer))
        for i, (name, module) in enumerate(self._modules):
            if i and not name:  # the model within its wrapper: its output is the wrapper's
                continue
            hook = _TapHook()
            for signal, state in pairs:
                tap = signal.tap(state, name, module)
                if tap is not None:
                    hook.taps.append(tap)
                    hook.owners.append(signal)
            if i == 0:
                self._root = hook
            elif hook.taps:
                self._hooks.append((module, hook))
        self._handles = [m.register_forward_hook(h) for m, h in self._hooks] if self.compiled else []
        self._temporary: list[Any] = []
        self._mode: _Functions | None = None
        self._within = 0.0
        self._too_late = False

    @property
    def deaf(self) -> bool:
        """Whether taps that should have been called inside a compiled model never were."""
        return self.compiled and bool(self._hooks) and not any(hook.called for _, hook in self._hooks)

    @property
    def late(self) -> bool:
        """Whether a part of the model has been compiled since the hooks were made; asks every module."""
        return not self.compiled and is_compiled(self._model)

    def unheard(self, signal: ForwardSignal[Any]) -> bool:
        """Whether a signal that looks into the model has seen nothing, because of compilation.

        Args:
            signal: One of the signals.

        Returns:
            True where a measurement would be of nothing.
        """
        within = signal not in self._root.owners
        return self.transformed or (within and (self.deaf or self._too_late or self.muffled))

    def guarded(self, signal: ForwardSignal[Any], call: Callable[..., None], *args: Any) -> None:
        """Call a tap or an observer; one that fails must not fail the forward.

        Args:
            signal: Whose it is.
            call: The tap or observer.
            args: What it takes.
        """
        try:
            call(*args)
        except Exception as error:
            for hook in [self._root, *(hook for _, hook in self._hooks)]:
                kept = [(o, t) for o, t in zip(hook.owners, hook.taps, strict=True) if o is not signal]
                hook.owners, hook.taps = [o for o, _ in kept], [t for _, t in kept]
            for function, observers in self.observers.items():
                self.observers[function] = [(o, f) for o, f in observers if o is not signal]
            self._broken(signal, error)

    def spent(self, seconds: float) -> None:
        """Time that a tap or an observer took within the forward.

        Args:
            seconds: To be added.
        """
        self._within += seconds

    def enter(self, dtype: torch.dtype = torch.float32) -> None:
        """A measured training forward begins: install what an eager model needs, turn on what a compiled one holds.

        Args:
            dtype: What the forward computes in.
        """
        self.transformed = cast(Any, torch)._C._functorch.peek_interpreter_stack() is not None
        if self.compiled and self._hooks:
            self.muffled = self.muffled or dtype in (torch.float16, torch.bfloat16)
            for _, hook in self._hooks:
                hook.on = not self.muffled and not self.transformed
        start = time.perf_counter()
        self._too_late = self.late
        if self.compiled or self.transformed or self._too_late:  # a function mode must not be traced into a graph
            return
        for module, hook in self._hooks:
            self._temporary.append(module.register_forward_hook(_Timed(self, hook)))
        if any(self.observers.values()):
            self.path.clear()
            for name, module in self._modules[1:]:
                self._temporary.append(module.register_forward_pre_hook(_Push(self.path, name)))
                self._temporary.append(module.register_forward_hook(_Pop(self.path), always_call=True))
            self._mode = _Functions(self)
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
        if self.compiled:
            for _, hook in self._hooks:
                hook.on = False
        if output is not None and not self.transformed:
            with torch.no_grad():
                for signal, tap in zip(self._root.owners, self._root.taps, strict=True):
                    self.guarded(signal, tap, inputs, output)
        self.seconds += within + time.perf_counter() - start
        self._within = 0.0
        return within

    def close(self) -> None:
        """Remove every hook for good."""
        for handle in [*self._handles, *self._temporary]:
            handle.remove()


class _Timed:
    def __init__(self, watch: ForwardWatch, hook: _TapHook) -> None:
        self._watch = watch
        self._hook = hook

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        del module
        start = time.perf_counter()
        with torch.no_grad(), _NoFunctions():
            for signal, tap in zip(self._hook.owners, self._hook.taps, strict=True):
                self._watch.guarded(signal, tap, inputs, output)
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
