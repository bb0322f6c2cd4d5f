"""Convergence: four of five signals are stable, and how many more steps it would take to see any improvement."""

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Threshold
from dynaxx.detectors._acts import stop
from dynaxx.detectors._converged import signs
from dynaxx.detectors._facts import planned
from dynaxx.detectors._progress import Progress, progress
from dynaxx.detectors._read import LOSS, unbroken
from dynaxx.detectors._weigh import Suspect, ranked
from dynaxx.errors import NotApplicable

LEAST = Threshold(
    value=3.0,
    origin="specification V1: four of five; where signals do not apply, all but one of those that do, three at least",
    false_alarms="a note; the stop is the controller's, after a last 5 % of the steps",
)
WORDS = {None: "not applicable", True: "stable", False: "not stable"}
GAINED = 0.1
"""Share of the first loss that must have been gained: what never learned has not converged."""
EARLY = 0.2
"""Share of the planned steps before which nothing is called converged."""


class Convergence(Detector):
    """Training loss smooth, validation flat, gradient norms settled, sharpness low and steady, outputs unchanged.

    Each signal is stable, not stable or not applicable, with its figures as evidence; so is the plateau odometer: how
    many more steps until an improvement of 1 % could be told from noise at all, and how likely one is.
    """

    code = "V"
    title = "convergence"
    reads = (LOSS,)

    def detect(self, run: Log) -> Finding | None:
        """Count the signals."""
        loss = unbroken(run, LOSS, 120)
        last, steps = int(loss.steps[-1]), planned(run)
        if steps is not None and last < EARLY * steps:
            raise NotApplicable(f"step {last} of {steps} is too early to speak of convergence")
        found = signs(run)
        known = [sign for sign in found if sign.stable is not None]
        if len(known) < float(LEAST):
            missing = "; ".join(sign.text for sign in found if sign.stable is None)
            raise NotApplicable(f"{len(known)} of 5 signals apply, {float(LEAST):g} are needed: {missing}")
        stable = sum(bool(sign.stable) for sign in known)
        now = progress(loss)
        if stable < max(float(LEAST), len(known) - 1) or now.gained < GAINED:
            return None
        ahead = 0.1 * last
        cause = Suspect("converged", 0.6, (stop(f"{stable} of {len(known)} signals of convergence"),))
        cause.weigh(stable == len(known), 2.5, "all signals that apply are stable")
        cause.weigh(now.chance(0.01, ahead) < 0.05, 2, f"P(1 % in {ahead:.0f} steps) = {now.chance(0.01, ahead):.1%}")
        floor = Suspect("noise_floor", 0.2)
        return Finding(
            code=self.code,
            name="convergence",
            title=f"{stable} of {len(known)} signals of convergence are stable at step {last}",
            severity="note",
            spans=((now.first, last),),
            evidence=(
                *(
                    Evidence(
                        text=f"{WORDS[s.stable]} · {s.text}",
                        columns=s.columns,
                        steps=(now.first, last),
                        value=s.value,
                        threshold=s.threshold,
                    )
                    for s in found
                ),
                odometer(now, ahead),
            ),
            causes=ranked(cause, floor),
        )


def odometer(now: Progress, ahead: float) -> Evidence:
    """How far away the next improvement is, and how far one could be seen.

    Args:
        now: The last stretch of the training loss.
        ahead: Steps for which the probability is given.

    Returns:
        The figures as evidence; its value is the number of steps for 1 %.
    """
    steps = now.odometer(0.01)
    return Evidence(
        text=f"odometer: an improvement of 1 % could be told from noise after {steps:.0f} more steps, of 5 % after "
        f"{now.odometer(0.05):.0f}; P(1 % in the next {ahead:.0f} steps) = {now.chance(0.01, ahead):.1%}",
        columns=("loss",),
        steps=(now.first, now.last),
        value=steps,
    )
