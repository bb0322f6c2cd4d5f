"""A function over a plane as matplotlib draws it: contours with paths over them, or a surface."""

from typing import TYPE_CHECKING, Any

import numpy as np

from dynaxx.core.panels import Field, Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIELD_SIDE = 201
"""Most columns and rows of a drawn plane: half a pixel of a half-width panel each."""
LEVELS = 12
"""About how many contour lines: as many as can be followed."""


def colour_span(values: np.ndarray, scale: Scale) -> tuple[float, float]:
    """The values at the ends of the colour map: the lowest, and the 98th percentile, as walls are high and narrow.

    Args:
        values: Of any shape; what is not finite is left out.
        scale: "log" leaves out zeros and negatives too.

    Returns:
        (low, high), equal where nothing varies; (0, 0) where there is nothing.

    Example:
        >>> colour_span(np.array([1.0, 2.0, np.inf]), "linear")
        (1.0, 1.98)
    """
    good = values[np.isfinite(values) & ((values > 0) | (scale == "linear"))]
    if good.size == 0:
        return 0.0, 0.0
    low = float(good.min())
    high = float(np.exp(np.percentile(np.log(good), 98)) if scale == "log" else np.percentile(good, 98))
    # What differs in the last bits only has no contours.
    return (low, high) if high - low > 1e-12 * abs(high) else (low, low)


def thinned(panel: Field) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A plane of no more columns and rows than a screen shows.

    Args:
        panel: The plane.

    Returns:
        x, y and values of it, every k-th of them and the last; NaN for every value that is not finite.
    """

    def kept(count: int) -> np.ndarray:
        return np.unique(np.linspace(0, count - 1, min(count, FIELD_SIDE)).round().astype(np.int64))

    rows, columns = kept(len(panel.y)), kept(len(panel.x))
    x, y = panel.x[columns].astype(np.float64), panel.y[rows].astype(np.float64)
    values = panel.values[np.ix_(rows, columns)].astype(np.float64)
    return x, y, np.where(np.isfinite(values), values, np.nan)


def contours(axes: "Axes", panel: Field, missing: str, bad: str, path: str) -> dict[str, Any]:
    """Draw filled contours, contour lines, and paths and points over them.

    Args:
        axes: Where.
        panel: The plane.
        missing: Colour of what a log scale cannot show.
        bad: Colour of values that are not finite.
        path: Colour of paths.

    Returns:
        Handles for the legend by name.
    """
    from matplotlib.colors import ListedColormap, LogNorm, Normalize

    x, y, values = thinned(panel)
    low, high = colour_span(values, panel.scale)
    shown = np.ma.masked_invalid(np.where(values > 0, values, np.nan) if panel.scale == "log" else values)
    axes.set_facecolor(missing)
    handles: dict[str, Any] = {}
    if not np.isfinite(values).all():
        wall = np.ma.masked_where(np.isfinite(values), np.ones_like(values))
        axes.pcolormesh(x, y, wall, cmap=ListedColormap([bad]), shading="nearest", rasterized=True)
        handles["not finite"] = axes.plot([], [], "s", color=bad)[0]
    if high > low:
        norm = LogNorm(low, high) if panel.scale == "log" else Normalize(low, high)
        # Filled contours leave out whole cells beside a wall; the mesh beneath shows the values up to it.
        axes.pcolormesh(x, y, shown, norm=norm, cmap="viridis", shading="nearest", rasterized=True)
        fine = _levels(low, high, panel.scale, 8 * LEVELS)
        drawn = axes.contourf(x, y, shown, levels=fine, norm=norm, cmap="viridis", extend="both")
        lines = axes.contour(
            x, y, shown, levels=_nice(low, high, panel.scale), colors="white", linewidths=0.7, alpha=0.75
        )
        axes.clabel(lines, fontsize=7, fmt="%.3g")
        bar = axes.figure.colorbar(drawn, ax=axes, pad=0.01, ticks=lines.levels, format="%.3g")
        bar.ax.minorticks_off()
        bar.set_label(panel.value_label.replace("$", r"\$"))
    elif shown.count():
        axes.pcolormesh(x, y, shown, cmap=ListedColormap(["#440154"]), shading="nearest", rasterized=True)
        handles[f"{low:.4g} everywhere"] = axes.plot([], [], "s", color="#440154")[0]
    for i, curve in enumerate(panel.paths):
        single = len(curve.x) == 1
        marker = "os^DvP*X"[i % 8] if single else ""
        handles[curve.label] = axes.plot(
            curve.x, curve.y, marker=marker, color=path, markeredgecolor="white", linewidth=1.6, markersize=7
        )[0]
    axes.set_xlim(float(x[0]), float(x[-1]))
    axes.set_ylim(float(y[0]), float(y[-1]))
    return handles


def surface(axes: Any, panel: Field, path: str) -> None:
    """Draw the plane in three dimensions, cut off at the top of the colour map, with paths on it.

    Args:
        axes: Axes with projection "3d".
        panel: The plane.
        path: Colour of paths.
    """
    x, y, values = thinned(panel)
    low, high = colour_span(values, panel.scale)
    height = np.where(np.isfinite(values), np.clip(values, low, high), np.nan)
    log = panel.scale == "log" and high > 0
    if log:
        height, low, high = np.log10(height), float(np.log10(low)), float(np.log10(high))
    axes.plot_surface(
        *np.meshgrid(x, y), height, cmap="viridis", vmin=low, vmax=high, rcount=80, ccount=80, linewidth=0,
        antialiased=False,
    )  # fmt: skip
    for curve in panel.paths:
        column = np.abs(x[:, None] - curve.x).argmin(0)
        row = np.abs(y[:, None] - curve.y).argmin(0)
        marker = "o" if len(curve.x) == 1 else ""
        axes.plot(curve.x, curve.y, height[row, column], color=path, marker=marker, zorder=10, label=curve.label)
    if high > low:
        axes.set_zlim(low, high)
    axes.set_zlabel(("log10 " if log else "") + panel.value_label.replace("$", r"\$"), fontsize=8)
    axes.tick_params(labelsize=7)
    axes.view_init(elev=32, azim=-60)


def _levels(low: float, high: float, scale: Scale, count: int) -> np.ndarray:
    return np.geomspace(low, high, count) if scale == "log" else np.linspace(low, high, count)


def _nice(low: float, high: float, scale: Scale) -> np.ndarray:
    """Round numbers between the ends; on a log scale that spans little, even steps of the logarithm."""
    from matplotlib.ticker import MaxNLocator

    if scale == "log":
        return _levels(low, high, scale, LEVELS + 2)[1:-1]
    ticks = np.asarray(MaxNLocator(LEVELS).tick_values(low, high))
    return ticks[(ticks > low) & (ticks < high)]
