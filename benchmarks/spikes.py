"""Spikes and slow divergence in synthetic streams of losses: Dynaxx and the rules of its peers, false alarms and hits.

`python benchmarks/spikes.py` prints two tables: false alarms of every rule on seven kinds of healthy noise and its hits
on six kinds of incident in one of them, then Dynaxx's hits in all seven. `--streams N` sets the number of streams of
4000 steps of each kind (40), `--seed N` draws others, `--json FILE` keeps rates and shares.

Dynaxx is asked as in a live run, every 250 steps on what there is by then; everything that it ever said counts, also
where it took it back later. A finding of the severity "note" is counted apart from alarms: one odd batch that leaves
no mark is worth a line and no alarm. Peers are their published rules, re-implemented from their parameters. An
incident is hit where a rule fires within 30 steps of its beginning, and within 600 for the drift.

What can be found of a single step: a rule that knows the noise's law and level, with a threshold that one healthy step
in 10 000 passes. Of rules that call a step the more suspect the higher it is none finds more (Neyman and Pearson 1933).
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from rich.console import Console
from rich.table import Table
from scipy.signal import lfilter
from scipy.special import ndtr, stdtrit

from dynaxx.detectors.divergence import Divergence
from dynaxx.detectors.loss_spike import LossSpike
from dynaxx.errors import NotApplicable
from dynaxx.runlog import Table as RunTable
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


DECAY = 0.5 + 2 * np.exp(-np.arange(STEPS) / 800)
NOISE: dict[str, Noise] = {
    "gauss 2 %": lambda rng: 2 * (1 + 0.02 * rng.standard_normal(STEPS)),
    "lognormal .1": lambda rng: 2 * np.exp(0.1 * rng.standard_normal(STEPS)),
    "lognormal .3": lambda rng: 2 * np.exp(0.3 * rng.standard_normal(STEPS)),
    "t3 5 %": lambda rng: 2 * np.exp(0.05 * rng.standard_t(3, STEPS)),
    "decay + 2 %": lambda rng: DECAY * np.exp(0.02 * rng.standard_normal(STEPS)),
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
NOTES, ALARMS = "Dynaxx, notes too", "Dynaxx, alarms"
RULES = (NOTES, ALARMS, *PEERS)
SHOWN = "lognormal .1"
"""The noise in which all rules' hits are shown, as in the published comparison of them."""


def dynaxx(x: Stream) -> tuple[np.ndarray, np.ndarray]:
    """Onsets of all that `loss_spike` and `divergence` ever said while the run grew, and of the alarms among it."""
    log = RunTable({"loss": (np.arange(1, len(x) + 1), x)}, manifest={"steps": len(x)})
    said, alarms = set[int](), set[int]()
    for last in range(ASK, len(x) + 1, ASK):
        for detector in (LossSpike(), Divergence()):
            try:
                found = detector.detect(ClippedView(log, 0, last))
            except NotApplicable:
                continue
            if found is not None:
                onsets = {first - 1 for first, _ in found.spans}
                said |= onsets
                alarms |= onsets if found.alarms else set()
    return np.array(sorted(said), dtype=int), np.array(sorted(alarms), dtype=int)


def fired(x: Stream) -> dict[str, np.ndarray]:
    """Where every rule fires, by its name."""
    said, alarms = dynaxx(x)
    return {NOTES: said, ALARMS: alarms, **{name: rule(x) for name, rule in PEERS.items()}}


def events(steps: np.ndarray, join: int = 16) -> int:
    """Stretches of firing; a stretch counts once."""
    return len(steps) and 1 + int((np.diff(steps) > join).sum())


def false_alarms(kind: str, streams: int, seed: int) -> dict[str, float]:
    """Of each rule in 10 000 healthy steps."""
    rng, count = np.random.default_rng([seed, list(NOISE).index(kind)]), Counter[str]()
    for _ in range(streams):
        count.update({name: events(steps) for name, steps in fired(NOISE[kind](rng)).items()})
    return {name: 1e4 * count[name] / (streams * STEPS) for name in RULES}


def hits(kind: str, incident: str, streams: int, seed: int) -> dict[str, float]:
    """Share of incidents in a noise that each rule hits."""
    rng = np.random.default_rng([seed, list(NOISE).index(kind), 1 + list(INCIDENTS).index(incident)])
    change, count = INCIDENTS[incident], Counter[str]()
    within = 600 if change is drift else 30
    for _ in range(streams):
        at = int(rng.integers(1000, 3000))
        found = fired(change(NOISE[kind](rng), at))
        count.update(name for name, steps in found.items() if ((steps >= at - BLOCK) & (steps <= at + within)).any())
    return {name: count[name] / streams for name in RULES}


def possible(kind: str, factor: float, streams: int = 250) -> float:
    """Share of single steps, `factor` times as high, above what one healthy step in 10 000 of a known law passes."""
    rng = np.random.default_rng(0)
    healthy = np.concatenate([NOISE[kind](rng) / (DECAY if kind == "decay + 2 %" else 2) for _ in range(streams)])
    return float((factor * healthy > np.quantile(healthy, 1 - 1e-4)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="rates and shares, by noise, incident and rule")
    given = parser.parse_args()
    alarms = {kind: false_alarms(kind, given.streams, given.seed) for kind in NOISE}
    found = {kind: {name: hits(kind, name, given.streams, given.seed) for name in INCIDENTS} for kind in NOISE}
    shown = Table(title=f"false alarms in 10 000 steps, and hits in {SHOWN} ({given.streams} streams each)")
    for column in ("rule", *NOISE, *INCIDENTS):
        shown.add_column(column, justify="left" if column == "rule" else "right", no_wrap=column == "rule")
    for name in RULES:
        rates, shares = (alarms[kind][name] for kind in NOISE), (found[SHOWN][kind][name] for kind in INCIDENTS)
        shown.add_row(name, *(f"{rate:.2g}" for rate in rates), *(f"{share:.2f}" for share in shares))
    ours = Table(title="hits of Dynaxx, notes too / alarms, and what can be found of a single step ×1.5, ×2, ×4")
    for column in ("noise", *INCIDENTS, "possible"):
        ours.add_column(column, justify="left" if column == "noise" else "right")
    for kind, row in found.items():
        best = " / ".join(f"{possible(kind, factor):.2f}" for factor in (1.5, 2.0, 4.0))
        ours.add_row(kind, *(f"{share[NOTES]:.2f} / {share[ALARMS]:.2f}" for share in row.values()), best)
    for table in (shown, ours):
        Console(width=180).print(table)
    if given.json is not None:
        given.json.write_text(json.dumps({"streams": given.streams, "false alarms": alarms, "hits": found}, indent=1))


if __name__ == "__main__":
    main()
