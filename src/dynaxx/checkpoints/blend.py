"""Blend checkpoints: average them in the memory of two models, and judge the result on examples that chose nothing."""

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dynaxx.checkpoints._basin import APART, BARRIER, aligned, barriers, refuse_barriers, refuse_distant
from dynaxx.checkpoints._blend_chart import VERDICTS, Judged, Story
from dynaxx.checkpoints._mean import checked
from dynaxx.checkpoints._parts import Part, Selection, Source, parts
from dynaxx.checkpoints._rules import Candidates, Rule, rule
from dynaxx.checkpoints.blended import Blended
from dynaxx.checkpoints.judge import Judge
from dynaxx.core.records import Cost
from dynaxx.core.task import Task
from dynaxx.errors import BadInput, CorruptData, DynaxxWarning
from dynaxx.numerics.paired import paired

__all__ = ["BARRIER", "Blended", "Judge", "blend"]


def blend(
    of: Source | Sequence[Source],
    task: Task | Judge | None = None,
    *,
    how: str = "window",
    last: int = 50,
    steps: tuple[int, int] | None = None,
    duration: int | None = None,
    align: bool = False,
    barrier: float = BARRIER,
    seed: int | None = None,
) -> Blended:
    """Σ wⱼ θⱼ over checkpoints, and whether it is better than the best of them.

    Half of the validation examples choose: they score the parts, find barriers, set what the rule leaves open. The
    other half see two sets of weights, once: the blend and the part that was best on the first half. The difference is
    called better or worse where an exact interval at 95 % leaves out zero (`numerics.paired`), else not established.
    Statistics of batch normalisation are taken anew at every point that is evaluated, the parts included. Means are
    taken in float32, or float64 where the weights are.

    Checkpoints stream by, tensor by tensor: the memory is that of two models, however many there are, and of two more
    where units are reordered.

    Args:
        of: A run's folder, one of its checkpoints, a store, a `Snapshot` or a state_dict; or several of them.
        task: Whose loss judges, or a `Judge` made of a model, a loss and batches; None: the blend is not evaluated, and
            parts are compared by their weights alone.
        how: The rule: "window", the newest so many alike, as many as the choosing half likes best; "uniform";
            "exponential[:temperature=0.1]", wⱼ ∝ exp(−lossⱼ/T); "greedy[:budget=20]", a soup grown part by part;
            "ema:half_life=200", in steps; "decay[:shape=1-sqrt]", what stands for a decay of the rate ("linear",
            "cosine").
        last: The newest so many checkpoints of each run.
        steps: First and last step, both included.
        duration: Only those of the last so many steps.
        align: Reorder the hidden units of parts that a barrier stands before.
        barrier: Highest loss half-way between a part and the best one, above the mean of both, as a share of that;
            `math.inf`: nothing is refused, by its weights neither.
        seed: Of the splits and of the task's validation batches; None: the first run's own, else 0.

    Returns:
        The blend, with its verdict, its chart and its lineage.

    Raises:
        BadInput: There are fewer than two parts, they are of different architectures, or an option breaks a rule.
        NotApplicable: Parts lie in different basins, or the rule or the alignment needs what is not there.

    Example:
        >>> found = blend([{"w": torch.tensor([1.0])}, {"w": torch.tensor([1.5])}])
        >>> found.weights["w"], found.verdict
        (tensor([1.2500]), 'not evaluated')

    References: Izmailov et al. 2018; Wortsman et al. 2022; Tian et al. 2025.
    """
    begun, chosen = time.perf_counter(), rule(how)
    if not barrier >= 0:
        raise BadInput(f"blend(barrier=...) must be 0 or more. Got {barrier}.")
    found = parts(of, Selection(last=last, steps=steps, duration=duration))
    seed = found[0].seed if seed is None else seed
    judge = Judge.of_task(task, seed) if isinstance(task, Task) else task
    if judge is not None:
        made = _judged(found, chosen, judge, align, barrier, seed)
    elif align:
        raise BadInput("blend(align=True) needs a model and its loss to find the units. Give a task or a judge.")
    else:
        made = _unjudged(found, chosen, APART if math.isfinite(barrier) else math.inf)
    return _told(made, how, judge, time.perf_counter() - begun)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    parts: Sequence[Part]
    weights: np.ndarray
    words: str
    tensors: dict[str, Tensor]
    scores: np.ndarray
    scored: str
    judged: Judged | None
    notes: tuple[str, ...]


