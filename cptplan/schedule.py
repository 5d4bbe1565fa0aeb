"""Learning-rate schedules: pure functions of the optimiser step, shared by planner and executor.

Which one: constant (pilots that show the shift alone), cosine (the common recipe), wsd (hold, then decay: length can
be chosen late), infinite (cool to a plateau, anneal only before release), two_stage (a step down, shows the
annealing law best), linear, inverse_sqrt, piecewise (any polygon), table (logged rates), segments (one after another).

Convention: step i (0-based) uses the schedule's value at its END, time i + 1. So the first warm-up step is not
wasted at init_lr, the step that ends the warm-up runs at peak_lr, and the last step runs at min_lr exactly, which
makes loss_potential = last LR / peak LR exact.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cptplan.contract import Contract, parse_as
from cptplan.errors import ScheduleError

FloatArray = NDArray[np.float64]
DecayShape = Literal["linear", "cosine", "sqrt", "exponential"]
Rate = Annotated[float, Field(ge=0)]
Steps = Annotated[int, Field(ge=0)]

EXPONENTIAL_FLOOR = 1e-3  # assumed: an exponential decay to min_lr 0 ends at this share of the peak, then at 0


class _Schedule(Contract):
    """What all schedules answer: the LR of every optimiser step."""

    total_steps: Annotated[int, Field(gt=0)]

    def lr(self) -> FloatArray:
        """Learning rate of every optimiser step, dimensionless, shape (total_steps,), float64."""
        return self._at(np.arange(1, self.total_steps + 1, dtype=np.float64))

    def _at(self, time: FloatArray) -> FloatArray:
        raise ScheduleError(f"schedule must define its rate; got {type(self).__name__}.")  # pragma: no cover


class _PeakSchedule(_Schedule):
    """A schedule that warms up linearly from init_lr to peak_lr and then follows a shape of its own."""

    peak_lr: Annotated[float, Field(gt=0)]
    init_lr: Rate = 0.0
    warmup_steps: Steps = 0

    @model_validator(mode="after")
    def _check_warmup(self) -> Self:
        if self.total_steps < self.warmup_steps:
            raise ScheduleError(
                f"total_steps must be at least warmup_steps; got total_steps {self.total_steps} and "
                f"warmup_steps {self.warmup_steps}.",
                hint="lengthen the run or shorten the warm-up",
            )
        return self

    def _at(self, time: FloatArray) -> FloatArray:
        rising = np.interp(time, [0, max(self.warmup_steps, 1)], [self.init_lr, self.peak_lr])
        return np.where(time <= self.warmup_steps, rising, self._after_warmup(time))

    def _after_warmup(self, time: FloatArray) -> FloatArray:
        return np.full_like(time, self.peak_lr)


class ConstantSchedule(_PeakSchedule):
    """peak_lr throughout, after the warm-up."""

    kind: Literal["constant"]


class _DecayingSchedule(_PeakSchedule):
    """A peak schedule with a floor that must not lie above the peak."""

    min_lr: Rate = 0.0

    @model_validator(mode="after")
    def _check_floor(self) -> Self:
        if self.min_lr > self.peak_lr:
            raise ScheduleError(
                f"min_lr must be at most peak_lr; got min_lr {self.min_lr:g} and peak_lr {self.peak_lr:g}.",
                hint="swap them, or give a floor such as a tenth of the peak",
            )
        return self

    def _progress(self, time: FloatArray, start: int, stop: int) -> FloatArray:
        return np.clip((time - start) / max(stop - start, 1), 0.0, 1.0)


class LinearSchedule(_DecayingSchedule):
    """A straight line from peak_lr to min_lr."""

    kind: Literal["linear"]

    def _after_warmup(self, time: FloatArray) -> FloatArray:
        progress = self._progress(time, self.warmup_steps, self.total_steps)
        return decay("linear", progress, self.peak_lr, self.min_lr)


class CosineSchedule(_DecayingSchedule):
    """Half a cosine from peak_lr to min_lr (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts)."""

    kind: Literal["cosine"]

    def _after_warmup(self, time: FloatArray) -> FloatArray:
        progress = self._progress(time, self.warmup_steps, self.total_steps)
        return decay("cosine", progress, self.peak_lr, self.min_lr)


class WsdSchedule(_DecayingSchedule):
    """Warm-up, stable, decay: peak_lr until decay_steps before the end, then down to min_lr (arXiv:2404.06395)."""

    kind: Literal["wsd"]
    decay_steps: Steps
    decay_shape: DecayShape = "linear"

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if self.warmup_steps + self.decay_steps > self.total_steps:
            raise ScheduleError(
                f"warmup_steps + decay_steps must be at most total_steps; got {self.warmup_steps} + "
                f"{self.decay_steps} > {self.total_steps}.",
                hint="shorten the decay or lengthen the run",
            )
        return self

    def _after_warmup(self, time: FloatArray) -> FloatArray:
        progress = self._progress(time, self.total_steps - self.decay_steps, self.total_steps)
        return decay(self.decay_shape, progress, self.peak_lr, self.min_lr)


class InfiniteSchedule(_DecayingSchedule):
    """Cosine cool-down to const_lr, a plateau of any length, exponential anneal to min_lr (arXiv:2503.02844)."""

    kind: Literal["infinite"]
    const_lr: Annotated[float, Field(gt=0)]
    cooldown_steps: Steps
    decay_steps: Steps = 0

    @model_validator(mode="after")
    def _check_plateau(self) -> Self:
        if not self.min_lr <= self.const_lr <= self.peak_lr:
            raise ScheduleError(
                f"const_lr must lie between min_lr and peak_lr; got {self.const_lr:g} outside "
                f"[{self.min_lr:g}, {self.peak_lr:g}].",
                hint="a quarter of the peak is common",
            )
        if self.warmup_steps + self.cooldown_steps + self.decay_steps > self.total_steps:
            raise ScheduleError(
                f"warmup_steps + cooldown_steps + decay_steps must be at most total_steps; got {self.warmup_steps} + "
                f"{self.cooldown_steps} + {self.decay_steps} > {self.total_steps}.",
                hint="shorten a part or lengthen the run",
            )
        return self

    def _after_warmup(self, time: FloatArray) -> FloatArray:
        cooled = self._progress(time, self.warmup_steps, self.warmup_steps + self.cooldown_steps)
        plateau = decay("cosine", cooled, self.peak_lr, self.const_lr)
        annealing_start = self.total_steps - self.decay_steps
        annealed = decay(
            "exponential", self._progress(time, annealing_start, self.total_steps), self.const_lr, self.min_lr
        )
        return np.where(time > annealing_start, annealed, plateau)


class TwoStageSchedule(_DecayingSchedule):
    """peak_lr until switch_step, then min_lr: the cleanest probe of what annealing buys."""

    kind: Literal["two_stage"]
    switch_step: Annotated[int, Field(gt=0)]

    @model_validator(mode="after")
    def _check_switch(self) -> Self:
        if not self.warmup_steps <= self.switch_step <= self.total_steps:
            raise ScheduleError(
                f"switch_step must lie between warmup_steps and total_steps; got {self.switch_step} outside "
                f"[{self.warmup_steps}, {self.total_steps}].",
                hint="move the switch inside the run",
            )
        return self

    def _after_warmup(self, time: FloatArray) -> FloatArray:
        return np.where(time <= self.switch_step, self.peak_lr, self.min_lr)


class InverseSqrtSchedule(_DecayingSchedule):
    """peak_lr * sqrt(warmup_steps / step), not below min_lr (Vaswani et al. 2017, arXiv:1706.03762)."""

    kind: Literal["inverse_sqrt"]
    warmup_steps: Annotated[int, Field(gt=0)]

    def _after_warmup(self, time: FloatArray) -> FloatArray:
        return np.maximum(self.peak_lr * np.sqrt(self.warmup_steps / time), self.min_lr)


class PiecewiseSchedule(_Schedule):
    """Straight lines between (step, rate) points; flat before the first and after the last."""

    kind: Literal["piecewise"]
    points: Annotated[tuple[tuple[Annotated[float, Field(ge=0)], Rate], ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_points(self) -> Self:
        steps = [step for step, _ in self.points]
        if any(later <= earlier for earlier, later in zip(steps, steps[1:], strict=False)):
            raise ScheduleError(f"points must have rising steps; got {steps}.", hint="sort them and drop repeats")
        return self

    def _at(self, time: FloatArray) -> FloatArray:
        steps, rates = zip(*self.points, strict=True)
        return np.asarray(np.interp(time, steps, rates), dtype=np.float64)


class TableSchedule(Contract):
    """The rate of every step as logged: in the file itself (values) or beside it (file, a .npy array)."""

    kind: Literal["table"]
    values: Annotated[tuple[Rate, ...], Field(min_length=1)] | None = None
    file: str | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.values is None) == (self.file is None):
            raise ScheduleError(
                f"table must have either values or file; got {'neither' if self.file is None else 'both'}.",
                hint="give values: [..] or file: name.lr.npy",
            )
        return self

    @property
    def total_steps(self) -> int:
        """Number of optimiser steps."""
        return len(self.lr())

    def lr(self) -> FloatArray:
        """Learning rate of every optimiser step, shape (total_steps,)."""
        if self.values is None:
            raise ScheduleError(
                f"table must be loaded first; got the file {self.file}.", hint="read it with read_schedule"
            )
        return np.asarray(self.values, dtype=np.float64)


class SegmentsSchedule(Contract):
    """Schedules one after another, each with its own steps."""

    kind: Literal["segments"]
    segments: Annotated[tuple[Schedule, ...], Field(min_length=1)]

    @property
    def total_steps(self) -> int:
        """Number of optimiser steps of all segments together."""
        return sum(segment.total_steps for segment in self.segments)

    def lr(self) -> FloatArray:
        """Learning rate of every optimiser step, shape (total_steps,)."""
        return np.concatenate([segment.lr() for segment in self.segments])


Schedule = Annotated[
    ConstantSchedule
    | LinearSchedule
    | CosineSchedule
    | WsdSchedule
    | InfiniteSchedule
    | TwoStageSchedule
    | InverseSqrtSchedule
    | PiecewiseSchedule
    | TableSchedule
    | SegmentsSchedule,
    Field(discriminator="kind"),
]
SegmentsSchedule.model_rebuild()


def decay(shape: DecayShape, progress: FloatArray, start_lr: float, stop_lr: float) -> FloatArray:
    """Rate on the way from start_lr to stop_lr.

    linear: 1 - p; cosine: (1 + cos(pi p)) / 2; sqrt: 1 - sqrt(p); exponential: geometric from start to stop.
    Args:      progress: p in [0, 1], any shape. start_lr, stop_lr: rates at p = 0 and p = 1, dimensionless.
    Returns:   rates, shape of progress.
    Reference: shapes compared in Haegele et al. 2024, arXiv:2405.18392 (1-sqrt best there).
    """
    if shape == "exponential":
        floor = max(stop_lr, EXPONENTIAL_FLOOR * start_lr)
        falling = start_lr * (floor / start_lr) ** progress
        return np.where(progress >= 1.0, stop_lr, falling)
    share = {
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + np.cos(math.pi * progress)),
        "sqrt": 1.0 - np.sqrt(progress),
    }[shape]
    return np.where(share == 1.0, start_lr, stop_lr + (start_lr - stop_lr) * share)  # exact at both ends


def read_schedule(value: object, where: str, directory: Path | None = None) -> Any:
    """A schedule from its JSON or YAML object; a table's file is loaded from beside the file it is named in.

    Raises:    ScheduleError or ConfigError with the rule, the value and the place.
    """
    schedule = parse_as(Schedule, value, where)
    return load_tables(schedule, where, directory or Path())


def load_tables(schedule: Any, where: str, directory: Path) -> Any:
    """The same schedule with the rates of table files read in, so that it stands (and hashes) by itself."""
    if isinstance(schedule, SegmentsSchedule):
        loaded = tuple(load_tables(segment, where, directory) for segment in schedule.segments)
        return schedule.model_copy(update={"segments": loaded})
    if not isinstance(schedule, TableSchedule) or schedule.file is None:
        return schedule
    path = directory / schedule.file
    try:
        rates = np.asarray(np.load(path, allow_pickle=False), dtype=np.float64)
    except FileNotFoundError as error:
        raise ScheduleError(f"table file must exist; got no {path}, named in {where}.", hint="check file") from error
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise ScheduleError(
            f"table file must be a .npy array of numbers; got something else in {path}, named in {where}.",
            hint="write it with numpy.save",
        ) from error
    if rates.ndim != 1 or not len(rates):
        raise ScheduleError(
            f"table must be one rate for each step; got an array of shape {rates.shape} in {path}.",
            hint="write one float per optimiser step",
        )
    wrong = np.flatnonzero(~(np.isfinite(rates) & (rates >= 0)))
    if len(wrong):
        raise ScheduleError(
            f"rates must be finite and at least 0; got {rates[wrong[0]]:g} at index {wrong[0]} in {path}.",
            hint="write one float per optimiser step",
        )
    return TableSchedule(kind="table", values=tuple(rates.tolist()))
