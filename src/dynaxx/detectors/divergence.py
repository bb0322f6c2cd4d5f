"""Divergence: the training loss rises and does not come back, be it by half a percent a step."""

import numpy as np

from dynaxx.core.findings import Cause, Detector, Evidence, Finding, Log, Severity, Test, Threshold
from dynaxx.detectors._acts import advice, clip, lower_momentum, roll_back, scale_rate, skip, stop
from dynaxx.detectors._blocks import Blocks, blocks
from dynaxx.detectors._dynamics import dynamics, lagging, lengthened, raised, too_high
from dynaxx.detectors._facts import group
from dynaxx.detectors._read import LOSS, Track, optional, unbroken
from dynaxx.detectors._spikes import blow, sudden
from dynaxx.detectors._weigh import Suspect, ranked
from dynaxx.numerics.cusum import cusum

HEIGHT = Threshold(
    value=8.0,
    origin="Page's sum over block medians, in deviations of one median",
    false_alarms="benchmarks/spikes.py, seven kinds of noise of 160 000 steps: at most 0.06 alarms in 10 000 steps, "
    "those of `loss_spike` included",
)
ALLOWANCE = Threshold(
    value=3.0,
    origin="the lowest of many medians lies two deviations below their mean by chance alone, of 300 three",
    false_alarms="with HEIGHT",
)
RISE = Threshold(
    value=1.2,
    origin="a rise by a fifth over the best level: half a percent a step makes it in 37 steps",
    false_alarms="with HEIGHT",
)
SHARE = Threshold(
    value=0.2,
    origin="and by a fifth of what was gained: a loss near zero may rise many times over and lose nothing",
    false_alarms="0 of 65 healthy rescue runs, asked at eight moments each (26 000 steps); seen when it was set",
)
LEFT = Threshold(
    value=0.3,
    origin="share of what was gained that may be left of a rise that is no longer at its highest: it comes back, "
    "as restarts are (`schedule_too_aggressive.LOST`)",
    false_alarms="clean and staircase runs of a net with batch normalisation alarmed without it, 50 steps after a jump",
)
SUDDEN = 2
"""Blocks: a rise that is all there within so many is a jump, a slower one a drift."""
ONCE = 0.35
"""Share of the rise that one step made; noise of the steps takes part of it."""


class Divergence(Detector):
    """A lasting rise of the loss over its best level, by Page's cumulative sum over block medians.

    Blocks of 16 steps and more, so that neither a spike nor a run of hard batches counts. A warning while the rise
    stands at the end of the log, critical above where the run began, a note where the loss came back or is on its way.
    """

    code = "D7"
    title = "divergence"
    reads = (LOSS,)

    def detect(self, run: Log) -> Finding | None:
        """Compare every block with the best level before it."""
        loss = unbroken(run, LOSS, 128)
        cut = blocks(loss)
        high, best = _risen(cut)
        stretches = _stretches(high)
        if not stretches:
            return None
        first, last = stretches[-1]
        onset = _onset(cut, best, first)
        stands = last == len(cut) - 1
        top = float(cut.medians[first : last + 1].max())
        start = float(np.max(cut.medians[:2]))
        severity: Severity = (
            "note"
            if not stands or _returning(cut, best[first], onset)
            else "critical"
            if cut.medians[-3:].min() > start + 3 * cut.noise
            else "warning"
        )
        rate = _slope(cut, onset, last)
        where = int(cut.first[onset])
        grown = f"×{np.exp(top - best[first]):.3g}" if cut.log else f"by {top - best[first]:.3g}"
        return Finding(
            code=self.code,
            name="divergence",
            title=f"the loss has risen {grown} over its best level since step {where}"
            + ("" if stands else f", and came back by step {cut.last[last]}"),
            severity=severity,
            spans=tuple((int(cut.first[a]), int(cut.last[b])) for a, b in [*stretches[:-1], (onset, last)]),
            evidence=(
                Evidence(
                    text=f"block medians went from {cut.value(float(best[first])):.4g} to {cut.value(top):.4g}, "
                    f"{(top - best[first]) / cut.noise:.0f} deviations of a block; {rate:+.2%} a step"
                    if cut.log
                    else f"block medians went from {best[first]:.4g} to {top:.4g}",
                    columns=(loss.name,),
                    steps=(where, int(cut.last[last])),
                    value=float(np.exp(top - best[first])) if cut.log else top - float(best[first]),
                    threshold=float(RISE),
                ),
                *dynamics(run, where, int(cut.last[last])).evidence(where, int(cut.last[last])),
            ),
            causes=_causes(run, loss, cut, onset, first, last, severity),
            test=Test(
                text="Measure the curvature along the gradient: above 2/η the steps are too long, below it the data "
                "have changed.",
                check="directional_curvature",
            ),
        )


