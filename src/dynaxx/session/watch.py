"""`dynaxx.watch`: one line on an unchanged loop."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dynaxx import catalog
from dynaxx.actuator import Actuator, RatesInForce
from dynaxx.core.navigation import Mode
from dynaxx.core.objective import LossFunction
from dynaxx.core.parameters import Grouping, Layout, own_parameters
from dynaxx.core.records import Receipt
from dynaxx.errors import BadInput, DynaxxWarning, NotSaved
from dynaxx.runlog import LogWriter
from dynaxx.runlog.recorder import Recorder
from dynaxx.runlog.writer import holds_run
from dynaxx.schedules import Rates
from dynaxx.session.checkpoints import RunCheckpoints
from dynaxx.session.data import Data
from dynaxx.session.described import manifest
from dynaxx.session.hooks import Hooks, innermost
from dynaxx.session.instruments import Instruments
from dynaxx.session.live import Live
from dynaxx.session.probe_loss import ProbeLoss
from dynaxx.session.run import Run
from dynaxx.session.trace import Trace
from dynaxx.session.training import Training

OPTIONAL = frozenset({"exact_trajectory"})
"""Signals that are measured only when asked for by name: they need memory for further copies of the parameters."""


def watch(
    model: nn.Module,
    optimizer: Any,
    dir: str | Path,
    *,
    loss: LossFunction | None = None,
    navigate: Mode = "advise",
    probe_batch: Any = None,
    scheduler: Any = None,
    scaler: Any = None,
    state: Mapping[str, Any] | None = None,
    steps: int | None = None,
    resume: bool = False,
    layers: Grouping = None,
    signals: Sequence[str] | None = None,
    budget: float = 0.02,
    rates: Rates | None = None,
    facts: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Run:
    """Watch a training loop: every optimizer step is measured through hooks, and logged in a folder of its own.

    The loop below this line stays as it is, and its weights, buffers, gradients and random streams stay the same bit
    for bit. The first 100 steps are measured in full; then every signal but the gradient norm keeps to the cadence
    that the budget allows.

    Args:
        model: The model that the loop calls: wrapped in DDP, FSDP2 or `torch.compile` if it calls it so.
        optimizer: Its optimizer, or a wrapper of it.
        dir: The run's own folder; made where it is missing.
        loss: `loss_fn(model, batch)` → mean loss of a batch, for curvature and gradient noise; it is called beside the
            training and must change nothing of its own. None: they are not measured.
        navigate: "advise": every so many steps the log is diagnosed; findings, and what would be done about them, are
            logged and printed, and nothing of the training changes. "act": it is done, within bounds, and undone where
            it does not help. "off": neither.
        probe_batch: The batch that they are measured on, its first examples; None: the first that `run.batches` gives.
        scheduler: The learning-rate scheduler, for the checkpoints.
        scaler: The gradient scaler, for the checkpoints and to know of skipped steps.
        state: Further objects whose state belongs in checkpoints, by name.
        steps: Planned optimizer steps, for what is due at shares of the training.
        resume: Restore the folder's latest checkpoint in place and go on; where there is none, begin.
        layers: How parameters form layers: None, by owning module; "parameters"; a regular expression; a callable.
        signals: Names of the signals to measure; None: the default ones; "default" among the names stands for them.
        budget: Share of the step time that measuring may take.
        rates: What multiplies the loop's own learning rates in each step (`dynaxx.schedules.Rates`): a curve on top of
            the loop's schedule, a modulation, factors by layer. Unlike all else here it changes the training.
        facts: What else a reader of the log must know: the data's hash, the configuration.
        quiet: Do not print the self-test's line.

    Returns:
        The run.

    Raises:
        RunFolderExists: The folder holds a run and `resume` is False.
        BadInput: The model has no parameters, the optimizer holds none of them, the folder cannot be written, or an
            argument breaks a rule.
        CorruptData: A run is to be resumed, and none of its checkpoints is as it was written.

    Example:
        ```python
        run = dynaxx.watch(model, optimizer, "runs/first")
        for x, y in loader:
            loss = loss_fn(model(x), y)
            loss.backward(); optimizer.step(); optimizer.zero_grad()
            run.log(loss=loss)
        ```
    """
    if not isinstance(model, nn.Module):
        raise BadInput(f"watch(model=...) must be a torch.nn.Module. Got {type(model).__name__}.")
    if not 0 < budget < 1:
        raise BadInput(f"watch(budget=...) must be a share of the step time between 0 and 1. Got {budget}.")
    if steps is not None and steps < 1:
        raise BadInput(f"watch(steps=...) must be at least 1, or None where it is unknown. Got {steps}.")
    if navigate not in ("off", "advise", "act"):
        raise BadInput(f"watch(navigate=...) must be 'off', 'advise' or 'act'. Got {navigate!r}.")
    if loss is not None and not callable(loss):
        raise BadInput(f"watch(loss=...) must be a function of model and batch. Got {type(loss).__name__}.")
    if probe_batch is not None and loss is None:
        raise BadInput("watch(probe_batch=...) is of no use without loss=. Give loss_fn(model, batch) too.")
    inner = innermost(optimizer)
    layout = Layout(model, layers)
    _same_parameters(layout, inner)
    names = _names(signals)
    in_force = _in_force(rates, layout, state)
    extra = dict(state or {}) if in_force is None else {**(state or {}), "rates": in_force}
    training = Training(model, layout, inner, scheduler, scaler, extra)
    if not training.distributed:
        training.capture()  # copies nothing; what cannot be kept in a checkpoint is refused now, not at the first save
    checkpoints = RunCheckpoints(Path(dir) / "checkpoints", training)
    saved, info = checkpoints.latest() if resume else (None, None)
    if saved is not None:
        training.restore(saved)
    writer = None
    if training.rank == 0:
        about = manifest(model, layout, inner, scheduler, names, steps, budget, facts)
        start = 0 if saved is None else int(saved["run"]["step"])
        if resume or not holds_run(Path(dir)):
            _writable(checkpoints, dir)
        writer = LogWriter(Path(dir), manifest=about, start_step=start, resume=resume)

    def warn(message: str) -> None:
        if writer is not None:
            writer.event("warning", step=live.step, message=message)
        warnings.warn(message, DynaxxWarning, stacklevel=2)

    def receipt(receipt: Receipt) -> None:
        if writer is not None:
            writer.event("receipt", step=receipt.step, receipt=receipt)

    def left_out(step: int, why: str) -> None:
        if writer is not None:
            writer.event("update_left_out", step=step - 1, why=why)

    recorder = Recorder(writer)
    # Replicas have equal gradients after their reduction: one rank measures. Shards must be measured on all.
    measured = names if training.rank == 0 or training.sharded else ()
    instruments = Instruments(
        model,
        layout,
        measured,
        recorder,
        budget=budget,
        warn=warn,
        forward=training.rank == 0,
        probe_loss=ProbeLoss(model, loss, probe_batch, sharded=training.sharded, ranks=training.world_size),
        scaled=scaler is not None,
    )
    actuator = Actuator(receipt, layout, inner, in_force)
    live = Live(
        layout,
        inner,
        scaler,
        instruments,
        actuator,
        recorder,
        world_size=training.world_size,
        left_out=left_out,
        warn=warn,
    )
    live.trace = Trace(model.buffers())
    run = Run(
        training=training,
        writer=writer,
        recorder=recorder,
        instruments=instruments,
        actuator=actuator,
        live=live,
        hooks=Hooks(model, layout, inner, scaler, live),
        data=Data(live.loaded, lambda: actuator.stopping is not None),
        checkpoints=checkpoints,
        receipt=receipt,
        loss=loss,
        navigate=navigate,
        steps=steps,
        quiet=quiet,
        reserved=frozenset(catalog.names("signals")),
    )
    if saved is not None and info is not None:
        run.restore(saved, info)
    run.steering.begin()
    return run


def _writable(checkpoints: RunCheckpoints, folder: str | Path) -> None:
    """A folder that takes no checkpoint is said now, not at the first save."""
    try:
        checkpoints.store.preflight()
    except NotSaved as error:
        why = error.__cause__ or error.strerror
        raise BadInput(f"watch(dir={str(folder)!r}): nothing can be written there ({why}). Give another.") from error


def _same_parameters(layout: Layout, optimizer: Optimizer) -> None:
    held = {id(p) for p in own_parameters(optimizer)}
    if not any(id(p) in held for p in layout.parameters):
        raise BadInput(
            f"watch(model, optimizer): the optimizer holds {len(held)} parameters, none of them the model's "
            f"{len(layout.parameters)}. Build it from this model's parameters(), after moving or wrapping the model."
        )


def _in_force(rates: Rates | None, layout: Layout, state: Mapping[str, Any] | None) -> RatesInForce | None:
    if rates is None:
        return None
    if not isinstance(rates, Rates):
        raise BadInput(f"watch(rates=...) must be a dynaxx.schedules.Rates. Got {rates!r}. Write Rates(macro=...).")
    if "rates" in (state or {}):
        raise BadInput(
            "watch(state=...) may not use the name 'rates' beside rates=...: it is kept under it. Rename it."
        )
    return RatesInForce(rates, layout)


def _names(signals: Sequence[str] | None) -> tuple[str, ...]:
    default = [name for name in catalog.names("signals") if name not in OPTIONAL]
    if signals is None:
        return tuple(default)
    if isinstance(signals, str):
        raise BadInput(f"watch(signals=...) must be a list of names. Got the string {signals!r}; write [{signals!r}].")
    wanted = [name for given in signals for name in (default if given == "default" else [given])]
    for name in wanted:
        catalog.get("signals", name)
    return tuple(dict.fromkeys(wanted))
