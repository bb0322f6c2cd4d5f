"""Schedule too aggressive: the rate jumps up and the loss does not follow, or it is spent long before the run is."""

import numpy as np

from dynaxx.core.findings import Cause, Detector, Evidence, Finding, Log, Severity, Test, Threshold
from dynaxx.detectors._acts import advice, roll_back, scale_rate
from dynaxx.detectors._dynamics import dynamics, too_high
from dynaxx.detectors._facts import planned
from dynaxx.detectors._progress import ROWS, opening
from dynaxx.detectors._read import LOSS, Track, track, unbroken
from dynaxx.detectors._weigh import Suspect, ranked
from dynaxx.errors import NotApplicable
from dynaxx.numerics.trend import trend

SPENT = Threshold(
    value=0.02,
    origin="a rate below this share of its peak moves the weights no more: cosine schedules end below it for the last "
    "9 % of their steps",
    false_alarms="0 of 65 healthy rescue runs, asked at eight moments each (26 000 steps); seen when it was set",
)
IDLE = Threshold(
    value=0.3,
    origin="and if that leaves so large a share of the planned steps idle: linear and cosine decays leave 2 and 9 %",
    false_alarms="with SPENT",
)
WAITED = Threshold(
    value=0.05,
    origin="and has been spent for so large a share of the plan, 20 steps at least: of two warm restarts of a cosine "
    "the first ends with 3 % below SPENT",
    false_alarms="with SPENT",
)
LINGERS = Threshold(
    value=0.25,
    origin="share of the plan between 0.3 of the peak and SPENT above which the peak was a short excess and the run "
    "was trained at less; a cosine that ends at 70 % of the plan takes 0.2",
    false_alarms="with SPENT",
)
FALLING = Threshold(
    value=0.03,
    origin="while the loss was still falling by this share within a tenth of the plan when the rate went down, or "
    "falls so since",
    false_alarms="with SPENT",
)
JUMP = Threshold(
    value=3.0,
    origin="a rate raised by this factor within 2 % of the steps, past the first tenth: a restart",
    false_alarms="warm restarts of cosine schedules come back, see LOST",
)
LOST = Threshold(
    value=0.3,
    origin="after which the loss still stands above the level before by this share of what was gained, an eighth of "
    "the plan later: healthy restarts come back within half a cycle",
    false_alarms="with SPENT",
)

UNSEEN = Threshold(
    value=2.0,
    origin="times the highest rate that the run was trained at before: a restart goes back to its peak, a bump beyond",
    false_alarms="none in 694 healthy rescue runs, asked 20 times each: no schedule of theirs leaps so",
)
HIT = Threshold(
    value=8.0,
    origin="losses under such a rate whose median lies above all but two of the 64 before, which may be odd batches: "
    "of the 6 largest of 72 exchangeable rows 4 are among the last 8 once in 1000",
    false_alarms="with UNSEEN",
)
HALF = 0.5
"""Share of the plan that no schedule leaves idle before a trend of the loss could be seen."""
PAST, ODD = 64, 2
"""Rows before a raise that HIT compares with, and how many of them may be odd."""


class ScheduleTooAggressive(Detector):
    """Learning rate beside loss: raises that the loss does not bear, decays that come too early."""

    code = "D13"
    title = "schedule too aggressive"
    reads = (LOSS, "lr")

    def detect(self, run: Log) -> Finding | None:
        """Look at restarts, at rates never tried before, then at the decay."""
        loss, rates = unbroken(run, LOSS, 40), track(run, "lr", 20).largest().finite
        steps = planned(run) or int(loss.steps[-1])
        if len(rates) < 20 or not rates.values.max() > 0:
            raise NotApplicable("the learning rate has no positive finite values")
        return _restart(run, loss, rates, steps) or _bump(run, loss, rates, steps) or _early(run, loss, rates, steps)


