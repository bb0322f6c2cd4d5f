"""How a trajectory map is drawn: the plane with its paths, the loss along runs and channel, explained variance."""

from dataclasses import dataclass, replace

import numpy as np

from dynaxx.core.panels import Field, Line, Lines, Panel, Table
from dynaxx.landscape._snapshots import Snapshots
from dynaxx.numerics.trajectory import Channel, Principal

SHOWN = 10
"""Components in the table and in the curve of explained variance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """Loss over the plane of the first two components, and at the checkpoints' images in it."""

    x: np.ndarray
    y: np.ndarray
    loss: np.ndarray
    projected: np.ndarray
    gap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """The channel of several runs, that of random walks, and the loss at their mean; or why there is none."""

    found: Channel | None = None
    null: Channel | None = None
    steps: np.ndarray | None = None
    mean_loss: np.ndarray | None = None
    why_not: str = ""


def paths(found: Snapshots, points: np.ndarray) -> tuple[Line, ...]:
    lines = [Line(label=run, x=points[rows, 0], y=points[rows, 1]) for run, rows in found.runs.items()]
    ends = [rows[-1] for rows in found.runs.values()]
    return (*lines, Line(label="last checkpoints", x=points[ends, 0], y=points[ends, 1], style="points"))


def panels(
    found: Snapshots, parts: Principal, null: Principal, losses: np.ndarray, plane: Plane, band: Band
) -> list[Panel]:
    shown: list[Panel] = []
    shares = parts.explained
    if plane.loss.size:
        shown.append(
            Field(
                title="Loss in the plane of two principal components",
                x=plane.x,
                y=plane.y,
                values=plane.loss,
                paths=paths(found, parts.coordinates),
                x_label=f"component 1 ({shares[0]:.1%} of the variance), weights",
                y_label=f"component 2 ({shares[1]:.1%}), weights",
                value_label="loss",
                scale="log"
                if np.nanmin(plane.loss) > 0 and np.nanmax(plane.loss) > 10 * np.nanmin(plane.loss)
                else "linear",
                note=f"The plane captures {shares[:2].sum():.1%} of the variance (random walks: "
                f"{null.explained[:2].sum():.1%}). The paths are images: the loss beneath them is off the checkpoints' "
                f"own by {plane.gap:.3g} on average.",
            )
        )
    shown.append(_by_step(found, losses, plane, band))
    if band.found is not None and band.steps is not None:
        shown.append(_along_channel(found, losses, band.found, float(band.steps[len(band.steps) // 2])))
    shown += [_explained(parts, null), _table(parts, null)]
    return shown


def _by_step(found: Snapshots, losses: np.ndarray, plane: Plane, band: Band) -> Lines:
    steps = np.array([float(each.step) for each in found.all])
    lines = [Line(label=run, x=steps[rows], y=_finite(losses[rows])) for run, rows in found.runs.items()]
    lines += [
        Line(label=f"{run}, in the plane", x=steps[rows], y=_finite(plane.projected[rows]), style="faint")
        for run, rows in found.runs.items()
    ]
    if band.steps is not None and band.mean_loss is not None:
        lines.append(Line(label="mean of the runs", x=band.steps, y=_finite(band.mean_loss), style="dashed"))
    return Lines(
        title="Loss along the runs",
        lines=tuple(lines),
        y_label="loss",
        note="Where the runs share a valley, the loss at their mean is no higher than theirs.",
    )


def _along_channel(found: Snapshots, losses: np.ndarray, band: Channel, middle: float) -> Lines:
    lines: list[Line] = []
    for run, rows in found.runs.items():
        late = np.array([i for i in rows if found.all[i].step >= middle])
        order = late[np.argsort(band.position[late], kind="stable")]
        lines.append(Line(label=run, x=band.position[order], y=_finite(losses[order])))
    return Lines(
        title="Loss along the channel",
        lines=tuple(lines),
        x_label="way along the common drift, weights",
        y_label="loss",
        note=f"0 is the runs' mean at step {middle:g}, half way; the checkpoints since then stand where the drift took "
        "them.",
    )


def _explained(parts: Principal, null: Principal) -> Lines:
    def line(each: Principal, label: str) -> Line:
        shares = each.explained[:SHOWN]
        return Line(label=label, x=np.arange(1.0, len(shares) + 1), y=shares)

    walk = replace(line(null, "random walks"), style="dashed")
    return Lines(
        title="Explained variance",
        lines=(replace(line(parts, "checkpoints"), style="points"), walk),
        x_label="component",
        y_label="share of the variance",
        y_scale="log",
    )


def _table(parts: Principal, null: Principal) -> Table:
    rows = tuple(
        (str(k + 1), f"{one:.2%}", f"{parts.explained[: k + 1].sum():.2%}", f"{two:.2%}")
        for k, (one, two) in enumerate(zip(parts.explained[:SHOWN], null.explained[:SHOWN], strict=False))
    )
    header = ("component", "variance", "together", "random walks")
    return Table(title="Principal components of the checkpoints", header=header, rows=rows)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)
