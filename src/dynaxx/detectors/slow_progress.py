"""Learning rate too low: the loss falls, if at all, far slower than the curvature and the gradients would allow."""

import numpy as np

from dynaxx.core.findings import Cause, Detector, Evidence, Finding, Log, Test, Threshold
from dynaxx.detectors._acts import advice, scale_rate
from dynaxx.detectors._dynamics import AGREE, Dynamics, dynamics
from dynaxx.detectors._facts import adaptive, checked, group, planned
from dynaxx.detectors._progress import Progress, progress
from dynaxx.detectors._read import LOSS, optional, unbroken
from dynaxx.detectors._start import trained
from dynaxx.detectors._structure import blocked, structural
from dynaxx.detectors._weigh import Sign, Suspect, ranked
from dynaxx.errors import NotApplicable
from dynaxx.numerics.trend import trend
from dynaxx.runlog import ClippedView

POINTS = Threshold(
    value=4.5,
    origin="sum of the weights in `_signs`: one strong sign and two weak ones at least",
    false_alarms="0 of the 65 healthy rescue runs on which it was set (eight moments each); 6 of 110 further ones when "
    "asked from step 100 on, five of them of kinds to which the suite then gave 1/20 of their rate where the net draws "
    "a warm-up; 0 of 52 fresh ones of other kinds",
)
GAINED = Threshold(
    value=0.5,
    origin="share of the first loss gained above which progress is not called slow",
    false_alarms="with POINTS",
)
MARGIN = Threshold(
    value=100.0,
    origin="stability margin: rates that train well use up all of it but a factor 5 to 30 (rescue suite, four nets; "
    "Cohen 2021: progressive sharpening goes on until it is 1)",
    false_alarms="with POINTS",
)
MOVED = Threshold(
    value=0.15,
    origin="the relative updates of all planned steps in sum: with less the weights cannot leave their start; healthy "
    "runs of the rescue suite reach 2 to 4",
    false_alarms="with POINTS",
)
BEARS = Threshold(
    value=0.01,
    origin="curvature along an update over what its length allows, of a live check: a byte-level transformer has 0.02 "
    "to 0.1 at its own rate, 0.0003 to 0.006 at 1/30 of it (Adam, 300 steps, one batch each)",
    false_alarms="with 0.2 over the stability margin in its place, and asked where `rate_up` asks: none in 175 healthy "
    "runs of the rescue suite beside those that alarmed without it",
)
DECAYED = 0.2
"""Share of the highest rate below which steps are short on purpose."""
ALONG = 0.6
"""Cosine of successive gradients from which on a direction without curvature is one to go further along."""
ROWS = 64
"""Losses on end that a trend is seen in."""
FAR = 1.0
"""Relative updates in sum beyond which steps are not short, whatever the margin: weights may have been made anew."""


class SlowProgress(Detector):
    """Signs that steps are far too short, weighed together.

    A large stability margin, hardly any curvature along the update, updates whose sum over the run stays small beside
    the weights, gradients that agree from step to step, a loss that falls at an even pace.
    """

    code = "D9"
    title = "learning rate too low"
    reads = (LOSS,)

    def detect(self, run: Log) -> Finding | None:
        """Add up the signs; of a rate that has been decayed, those of the time before."""
        if progress(unbroken(run, LOSS, ROWS), share=0.5).gained > float(GAINED):
            return None
        run = _before_decay(run)
        loss = unbroken(run, LOSS, ROWS)
        now = progress(loss, share=0.5)
        seen = dynamics(run, now.first, now.last)
        if seen.rate is not None and _rising(run, now.last):
            raise NotApplicable("the learning rate is still in its warm-up")
        bent = _bent(run, seen)
        excused = now.gained if bent is not None and bent < float(BEARS) else _ahead(run, now)
        if max(now.gained, excused) > float(GAINED) or now.trend.slope > 2 * now.trend.error:
            return None
        ratio = _mean_ratio(run)
        if ratio is not None and ratio * now.last > FAR:
            return None
        signs = _signs(run, now, seen, ratio)
        points = sum(sign.weight for sign in signs)
        if points < float(POINTS) or max(sign.weight for sign in signs) < 2:
            return None
        signs.sort(key=lambda sign: -sign.weight)
        span = (int(loss.steps[0]), now.last)
        return Finding(
            code=self.code,
            name="slow_progress",
            title=f"steps far too short: {signs[0].text}; {now.gained:.1%} of the loss gained in {now.last} steps",
            severity="note" if trained(run) else "warning",
            spans=(span,),
            evidence=tuple(
                Evidence(text=s.text, columns=(s.column,), steps=span, value=s.value, threshold=s.threshold)
                for s in signs
            ),
            causes=_causes(run, now, seen, signs),
            test=Test(
                text="Measure the curvature along the gradient: far below 2/η the rate may be raised.",
                check="directional_curvature",
            ),
        )


def _ahead(run: Log, now: Progress) -> float:
    """Share of the first loss that is gained by the planned end if the loss goes on as it falls.

    That excuses a slow run only where no live check has seen that its updates meet hardly any curvature: losses that
    flatten out, as a language model's do after its first easy half, are promised too much by a straight line. A net
    that leaves the plateau of its start falls faster and faster: where the later half of the stretch is clearly steeper
    than the earlier one, it tells.
    """
    loss, middle = unbroken(run, LOSS, ROWS), (now.first + now.last) / 2
    halves = (loss.between(now.first, middle), loss.between(middle, now.last))
    before, later = (trend(half.steps.astype(np.float64), half.values) for half in halves)
    gathers = later.slope + 2 * later.error < before.slope - 2 * before.error
    line = later if gathers else now.trend
    left = max(0, (planned(run) or 0) - now.last)
    return now.gained - min(0.0, line.slope + 2 * line.error) * left / abs(now.start) if now.start else 0.0


