"""Values that are not finite, and where they began: in the data, forward pass, loss, gradient or update."""

from dataclasses import dataclass

import numpy as np

from dynaxx.core.findings import Cause, Detector, Evidence, Finding, Log, Test, Threshold
from dynaxx.detectors._acts import advice, clip, roll_back, scale_rate, skip
from dynaxx.detectors._facts import checked
from dynaxx.detectors._read import LOSS, Track, optional, track
from dynaxx.detectors._weigh import Suspect, ranked
from dynaxx.errors import NotApplicable

GROWTH = Threshold(
    value=10.0,
    origin="a gradient so many times its usual norm in the steps before is a run that was blowing up; no healthy "
    "stream of norms reaches it twice in 20 steps",
    false_alarms="finite runs cannot raise it: it only parts the causes",
)
BEFORE = 20
"""Steps before the first value that is not finite in which the run is looked at."""
STAGES = (
    ("inputs.nonfinite", "the batch"),
    ("activations.std", "the forward pass"),
    ("logit_norm", "the outputs"),
    ("loss|train_loss", "the loss"),
    ("grad_norm", "the gradient"),
    ("grad_nonfinite", "the gradient"),
    ("update_norm", "the update"),
    ("parameter_norm", "the parameters"),
)
"""Columns in the order in which a step computes them: the earliest stage of the earliest step is where it began.
`parameter_norm` is taken after the update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bad:
    column: str
    stage: str
    order: int
    steps: np.ndarray
    layers: tuple[str, ...]
    ends: bool


class NonFinite(Detector):
    """The first NaN or infinite value of the run, by step and by the order in which a step computes.

    Critical where the loss or the parameters are not finite at the end of the log: they do not heal. A warning where
    the run went on; a note where the gradient scaler left those updates out, which is its work.
    """

    code = "D5"
    title = "values that are not finite"
    reads = (f"{LOSS}|grad_norm|grad_nonfinite",)

    def detect(self, run: Log) -> Finding | None:
        """Look through the columns that a step computes."""
        found = [bad for place in range(len(STAGES)) if (bad := _bad(run, place)) is not None]
        if not found:
            track(run, self.reads[0], 1)
            return None
        origin = min(found, key=lambda bad: (int(bad.steps[0]), bad.order))
        first, last = int(origin.steps[0]), max(int(bad.steps[-1]) for bad in found)
        lost = any(bad.ends and bad.stage in ("the loss", "the parameters") for bad in found)
        scaled = optional(run, "precision.loss_scale") is not None and origin.stage == "the gradient"
        where = f" of {', '.join(origin.layers[:3])}" if origin.layers else ""
        return Finding(
            code=self.code,
            name="non_finite",
            title=f"not finite from step {first} on: began in {origin.stage}{where}"
            if lost
            else f"not finite at step {first}: began in {origin.stage}{where}",
            severity="critical" if lost else "note" if scaled else "warning",
            spans=((first, last),),
            layers=origin.layers,
            evidence=_evidence(found),
            causes=_causes(run, origin, first, lost),
            test=Test(
                text="Run the step again with every operation checked: the first tensor that is not finite names the "
                "operation.",
                check="non_finite_origin",
            ),
        )


def _bad(run: Log, order: int) -> _Bad | None:
    names, stage = STAGES[order]
    try:
        found = optional(run, names)
    except NotApplicable:
        if names == LOSS:
            raise
        return None
    if found is None:
        return None
    counts = names in ("grad_nonfinite", "inputs.nonfinite")
    wrong = found.values > 0 if counts else ~np.isfinite(found.values)
    loss = optional(run, LOSS)
    if names == "logit_norm" and wrong.all() and loss is not None:
        # Outputs of shape (batch,) have no such norm: then a loss that is not finite has to say that they were not.
        wrong &= np.isin(found.steps, loss.steps[~np.isfinite(loss.values)])
    if wrong.ndim == 2:
        if not counts:
            # An entry that never was finite does not apply to its layer (a layer without such a value).
            wrong &= np.isfinite(found.values).any(axis=0) | wrong.all()
        if names == "update_norm":
            wrong[:1] &= False
    rows = np.flatnonzero(wrong if wrong.ndim == 1 else wrong.any(axis=1))
    if len(rows) == 0:
        return None
    layers = () if wrong.ndim == 1 else tuple(np.array(found.labels)[wrong[rows[0]]].tolist())
    late = int(rows[-1]) >= len(found) - 1
    return _Bad(column=found.name, stage=stage, order=order, steps=found.steps[rows], layers=layers, ends=late)


def _evidence(found: list[_Bad]) -> tuple[Evidence, ...]:
    return tuple(
        Evidence(
            text=f"{bad.column} is not finite at {len(bad.steps)} step{'s' if len(bad.steps) > 1 else ''}, first at "
            f"step {bad.steps[0]}" + (f", in {', '.join(bad.layers[:5])}" if bad.layers else ""),
            columns=(bad.column,),
            steps=(int(bad.steps[0]), int(bad.steps[-1])),
            value=float(len(bad.steps)),
        )
        for bad in sorted(found, key=lambda bad: (int(bad.steps[0]), bad.order))
    )


def _causes(run: Log, origin: _Bad, first: int, lost: bool) -> tuple[Cause, ...]:
    why = f"values are not finite from step {first} on"
    growth = _growth(run, first)
    blown = None if growth is None else growth > float(GROWTH)
    backward = origin.stage in ("the gradient", "the update")
    said = f"before it the gradient norm or the loss grew {growth or 0:.3g}-fold within {BEFORE} steps"
    live = checked(run, "non_finite_origin")
    stage = live.get("stage")
    half = "16" in str((run.manifest.get("model") or {}).get("dtype", "")) or (
        optional(run, "precision.loss_scale") is not None
    )
    back = roll_back(first, why)
    data = Suspect("non_finite_data", 0.2, (skip("non_finite", why), back, advice("Look at the rows of the batch.")))
    data.weigh(origin.stage == "the batch", 40, "the input itself is not finite", against=0.8)
    data.weigh(blown, 0.2, "", against=4)
    data.weigh(backward, 0.1, "")
    data.weigh(None if stage is None else stage == "input", 40, "replayed, the input itself is not finite", against=0.1)
    data.weigh(not lost, 2, "the run was finite again afterwards", against=0.9)
    batch = Suspect("corrupted_batch", 0.12, (skip("non_finite", why), back))
    batch.weigh(blown, 0.3, "", against=2)
    batch.weigh(backward, 0.4, "")
    batch.weigh(not lost, 2, "the run was finite again afterwards", against=0.9)
    rate = Suspect("learning_rate_too_high", 0.3, (roll_back(first, why, pass_data=False), scale_rate(0.5, None, why)))
    rate.weigh(blown, 5, said, against=0.25)
    rate.weigh(first <= BEFORE, 1.5, "it happened within the first steps")
    grown = Suspect("exploding_gradients", 0.15, (clip(why), back))
    grown.weigh(blown, 3, said, against=0.4)
    grown.weigh(backward, 3, "the loss was still finite when the gradient was not", against=0.6)
    over = Suspect(
        "overflow", 0.15, (advice("Compute in bfloat16, or keep the loss and the norms in float32."), clip(why))
    )
    over.weigh(backward, 6, "the loss was still finite when the gradient was not")
    over.weigh(None if stage is None else stage == "backward", 4, "replayed, the backward pass overflows", against=0.5)
    over.weigh(half, 6, "numbers are of 16 bits", against=0.7)
    return ranked(data, batch, rate, grown, over)


def _growth(run: Log, first: int) -> float | None:
    """How much gradient norm or loss grew in the steps before, in medians; None where there is too little."""
    best: float | None = None
    for names in ("grad_norm", LOSS):
        found = optional(run, names)
        if found is None:
            continue
        found = (found.total() if found.values.ndim == 2 else found).finite.between(0, first - 1)
        near = found.between(first - BEFORE, first - 1)
        usual = found.between(0, first - BEFORE - 1)
        if len(near) == 0:
            continue
        level = _middle(
            usual if len(usual) >= BEFORE else Track(name="", steps=found.steps[:3], values=found.values[:3])
        )
        top = float(np.sort(near.values)[-2:].min())
        if level > 0:
            best = max(best or 0.0, top / level)
    return best


def _middle(found: Track) -> float:
    return float(np.median(found.values)) if len(found) else 0.0
