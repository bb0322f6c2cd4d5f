"""Plateaus, told apart: not connected, saddle, flat valley, noise floor or converged."""

import numpy as np

from dynaxx.core.findings import Cause, Detector, Evidence, Finding, Log, Test, Threshold
from dynaxx.detectors._acts import advice, scale_rate, stop
from dynaxx.detectors._dynamics import AGREE, LARGE, SMALL, Dynamics, dynamics, too_high
from dynaxx.detectors._facts import checked, planned
from dynaxx.detectors._progress import Progress, opening, progress
from dynaxx.detectors._read import LOSS, VALIDATION, Track, matching, optional, unbroken
from dynaxx.detectors._standstill import GAINED as STOOD
from dynaxx.detectors._standstill import Standstill, standstill
from dynaxx.detectors._start import trained
from dynaxx.detectors._structure import BELIEVED, gradientless, structural
from dynaxx.detectors._weigh import Suspect, ranked

LEAST = Threshold(
    value=0.02,
    origin="a plateau is where more than this share of the loss in the next tenth of the run can be ruled out at 95 %",
    false_alarms="a plateau that was left later is a note; see GAINED for the alarm",
)
GAINED = Threshold(
    value=0.06,
    origin="an alarm only where the whole run has gained less than this share of its first loss: the loss of a "
    "classifier that learns nothing wanders by 1 to 2 %, and marginal frequencies alone are worth 5 %",
    false_alarms="0 of 65 healthy rescue runs, asked at eight moments each (26 000 steps); seen when it was set",
)
STEPS = Threshold(
    value=150.0,
    origin="and has had so many steps, or a quarter of those planned: healthy runs on small nets leave their first "
    "plateau within 100",
    false_alarms="with GAINED",
)
DOWNWARD = Threshold(
    value=0.2,
    origin="−λ_min/λ_max: of 19 measurements in healthy runs of the rescue suite nine tenths are below 0.14, the "
    "largest is 0.28; the median of a stretch is compared",
    false_alarms="raises no alarm: it weighs one cause",
)
EVALUATIONS = 4
"""Falling ones on end, which chance makes of one in 24."""
SEEN = 0.01
"""Share of the first validation loss gained that is no wandering of a net that learns nothing."""
MARGIN = 300.0
"""Stability margin beyond what healthy rates leave unused, a factor of 5 to 30, by ten."""
STILL = 1e-7
"""Updates below the resolution of float32 weights."""
DECAYED = 0.1
"""A rate below this share of its peak has been decayed: what is left to gain by annealing is gained."""


class Plateau(Detector):
    """A stretch of the training loss whose trend, with errors that know of correlation, rules out an improvement.

    A note where something was learned before: it says which kind of plateau it is. A warning where nothing was, or
    where nothing was since the first eighth of the plan.
    """

    code = "D10"
    title = "plateau"
    reads = (LOSS,)

    def detect(self, run: Log) -> Finding | None:
        """Test the trend of the last quarter."""
        loss = unbroken(run, LOSS, 120)
        last = int(loss.steps[-1])
        now = progress(loss)
        ahead = 0.1 * (planned(run) or last)
        promise = now.promise(ahead)
        if promise > float(LEAST) or now.trend.slope > 3 * now.trend.error:
            return None
        falling = now.trend.slope < -3 * now.trend.error
        never = (
            _best_gain(loss) < float(GAINED)
            and not falling
            and not trained(run)
            and not _seen_by_validation(run)
            and last >= min(float(STEPS), 0.25 * (planned(run) or 10**9))
        )
        stood = None if never else standstill(run, loss)
        begin = 1 if never else now.first if stood is None else stood.since
        seen, span = dynamics(run, begin, last), (begin, last)
        causes = _causes(run, now, seen, never or stood is not None)
        return Finding(
            code=self.code,
            name="plateau",
            title=f"the loss {_fallen(never, stood)}, at {now.level:.4g}; "
            f"an improvement of 1 % could be seen in {now.odometer(0.01):.0f} steps",
            severity="warning" if never or stood is not None else "note",
            spans=(span,),
            evidence=(
                Evidence(
                    text=f"slope {now.trend.slope:+.2g} ± {now.trend.error:.2g} a step since step {now.first}: a fall "
                    f"by more than {max(promise, 0):.1%} in the next {ahead:.0f} steps is ruled out at 95 %; "
                    f"{now.gained:.0%} of the first loss is gained",
                    columns=(loss.name,),
                    steps=span,
                    value=promise,
                    threshold=float(LEAST),
                ),
                *(() if stood is None else (_stands(stood, last),)),
                *seen.evidence(now.first, last),
            ),
            causes=causes,
            test=Test(
                text="Permute the labels within batches: where that costs nothing, the labels say nothing."
                if causes[0].name == "shuffled_labels"
                else "Train a copy on one batch: if it cannot be fitted either, the loss is not connected to the "
                "weights, or the rate is wrong; if it can, the data have no more to give at this noise.",
                check="label_shuffle" if causes[0].name == "shuffled_labels" else "overfit_one_batch",
            ),
        )