def _raises(rates: Track, steps: int) -> list[tuple[int, float]]:
    """The rows at which the rate leaps up, the latest first, and by what factor."""
    span = max(2, steps // 50)
    lagged = np.maximum(np.interp(rates.steps - span, rates.steps, rates.values), 1e-300)
    raised = (rates.values > float(JUMP) * lagged) & (rates.steps > max(0.1 * steps, 20))
    at = np.flatnonzero(raised & ~np.concatenate([[False], raised[:-1]]))
    return [(int(row), float(rates.values[row : row + span + 1].max() / lagged[row])) for row in at[::-1]]


def _restart(run: Log, loss: Track, rates: Track, steps: int) -> Finding | None:
    """The last raise that the loss did not come back from."""
    for row, grown in _raises(rates, steps):
        step = int(rates.steps[row])
        before, since = loss.between(step - max(32, steps // 20), step - 1), loss.between(step, loss.steps[-1])
        if len(before) < 8 or len(since) < max(16, steps // 8):
            continue
        level, start = float(np.median(before.values)), opening(loss)
        now = float(np.median(since.values[-max(8, len(since) // 4) :]))
        lost = (now - level) / max(start - level, 0.2 * abs(level), 1e-12)
        if lost < float(LOST):
            continue
        last = int(loss.steps[-1])
        text = f"the rate was raised {grown:.3g}-fold at step {step} and the loss went from {level:.4g} to {now:.4g}"
        return _finding(text, text, (step, last), lost, float(LOST), _too_far(run, step, last, grown))
    return None


def _bump(run: Log, loss: Track, rates: Track, steps: int) -> Finding | None:
    """The last raise to a rate that the run was never trained at, under which the loss rose at once.

    A warning until the loss is back in the range that it had before; a note after that.
    """
    for row, grown in _raises(rates, steps):
        step, known = int(rates.steps[row]), float(rates.values[:row].max())
        under = rates.values[row:] > float(UNSEEN) * known
        if not under[0]:
            continue
        end = int(rates.steps[row + (len(under) if under.all() else int(np.argmin(under))) - 1])
        before, hit = loss.between(0, step - 1).rows(slice(-PAST, None)), loss.between(step, end)
        hit = hit.rows(slice(0, PAST))
        if len(before) < PAST or len(hit) < float(HIT):
            continue
        highest, last = float(np.sort(before.values)[-1 - ODD]), int(loss.steps[-1])
        if np.median(hit.values) <= highest:
            continue
        back = float(np.median(loss.values[-int(HIT.value) :])) <= highest
        text = (
            f"the rate was raised {grown:.3g}-fold at step {step}, to {float(rates.values[row]) / known:.3g} times any "
            f"before, and the loss rose from {np.median(before.values):.4g} to {np.median(hit.values):.4g}"
        )
        return _finding(
            text + (", and came back" if back else ""),
            text,
            (step, end if back else last),
            float(np.median(hit.values)),
            highest,
            _too_far(run, step, last, grown),
            severity="note" if back else "warning",
        )
    return None


def _too_far(run: Log, step: int, last: int, grown: float) -> tuple[Cause, ...]:
    """What a raise that did harm speaks for."""
    why = f"the rate was raised {grown:.3g}-fold at step {step}"
    back, lower = roll_back(step, why, pass_data=False), scale_rate(0.3, None, why)
    rate = too_high(Suspect("learning_rate_too_high", 0.35, (lower, back)), dynamics(run, step, last))
    plan = Suspect("schedule_too_aggressive", 0.75, (back, lower, advice("Restart to a lower peak, with a warm-up.")))
    plan.why.append(why)
    return ranked(plan, rate)


def _early(run: Log, loss: Track, rates: Track, steps: int) -> Finding | None:
    """A rate that is spent while much of the plan is left and the loss was falling, or was not trained long enough."""
    peak = float(rates.values.max())
    spent = rates.values < float(SPENT) * peak
    if not spent[-1]:
        return None
    row = int(np.flatnonzero(~spent)[-1]) + 1
    step, last = int(rates.steps[row]), int(rates.steps[-1])
    idle = (steps - step) / steps
    if idle < float(IDLE) or last - step < max(20, float(WAITED) * steps):
        return None
    full = np.flatnonzero(rates.values[:row] > 0.3 * peak)
    if len(full) and step - int(rates.steps[full[-1]]) > float(LINGERS) * steps:
        return None
    before = loss.between(0, int(rates.steps[full[-1]]) + 1) if len(full) else loss.between(0, step)
    near = before.rows(slice(-max(16, len(before) // 3), None))
    since = loss.between(step, last)
    # What was left to gain shows in a fall before, or, where few noisy steps came before, in one that even such a rate
    # keeps up. A loss that was trained at height for less than a trend takes cannot be said to have settled.
    fall = max(_fall(part, steps) for part in (near, since))
    falls = fall >= float(FALLING)
    if not falls and not (len(full) < ROWS and idle > HALF):
        return None
    left = (
        f"where the loss could still fall by {fall:.0%} in a tenth of the plan"
        if falls
        else f"after {len(full)} steps at height, in which no loss can be seen to settle"
    )
    text = (
        f"the rate has been below {float(SPENT):.0%} of its peak since step {step}, {idle:.0%} of the plan, {left}; "
        f"it stands at {np.median(since.values):.4g} since"
    )
    why = f"the rate was spent at step {step}"
    factor = min(30.0, max(3.0, 0.1 * peak / max(float(rates.values[-1]), 1e-300)))
    plan = Suspect(
        "schedule_too_aggressive",
        0.85,
        (advice("Let the decay last to the end of the run."), scale_rate(factor, None, why)),
    )
    plan.why.append(text)
    low = Suspect("learning_rate_too_low", 0.4, (scale_rate(factor, None, why),))
    title = f"the rate was spent at step {step} of {steps}" + (", with the loss still falling" if falls else "")
    return _finding(title, text, (step, last), idle, float(IDLE), ranked(plan, low))


def _fall(part: Track, steps: int) -> float:
    """By what share the loss falls in a tenth of the plan, at least (90 %)."""
    if len(part) < 12:
        return 0.0
    line = trend(part.steps.astype(np.float64), part.values)
    return -line.bound(0.9) * 0.1 * steps / max(abs(line.level), 1e-12)


def _finding(
    title: str,
    text: str,
    span: tuple[int, int],
    value: float,
    threshold: float,
    causes: tuple[Cause, ...],
    severity: Severity = "warning",
) -> Finding:
    return Finding(
        code="D13",
        name="schedule_too_aggressive",
        title=title,
        severity=severity,
        spans=(span,),
        evidence=(Evidence(text=text, columns=("lr", "loss"), steps=span, value=value, threshold=threshold),),
        causes=causes,
        test=Test(
            text="Measure the curvature along the gradient: above 2/η the rate is too high here, far below it too low.",
            check="directional_curvature",
        ),
    )
