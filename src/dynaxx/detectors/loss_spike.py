"""Loss spikes, told apart: one odd batch that leaves no mark, or dynamics that throw the run off its course."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Severity, Test, Threshold
from dynaxx.detectors._acts import advice, clip, raise_epsilon, roll_back, scale_rate, skip
from dynaxx.detectors._dynamics import dynamics, lagging, lengthened, raised, too_high
from dynaxx.detectors._facts import checked
from dynaxx.detectors._read import LOSS, Track, optional, unbroken
from dynaxx.detectors._spikes import NOWHERE, Spike, beyond, blow, spikes, sudden
from dynaxx.detectors._weigh import Suspect, ranked
from dynaxx.errors import NotApplicable

MATTERS = Threshold(
    value=0.1,
    origin="a lasting rise that is not over is an alarm where it takes back a tenth of what the run has gained",
    false_alarms="0 of 65 healthy rescue runs, asked at eight moments each (26 000 steps); seen when it was set",
)
PROVEN = Threshold(
    value=8.0,
    origin="rows that a rise which is not over must have lasted to be an alarm: of 87 healthy rescue runs one was "
    "thrown up fivefold and was back after 6, incidents of the suite last 16 and more",
    false_alarms="that run alarmed without it",
)
OVER = Threshold(
    value=0.3,
    origin="and one that has come back by itself where it took back this share, as a restart may not "
    "(`schedule_too_aggressive`): incidents of the rescue suite take back 1.06 and more",
    false_alarms="1 of 54 healthy rescue runs, on label smoothing, had one of 0.12, an alarm until it was set",
)
AGAIN = Threshold(
    value=3.0,
    origin="spikes within a tenth of the run that speak for the rate instead of the batches (tuning playbook, 2023)",
    false_alarms="with MATTERS",
)
ONCE = 0.6
"""Share of a rise in one step above which it came at once."""
CLEAR = 2.0
"""Rises by less than this factor are too near to the noise to tell how they came."""
PRECEDES = 5
"""Steps before the loss at which the gradient may rise first: OLMo 2 (2024) saw gradient spikes precede the loss."""
SHOWN = 12
"""Most stretches that a finding lists, the latest."""


class LossSpike(Detector):
    """Steps whose loss sticks out of its trailing level by more than the stream's own tail explains.

    A lone high step that falls back at once harms nothing and is a note; a rise that lasts and takes back part of what
    was gained is a warning, and critical while it is open and above where the run began.
    """

    code = "D6"
    title = "loss spike"
    reads = (LOSS,)

    def detect(self, run: Log) -> Finding | None:
        """Look for spikes in the loss."""
        loss = unbroken(run, LOSS, 60)
        found = spikes(loss.values)
        if not found:
            return None
        worst = max(found, key=lambda s: (s.lasting, _share(loss, s), s.score))
        serious = [s for s in found if s.lasting and _serious(loss, s)]
        severity = _severity(loss, found, serious)
        listed = (serious or found)[-SHOWN:]
        spans = tuple((int(loss.steps[s.first]), int(loss.steps[s.last])) for s in listed)
        chosen = max(serious, key=lambda s: _share(loss, s)) if serious else worst
        at = int(loss.steps[chosen.peak])
        kind = "lasting" if chosen.lasting else "single-step"
        return Finding(
            code=self.code,
            name="loss_spike",
            title=f"{len(found)} loss spike{'s' if len(found) > 1 else ''}; {kind} ×{chosen.ratio:.3g} at step {at}",
            severity=severity,
            spans=spans,
            evidence=_evidence(loss, chosen, found),
            causes=_causes(run, loss, chosen, found),
            test=Test(
                text="Compute the loss of that batch again beside the other kept ones: high alone speaks for the data, "
                "as any other speaks for the dynamics.",
                check="replay_batch",
                arguments={"step": at},
            ),
        )


def _serious(loss: Track, spike: Spike) -> bool:
    young = spike.open and spike.last - spike.first + 1 < float(PROVEN)
    return not young and _share(loss, spike) > float(MATTERS if spike.open else OVER)


def _share(loss: Track, spike: Spike) -> float:
    """How much of the gain so far a spike takes back; its whole size where there is no gain."""
    begin = float(np.median(loss.values[: max(3, min(16, len(loss) // 20))]))
    before = loss.values[max(0, spike.first - 64) : spike.first]
    level = float(np.median(before)) if len(before) else begin
    risen = level * (spike.ratio - 1)
    return risen / max(begin - level, 0.5 * level, 1e-12)


def _severity(loss: Track, found: list[Spike], serious: list[Spike]) -> Severity:
    if not serious:
        return "note"
    begin = float(np.median(loss.values[:3]))
    open_above = [s for s in serious if s.open and np.median(loss.values[s.first : s.last + 1]) > begin]
    return "critical" if open_above and len(loss) - serious[-1].first > 20 else "warning"


def _evidence(loss: Track, spike: Spike, found: list[Spike]) -> tuple[Evidence, ...]:
    span = (int(loss.steps[spike.first]), int(loss.steps[spike.last]))
    ending = "not over yet" if spike.open else f"over after {spike.last - spike.first + 1} steps"
    lines = [
        Evidence(
            text=f"loss {loss.values[spike.peak]:.4g} at step {loss.steps[spike.peak]}, {spike.score:.1f} robust "
            f"deviations above the trailing level; {ending}",
            columns=(loss.name,),
            steps=span,
            value=spike.ratio,
        )
    ]
    if len(found) > 1:
        lone = sum(not s.lasting for s in found)
        lines.append(
            Evidence(
                text=f"{len(found)} spikes in all, {lone} of a single step", columns=(loss.name,), value=len(found)
            )
        )
    return tuple(lines)


def _causes(run: Log, loss: Track, spike: Spike, found: list[Spike]):  # noqa: ANN202
    first, last = int(loss.steps[spike.first]), int(loss.steps[spike.last])
    why = f"loss spike at step {first}"
    dense = [s for s in found if loss.steps[s.first] > loss.steps[-1] - max(100, len(loss) // 10)]
    lone = not spike.lasting
    early = _precursor(run, first)
    replay = checked(run, "replay_batch")
    again = replay.get("reproduced")
    seen = dynamics(run, first - 50, last)
    hard = Suspect("hard_batch", 0.2, (advice("Nothing needs to be done; look at the batch if it comes again."),))
    hard.weigh(lone, 6, "the loss was back to its level at the next step", against=0.15)
    corrupt = Suspect(
        "corrupted_batch",
        0.25,
        (skip("outlier", why), roll_back(first, why), advice(f"Look at the rows of the batch of step {first}.")),
    )
    corrupt.weigh(spike.ratio > 10, 4, f"the loss is {spike.ratio:.3g} times its level, no valid batch is so hard")
    corrupt.weigh(early, 0.3, "")
    rate = too_high(Suspect("learning_rate_too_high", 0.3, (scale_rate(0.5, 200, why), clip(why))), seen)
    rate.weigh(spike.lasting, 2, "the loss stays high after the batch has gone", against=0.3)
    rate.weigh(len(dense) >= float(AGAIN), 3, f"{len(dense)} spikes within a tenth of the run")
    rate.weigh(early, 3, f"the gradient rose in the {PRECEDES} steps before the loss")
    lag = lagging(Suspect("preconditioner_lag", 0.2, (clip(why), raise_epsilon(why))), run, first - 20, last)
    lag.weigh(spike.lasting, 2, "the loss stays high after the batch has gone", against=0.3)
    share = sudden(loss.values, spike.first, spike.peak)
    hit = blow(loss.values, spike.first)
    struck = hit is not None
    above = hit.ratio if hit else beyond(loss.values, spike.first)
    at_once = above > NOWHERE or share > ONCE if spike.lasting and spike.ratio > CLEAR else None
    said = f"a loss is {above:.3g} times the largest before" if above > NOWHERE else f"{share:.0%} came in one step"
    corrupt.weigh(at_once, 4 if struck else 2, said, against=0.3)
    hard.weigh(at_once, 2, said, against=0.3)
    rate.weigh(
        None if at_once is None else not at_once,
        3,
        f"the loss climbed: no step made more than {share:.0%} of it",
        against=0.5,
    )
    began = int(loss.steps[hit.at]) if hit else first
    lifted, longer = raised(run, began), lengthened(run, began)
    for by_data in (hard, corrupt):
        by_data.weigh(lifted or longer, 0.2, "")
    rate.weigh(longer or lifted, 5, "updates had grown before the loss rose", against=0.5)
    corrupt.weigh(None if longer is None else not (longer or lifted), 1.5, "updates were no longer than before")
    plan = Suspect(
        "schedule_too_aggressive", 0.06, (roll_back(first, why, pass_data=False), scale_rate(0.3, None, why))
    )
    plan.weigh(lifted, 25, "the learning rate had just been raised", against=0.3)
    shift = Suspect("data_shift", 0.08, (advice("Compare the data before and after this step."),))
    shift.weigh(spike.lasting and spike.open and not early, 3, "the level changed at once and stayed", against=0.5)
    for suspect, data in ((hard, True), (corrupt, True), (rate, False), (lag, False), (plan, False), (shift, True)):
        suspect.weigh(None if again is None else bool(again) == data, 6, _said(again), against=0.15)
    return ranked(hard, corrupt, rate, plan, lag, shift)


def _said(again: bool | None) -> str:
    return f"replayed beside other batches, this one is {'high again' if again else 'as any other'}"


def _precursor(run: Log, first: int) -> bool | None:
    """Whether the gradient norm rose before the loss did."""
    norms = optional(run, "grad_norm")
    if norms is None:
        return None
    total = norms.total().finite
    usual, near = total.between(first - 128, first - PRECEDES - 1), total.between(first - PRECEDES, first - 1)
    if len(usual) < 24 or len(near) == 0 or usual.values.min() <= 0:
        return None
    try:
        rises = [s for s in spikes(total.between(first - 400, first - 1).values) if s.lasting or s.score > 6]
    except NotApplicable:
        return None
    start = len(total.between(first - 400, first - 1)) - PRECEDES
    return any(s.last >= start for s in rises)
