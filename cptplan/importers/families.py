"""Schedules of the known families that give logged learning rates to within rounding.

All families are one shape: a linear warm-up of W steps, perhaps a hold until D, a decay until the end of the run. W and
D are whole steps that the log brackets, so they are tried one by one; peak and floor follow by least squares.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cptplan.curves import FloatArray
from cptplan.errors import ConfigError
from cptplan.schedule import DecayShape, PiecewiseSchedule, SegmentsSchedule, TableSchedule, decay, read_schedule

FEWEST_POINTS = 5  # more than there are numbers to find: peak, floor, W and D
MOST_TRIALS = 10_000_000  # candidates times logged points: under a second, some 400 MB
TIDY_DIGITS = 6  # a fitted peak of 0.00029999999 is written as 0.0003 when that agrees as well


def matching_schedules(times: FloatArray, rates: FloatArray, total_steps: int, tolerance: float) -> list[Any]:
    """Schedules of total_steps that give the logged rates: ending at 0 before others, without a hold before others.

    Args:      times: whole schedule times of the logged rates, rising, shape (points,). rates: shape (points,), >= 0.
               total_steps: length of the schedule. tolerance: largest difference that is rounding, unit of lr.
    Returns:   the schedules; where the log leaves W or D open, the outermost of those that agree.
    """
    inside = (times >= 0) & (times <= total_steps)
    times, rates = times[inside], rates[inside]
    if len(rates) < FEWEST_POINTS or not rates.max() > 0:
        return []
    fitted = [
        {**values, "total_steps": total_steps}
        for floor in (False, True)
        for family in (_not_held, _held)
        for values in family(times, rates, total_steps, tolerance, floor)
    ]
    return [schedule for values in fitted if (schedule := _tidy(values, times, rates, tolerance)) is not None]


def by_time(schedule: Any) -> FloatArray:
    """Rates of a schedule at times 0 (before the first step) .. total_steps, shape (total_steps + 1,).

    What a table had before its first step is not known: NaN.
    """
    match schedule:
        case TableSchedule() | SegmentsSchedule():
            first = np.nan
        case PiecewiseSchedule():
            steps, rates = zip(*schedule.points, strict=True)
            first = float(np.interp(0, steps, rates))
        case _:
            first = schedule.init_lr if schedule.warmup_steps else schedule.peak_lr
    return np.concatenate([[first], schedule.lr()])


def _not_held(
    times: FloatArray, rates: FloatArray, total_steps: int, tolerance: float, floor: bool
) -> Iterator[dict[str, Any]]:
    """Decay from the end of the warm-up on: linear, cosine, and without a floor inverse_sqrt."""
    top = int(rates.argmax())
    ends = _whole_steps(times[top - 1] if top else 0, times[min(top + 1, len(times) - 1)], total_steps - 1)
    if ends.size * len(times) > MOST_TRIALS:
        return
    warm = times <= ends
    rising = np.where(ends > 0, times / np.maximum(ends, 1), 1.0)
    progress = np.clip((times - ends) / (total_steps - ends), 0, 1)
    falling = {"linear": decay("linear", progress, 1.0, 0.0), "cosine": decay("cosine", progress, 1.0, 0.0)}
    if not floor:
        falling["inverse_sqrt"] = np.sqrt(np.maximum(ends, 1) / np.maximum(times, 1))
    for kind, after in falling.items():
        share, rest = np.where(warm, rising, after), np.where(warm, 0.0, 1.0 - after) * floor
        peaks, lows = _peaks_and_floors(share, rest, rates)
        agree = np.abs(peaks * share + lows * rest - rates).max(axis=1, keepdims=True) <= tolerance
        agree &= ((ends > 0) | (kind != "inverse_sqrt")) & ((lows > tolerance) | (not floor))
        for row in _outermost(agree[:, 0]):
            end, low = int(ends[row, 0]), {"min_lr": float(lows[row, 0])} if floor else {}
            yield {"kind": kind, "peak_lr": float(peaks[row, 0]), "warmup_steps": end, **low}
            if 0 < end <= times[0] and kind != "inverse_sqrt":  # what came before was not logged: a hold as well may be
                held = {"kind": "wsd", "decay_shape": kind, "decay_steps": total_steps - end}
                yield {**held, "peak_lr": float(peaks[row, 0]), **low}


def _held(
    times: FloatArray, rates: FloatArray, total_steps: int, tolerance: float, floor: bool
) -> Iterator[dict[str, Any]]:
    """A hold at the peak that the log shows: constant, wsd, and with a floor two_stage."""
    peak = float(rates.max())
    top = np.flatnonzero(peak - rates <= tolerance)
    first, last = int(top[0]), int(top[-1])
    if last - first + 1 != len(top):
        return
    begins = [(0.0, warmup) for warmup in _warmups(times, rates, first, peak, 0.0, tolerance)]
    for end in _decays(times[last:], rates[last:], peak, total_steps, tolerance, floor):
        low = end.get("min_lr")
        # transformers' warmup_stable_decay also warms up from its floor
        raised = [(low, w) for w in _warmups(times, rates, first, peak, low, tolerance)] if low and first else []
        for init, warmup in dict.fromkeys([*begins, *raised]):
            yield {"peak_lr": peak, "warmup_steps": warmup, **({"init_lr": init} if init else {}), **end}


def _warmups(times: FloatArray, rates: FloatArray, first: int, peak: float, init: float, tolerance: float) -> list[int]:
    """Lengths of a linear warm-up from init to the peak that give the rates before the first at the peak."""
    ends = _whole_steps(times[first - 1] if first else 0, times[first], times[first])
    if ends.size * first > MOST_TRIALS:
        return []
    rising = init + (peak - init) * times[:first] / np.maximum(ends, 1)
    return [int(ends[row, 0]) for row in _outermost((np.abs(rising - rates[:first]) <= tolerance).all(axis=1))]


def _decays(
    times: FloatArray, rates: FloatArray, peak: float, total_steps: int, tolerance: float, floor: bool
) -> Iterator[dict[str, Any]]:
    """What can follow a hold whose last logged point is the first given here."""
    later, fallen = times[1:], rates[1:]
    if not len(later):
        if not floor:
            yield {"kind": "constant"}
            yield {"kind": "wsd", "decay_steps": total_steps - int(times[0])}  # unseen after the last logged rate
        return
    starts = _whole_steps(times[0], later[0] - 1, total_steps - 1)
    if starts.size * len(later) > MOST_TRIALS:
        return
    if floor and np.ptp(fallen) <= tolerance:
        for switch in dict.fromkeys(starts[[0, -1], 0].tolist()):
            yield {"kind": "two_stage", "switch_step": int(switch), "min_lr": float(fallen[0])}
    shapes: tuple[DecayShape, ...] = ("linear", "cosine", "sqrt")
    for shape in shapes:
        share = decay(shape, (later - starts) / (total_steps - starts), 1.0, 0.0)
        rest = 1.0 - share
        lows = np.vecdot(fallen - peak * share, rest)[:, None] / np.vecdot(rest, rest)[:, None] * floor
        agree = np.abs(peak * share + lows * rest - fallen).max(axis=1, keepdims=True) <= tolerance
        for row in _outermost((agree & ((lows > tolerance) | (not floor)))[:, 0]):
            values = {"kind": "wsd", "decay_steps": total_steps - int(starts[row, 0]), "decay_shape": shape}
            yield {**values, "min_lr": float(lows[row, 0])} if floor else values


def _peaks_and_floors(share: FloatArray, rest: FloatArray, rates: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Least squares of rates = peak * share + floor * rest for every candidate, each of shape (candidates, 1)."""
    ss, sr, rr = (np.vecdot(a, b)[:, None] for a, b in ((share, share), (share, rest), (rest, rest)))
    sy, ry = (np.vecdot(a, rates)[:, None] for a in (share, rest))
    alone = rr * ss - sr**2 <= 1e-12 * ss  # no floor is asked for, or none can be told
    determinant = np.where(alone, 1.0, rr * ss - sr**2)
    lows = np.where(alone, 0.0, (ss * ry - sr * sy) / determinant)
    return (sy - lows * sr) / np.maximum(ss, 1e-300), lows


def _whole_steps(low: float, high: float, most: int) -> FloatArray:
    """Candidates for a break, shape (candidates, 1)."""
    return np.arange(max(low, 0), min(high, most) + 1, dtype=np.float64)[:, None]


def _outermost(agree: ArrayLike) -> list[int]:
    rows = np.flatnonzero(agree)
    return list(dict.fromkeys([int(rows[0]), int(rows[-1])])) if len(rows) else []


def _tidy(values: dict[str, Any], times: FloatArray, rates: FloatArray, tolerance: float) -> Any | None:
    """The schedule with short numbers if it agrees with the log, else as it was fitted, else None."""
    short = {key: float(f"{v:.{TIDY_DIGITS}g}") if isinstance(v, float) else v for key, v in values.items()}
    for given in (short, values):
        try:
            schedule = read_schedule(given, "the log")
        except ConfigError:  # a floor above the peak or below 0 is no schedule
            continue
        if np.all(np.abs(by_time(schedule)[times.astype(np.int64)] - rates) <= tolerance):
            return schedule
    return None
