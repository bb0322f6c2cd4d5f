"""Says, once the first steps are through, what is seen and exactly what is missing."""

from dataclasses import asdict, dataclass
from typing import Any

from dynaxx.core.parameters import own_parameters, some
from dynaxx.session.instruments import Instruments
from dynaxx.session.live import Live

_FORWARD = (
    "activations, batch sizes and forward times, because no forward of the watched model in training mode was seen: "
    "watch the object that the loop calls, such as what torch.compile returned"
)
_IN_PLACE = (
    "activations, batch sizes and forward times, because the model was compiled in place after watch: "
    "call watch after model.compile()"
)
_COMPILED = (
    "activations, because the model was compiled before watch: call watch between torch.compile and the first forward"
)
_MUFFLED = (
    "activations, because the model is compiled and computes in 16 bits: there a look at a value changes its rounding, "
    "and so the training"
)
_TRANSFORMED = (
    "activations and logits, because the forward runs inside a transform of torch.func, whose tensors must not leave it"
)
_LATE = "activations, because parts of the model were compiled after watch: watch the compiled model"
_SCALER = "updates that a gradient scaler leaves out, because it is not known: call watch(..., scaler=scaler)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the self-test found.

    Args:
        layers: Number of layers.
        seen: Which gradients the figures show.
        overhead: Share of the step time that measuring takes.
        budget: Share that it may take.
        missing: What is not seen, why, and what to do.
        not_applicable: Signals that cannot speak of this model, with their reasons; in the log, not in the line.
        diagnosing: Of the overhead, the share that diagnosing the log takes; None where it is not diagnosed.
        interval: Steps between two diagnoses.
    """

    layers: int
    seen: str
    overhead: float
    budget: float
    missing: tuple[str, ...]
    not_applicable: dict[str, str]
    diagnosing: float | None = None
    interval: int = 0

    def __str__(self) -> str:
        over = "" if self.overhead <= self.budget else f", above the budget of {self.budget:.1%}"
        text = f"{self.layers} layers, {self.seen} gradients; overhead {self.overhead:.1%}{over}"
        if self.diagnosing is not None:
            text += f", of it {self.diagnosing:.1%} for a diagnosis every {self.interval} steps"
        return "; ".join([text, *(f"missing: {m}" for m in self.missing)])

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)


def seen(live: Live, instruments: Instruments, overhead: float) -> Report:
    """Look back at the first steps.

    Args:
        live: The loop as the hooks saw it.
        instruments: The signals.
        overhead: Share of the step time that measuring takes.

    Returns:
        The report.
    """
    layout, missing = live.layout, list[str]()
    held = {id(p) for p in own_parameters(live.optimizer)}
    learning = [(n, p) for n, p in zip(layout.names, layout.parameters, strict=True) if p.requires_grad]
    outside = [n for n, p in learning if id(p) not in held]
    if outside:
        missing.append(f"{some(outside)} of the model require a gradient but are not in the optimizer")
    foreign = len(held - {id(p) for p in layout.parameters})
    if foreign:
        missing.append(
            f"{foreign} of the optimizer's {len(held)} parameters, because they are not the watched model's, "
            "or not yet when watch was called"
        )
    silent = [n for n, p in learning if id(p) in held and id(p) not in live.had_gradient]
    if silent:
        missing.append(f"{some(silent)} never had a gradient")
    watch = instruments.forward
    late = watch is not None and watch.late
    if not live.forwards_seen:
        missing.append(_IN_PLACE if late else _FORWARD)
    elif watch is not None and watch.transformed:
        missing.append(_TRANSFORMED)
    elif watch is not None and watch.muffled:
        missing.append(_MUFFLED)
    elif watch is not None and watch.deaf:
        missing.append(_COMPILED)
    elif late:
        missing.append(_LATE)
    if live.scaler_unseen:
        missing.append(_SCALER)
    return Report(
        layers=len(layout.layers),
        seen="pre-clip, unscaled" if live.clips_seen else "unclipped, unscaled",
        overhead=overhead,
        budget=instruments.budget,
        missing=tuple(missing),
        not_applicable=dict(instruments.not_applicable),
    )
