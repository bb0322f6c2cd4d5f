"""Learning rate too high: steps overshoot, the weights are thrown far out, and the loss bounces instead of falling."""

import numpy as np

from dynaxx.core.findings import Cause, Detector, Evidence, Finding, Log, Test, Threshold
from dynaxx.detectors._acts import advice, clip, lower_momentum, roll_back, scale_rate
from dynaxx.detectors._dynamics import LARGE, dynamics
from dynaxx.detectors._facts import checked, group, planned
from dynaxx.detectors._progress import ceiling, opening, progress
from dynaxx.detectors._read import LOSS, Track, optional, unbroken
from dynaxx.detectors._weigh import Sign, Suspect, ranked
from dynaxx.errors import NotApplicable

POINTS = Threshold(
    value=3.0,
    origin="sum of the weights in `_signs`: two strong signs, or one with two weak ones; none of them alone parts "
    "healthy runs from sick ones",
    false_alarms="0 of 65 healthy rescue runs, asked at eight moments each (26 000 steps); seen when it was set",
)
STUCK = Threshold(
    value=0.5,
    origin="share of the first loss that a run which is not stuck has gained by the time it is judged; a run that "
    "falls all the same, at the edge of stability or after a catapult, is healthy",
    false_alarms="with POINTS",
)
SINCE = Threshold(
    value=60.0,
    origin="steps after which a run is judged, or 15 % of those planned if later: a catapult takes 10 % at most",
    false_alarms="with POINTS",
)
OUT = 4.0
"""Growth of the weights' norm: healthy nets of the rescue suite grow by 2.2 at most in 400 steps."""
LEARNED = 0.3
"""Best loss, as a share of the first, below which the run had learned at this rate: what broke it came later."""
BOUNCE = 1.05
"""Running median of five losses over the first one: batches differ by less where nothing is learned."""
OVERSHOT = 1.3
"""Loss above its first value for at least five steps, by this factor."""


class Oscillation(Detector):
    """Signs of overshooting, weighed together, in a run that gains little.

    Stability margin below 1, updates above a tenth of the weights, weights thrown out, gradients that oppose each
    other, a loss far above its first value.
    """

    code = "D8"
    title = "learning rate too high"
    reads = (LOSS,)

    def detect(self, run: Log) -> Finding | None:
        """Add up the signs."""
        loss = unbroken(run, LOSS, 40)
        last = int(loss.steps[-1])
        whole = planned(run)
        if last - int(loss.steps[0]) < max(float(SINCE), 0.15 * min(whole or 0, 2000)):
            raise NotApplicable(f"step {last} is too early to tell overshooting from a start that settles")
        signs = _signs(run, loss)
        if not signs:
            return None
        points = sum(sign.weight for sign in signs)
        if points < float(POINTS) or not _stuck(loss) or not _bounces(run, loss):
            return None
        signs.sort(key=lambda sign: -sign.weight)
        begin = _begin(loss)
        return Finding(
            code=self.code,
            name="oscillation",
            title=f"steps overshoot: {signs[0].text}",
            severity="warning",
            spans=((begin, last),),
            evidence=tuple(
                Evidence(text=s.text, columns=(s.column,), steps=(begin, last), value=s.value, threshold=s.threshold)
                for s in signs
            ),
            causes=_causes(run, loss, points),
            test=Test(
                text="Measure the curvature along the gradient: above 2/η the steps overshoot.",
                check="directional_curvature",
            ),
        )


