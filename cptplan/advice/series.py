"""Small robust statistics of a logged series."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cptplan.advice.run_log import EMPTY, Series

SMOOTH = 9  # points of the running median
NEIGHBOURS = 33  # points that a leap is held against


def after(series: Series, step: int) -> Series:
    """The finite points after a step."""
    kept = (series.steps > step) & np.isfinite(series.values)
    return Series(steps=series.steps[kept], values=series.values[kept])


def smoothed(series: Series, width: int = SMOOTH) -> Series:
    """Running median of the finite points, each over the points behind it; empty when there are fewer than width."""
    known = after(series, -1)
    if len(known) < width:
        return EMPTY
    windows = np.lib.stride_tricks.sliding_window_view(known.values, width)
    return Series(steps=known.steps[width - 1 :], values=np.median(windows, axis=1))


def roughness(series: Series) -> float:
    """Standard deviation of single points around a line through their neighbours: 1.4826 median |d2| / sqrt(6).

    Returns:   0 for fewer than 5 points.
    """
    known = after(series, -1).values
    if len(known) < 5:
        return 0.0
    return float(1.4826 * np.median(np.abs(np.diff(known, 2))) / np.sqrt(6.0))


def leaps(series: Series, *, least: float, noises: float) -> NDArray[np.int64]:
    """Steps whose value is above the median of those before it by `least` and by so many median deviations."""
    known = after(series, -1)
    if len(known) <= NEIGHBOURS:
        return np.zeros(0, dtype=np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(known.values[:-1], NEIGHBOURS)
    level = np.median(windows, axis=1)
    scatter = 1.4826 * np.median(np.abs(windows - level[:, None]), axis=1)
    above = known.values[NEIGHBOURS:] - level
    return np.asarray(known.steps[NEIGHBOURS:][above > np.maximum(least, noises * scatter)])


def fall(series: Series) -> float:
    """First value less the last; 0 for fewer than two points."""
    return float(series.values[0] - series.values[-1]) if len(series) > 1 else 0.0


def climb(series: Series) -> float:
    """Last value less the lowest; 0 without points."""
    return float(series.values[-1] - series.values.min()) if len(series) else 0.0
