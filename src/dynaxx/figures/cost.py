"""What was measured, how often, and what it cost."""

from collections.abc import Mapping, Sequence
from typing import Any

from dynaxx.core.contracts import Figure
from dynaxx.core.panels import Panel, Table
from dynaxx.errors import NotApplicable
from dynaxx.runlog import RunView


class CostOfMeasuring(Figure):
    """Signals with cadence and seconds, and the overhead against its budget."""

    title = "What was measured, and its cost"
    order = 110

    def panels(self, view: RunView) -> Sequence[Panel]:
        """What gradients are seen, overhead and budget; what is missing; one row per signal."""
        known = what_is_known(view)
        signals = [s for s in known.get("signals", ()) if isinstance(s, Mapping)]
        facts = _facts(known)
        if not signals and not facts:
            raise NotApplicable("the run logged neither a self-test nor a calibration")
        panels: list[Panel] = []
        if facts:
            panels.append(Table(title="Overhead", header=("", ""), rows=facts))
        if known.get("missing"):
            missing = tuple((str(what),) for what in known["missing"])
            panels.append(Table(title="What could not be measured", header=("",), rows=missing))
        if signals:
            panels.append(
                Table(
                    title="Signals",
                    header=("signal", "measured", "time of one measurement"),
                    rows=tuple((str(s.get("name", "?")), _cadence(s), _seconds(s.get("seconds"))) for s in signals),
                    note="The first steps are measured fully, the rest at the cadence that the budget allows.",
                )
            )
        return panels


def what_is_known(view: RunView) -> Mapping[str, Any]:
    """What calibration, self-test and the end of the run said last, by field; the overhead at the end is the real one.

    Args:
        view: The run.

    Returns:
        Field → value: `seen`, `missing`, `overhead` and `budget` as fractions of the step time, `signals`.
    """
    told = [event for kind in ("calibration", "self_test", "run_end") for event in view.events(kind)]
    return {key: value for event in told for key, value in event.items()}


def _facts(known: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    rows: list[tuple[str, str]] = []
    if known.get("seen"):
        rows.append(("gradients as seen", str(known["seen"])))
    rows += [
        (label, f"{known[key]:.1%} of the step time")
        for key, label in (("overhead", "overhead"), ("budget", "budget"))
        if isinstance(known.get(key), int | float)
    ]
    return tuple(rows)


def _cadence(signal: Mapping[str, Any]) -> str:
    cadence = signal.get("cadence")
    if not isinstance(cadence, int):
        return "?" if cadence is None else str(cadence)
    return "every step" if cadence == 1 else "never" if cadence <= 0 else f"every {cadence} steps"


def _seconds(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return ""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
