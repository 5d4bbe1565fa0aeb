"""The learning rate of every optimiser step, which the laws need and which logs hardly ever hold.

A logged rate is of the step just done ("used") or of the next one ("next"), and step i (from 0) runs at its schedule's
value at time i (torch's schedulers) or i + 1 (ours). Both are found by what agrees with the log; a guess is named.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import numpy as np

from cptplan.advice.curve_symptoms import CurveWarning
from cptplan.curves import EXAMPLE_SCHEDULE
from cptplan.errors import CurveError
from cptplan.importers.families import by_time, matching_schedules
from cptplan.importers.training_log import Series
from cptplan.schedule import SegmentsSchedule, TableSchedule

FLOAT32_ROUNDING = 2.0**-22  # of the peak: two roundings to 24 bits and one to spare
FLOAT32_DIGITS = 7  # a log that shows fewer digits was rounded when it was written
FEWEST_DIGITS = 3  # assumed: shorter numbers, such as 0.0003, are exact
WIDEST_GAP = 0.02  # assumed: share of the run (or 2 steps) over which a straight line between two rates is near enough
SAME_AREA = 0.01  # assumed: schedules whose forward areas differ by less than this are one for the laws

LrAt = Literal["used", "next"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """Which step a logged rate belongs to, and at which time of its schedule the first step runs."""

    lr_at: LrAt
    first_time: Literal[0, 1]

    @property
    def shift(self) -> int:
        """Schedule time of a logged rate less the finished steps of its row."""
        return self.first_time - (1 if self.lr_at == "used" else 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """A schedule that covers every step, and what must be said of how it was found."""

    schedule: Any
    warnings: tuple[CurveWarning, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedRates:
    """What a log says of the rates of one run."""

    series: Series
    where: str
    by_trainer: bool
    lr_at: LrAt | None
    """Which step a logged rate is of, if the user knows."""
    num_steps: int
    """Finished steps at the last logged loss: the rates that are needed."""

    def clocks(self, *first_times: Literal[0, 1]) -> list[Clock]:
        """The clocks that may hold, one for each shift, likeliest first; Trainer's steps always begin at time 0."""
        times = (0,) if self.by_trainer else first_times
        all_of_them = [
            Clock(lr_at=lr_at, first_time=time)
            for time in times
            for lr_at in ((self.lr_at,) if self.lr_at else ("used", "next"))
        ]
        return [clock for n, clock in enumerate(all_of_them) if clock.shift not in [c.shift for c in all_of_them[:n]]]

    @property
    def tolerance(self) -> float:
        """Largest difference between a rate and its logged value that rounding explains, unit of lr."""
        peak = float(self.series.values.max())
        digits = max(len(Decimal(repr(value)).normalize().as_tuple().digits) for value in self.series.values.tolist())
        if digits >= FLOAT32_DIGITS or not peak > 0:
            return FLOAT32_ROUNDING * peak
        # one unit of the last digit: half for the log, half for a --lr that was read off it
        return 1.001 * 10.0 ** (math.floor(math.log10(peak)) + 1 - max(digits, FEWEST_DIGITS))


def check_schedule(schedule: Any, logged: LoggedRates) -> Rates:
    """The schedule that the user gave, as the run followed it.

    Raises:    CurveError naming the first step at which it differs from the logged rates by more than rounding.
    """
    table = isinstance(schedule, TableSchedule | SegmentsSchedule)  # says the rate of every step, whatever the clock
    steps, rates = logged.series.steps, logged.series.values
    values = by_time(schedule)
    misses: list[tuple[int, int, float]] = []
    for clock in [Clock(lr_at=c.lr_at, first_time=1) for c in logged.clocks(1)] if table else logged.clocks(1, 0):
        times = steps + clock.shift
        known = (times > 0) | ((times == 0) & np.isfinite(values[0]))
        known &= (times <= schedule.total_steps) | (steps != schedule.total_steps)  # the step after the last never came
        expected = values[np.clip(times, 0, schedule.total_steps)]
        wrong = np.flatnonzero(known & ~(np.abs(expected - rates) <= logged.tolerance))
        wrong = np.union1d(wrong, np.flatnonzero(known & (times > schedule.total_steps)))
        if not len(wrong):
            return Rates(schedule=as_run(schedule, clock.first_time), warnings=_clock_warnings(logged, clock))
        misses.append((len(wrong), int(wrong[0]), float(expected[wrong[0]])))
    _, row, expected_rate = min(misses)
    raise CurveError(
        f"lr must agree with the logged rates; got {expected_rate:.7g} from --lr at step {steps[row]}, where "
        f"{logged.where} has {rates[row]:.7g}.",
        hint="mend --lr: peak_lr, warmup_steps and total_steps are those of the run, in optimiser steps",
    )


def unchecked(schedule: Any, where: str, *, by_trainer: bool) -> Rates:
    """The schedule that the user gave, where the log holds no rate to check it against."""
    warning = CurveWarning(
        code="lr_unchecked",
        message=f"lr is what --lr says: {where} holds no learning rate to check it against",
        curves=(),
    )
    return Rates(schedule=as_run(schedule, 0 if by_trainer else 1), warnings=(warning,))