def _fallen(never: bool, stood: Standstill | None) -> str:
    """What the title says of the loss."""
    if never:
        return "has not fallen at all"
    return "has stopped falling" if stood is None else f"has hardly fallen since step {stood.since}"


def _stands(stood: Standstill, last: int) -> Evidence:
    """The gains of a run that stands where its beginning left it."""
    return Evidence(
        text=f"since step {stood.since} training has gained {stood.training:.1%} of its best loss before, validation "
        f"{stood.validation:.1%}, at the full rate",
        columns=("loss", "val_loss", "lr"),
        steps=(stood.since, last),
        value=max(stood.training, stood.validation),
        threshold=float(STOOD),
    )


def _seen_by_validation(run: Log) -> bool:
    """Whether the last evaluations fall one by one, from the first by `SEEN`: they are quieter than batches."""
    found = optional(run, VALIDATION)
    values = found.finite.values if found is not None else np.empty(0)
    return (
        len(values) >= EVALUATIONS
        and bool((np.diff(values[-EVALUATIONS:]) < 0).all())
        and bool(values[-1] < (1 - SEEN) * values[0])
    )


def _best_gain(loss: Track) -> float:
    """Share of the first loss that the best stretch of 16 steps had gained: what was lost again was learned once."""
    count = len(loss) // 16
    best = float(np.median(loss.values[len(loss) - 16 * count :].reshape(count, 16), axis=1).min())
    return (opening(loss) - best) / abs(opening(loss)) if opening(loss) else 0.0


def _causes(run: Log, now: Progress, seen: Dynamics, never: bool) -> tuple[Cause, ...]:
    why = f"no progress since step {now.first}"
    decayed = None if not seen.peak or seen.rate is None else seen.rate < DECAYED * seen.peak
    small = None if seen.ratio is None else seen.ratio < float(SMALL)
    agree = None if seen.agreement is None else seen.agreement > AGREE
    said = f"gradients of different batches agree (cosine {seen.agreement or 0:.2f})"
    valley = Suspect("flat_valley", 0.12, (scale_rate(3.0, 200, why),))
    gradient = _gradient(run, now)
    valley.weigh(agree, 4, said, against=0.5)
    valley.weigh(
        None if gradient is None else gradient < 0.1, 2, f"the gradient is {gradient or 0:.2g} × its first norm"
    )
    valley.weigh(decayed, 0.2, "")
    saddle = Suspect("saddle", 0.06, (scale_rate(3.0, 100, why),))
    curved = _curvature(run, now)
    saddle.weigh(None if curved is None else curved < 0, 15, "the loss curves downward along the gradient", against=0.3)
    down = _downward(run, now)
    saddle.weigh(
        None if down is None else down > float(DOWNWARD),
        4,
        f"the strongest downward curvature is {down or 0:.2g} of the strongest upward one",
        against=0.5,
    )
    low = Suspect("learning_rate_too_low", 0.1, (scale_rate(10.0, None, why),))
    low.weigh(small, 6, f"updates are {seen.ratio or 0:.1g} of the weights' size", against=0.2)
    low.weigh(agree, 3, said, against=0.7)
    low.weigh(decayed and not never, 0.05, "")
    wide = None if seen.margin is None else seen.margin > MARGIN
    low.weigh(wide, 6, f"stability margin {seen.margin or 0:.3g}", against=0.6)
    rest = _unlearned(run, seen, [low, valley], why) if never else _learned(now, seen, decayed, agree, why)
    return ranked(valley, saddle, low, *rest)


