"""What a blend is shown as: scores and weights of its parts, and the blend against the best of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dynaxx.checkpoints._parts import Part
from dynaxx.core.chart import Chart, Estimate
from dynaxx.core.panels import Line, Lines, Panel, Table
from dynaxx.core.records import Cost
from dynaxx.numerics.paired import Paired

Verdict = Literal["better", "not established", "worse", "not evaluated"]
VERDICTS: dict[Verdict, str] = {
    "better": "better than the best of its parts",
    "worse": "worse than the best of its parts",
    "not established": "not established to differ from the best of its parts",
    "not evaluated": "not evaluated",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The blend against the best of its parts, on examples that chose neither.

    Args:
        best: Which part; the best on the choosing split.
        blend: Mean loss of the blend.
        part: Mean loss of that part.
        apart: Blend minus part, group by group.
        difference: Its mean with an interval at 95 %.
    """

    best: int
    blend: float
    part: float
    apart: np.ndarray
    difference: Paired

    @property
    def verdict(self) -> Verdict:
        """What the interval says."""
        return "better" if self.difference.high < 0 else "worse" if self.difference.low > 0 else "not established"


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What happened.

    Args:
        title: What was blended, in a line.
        parts: All that were looked at.
        weights: Of each.
        scores: Mean losses on the choosing split, or distances where there is no loss.
        scored: What the scores are.
        judged: None where nothing was evaluated.
        cost: What it took.
        notes: What a reader must know.
    """

    title: str
    parts: Sequence[Part]
    weights: np.ndarray
    scores: np.ndarray
    scored: str
    judged: Judged | None
    cost: Cost
    notes: tuple[str, ...]

    def chart(self) -> Chart:
        """The chart."""
        judged = self.judged
        arrays = {
            "step": np.array([float(part.step) for part in self.parts]),
            "weight": self.weights,
            "score": self.scores,
        }
        panels: list[Panel] = [self._over_steps("score"), self._over_steps("weight")]
        if judged is not None:
            arrays["difference"] = judged.apart
            panels += [_differences(judged), self._table(judged)]
        return Chart(
            probe="blend",
            title=self.title,
            values=self._values(),
            arrays=arrays,
            panels=tuple(panels),
            cost=self.cost,
            notes=self.notes,
        )

    def _values(self) -> dict[str, Estimate]:
        used = float(1 / (self.weights**2).sum())
        values = {"effective_parts": Estimate(value=used, about="1 / Σw²: how many equally weighted parts it is like")}
        if self.judged is None:
            return values
        mean, half = self.judged.difference.mean, _half(self.judged.difference)
        return {
            "difference": Estimate(
                value=mean, error=half, bound=True, about="blend − best part, interval at 95 %: below 0 is better"
            ),
            "p": Estimate(value=self.judged.difference.p, about="of no difference, by sign flips"),
            "blend": Estimate(value=self.judged.blend, about="loss on the judging split"),
            "best_part": Estimate(value=self.judged.part, about=f"the same of {self.parts[self.judged.best]}"),
            **values,
        }

    def _over_steps(self, what: Literal["score", "weight"]) -> Lines:
        values = self.scores if what == "score" else self.weights
        lines: list[Line] = []
        for line in dict.fromkeys(part.line for part in self.parts):
            own = [i for i, part in enumerate(self.parts) if part.line == line]
            steps = np.array([float(self.parts[i].step) for i in own])
            lines.append(Line(label=line[1], x=steps, y=values[own], style="points"))
        if what == "weight":
            return Lines(title="Weights in the blend", lines=tuple(lines), y_label="share")
        return Lines(title=f"Parts: {self.scored}", lines=tuple(lines), y_label=self.scored.partition(",")[0])

    def _table(self, judged: Judged) -> Table:
        d = judged.difference
        rows = (
            (str(self.parts[judged.best]), f"{judged.part:.6g}", ""),
            ("blend", f"{judged.blend:.6g}", f"{d.mean:+.3g}  [{d.low:+.3g}, {d.high:+.3g}]  p = {d.p:.3g}"),
        )
        header = ("", "loss on the judging split", "against the best part, 95 %")
        return Table(title=f"The blend is {VERDICTS[judged.verdict]}", header=header, rows=rows)


def _differences(judged: Judged) -> Lines:
    """Group by group, in order, with the mean and its interval."""
    sorted_ = np.sort(judged.apart)
    x = np.arange(1, len(sorted_) + 1, dtype=np.float64)
    d = judged.difference
    ends = np.array([x[0], x[-1]])
    lines = [
        Line(label="blend − best part, by group", x=x, y=sorted_, style="points"),
        Line(label="mean", x=ends, y=np.full(2, d.mean)),
    ]
    for label, end in (("95 %, low", d.low), ("95 %, high", d.high)):
        if np.isfinite(end):
            lines.append(Line(label=label, x=ends, y=np.full(2, end), style="dashed"))
    return Lines(
        title="Blend against its best part, on examples that chose neither",
        lines=tuple(lines),
        x_label="group of examples, by its difference",
        y_label="difference of the loss",
        note="Better where both dashed lines are below zero.",
    )


def _half(found: Paired) -> float | None:
    """The longer arm of the interval."""
    arm = max(found.mean - found.low, found.high - found.mean)
    return arm if np.isfinite(arm) else None