def _judged(found: Sequence[Part], chosen: Rule, judge: Judge, align: bool, barrier: float, seed: int) -> _Made:
    """Score, align, weigh, check, average, and compare once."""
    kept, losses = _scored(found, judge)
    notes: list[str] = []
    if align:
        kept, moved = _aligned(kept, losses, judge, barrier, seed)
        notes.append(f"{moved} parts had their hidden units reordered to lie on the best part's.")
    candidates = Candidates(parts=kept, losses=losses, judge=judge)
    scores = candidates.scores()
    weights, words = chosen.weights(candidates)
    used = np.flatnonzero(weights)
    best = int(used[scores[used].argmin()])
    if math.isfinite(barrier):
        between = barriers(kept, losses, best, judge, used.tolist())
        refuse_barriers(kept, between, best, barrier)
        if between:
            highest = max(each.share for each in between.values())
            notes.append(f"Highest barrier half-way to {kept[best]}: {highest:+.2g} of the loss (at most {barrier:g}).")
    judge.put(iter(candidates.soup(weights).tensors.items()), "the blend")
    tensors, blend_losses = judge.weights(), judge.losses("judge")
    first = int(scores.argmin())
    judge.put(kept[first].tensors(), str(kept[first]))
    part_losses, shares = judge.losses("judge"), judge.shares("judge")
    judged = Judged(
        best=first,
        blend=float(shares @ blend_losses),
        part=float(shares @ part_losses),
        apart=blend_losses - part_losses,
        difference=paired(blend_losses - part_losses, shares),
    )
    return _Made(
        parts=kept, weights=weights, words=words, tensors=tensors, scores=scores,
        scored="loss, on the choosing split", judged=judged, notes=(*notes, *_notes(judged, judge, used)),
    )  # fmt: skip


def _unjudged(found: Sequence[Part], chosen: Rule, limit: float) -> _Made:
    """Without a loss: parts are read through, compared by their weights, averaged."""
    kept, dtypes = _read_through(found)
    distances = refuse_distant(kept, limit)
    weights, words = chosen.weights(Candidates(parts=kept))
    mean = Candidates(parts=kept).soup(weights)
    stale = [name for name in mean.tensors if name.endswith("running_mean")]
    notes = [
        f"{name} and the like are means of the parts' own: recompute_batch_norm renews them." for name in stale[:1]
    ]
    return _Made(
        parts=kept, weights=weights, words=words,
        tensors={name: tensor.to(dtypes[name]) for name, tensor in mean.tensors.items()}, scores=distances,
        scored="‖θ₁ − θ₂‖² / (‖θ₁‖² + ‖θ₂‖²), to the newest", judged=None, notes=tuple(notes),
    )  # fmt: skip


def _scored(found: Sequence[Part], judge: Judge) -> tuple[list[Part], np.ndarray]:
    """Losses of each part on the choosing split; what is damaged or not finite is passed over."""
    kept, rows = list[Part](), list[np.ndarray]()
    for part in found:
        try:
            judge.put(part.tensors(), str(part))
        except CorruptData as error:
            _passed_over(part, str(error))
            continue
        row = judge.losses("choose")
        if np.isfinite(row).all():
            kept.append(part)
            rows.append(row)
        else:
            _passed_over(part, "its loss is not finite.")
    return _enough(kept), np.array(rows)


