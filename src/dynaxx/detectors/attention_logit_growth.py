"""Attention logits that grow until each query looks at one token."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Remedy, Test, Threshold
from dynaxx.detectors._read import QUIETLY, end_of, rows
from dynaxx.detectors._remedies import rate
from dynaxx.detectors._spans import moving_mean, stretches
from dynaxx.detectors._weigh import ranked, suspect
from dynaxx.errors import NotApplicable

LOGIT = Threshold(
    value=100.0,
    origin="threshold of Megatron's QK-clip (Kimi K2, 2025)",
    false_alarms="no alarm in 10 healthy runs of the rescue suite, 4,000 steps, asked every 25",
)
DIVERGED = Threshold(
    value=1e4,
    origin="Wortsman et al. (2023): runs whose logits pass 1e4 diverge",
    false_alarms="no alarm in 10 healthy runs of the rescue suite, 4,000 steps, asked every 25",
)
COLLAPSE = Threshold(
    value=0.05,
    origin="entropy over that of the start; Zhai et al. (2023): entropy near zero goes with instability",
    false_alarms="no alarm in 10 healthy runs of the rescue suite, 4,000 steps, asked every 25",
)
PERSIST = 10
WINDOW = 10


class AttentionLogitGrowth(Detector):
    """Largest attention logit of each attention layer, above 100 and above its start, or entropy that has collapsed."""

    code = "D23"
    title = "attention-logit growth"
    reads = ("attention.logit_max",)

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """Above the level at which others intervene, and growing."""
        logit = rows(run, "attention.logit_max", least=2 * WINDOW)
        size = np.where(np.isfinite(logit.values), np.abs(logit.values), np.nan)
        if np.isnan(size).all():
            raise NotApplicable("no attention logit was finite")
        level = np.nan_to_num(moving_mean(size, WINDOW))
        worst = level.max(axis=1)
        start = float(np.median(worst[:WINDOW]))
        spans = stretches(logit.steps, worst >= max(LOGIT.value, 2 * start), PERSIST, end_of(run))
        if not spans:
            return None
        top = float(worst.max())
        left = _entropy_left(run)
        order = np.argsort(-level[-1])
        doubling = _doubling(logit.steps, worst, spans[-1][0])
        open_ended = spans[-1][1] >= end_of(run)
        return Finding(
            code=self.code,
            name="attention_logit_growth",
            title=f"attention logits have grown from {start:.3g} to {top:.3g}",
            severity="critical" if open_ended and top >= DIVERGED.value else "warning" if open_ended else "note",
            spans=spans,
            layers=tuple(logit.labels[i] for i in order if level[-1, i] >= LOGIT.value),
            evidence=(
                Evidence(
                    text=f"the largest logit in a sample is {top:.3g}, {top / max(start, 1e-9):.3g} times its start"
                    + (f", doubling every {doubling:.0f} steps" if np.isfinite(doubling) else ""),
                    columns=("attention.logit_max",),
                    steps=(spans[0][0], spans[-1][1]),
                    value=top,
                    threshold=LOGIT.value,
                ),
                Evidence(
                    text=f"the entropy of the attention weights is {left:.0%} of its start",
                    columns=("attention.entropy",),
                    value=left,
                    threshold=COLLAPSE.value,
                ),
            ),
            causes=ranked(
                suspect(
                    "attention_logit_growth",
                    0.6,
                    3.0 if left < COLLAPSE.value else 1.0,
                    why=f"entropy down to {left:.0%}",
                    remedies=(
                        Remedy(text="Normalise queries and keys (QK-norm), or clip the logits."),
                        Remedy(text="Raise the weight decay of the query and key projections."),
                        rate(0.5),
                    ),
                ),
                suspect(
                    "learning_rate_too_high",
                    0.4,
                    2.0 if doubling < 100 else 0.7,
                    why=f"logits double every {doubling:.0f} steps" if np.isfinite(doubling) else "",
                    remedies=(rate(0.3),),
                ),
            ),
            test=Test(
                text="Halve the rate for some steps: growth that goes on is the logits' own.",
                check="directional_curvature",
            ),
        )


def _entropy_left(run: Log) -> float:
    """Least share of the first entropy that a layer has left; 1 where it was not measured."""
    if "attention.entropy" not in run.columns:
        return 1.0
    values = rows(run, "attention.entropy").values
    first, last = np.median(values[:WINDOW], axis=0), np.median(values[-WINDOW:], axis=0)
    share = last[first > 0] / first[first > 0]
    share = share[np.isfinite(share)]
    return float(share.min()) if len(share) else 1.0


def _doubling(steps: np.ndarray, level: np.ndarray, onset: int) -> float:
    """Steps in which the logits doubled on their way to the onset; infinite where they did not grow."""
    before = (steps <= onset) & (level > 0)
    if before.sum() < 3:
        return float("nan")
    x, y = steps[before].astype(np.float64), np.log2(level[before])
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / max(((x - x.mean()) ** 2).sum(), 1e-30))
    return 1 / slope if slope > 0 else float("inf")