def _before_decay(run: Log) -> Log:
    """The log up to the last step whose rate was worth `DECAYED` of the highest: later steps are short on purpose."""
    rates = optional(run, "lr")
    if rates is None:
        return run
    rates = rates.largest().finite
    if len(rates) == 0 or not rates.values.max() > 0 or rates.values[-1] >= DECAYED * rates.values.max():
        return run
    return ClippedView(run, 0, int(rates.steps[rates.values >= DECAYED * rates.values.max()][-1]))


def _signs(run: Log, now: Progress, seen: Dynamics, ratio: float | None) -> list[Sign]:
    signs: list[Sign] = []
    margin = _margin(run, seen)
    if margin is not None and margin > float(MARGIN):
        text = f"stability margin {margin:.3g}: steps could be so many times longer before they overshoot"
        weight = 3.0 if margin > 10 * float(MARGIN) else 2.0
        signs.append(Sign(weight=weight, text=text, column="stability_margin", value=margin, threshold=float(MARGIN)))
    bent = _bent(run, seen)
    if bent is not None and bent < float(BEARS) and (seen.agreement or 0.0) > ALONG:
        text = f"curvature along the update is {bent:.2g} × what its length allows"
        signs.append(Sign(weight=2.0, text=text, column="loss", value=bent, threshold=float(BEARS)))
    steps = max(planned(run) or 0, now.last)
    if ratio is not None and ratio * steps < 2 * float(MOVED):
        moved = ratio * steps
        text = f"at {ratio:.2g} of the weights' size a step, {steps} steps move them by {moved:.1%} at most"
        weight = 3.0 if moved < 0.1 * float(MOVED) else 2.0 if moved < float(MOVED) else 1.0
        signs.append(Sign(weight=weight, text=text, column="update_ratio.total", value=moved, threshold=float(MOVED)))
    if seen.agreement is not None and seen.agreement > AGREE:
        text = f"gradients of different batches agree (cosine {seen.agreement:.2f}): more could be gained along them"
        signs.append(Sign(weight=1.0, text=text, column="gradient_agreement", value=seen.agreement, threshold=AGREE))
    if seen.turning is not None and seen.turning > 0.95:
        text = f"the path runs straight on (cosine {seen.turning:.3f} of successive displacements)"
        signs.append(Sign(weight=0.5, text=text, column="trajectory.cosine", value=seen.turning, threshold=0.95))
    if now.trend.slope < -2 * now.trend.error:
        text = f"the loss falls evenly, by {-now.trend.slope:.2g} a step"
        signs.append(Sign(weight=1.0, text=text, column="loss", value=now.trend.slope, threshold=0.0))
    return signs


def _margin(run: Log, seen: Dynamics) -> float | None:
    """The stability margin of the stretch, else the last one before it: it is dear, and rare where steps are cheap."""
    if seen.margin is not None:
        return seen.margin
    found = optional(run, "stability_margin")
    known = None if found is None else found.finite
    return None if known is None or len(known) == 0 else float(known.values[-1])


def _bent(run: Log, seen: Dynamics) -> float | None:
    """Curvature along the update over what its length allows, by the last live check, at the present rate."""
    then = checked(run, "directional_curvature").get("rate")
    if seen.curvature is None or not then or seen.rate is None:
        return None
    return abs(seen.curvature) * seen.rate / float(then)


def _mean_ratio(run: Log) -> float | None:
    found = optional(run, "update_ratio.total")
    if found is None:
        return None
    values = found.values[(found.steps > 1) & np.isfinite(found.values)]
    return float(np.median(values)) if len(values) >= 10 else None


def _rising(run: Log, last: int) -> bool:
    """Whether the rate has been rising over the last tenth."""
    rates = optional(run, "lr")
    if rates is None:
        return False
    values = rates.largest().between(0.9 * last, last).values
    return len(values) > 3 and bool(values[-1] > max(0.0, 1.02 * values[0]))


def _causes(run: Log, now: Progress, seen: Dynamics, signs: list[Sign]) -> tuple[Cause, ...]:
    why = f"{now.gained:.1%} gained in {now.last} steps"
    strong = any(sign.weight >= 3 for sign in signs)
    factor = 10.0 if strong else 3.0
    low = Suspect("learning_rate_too_low", 0.6, (scale_rate(factor, None, why),))
    low.weigh(strong, 3, signs[0].text)
    low.weigh(now.trend.slope < -2 * now.trend.error, 1.5, "what steps there are lower the loss")
    epsilon = group(run, "eps")
    share = optional(run, "optimizer_state.epsilon_dominated")
    ruled = None if share is None else bool(np.nanmedian(share.values[-10:]) > 0.5)
    large = Suspect(
        "epsilon_too_large", 0.15, (advice("Lower Adam's ε: 1e-8 is usual."), scale_rate(factor, None, why))
    )
    if not adaptive(run):
        large.odds = 0.0
    large.weigh(ruled, 12, "ε exceeds the root of the second moments in most coordinates", against=0.2)
    large.weigh(epsilon > 1e-4, 8, f"ε is {epsilon:g}", against=0.4)
    clipped = Suspect("clipping_too_tight", 0.08, (advice("Raise the clipping threshold to the 90th percentile."),))
    coefficient = optional(run, "clip_coefficient")
    tight = None if coefficient is None else bool(np.nanmedian(coefficient.values[-50:]) < 0.1)
    clipped.weigh(tight, 8, "the clipping leaves a tenth of the gradient", against=0.3)
    low.weigh(blocked(run), 0.1, "")
    return ranked(low, large, clipped, *structural(run))