def _read_through(found: Sequence[Part]) -> tuple[list[Part], dict[str, torch.dtype]]:
    """Every byte checked; and the widest type of each tensor."""
    kept, shapes, dtypes = list[Part](), dict[str, tuple[int, ...]](), dict[str, torch.dtype]()
    for part in found:
        own: dict[str, torch.dtype] = {}
        try:
            for name, value in checked(part.tensors(), shapes, str(part)) if shapes else part.tensors():
                own[name] = value.dtype
                if not kept:
                    shapes[name] = tuple(value.shape)
        except CorruptData as error:
            _passed_over(part, str(error))
            continue
        dtypes = {name: torch.promote_types(dtype, dtypes.get(name, dtype)) for name, dtype in own.items()}
        kept.append(part)
    return _enough(kept), dtypes


def _passed_over(part: Part, why: str) -> None:
    warnings.warn(f"blend: {part} is passed over: {why}", DynaxxWarning, stacklevel=5)


def _enough(kept: list[Part]) -> list[Part]:
    if len(kept) < 2:
        raise BadInput(f"blend(of=...): two parts make a blend. Got {len(kept)}. Widen the range, or save more often.")
    return kept


def _aligned(found: list[Part], losses: np.ndarray, judge: Judge, limit: float, seed: int) -> tuple[list[Part], int]:
    """Those that a barrier stands before are reordered, if that can be."""
    best = int((losses @ judge.shares("choose")).argmin())
    between = barriers(found, losses, best, judge, range(len(found)))
    blocked = [i for i, each in between.items() if each.blocks(limit)]
    return (aligned(found, best, blocked, judge, seed) if blocked else found), len(blocked)


def _notes(judged: Judged, judge: Judge, used: np.ndarray) -> list[str]:
    notes = [f"The blend is {VERDICTS[judged.verdict]}, on {judged.difference.pairs} groups of examples that chose "
             "neither."]  # fmt: skip
    if len(used) == 1:
        notes.append("No other part was worth adding: the blend is its best part.")
    if not math.isfinite(judged.difference.low):
        notes.append(f"{judged.difference.pairs} groups have no interval at 95 %; give six or more that judge.")
    if judge.normalised:
        notes.append(f"Statistics of batch normalisation were taken anew {judge.renewals} times, from "
                     f"{judge.statistics_examples} training examples each.")  # fmt: skip
    return notes


def _told(made: _Made, how: str, judge: Judge | None, seconds: float) -> Blended:
    """The chart and the lineage."""
    verdict = "not evaluated" if made.judged is None else made.judged.verdict
    runs = dict.fromkeys(part.run for part in made.parts)
    first, last = made.parts[0], made.parts[-1]
    title = f"{made.words} · {len(made.parts)} parts of {', '.join(runs)}, steps {first.step} to {last.step}"
    passes = judge.passes if judge else 0.0
    archived = sum(part.archived for part in made.parts)
    notes = list(made.notes)
    if archived:
        notes.append(f"{archived} of {len(made.parts)} parts are archived: their matrices were rounded to bf16.")
    newest = int(np.flatnonzero(made.weights)[-1])
    chart = Story(
        title=title, parts=made.parts, weights=made.weights, scores=made.scores, scored=made.scored,
        judged=made.judged, cost=Cost(forwards=passes, seconds=seconds), notes=tuple(notes),
    ).chart()  # fmt: skip
    lineage = {
        "how": how,
        "rule": made.words,
        "verdict": verdict,
        "parts": [
            {"run": part.run, "place": part.place, "step": part.step, "id": part.id, "weight": float(w)}
            for part, w in zip(made.parts, made.weights, strict=True)
            if w > 0
        ],
        "values": {name: value.value for name, value in chart.values.items()},
    }
    frame = made.parts[newest].frame()
    return Blended(weights=made.tensors, verdict=verdict, chart=chart, lineage=lineage, frame=frame)
