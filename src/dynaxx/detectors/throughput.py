"""An accelerator that waits for data, memory that fills up, steps that get slower."""

import numpy as np

from dynaxx.core.findings import Detector, Evidence, Finding, Log, Remedy, Test, Threshold
from dynaxx.detectors._read import QUIETLY, Track, end_of, rows
from dynaxx.detectors._weigh import ranked, suspect
from dynaxx.errors import NotApplicable

WAITING = Threshold(
    value=0.5,
    origin="share of the step's time in which the loop waits for data: more than the computing itself",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)
SLOW = Threshold(
    value=0.02,
    origin="seconds of waiting a step: below it a share is a matter of tiny models, not of the data",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)
LEAK = Threshold(
    value=2.0**30,
    origin="bytes by which memory has grown after the first quarter of the run, still growing in its last",
    false_alarms="no alarm in 161 healthy runs of the rescue suite, 64,400 steps, asked every 25",
)
LEAST = 20


class Throughput(Detector):
    """Median share of a step spent waiting for data, and growth of the memory in use."""

    code = "D25"
    title = "data starvation, memory pressure"
    reads = ("system.step_seconds", "system.data_seconds")

    @QUIETLY
    def detect(self, run: Log) -> Finding | None:
        """Starved, or filling up."""
        total, data = rows(run, "system.step_seconds", least=LEAST), rows(run, "system.data_seconds", least=LEAST)
        if len(total.steps) != len(data.steps):
            raise NotApplicable("the parts of a step were not measured at the same steps")
        settled = slice(len(total.steps) // 5, None)  # caches, compilation and workers start up in the first steps
        seconds, waits = total.values[settled], data.values[settled]
        share = float(np.median(waits / np.maximum(seconds, 1e-9)))
        starved = share >= WAITING.value and float(np.median(waits)) >= SLOW.value
        grown, column = _growth(run)
        if not starved and grown < LEAK.value:
            return None
        spans = ((int(total.steps[settled][0]), end_of(run)),)
        evidence: list[Evidence] = []
        if starved:
            evidence.append(
                Evidence(
                    text=f"{share:.0%} of a step is spent waiting for data, {np.median(waits):.3g} s",
                    columns=("system.data_seconds", "system.step_seconds"),
                    steps=spans[0],
                    value=share,
                    threshold=WAITING.value,
                )
            )
        if grown >= LEAK.value:
            evidence.append(
                Evidence(
                    text=f"memory in use has grown by {grown / 2**30:.2f} GiB after the first quarter, and still grows",
                    columns=(column,),
                    value=grown,
                    threshold=LEAK.value,
                )
            )
        return Finding(
            code=self.code,
            name="throughput",
            title=f"{share:.0%} of the time goes into waiting for data"
            if starved
            else f"memory has grown by {grown / 2**30:.1f} GiB and still grows",
            severity="warning",
            spans=spans,
            evidence=tuple(evidence),
            causes=ranked(
                suspect(
                    "data_starvation",
                    0.8,
                    2.0 if share > 0.7 else 1.0,
                    why=f"{share:.0%} of a step",
                    remedies=(
                        Remedy(text="Raise DataLoader(num_workers=…), prefetch, pin memory, or cache decoded data."),
                    ),
                )
                if starved
                else None,
                suspect(
                    "memory_pressure",
                    0.8,
                    why=f"{column} grew by {grown / 2**30:.2f} GiB",
                    remedies=(Remedy(text="Look for tensors that keep their graph: log loss.detach(), not loss."),),
                )
                if grown >= LEAK.value
                else None,
            ),
            test=Test(text="Run 50 steps on one batch that is kept: what is left is the computing."),
        )


def _growth(run: Log) -> tuple[float, str]:
    """Largest growth of memory after the first quarter of the rows that goes on in the last quarter, and its column."""
    best, name = 0.0, ""
    for column in ("system.memory_device", "system.memory_host"):
        if column in run.columns:
            grown = _lasting_growth(rows(run, column))
            if grown > best:
                best, name = grown, column
    return best, name


def _lasting_growth(memory: Track) -> float:
    values = memory.values[np.isfinite(memory.values)]
    quarter = len(values) // 4
    if quarter < LEAST // 4:
        return 0.0
    parts = [float(np.median(part)) for part in np.array_split(values, 4)]
    rises = np.diff(parts)
    steady = rises[-1] >= 0.5 * rises[1] > 0  # a cache fills up and stops, a leak does not
    return parts[-1] - parts[0] if steady else 0.0