def _learned(now: Progress, seen: Dynamics, decayed: bool | None, agree: bool | None, why: str) -> list[Suspect]:
    """Why a run that has learned stands still."""
    done = Suspect("converged", 0.3, (stop(why),))
    done.weigh(decayed, 5, "the rate is decayed", against=0.7)
    done.weigh(now.gained > 0.8, 4, f"{now.gained:.0%} of the first loss is gained", against=0.7)
    floor = Suspect("noise_floor", 0.3, (scale_rate(0.3, None, why), advice("Let the rate decay, or raise the batch.")))
    noisy = None if seen.noise is None else seen.noise > 2
    floor.weigh(noisy, 3, f"noise scale {seen.noise or 0:.2g} × batch", against=0.4)
    floor.weigh(agree, 0.3, "", against=1.5)
    floor.weigh(decayed, 0.15, "")
    return [done, floor]


def _unlearned(run: Log, seen: Dynamics, others: list[Suspect], why: str) -> list[Suspect]:
    """Why a run that moves has learned nothing at all; what the model itself shows speaks against all else."""
    still = None if seen.ratio is None else seen.ratio < STILL
    reasons = structural(run)
    reasons[0].weigh(still and not gradientless(run), 20, "the weights do not move")
    proven = max(reason.confidence for reason in reasons) > BELIEVED
    labels = Suspect("shuffled_labels", 0.35, (advice("Compare a few inputs with their labels by eye."),))
    labels.why.append("the weights move as in any run, and nothing more is learned")
    labels.weigh(
        still or (None if seen.ratio is None else not float(SMALL) < seen.ratio < float(LARGE)), 0.1, "", against=2
    )
    labels.weigh(checked(run, "overfit_one_batch").get("solved"), 3, "one batch alone can be fitted", against=0.1)
    informative = checked(run, "label_shuffle").get("informative")
    labels.weigh(None if informative is None else not informative, 10, "permuted labels cost no more", against=0.05)
    high = too_high(Suspect("learning_rate_too_high", 0.2, (scale_rate(0.1, None, why),)), seen)
    for suspect in (labels, high, *others):
        suspect.weigh(proven, 0.3, "")
    return [*reasons, labels, high]


def _gradient(run: Log, now: Progress) -> float | None:
    """Gradient norm in the stretch over that of the first steps."""
    norms = optional(run, "grad_norm")
    if norms is None:
        return None
    total = norms.total().finite
    early, late = total.values[:20], total.between(now.first, now.last).values
    if len(early) < 3 or len(late) < 3 or np.median(early) <= 0:
        return None
    return float(np.median(late) / np.median(early))


def _downward(run: Log, now: Progress) -> float | None:
    """−λ_min/λ_max in the stretch, as far as the search for λ_max has seen λ_min: a lower bound."""
    lowest, highest = optional(run, "sharpness.lowest"), optional(run, "sharpness")
    if lowest is None or highest is None:
        return None
    here, there = matching(lowest, highest)
    inside = lowest.steps[here] >= now.first
    share = -lowest.values[here][inside] / highest.values[there][inside]
    share = share[np.isfinite(share) & (highest.values[there][inside] > 0)]
    return float(np.median(share)) if len(share) else None


def _curvature(run: Log, now: Progress) -> float | None:
    found = optional(run, "directional_curvature")
    live = checked(run, "directional_curvature").get("curvature")
    if live is not None:
        return float(live)
    late = None if found is None else found.finite.between(now.first, now.last)
    return None if late is None or len(late) < 2 else float(np.median(late.values))
