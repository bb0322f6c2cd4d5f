"""The relief of a line or a plane of losses in numbers: roughness, convexity, asymmetry, cliffs, canyons."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float

ROUNDING = 4 * float(np.finfo(np.float32).eps)
"""Differences below this share of the largest value are rounding: a float32 loss is a mean of a few hundred terms."""
DEGREE = 4
"""Of the smooth fit: a quartic has room for a valley, its asymmetry and one shoulder, and for nothing finer."""
CANYON = 10.0
"""Across a canyon curvature is so many times that along it: condition numbers of 10 slow descent down visibly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineRelief:
    """What a line of losses looks like.

    Args:
        roughness: Share of the total variation beyond that of one valley, 1 − (f(−) + f(+) − 2 min f)/Σ|Δf|, where
            f(±) are the ends: 0 for everything that falls and then rises, towards 1 for many bumps.
        residual: RMS distance from the best polynomial of degree 4, over the range of the line.
        convexity: Share of neighbouring triples whose second difference is not negative.
        asymmetry: mean |f(α) − f(−α)| over the range: 0 for an even function (He et al. 2019 on asymmetric valleys).
        slope: Largest |Δf/Δα|: the steepest cliff.
        walls: Share of points that are not finite; the other numbers leave them out.
    """

    roughness: float
    residual: float
    convexity: float
    asymmetry: float
    slope: float
    walls: float


def line_relief(at: Float[np.ndarray, " points"], values: Float[np.ndarray, " points"]) -> LineRelief:
    """Measure a line.

    Args:
        at: Positions, increasing; evenly spaced for `convexity`, symmetric about 0 for `asymmetry`.
        values: Losses there.

    Returns:
        The numbers; NaN where fewer than three finite values stand side by side, 0 of a line that is flat.

    Example:
        >>> x = np.linspace(-1, 1, 41)
        >>> found = line_relief(x, x**2)
        >>> found.roughness, found.convexity, round(found.asymmetry, 9), round(found.slope, 2)
        (0.0, 1.0, 0.0, 1.95)
    """
    good = np.isfinite(values)
    walls = float(1 - good.mean())
    if good.sum() < 3:
        return LineRelief(
            roughness=np.nan, residual=np.nan, convexity=np.nan, asymmetry=np.nan, slope=np.nan, walls=walls
        )
    roughness, residual = _unevenness(at, values)
    floor = ROUNDING * float(np.abs(values[good]).max())
    steps = np.diff(values)
    spread = float(np.ptp(values[good]))
    flat = spread <= floor
    slopes = np.abs(steps / np.diff(at))
    second = np.diff(steps)
    second = second[np.isfinite(second)]
    odd = np.abs(values - values[::-1])
    odd = odd[np.isfinite(odd)]
    return LineRelief(
        roughness=roughness,
        residual=residual,
        convexity=float((second >= -2 * floor).mean()) if second.size else np.nan,
        asymmetry=0.0 if flat or not odd.size else float(odd.mean()) / spread,
        slope=float(np.nanmax(slopes)) if np.isfinite(slopes).any() else np.nan,
        walls=walls,
    )


