"""A validation loss that jumps from evaluation to evaluation while the training loss falls."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Severity, Test, Threshold
from dynaxx.detectors._acts import advice, scale_rate
from dynaxx.detectors._dynamics import dynamics, too_high
from dynaxx.detectors._facts import checked
from dynaxx.detectors._read import LOSS, VALIDATION
from dynaxx.detectors._validation import need_fall, validation
from dynaxx.detectors._weigh import Suspect, ranked
from dynaxx.errors import NotApplicable
from dynaxx.numerics.robust_scale import CONSISTENT

JUMPS = Threshold(
    value=0.3,
    origin="typical change between evaluations of a factor 1.35 in the second half of the run, after its trend",
    false_alarms="0 of 65 healthy rescue runs, asked at eight moments each (26 000 steps); seen when it was set",
)
ABOVE = Threshold(
    value=4.0,
    origin="and so many times what the training loss does over the same stretches",
    false_alarms="with JUMPS",
)
EVALUATIONS = 12
"""Fewest in all: ten for the first of the looks, five of which are of its second half."""
NEIGHBOURS = 1.14
"""Standard deviation of a unit normal number less the median of four others."""
SEEN = 3
"""Evaluations on end that have to find it: of five, two leaps are typical for one evaluation."""


class ErraticValidation(Detector):
    """Robust scale of log changes between evaluations, over the second half of them, beside that of the training loss.

    A note while the learning rate is still high and the best evaluations go on improving; a warning where they do not.
    """

    code = "D30"
    title = "erratic validation"
    reads = (VALIDATION, LOSS)

    def detect(self, run: Log) -> Finding | None:
        """Measure the jumps."""
        found = validation(run, EVALUATIONS)
        need_fall(found)
        count = len(found.track)
        late = _late(count)
        values, train = found.track.values, found.train
        known = slice(_late(count - SEEN + 1).start, None)
        if values[known].min() <= 0 or not np.all(train[known] > 0):
            raise NotApplicable("evaluations of the second half, or the training loss beside them, are not positive")
        with np.errstate(all="ignore"):  # those of the first half may be anything
            looks = [_look(np.log(values[:end]), np.log(train[:end])) for end in range(count - SEEN + 1, count + 1)]
        if any(jumps < float(JUMPS) or jumps < float(ABOVE) * steady for jumps, steady in looks):
            return None
        jumps, steady = looks[-1]
        values = values[late]
        first, last = int(found.track.steps[late][0]), int(found.track.steps[-1])
        improving = float(np.min(values[len(values) // 2 :])) < 0.95 * float(np.min(values[: len(values) // 2]))
        severity: Severity = "note" if improving else "warning"
        why = f"validation loss jumps by ×{np.exp(jumps):.2f}"
        gap = checked(run, "eval_train_gap").get("ratio")
        modes = Suspect(
            "train_eval_mismatch", 0.3, (advice("Raise the momentum of batch-norm statistics, or average weights."),)
        )
        modes.weigh(_normalised(run), 3, "batch normalisation evaluates with running statistics", against=0.3)
        modes.weigh(
            None if gap is None else abs(np.log(float(gap))) > 0.3, 5, f"train and eval mode differ ×{gap}", against=0.3
        )
        rate = too_high(
            Suspect("learning_rate_too_high", 0.35, (scale_rate(0.3, None, why),)), dynamics(run, first, last)
        )
        small = Suspect("data_shift", 0.1, (advice("Evaluate on more examples, or on the same ones each time."),))
        return Finding(
            code=self.code,
            name="erratic_validation",
            title=f"validation loss jumps by ×{np.exp(jumps):.2f} an evaluation, training by ×{np.exp(steady):.2f}",
            severity=severity,
            spans=((first, last),),
            evidence=(
                Evidence(
                    text=f"typical change between evaluations {jumps:.0%} after its trend, of the training loss over "
                    f"the same stretches {steady:.0%}",
                    columns=(found.track.name,),
                    steps=(first, last),
                    value=jumps,
                    threshold=float(JUMPS),
                ),
            ),
            causes=ranked(modes, rate, small),
            test=Test(
                text="Compute the loss of one batch in training and evaluation mode: unlike, it is the statistics of "
                "the normalisation; alike, it is the weights that jump.",
                check="eval_train_gap",
            ),
        )


def _late(count: int) -> slice:
    """The second half of the evaluations, at most sixty."""
    return slice(max(count // 2, count - 60), count)


def _look(values: np.ndarray, train: np.ndarray) -> tuple[float, float]:
    """How far evaluations wander in their second half, and the training loss beside them."""
    late = _late(len(values))
    return _wander(values[late]), _wander(train[late])


def _wander(logs: np.ndarray) -> float:
    """Typical deviation of a value from the median of its four neighbours, as a standard deviation of one value.

    A lone leap counts once so; in second differences it would count three times, and be half of eight evaluations.
    """
    near = [np.delete(logs[max(0, i - 2) : i + 3], min(i, 2)) for i in range(1, len(logs) - 1)]
    away = [abs(float(value - np.median(others))) for value, others in zip(logs[1:-1], near, strict=True)]
    return CONSISTENT * float(np.median(away)) / NEIGHBOURS


def _normalised(run: Log) -> bool | None:
    layers = (run.manifest.get("model") or {}).get("layers")
    return any("BatchNorm" in str(layer.get("kind", "")) for layer in layers) if layers else None
