"""torchmortem 0.1.1's published ratios, on a log; the package itself looks once, after the run."""

from collections.abc import Callable, Mapping

import numpy as np

from dynaxx.core.findings import Log
from dynaxx.rescue.observer import Fired, Rules
from dynaxx.rescue.observers._read import Read, column, rule


class Torchmortem(Rules):
    """Gradient flow, dead units, update ratio, loss dynamics and weight norm, judged at the end as it does."""

    about = "torchmortem 0.1.1, published ratios"

    def fired(self, log: Log) -> Mapping[str, Fired | str]:
        """Ask the detectors at the last step."""
        norm, ratio = column(log, "grad_norm"), column(log, "update_ratio")
        dead, loss = column(log, "activations.dead"), column(log, "loss")
        return {
            "gradient flow": _at_end(norm, lambda g: _median(g[:, -1] / np.maximum(g[:, 0], 1e-300)) > 100,
                                     "vanishing_gradients"),
            "exploding gradients": _at_end(norm, lambda g: bool((g > 1000).any() or not np.isfinite(g).all()),
                                           "exploding_gradients"),
            "stall": _at_end(norm, lambda g: bool((np.linalg.norm(g, axis=1) < 1e-8).mean() > 0.3)),
            "dead units": _at_end(dead, lambda d: bool(((d[len(d) // 2 :] > 0.5).mean(axis=0) >= 0.5).any()),
                                  "dead_units"),
            "update ratio low": _at_end(ratio, lambda r: _median(r.mean(axis=1)) < 1e-5, "learning_rate_too_low"),
            "update ratio high": _at_end(ratio, lambda r: _median(r.mean(axis=1)) > 0.1, "learning_rate_too_high"),
            "divergence": _at_end(loss, _diverges, "learning_rate_too_high"),
            "plateau": _at_end(loss, lambda v: bool(np.ptp(v[-20:]) / max(abs(v[-20:].mean()), 1e-300) < 1e-5)),
        }  # fmt: skip


def _at_end(found: Read, judge: Callable[[np.ndarray], bool], cause: str = "") -> Fired | str:
    if found is None or len(found[0]) < 20:
        return "the log does not hold what it reads"
    return rule((found[0][-1:], found[1]), lambda values: np.array([judge(values)]), cause)


def _median(values: np.ndarray) -> float:
    return float(np.median(values))


def _diverges(loss: np.ndarray) -> bool:
    last = loss[-20:]
    return not np.isfinite(last).all() or bool((np.diff(last) > 0).mean() >= 0.8 and last[-1] / last[0] >= 1.5)