def _unevenness(at: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Roughness and residual of a line; NaN where fewer than three values are finite."""
    good = np.isfinite(values)
    if good.sum() < 3:
        return np.nan, np.nan
    roughness, residual = _uneven_lines(at[good], values[good][None])[0].tolist()
    return roughness, residual


def _uneven_lines(at: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """Roughness and residual of finite lines over the same positions, a row each: a plane in a few operations."""
    floor = ROUNDING * np.abs(lines).max(axis=1)
    spread = np.ptp(lines, axis=1)
    steps = np.abs(np.diff(lines, axis=1))
    variation = np.where(steps > floor[:, None], steps, 0.0).sum(axis=1)
    beyond = variation - (lines[:, 0] + lines[:, -1] - 2 * lines.min(axis=1))
    basis = _polynomials(tuple(at.tolist()))
    residual = np.sqrt(np.mean((lines - lines @ basis @ basis.T) ** 2, axis=1))
    found = np.zeros((len(lines), 2))
    rough, uneven = beyond > floor, spread > floor
    found[rough & uneven, 0] = (beyond / np.where(rough, variation, 1.0))[rough & uneven]
    found[uneven, 1] = residual[uneven] / spread[uneven]
    return found


@lru_cache(maxsize=4)
def _polynomials(at: tuple[float, ...]) -> np.ndarray:
    """An orthonormal basis of the polynomials at points; all lines of a plane share it."""
    places = np.array(at)
    scaled = 2 * (places - places[0]) / (places[-1] - places[0]) - 1
    return np.linalg.qr(np.polynomial.chebyshev.chebvander(scaled, min(DEGREE, len(at) - 1)))[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneRelief:
    """What a plane of losses looks like.

    Args:
        roughness: Mean of the lines' along both axes.
        residual: Likewise.
        convexity: Share of inner points at which the plane's 2 × 2 Hessian, by differences, has no negative eigenvalue.
        asymmetry: mean |f(p) − f(−p)| over the range.
        slope: Largest slope ‖∇f‖ per unit of distance in parameter space.
        canyons: Share of inner points at which curvature in one direction is positive and `CANYON` times that of the
            other, whatever its sign.
        walls: Share of points that are not finite.
    """

    roughness: float
    residual: float
    convexity: float
    asymmetry: float
    slope: float
    canyons: float
    walls: float


def plane_relief(
    x: Float[np.ndarray, " columns"],
    y: Float[np.ndarray, " rows"],
    values: Float[np.ndarray, "rows columns"],
    metric: Float[np.ndarray, "2 2"] | None = None,
) -> PlaneRelief:
    """Measure a plane.

    Args:
        x: Positions of the columns, evenly spaced.
        y: Positions of the rows, evenly spaced.
        values: Losses.
        metric: Gram matrix of the plane's directions: slopes and curvatures are then per unit of distance in parameter
            space; None: the directions are orthonormal.

    Returns:
        The numbers.

    Example:
        >>> x = np.linspace(-1, 1, 21)
        >>> found = plane_relief(x, x, x[None] ** 2 + 100 * x[:, None] ** 2)
        >>> found.convexity, found.canyons, round(found.roughness, 6)
        (1.0, 1.0, 0.0)
    """
    good = np.isfinite(values)
    if good.all():
        lines = np.concatenate([_uneven_lines(x, values), _uneven_lines(y, values.T)]).tolist()
    else:
        lines = [_unevenness(x, row) for row in values] + [_unevenness(y, column) for column in values.T]
    if not good.any():
        nothing = float("nan")
        return PlaneRelief(
            roughness=nothing, residual=nothing, convexity=nothing, asymmetry=nothing, slope=nothing, canyons=nothing,
            walls=1.0,
        )  # fmt: skip
    gram = np.eye(2) if metric is None else metric
    low, high = _curvatures(x, y, values, gram)
    floor = ROUNDING * float(np.abs(values[good]).max())
    # A second difference of values known to `floor` is known to 4 floor/h².
    noise = 4 * floor / min((x[1] - x[0]) ** 2 * gram[0, 0], (y[1] - y[0]) ** 2 * gram[1, 1])
    spread = float(np.ptp(values[good]))
    odd = np.abs(values - values[::-1, ::-1])
    return PlaneRelief(
        roughness=_mean([roughness for roughness, _ in lines]),
        residual=_mean([residual for _, residual in lines]),
        convexity=float((low >= -noise).mean()) if low.size else np.nan,
        asymmetry=0.0 if spread <= floor else float(np.nanmean(odd)) / spread if np.isfinite(odd).any() else np.nan,
        slope=_steepest(x, y, values, gram),
        canyons=float(((high > noise) & (high > CANYON * np.abs(low))).mean()) if high.size else np.nan,
        walls=float(1 - good.mean()),
    )


def _curvatures(x: np.ndarray, y: np.ndarray, values: np.ndarray, gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both eigenvalues of the Hessian in the plane, by central differences, at inner points without a wall beside."""
    h, k = x[1] - x[0], y[1] - y[0]
    xx = (values[1:-1, 2:] - 2 * values[1:-1, 1:-1] + values[1:-1, :-2]) / h**2
    yy = (values[2:, 1:-1] - 2 * values[1:-1, 1:-1] + values[:-2, 1:-1]) / k**2
    xy = (values[2:, 2:] - values[2:, :-2] - values[:-2, 2:] + values[:-2, :-2]) / (4 * h * k)
    forms = np.stack([np.stack([xx, xy], -1), np.stack([xy, yy], -1)], -1).reshape(-1, 2, 2)
    forms = forms[np.isfinite(forms).all(axis=(1, 2))]
    inverse = np.linalg.inv(np.linalg.cholesky(gram))
    found = np.linalg.eigvalsh(inverse @ forms @ inverse.T)
    return found[:, 0], found[:, 1]


def _steepest(x: np.ndarray, y: np.ndarray, values: np.ndarray, gram: np.ndarray) -> float:
    down, along = np.gradient(values, y, x)
    slope = np.stack([along, down], -1).reshape(-1, 2)
    slope = slope[np.isfinite(slope).all(axis=1)]
    if not slope.size:
        return float("nan")
    return float(np.sqrt(np.einsum("pi,ij,pj->p", slope, np.linalg.inv(gram), slope).max()))


def _mean(values: list[float]) -> float:
    good = [value for value in values if np.isfinite(value)]
    return float(np.mean(good)) if good else float("nan")


def barrier(at: Float[np.ndarray, " points"], values: Float[np.ndarray, " points"]) -> float:
    """Height of a line above the straight line between its values at 0 and 1, max over t in [0, 1].

    Args:
        at: Positions, among them 0 and 1.
        values: Losses there.

    Returns:
        max f(t) − (1 − t) f(0) − t f(1), at least 0; infinity where there is a wall between (Frankle et al. 2020).

    Example:
        >>> barrier(np.array([0.0, 0.5, 1.0]), np.array([1.0, 3.0, 2.0]))
        1.5
    """
    inside = (at >= 0) & (at <= 1)
    t, f = at[inside], values[inside]
    if not np.isfinite(f).all():
        return float("inf")
    return float(np.max(f - np.interp(t, [0.0, 1.0], [f[0], f[-1]])))
