"""Spikes and slow divergence in synthetic streams of losses: Dynaxx and the rules of its peers, false alarms and hits.

`python benchmarks/spikes.py` prints the table of seven kinds of healthy noise and six kinds of incident; `--streams N`
sets the number of streams of 4000 steps of each kind (40), `--json FILE` keeps the figures.

Dynaxx is asked as in a live run, every 250 steps on what there is by then; everything that it ever said counts, also
where it took it back later. A finding of the severity "note" is counted apart from alarms: one odd batch that leaves
no mark is worth a line and no alarm. Peers are their published rules, re-implemented from their parameters. An
incident is hit where a rule fires within 30 steps of its beginning, and within 600 for the drift.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from rich.console import Console
from rich.table import Table
from scipy.signal import lfilter
from scipy.special import ndtr, stdtrit

from dynaxx.core.records import Column
from dynaxx.detectors.divergence import Divergence
from dynaxx.detectors.loss_spike import LossSpike
from dynaxx.errors import NotApplicable
from dynaxx.runlog.array import LabelledArray
from dynaxx.runlog.clipped import ClippedView

STEPS, ASK = 4000, 250
BLOCK = 32
"""Onsets may lie so many steps early: divergence is dated by blocks of 16 steps."""
Stream = np.ndarray
Noise = Callable[[np.random.Generator], Stream]
Rule = Callable[[Stream], np.ndarray]
"""A stream → the steps (from 0) at which the rule fires."""


def autoregression(rng: np.random.Generator, memory: float) -> Stream:
    """Unit variance, after its start is forgotten."""
    noise = rng.standard_normal(STEPS + 200)
    return lfilter([1.0], [1.0, -memory], noise)[200:] * np.sqrt(1 - memory**2)


NOISE: dict[str, Noise] = {
    "gauss 2 %": lambda rng: 2 * (1 + 0.02 * rng.standard_normal(STEPS)),
    "lognormal .1": lambda rng: 2 * np.exp(0.1 * rng.standard_normal(STEPS)),
    "lognormal .3": lambda rng: 2 * np.exp(0.3 * rng.standard_normal(STEPS)),
    "t3 5 %": lambda rng: 2 * np.exp(0.05 * rng.standard_t(3, STEPS)),
    "decay + 2 %": lambda rng: (0.5 + 2 * np.exp(-np.arange(STEPS) / 800)) * np.exp(0.02 * rng.standard_normal(STEPS)),
    "1 % hard ×2": lambda rng: 2 * np.exp(0.02 * rng.standard_normal(STEPS)) * np.where(rng.random(STEPS) < 0.01, 2, 1),
    "gradient norm": lambda rng: np.exp(0.27 * stdtrit(6, ndtr(autoregression(rng, 0.5)))),
}
"""Healthy streams; the last is correlated and heavy-tailed as norms of gradients are.

Its logarithm has Student's t with 6 degrees of freedom and a correlation of 0.5 from step to step, so that Lightning's
and OLMo's rules fire as often as on real ones."""


def single(factor: float) -> Callable[[Stream, int], Stream]:
    """One step, `factor` times as high."""

    def change(x: Stream, at: int) -> Stream:
        x[at] *= factor
        return x

    return change


def stretch(factor: float, steps: int) -> Callable[[Stream, int], Stream]:
    """Several steps on end."""

    def change(x: Stream, at: int) -> Stream:
        x[at : at + steps] *= factor
        return x

    return change


def drift(x: Stream, at: int) -> Stream:
    """Half a percent a step, for 600 steps."""
    x[at:] *= 1.005 ** np.minimum(np.arange(len(x) - at), 600)
    return x


INCIDENTS: dict[str, Callable[[Stream, int], Stream]] = {
    "×1.5, 1 step": single(1.5),
    "×2, 1 step": single(2.0),
    "×4, 1 step": single(4.0),
    "×3, 20 steps": stretch(3.0, 20),
    "×1.5, stays": stretch(1.5, STEPS),
    "0.5 %/step": drift,
}


def trailing(x: Stream, window: int, statistic: Callable[..., Stream]) -> Stream:
    """A statistic of the `window` steps before each step; NaN before there are so many."""
    out = np.full(len(x), np.nan)
    out[window:] = statistic(sliding_window_view(x, window)[:-1], axis=1)
    return out


def lightning(x: Stream) -> np.ndarray:
    """Lightning's SpikeDetection: |x − mean of 10| ≥ 2 · mean, and above the last."""
    mean = trailing(x, 10, np.mean)
    return np.flatnonzero((np.abs(x - mean) >= 2 * mean) & (x > np.roll(x, 1)))