def _signs(run: Log, loss: Track) -> list[Sign]:
    """What speaks for overshooting."""
    last = int(loss.steps[-1])
    seen = dynamics(run, last - (last - int(loss.steps[0])) // 2, last)
    candidates: list[Sign | None] = [
        _margin(optional(run, "stability_margin")),
        _ratio(optional(run, "update_ratio.total")),
        _norm(optional(run, "parameter_norm")),
        _overshoot(loss, ceiling(loss)),
    ]
    if seen.agreement is not None and seen.agreement < -0.1:
        text = f"successive gradients oppose each other: median cosine {seen.agreement:+.2f}"
        candidates.append(Sign(weight=1, text=text, column="gradient_agreement", value=seen.agreement, threshold=-0.1))
    if seen.curvature is not None and seen.curvature > 1:
        text = f"curvature along the gradient {seen.curvature:.2g} × 2/η"
        candidates.append(Sign(weight=2, text=text, column="loss", value=seen.curvature, threshold=1.0))
    return [sign for sign in candidates if sign is not None]


def _margin(found: Track | None) -> Sign | None:
    values = None if found is None else found.finite.values
    if values is None or len(values) == 0:
        return None
    middle = float(np.median(values[-4:]))
    least = min(middle, float(values[0]) * 2)
    if not 0 < least < 1:
        return None
    text = f"stability margin {least:.2g}: the sharpest direction needs a rate {1 / least:.3g} times smaller"
    return Sign(weight=3 if least < 0.3 else 2, text=text, column="stability_margin", value=least, threshold=1.0)


def _ratio(found: Track | None) -> Sign | None:
    """Largest running median of five update ratios, the first step left out: layers of zeros make it large."""
    values = None if found is None else found.values[found.steps > 1]
    if values is None:
        return None
    values = values[np.isfinite(values)]
    if len(values) < 5:
        return None
    early = np.median(np.lib.stride_tricks.sliding_window_view(values[:40], 5), axis=1).max()
    now = float(np.median(values[-max(5, len(values) // 4) :]))
    top = max(float(early), now)
    if top < float(LARGE):
        return None
    text = f"updates of up to {top:.2g} of the weights' size"
    return Sign(
        weight=3 if now > float(LARGE) or top > 1 else 2,
        text=text,
        column="update_ratio.total",
        value=top,
        threshold=float(LARGE),
    )


def _norm(found: Track | None) -> Sign | None:
    total = None if found is None else found.total().finite.values
    if total is None or len(total) < 5 or total[0] <= 0:
        return None
    grown = float(np.quantile(total, 0.9) / total[0])
    if grown < OUT:
        return None
    text = f"the weights' norm has grown {grown:.3g}-fold"
    return Sign(weight=3 if grown > 10 else 2, text=text, column="parameter_norm", value=grown, threshold=OUT)


def _overshoot(loss: Track, start: float) -> Sign | None:
    if start <= 0 or len(loss) < 20:
        return None
    medians = np.median(np.lib.stride_tricks.sliding_window_view(loss.values[: max(20, len(loss) // 3)], 5), axis=1)
    top = float(medians.max()) / start
    if top < OVERSHOT:
        return None
    text = f"the loss rose to {top:.3g} times its first value"
    return Sign(weight=2.5 if top > 3 else 1.5, text=text, column=loss.name, value=top, threshold=OVERSHOT)


def _stuck(loss: Track) -> bool:
    """Whether the run gains too little: less than `STUCK` so far, or it stands far above its own best."""
    quarter = loss.values[-max(16, len(loss) // 4) :]
    level, start = float(np.median(quarter)), opening(loss)
    best = float(np.median(np.lib.stride_tricks.sliding_window_view(loss.values, 9)[::4], axis=1).min())
    return level > float(STUCK) * start and best > LEARNED * start


def _bounces(run: Log, loss: Track) -> bool:
    """Whether overshooting did anything: the loss was above its first value, or updates are still large.

    Weights that begin at or near zero grow many times over and have a margin near zero without any harm.
    """
    windows = np.lib.stride_tricks.sliding_window_view(loss.values, 5)
    if np.median(windows[:: max(1, len(windows) // 2000)], axis=1).max() > BOUNCE * ceiling(loss):
        return True
    ratio = dynamics(run, int(loss.steps[-1]) // 2, int(loss.steps[-1])).ratio
    return ratio is not None and ratio > float(LARGE)


def _begin(loss: Track) -> int:
    """Where the loss was first above its first value for good, else the start."""
    high = np.flatnonzero(loss.values[:200] > OVERSHOT * opening(loss))
    return int(loss.steps[high[0]]) if len(high) else int(loss.steps[0])


def _causes(run: Log, loss: Track, points: float) -> tuple[Cause, ...]:
    last = int(loss.steps[-1])
    why = f"steps overshoot, {points:g} points"
    seen = dynamics(run, last - (last - int(loss.steps[0])) // 2, last)
    momentum = group(run, "momentum")
    repeats = None if seen.agreement is None else seen.agreement > 0.8
    high = Suspect("learning_rate_too_high", 0.55, (scale_rate(0.1, None, why), roll_back(1, why, pass_data=False)))
    high.weigh(points >= 5, 3, f"{points:g} points of signs, {float(POINTS):g} are enough")
    high.weigh(repeats, 0.25, "")
    high.weigh(momentum > 0.96, 0.4, "")
    inertia = Suspect("momentum_too_high", 0.08, (lower_momentum(0.9, why), scale_rate(0.3, None, why)))
    inertia.weigh(
        momentum > 0.96, 12, f"momentum {momentum:g} multiplies steps by {1 / max(1 - momentum, 1e-9):.0f}", against=0.2
    )
    cold = Suspect(
        "warmup_missing", 0.12, (advice("Raise the rate over the first 5 % of the steps."), scale_rate(0.3, None, why))
    )
    cold.weigh(_cold(run), 1.5, "the rate was at its peak from the first step", against=0.2)
    cold.weigh(progress(loss).trend.slope < 0 if len(loss) >= 80 else None, 1.5, "it settles later", against=0.5)
    summed = Suspect("gradients_not_cleared", 0.05, (advice("Call zero_grad once per update."),))
    summed.weigh(repeats, 15, f"successive gradients repeat each other (cosine {seen.agreement or 0:.2f})", against=0.3)
    scale = Suspect("initialisation_too_large", 0.06, (advice("Initialise by the fan-in of the layers."), clip(why)))
    live = checked(run, "directional_curvature").get("curvature")
    high.weigh(
        None if live is None or seen.curvature is None else seen.curvature > 1, 4, "a live check agrees", against=0.5
    )
    return ranked(high, inertia, cold, summed, scale)


def _cold(run: Log) -> bool | None:
    rates = optional(run, "lr")
    if rates is None or len(rates) < 10:
        return None
    values = rates.largest().values
    return bool(values[0] > 0.5 * values[: max(10, len(values) // 5)].max())