def _risen(cut: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """Which blocks stand risen, and the best level before each, smoothed over three blocks."""
    smooth = np.convolve(np.pad(cut.medians, 1, mode="edge"), np.ones(3) / 3, mode="valid")
    smooth[0], smooth[-1] = cut.medians[:2].mean(), cut.medians[-2:].mean()
    best = np.minimum.accumulate(np.concatenate([smooth[:1], smooth[:-1]]))
    excess = cut.medians - best
    sum_ = cusum(np.clip(excess / cut.noise, -50, 50), float(ALLOWANCE)).height
    begin = float(np.max(cut.medians[:2]))
    if cut.log:
        gained = np.exp(begin) - np.exp(best)
        lost = np.exp(np.minimum(cut.medians, 700)) - np.exp(best)
        matters = (excess > np.log(float(RISE))) & (lost > float(SHARE) * gained)
    else:
        matters = excess > float(SHARE) * np.maximum(begin - best, 0) + 3 * cut.noise
    return (sum_ > float(HEIGHT)) & matters & (excess > float(ALLOWANCE) * cut.noise), best


def _stretches(high: np.ndarray) -> list[tuple[int, int]]:
    """Runs of two risen blocks and more."""
    at = np.flatnonzero(high)
    if len(at) == 0:
        return []
    cuts = np.flatnonzero(np.diff(at) > 2)
    ends = zip(at[np.r_[0, cuts + 1]].tolist(), at[np.r_[cuts, len(at) - 1]].tolist(), strict=True)
    return [(a, b) for a, b in ends if b > a]


def _onset(cut: Blocks, best: np.ndarray, first: int) -> int:
    """The block after the last one that was at the best level."""
    low = np.flatnonzero(cut.medians[: first + 1] <= best[first] + 1.5 * cut.noise)
    return min(first, int(low[-1]) + 1) if len(low) else first


def _returning(cut: Blocks, best: float, onset: int) -> bool:
    """Whether the loss has been higher already since it rose, and what is left is little of what was gained."""
    now, top, low = (cut.value(float(x)) for x in (cut.medians[-1], cut.medians[onset:].max(), best))
    return now < top and now - low < float(LEFT) * (cut.value(float(np.max(cut.medians[:2]))) - low)


def _slope(cut: Blocks, onset: int, last: int) -> float:
    top = onset + int(np.argmax(cut.medians[onset : last + 1]))
    start = max(onset - 1, 0)
    span = max(1.0, float(cut.last[top] - cut.last[start]))
    return float(cut.medians[top] - cut.medians[start]) / span


def _causes(
    run: Log, loss: Track, cut: Blocks, onset: int, first: int, last: int, severity: Severity
) -> tuple[Cause, ...]:
    begin, end = int(cut.first[onset]), int(cut.last[last])
    why = f"the loss rises since step {begin}"
    rest = () if severity != "critical" else (stop(why),)
    near = loss.between(begin - 16, end)
    share = sudden(near.values, min(16, len(near) - 1), int(np.argmax(near.values))) if len(near) > 32 else 0.0
    once = first - onset <= SUDDEN and share > ONCE
    seen = dynamics(run, begin, end)
    at = _jump(near)
    hit = _struck(run, loss, at)
    struck, (began, said) = hit is not None, hit or (begin, "")
    lifted = raised(run, begin) or raised(run, at)
    longer = lengthened(run, began)
    repeats = None if seen.agreement is None else seen.agreement > 0.8
    logits = _grows(optional(run, "logit_norm"), begin, end)
    rate = too_high(
        Suspect("learning_rate_too_high", 0.45, (scale_rate(0.5, None, why), roll_back(begin, why), *rest)), seen
    )
    rate.weigh(not once, 2, "the loss climbs step by step", against=0.7)
    plan = Suspect(
        "schedule_too_aggressive", 0.1, (scale_rate(0.5, 200, why), advice("Let the rate rise more slowly."))
    )
    plan.weigh(lifted, 12, "the learning rate had just been raised", against=0.3)
    shift = Suspect("data_shift", 0.15, (roll_back(begin, why), advice("Compare the data before and after this step.")))
    rate.weigh(longer or lifted, 3, "updates had grown threefold before the loss rose", against=0.8)
    rate.weigh(repeats, 0.3, "")
    rate.weigh(struck and not (longer or lifted), 0.3, "")
    shift.weigh(struck, 0.3, "")
    batch = Suspect("corrupted_batch", 0.12, (skip("outlier", why), roll_back(at, why)))
    batch.weigh(struck, 12, said, against=0.3)
    batch.weigh(lifted or longer, 0.2, "")
    shift.weigh(longer or lifted, 0.3, "")
    shift.weigh(once, 4, f"{share:.0%} of the rise came in one step, and stayed", against=0.2)
    lag = lagging(Suspect("preconditioner_lag", 0.1, (clip(why), scale_rate(0.7, 200, why))), run, begin - 50, end)
    inertia = Suspect("momentum_too_high", 0.08, (lower_momentum(0.9, why), scale_rate(0.5, None, why)))
    inertia.weigh(group(run, "momentum") > 0.96, 6, f"momentum {group(run, 'momentum'):g}", against=0.3)
    scale = Suspect("attention_logit_growth", 0.03, (advice("Normalise queries and keys, or add a z-loss."),))
    scale.weigh(logits, 2, "the outputs' norm grows with the loss")
    scale.weigh(_grows(optional(run, "attention.max_logit"), begin, end), 8, "attention logits grow", against=0.3)
    summed = Suspect("gradients_not_cleared", 0.05, (advice("Call zero_grad once per update."),))
    summed.weigh(repeats, 20, f"successive gradients repeat each other (cosine {seen.agreement or 0:.2f})", against=0.3)
    return ranked(rate, batch, plan, shift, lag, inertia, scale, summed)


def _jump(near: Track) -> int:
    """The step at which the loss rose most."""
    return int(near.steps[int(np.argmax(np.diff(near.values))) + 1]) if len(near) > 1 else int(near.steps[-1])


def _struck(run: Log, loss: Track, at: int) -> tuple[int, str] | None:
    """The step at which a loss or a gradient came out of nowhere as the loss jumped, and how far."""
    norms = optional(run, "grad_norm")
    for name, seen in (("loss", loss), ("gradient", None if norms is None else norms.total().finite)):
        hit = None if seen is None else blow(seen.values, int(np.searchsorted(seen.steps, at, "right")) - 1)
        if seen is not None and hit is not None:
            step = int(seen.steps[hit.at])
            return step, f"the {name} of step {step} is {hit.ratio:.3g} times the largest of the 64 before"
    return None


def _grows(found: Track | None, begin: int, end: int) -> bool | None:
    if found is None:
        return None
    found = found.largest()
    before, after = found.between(begin - (end - begin), begin), found.between(begin + 1, end)
    if len(before) < 3 or len(after) < 3:
        return None
    return bool(np.median(after.values) > 1.3 * np.median(before.values))