def kill_loss_spike(x: Stream) -> np.ndarray:
    """LLM Foundry's KillLossSpike: twice the mean of the window (5 % of the run) for more than four steps on end."""
    high = x >= 2 * trailing(x, max(100, STEPS // 20), np.mean)
    return np.flatnonzero(trailing(high.astype(float), 5, np.min) == 1)


def six_sigma(x: Stream) -> np.ndarray:
    """OLMo-core and Levanter: beyond six standard deviations of the last 128, active after 64."""
    return np.flatnonzero(x > trailing(x, 128, np.mean) + 6 * trailing(x, 128, np.std))


def training_doctor(x: Stream) -> np.ndarray:
    """training-doctor: 3.5 standard deviations of the last 100."""
    return np.flatnonzero(x > trailing(x, 100, np.mean) + 3.5 * trailing(x, 100, np.std))


def metaseq(x: Stream) -> np.ndarray:
    """metaseq: 1.3 times the exponential mean of span 9."""
    weight = 2 / (9 + 1)
    mean = lfilter([weight], [1.0, weight - 1], x, zi=[(1 - weight) * x[0]])[0]
    return np.flatnonzero(x[1:] > 1.3 * mean[:-1]) + 1


def megatron(x: Stream) -> np.ndarray:
    """Megatron's rerun machine: ten times the largest of the first hundred."""
    return np.flatnonzero(x > 10 * x[:100].max())


def zclip(x: Stream) -> np.ndarray:
    """ZClip: z-score above 2.5 under moving moments (0.97), which take in what was clipped: clips, no alarms."""
    mean, variance, fired = float(x[:25].mean()), float(x[:25].var()), []
    for step in range(25, len(x)):
        deviation = max(variance, 1e-12) ** 0.5
        z, value = (x[step] - mean) / deviation, x[step]
        if z > 2.5:
            fired.append(step)
            value = mean + 2.5 * deviation / (z / 2.5)
        variance = 0.97 * variance + 0.03 * (value - mean) ** 2
        mean = 0.97 * mean + 0.03 * value
    return np.array(fired, dtype=int)


PEERS: dict[str, Rule] = {
    "Lightning": lightning,
    "KillLossSpike": kill_loss_spike,
    "OLMo, Levanter 6 σ": six_sigma,
    "training-doctor 3.5 σ": training_doctor,
    "metaseq 1.3 × mean": metaseq,
    "Megatron 10 × max": megatron,
    "ZClip (clips)": zclip,
}


class OneColumn:
    """A log that holds a loss and nothing else."""

    def __init__(self, loss: Stream) -> None:
        self.steps, self.manifest = np.arange(1, len(loss) + 1), {"steps": len(loss)}
        self._loss = LabelledArray(Column(name="loss", dtype="float64"), self.steps, lambda: loss, self)
        self.columns = {"loss": self._loss.column}

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """None."""
        del kind
        return []

    def __getitem__(self, name: str) -> LabelledArray:
        return {"loss": self._loss}[name]


def dynaxx(x: Stream, *, notes: bool) -> np.ndarray:
    """Onsets of all that `loss_spike` and `divergence` ever said while the run grew."""
    said: list[int] = []
    for last in range(ASK, len(x) + 1, ASK):
        for detector in (LossSpike(), Divergence()):
            try:
                found = detector.detect(ClippedView(OneColumn(x), 0, last))
            except NotApplicable:
                continue
            if found is not None and (found.alarms or notes):
                said += [first - 1 for first, _ in found.spans]
    return np.array(sorted(set(said)), dtype=int)


RULES: dict[str, Rule] = {
    "Dynaxx, notes too": lambda x: dynaxx(x, notes=True),
    "Dynaxx, alarms": lambda x: dynaxx(x, notes=False),
    **PEERS,
}


def events(fired: np.ndarray, join: int = 16) -> np.ndarray:
    """First steps of stretches of firing; a stretch counts once."""
    return fired if len(fired) == 0 else fired[np.concatenate([[True], np.diff(fired) > join])]


def measure(streams: int, seed: int = 0) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Rows of the table: false alarms in 10 000 steps by noise, hits by incident on lognormal noise of 0.1."""
    for name, rule in RULES.items():
        rng, row = np.random.default_rng(seed), {}
        for kind, noise in NOISE.items():
            count = sum(len(events(rule(noise(rng)))) for _ in range(streams))
            row[kind] = 1e4 * count / (streams * STEPS)
        for kind, change in INCIDENTS.items():
            hits, within = 0, 600 if change is drift else 30
            for _ in range(streams):
                at = int(rng.integers(1000, 3000))
                fired = rule(change(NOISE["lognormal .1"](rng), at))
                hits += bool(((fired >= at - BLOCK) & (fired <= at + within)).any())
            row[kind] = hits / streams
        yield name, row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    table = Table(title=f"False alarms in 10 000 steps, and share of incidents hit ({options.streams} streams each)")
    for column in ("rule", *NOISE, *INCIDENTS):
        table.add_column(column, justify="left" if column == "rule" else "right")
    rows = dict(measure(options.streams))
    for name, row in rows.items():
        table.add_row(name, *(f"{row[k]:.2g}" for k in NOISE), *(f"{row[k]:.2f}" for k in INCIDENTS))
    Console(width=180).print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
