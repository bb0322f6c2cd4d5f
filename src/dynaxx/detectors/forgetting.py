"""Forgetting: one validation gets worse from its best while the training or another validation gets better."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Test, Threshold
from dynaxx.detectors._acts import advice, scale_rate
from dynaxx.detectors._read import Track, optional
from dynaxx.detectors._weigh import Suspect, ranked
from dynaxx.errors import NotApplicable
from dynaxx.numerics.robust_scale import CONSISTENT

LOSS_RISE = Threshold(
    value=0.15,
    origin="a validation loss above its best by 15 % while another one falls: half again what counts as overfitting",
    false_alarms="logs with one validation cannot raise it; two validations of one law differ by their noise, see SURE",
)
DROP = Threshold(
    value=0.05,
    origin="an accuracy five points below its best",
    false_alarms="with LOSS_RISE",
)
SURE = Threshold(
    value=5.0,
    origin="and by so many standard deviations of one evaluation, over the pairs of validations",
    false_alarms="of 8 validations of independent noise one in 10⁵ exceeds it",
)
LEAST = 8
"""Fewest evaluations of each."""
PREFIX = ("val_", "eval_", "validation_", "val/", "eval/")
BETTER = ("accuracy", "acc", "f1", "auc")


class Forgetting(Detector):
    """Among several validations of one kind, those that fell back from their best while another one still improved.

    With one validation alone a rise is overfitting or divergence, and this detector says that it cannot tell.
    """

    code = "D21"
    title = "forgetting"
    reads = ()

    def detect(self, run: Log) -> Finding | None:
        """Compare validations of the same kind with each other."""
        losses, scores = _validations(run)
        if len(losses) < 2 and len(scores) < 2:
            raise NotApplicable("needs two validations of one kind (val_loss.old, val_loss.new): one alone cannot tell")
        lost: list[tuple[float, Track, int]] = []
        gained: list[Track] = []
        for kind, sign, limit in ((losses, 1.0, float(LOSS_RISE)), (scores, -1.0, float(DROP))):
            judged = [_back(found, sign) for found in kind]
            if any(better for *_, better in judged):
                gained += [t for t, (*_, better) in zip(kind, judged, strict=True) if better]
                lost += [
                    (share, t, best)
                    for t, (share, sure, best, _) in zip(kind, judged, strict=True)
                    if share > limit and sure > float(SURE)
                ]
        if not lost:
            return None
        lost.sort(key=lambda item: -item[0])
        share, worst, best = lost[0]
        begin, last = int(worst.steps[best]), int(worst.steps[-1])
        why = f"{worst.name} gets worse since step {begin}"
        cause = Suspect(
            "forgetting",
            0.7,
            (
                advice("Mix earlier data into the batches, or pull the weights towards the earlier ones."),
                scale_rate(0.3, None, why),
            ),
        )
        cause.weigh(_sudden(worst, best), 3, "it began at once, as when the data change")
        shift = Suspect("data_shift", 0.3, (advice("Compare the data before and after this step."),))
        shift.weigh(_sudden(worst, best), 2, "it began at once", against=0.6)
        return Finding(
            code=self.code,
            name="forgetting",
            title=f"{worst.name} {share:.0%} worse than at step {begin}, while {gained[0].name} improves",
            severity="warning",
            spans=((begin, last),),
            evidence=tuple(
                Evidence(
                    text=f"{t.name}: {t.values[b]:.4g} at step {t.steps[b]}, now {np.median(t.values[-3:]):.4g}",
                    columns=(t.name,),
                    steps=(int(t.steps[b]), last),
                    value=s,
                )
                for s, t, b in lost
            ),
            causes=ranked(cause, shift),
            test=Test(text="Train a copy for some steps on the earlier data: what was forgotten comes back quickly."),
        )


def _validations(run: Log) -> tuple[list[Track], list[Track]]:
    """Losses and scores."""
    losses: list[Track] = []
    scores: list[Track] = []
    for name in run.columns:
        kind = losses if "loss" in name else scores if any(word in name for word in BETTER) else None
        if kind is None or not name.startswith(PREFIX):
            continue
        found = optional(run, name)
        if found is not None and found.values.ndim == 1 and len(found.finite) >= LEAST:
            kind.append(found.finite)
    return losses, scores


def _back(found: Track, sign: float) -> tuple[float, float, int, bool]:
    """How far it fell back, in share (loss) or points (score) and in deviations; its best row; whether it improves."""
    values = sign * found.values
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(values, 3), axis=1)
    best = int(np.argmin(smooth)) + 1
    second = values[2:] - 2 * values[1:-1] + values[:-2]
    noise = max(CONSISTENT * float(np.median(np.abs(second))) / np.sqrt(6), 1e-12)
    worse = float(np.median(values[-3:]) - smooth[best - 1])
    scale = abs(float(smooth[best - 1])) if sign > 0 else 1.0
    improved = best >= len(values) * 2 // 3 and float(np.median(values[:3]) - smooth[best - 1]) > 3 * noise
    return worse / max(scale, 1e-12), worse / noise, best, improved


def _sudden(found: Track, best: int) -> bool:
    """Whether most of the loss came within two evaluations after the best."""
    after = np.abs(found.values[best:] - found.values[best])
    return bool(len(after) > 3 and after[2] > 0.6 * after.max())