def work_out(logged: LoggedRates, total_steps: int | None) -> Rates:
    """The rate of every step from the logged ones: of a known schedule that gives them all, or by straight lines.

    Args:      total_steps: length of the schedule; taken as that of the log when None.
    Raises:    CurveError if no schedule, or several unlike ones, give the logged rates, and they are too far apart.
    """
    times, rates = logged.series.steps.astype(np.float64), logged.series.values
    last = max(logged.num_steps, int(times[-1]))
    for total in [total_steps] if total_steps else [last, last + 1]:
        found = [
            (as_run(schedule, clock.first_time), schedule, clock)
            for clock in logged.clocks(0, 1)
            for schedule in matching_schedules(times + clock.shift, rates, total, logged.tolerance)
        ]
        if not found:
            continue
        areas = [float(run.lr()[: logged.num_steps].sum()) for run, _, _ in found]
        spread = 1.0 - min(areas) / max(areas)
        if spread > SAME_AREA:
            why = f"several schedules give them, with forward areas {spread:.0%} apart"
            return _between_logged(logged, why, f"say which, such as --lr '{_as_text(found[0][1])}'")
        run, schedule, clock = found[int(np.argsort(areas)[len(areas) // 2])]
        others = f"; others do too, with forward areas within {spread:.2%}" if spread > 0 else ""
        warning = CurveWarning(
            code="lr_worked_out",
            message=f"lr of every step was worked out: {_as_text(schedule)}, with the first step at time "
            f"{clock.first_time}, gives all {len(rates)} rates in {logged.where}{others}",
            curves=(),
        )
        return Rates(schedule=run, warnings=(warning, *_clock_warnings(logged, clock)))
    hint = f"give the schedule of the run, such as --lr '{EXAMPLE_SCHEDULE}', or log lr at every step"
    return _between_logged(logged, "no known schedule gives them", hint)


def _as_text(schedule: Any) -> str:
    """The schedule as --lr takes it."""
    return json.dumps({"kind": schedule.kind, **schedule.model_dump(exclude_defaults=True)})


def as_run(schedule: Any, first_time: int) -> Any:
    """The schedule that gives step i (from 0) the rate at time i + first_time: itself, or a table of its rates."""
    if first_time == 1 or isinstance(schedule, TableSchedule | SegmentsSchedule):
        return schedule
    rates = by_time(schedule)[:-1]
    return (
        schedule if np.array_equal(rates, schedule.lr()) else TableSchedule(kind="table", values=tuple(rates.tolist()))
    )


def _between_logged(logged: LoggedRates, why: str, hint: str) -> Rates:
    """Straight lines between logged rates, if they lie close enough; else an error with the hint."""
    clock = logged.clocks(0)[0]
    index = logged.series.steps - (1 if clock.lr_at == "used" else 0)
    known = (index >= 0) & (index < logged.num_steps)
    index, rates = index[known], logged.series.values[known]
    gaps = np.diff(np.concatenate([[-1], index, [logged.num_steps]]))
    widest = int(gaps.argmax())
    if gaps[widest] > max(WIDEST_GAP * logged.num_steps, 2) or len(index) < 2:
        raise CurveError(
            f"lr must be known at every optimiser step; got it at {len(index)} of {logged.num_steps} steps in "
            f"{logged.where}, and {why}.",
            hint=hint,
        )
    every = np.arange(logged.num_steps)
    values = np.interp(every, index, rates)
    slope = (rates[1] - rates[0]) / (index[1] - index[0])
    values[: index[0]] = np.maximum(rates[0] + slope * (every[: index[0]] - index[0]), 0.0)
    warnings = _clock_warnings(logged, clock, guessed=True)
    if gaps[widest] > 1:
        after = f"after step {index[widest - 1] + 1}" if widest else "at the start"
        warning = CurveWarning(
            code="lr_interpolated",
            message=f"lr between logged steps is a straight line, since {why}: {len(index)} of {logged.num_steps} "
            f"rates are in {logged.where}, and the largest gap is {gaps[widest]} steps {after}",
            curves=(),
        )
        warnings = (warning, *warnings)
    return Rates(schedule=TableSchedule(kind="table", values=tuple(values.tolist())), warnings=warnings)


def _clock_warnings(logged: LoggedRates, clock: Clock, *, guessed: bool = False) -> tuple[CurveWarning, ...]:
    """What to say where the log does not tell which step its rates are of: with shift 0, or with no schedule."""
    if logged.lr_at or (not guessed and (logged.by_trainer or clock.shift)) or not np.ptp(logged.series.values):
        return ()
    step = "just done" if clock.lr_at == "used" else "to come"
    return (
        CurveWarning(
            code="lr_step",
            message=f"a rate in {logged.where} is taken as that of the step {step}; if it is not, lr is one step off "
            "(say which with --lr-at used or next)",
            curves=(),
        ),
    )
