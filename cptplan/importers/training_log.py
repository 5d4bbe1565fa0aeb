"""What every importer takes out of a tool's files: named numbers over steps, before they become a loss curve."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from cptplan.advice.curve_symptoms import CurveWarning
from cptplan.curves import LOSS_PREFIX, FloatArray, IntArray
from cptplan.errors import CurveError, suggest

LAST_EXACT_STEP = 2**53  # above it float64 skips whole numbers
_OF_A_SET = re.compile(rf"(?:{LOSS_PREFIX}(?P<own>.+)|(?:eval|val|valid|validation)[_/](?P<set>.+?)[_/]loss)$")
_OF_NO_SET = re.compile(r"(?:eval|val|valid|validation)[_/]loss$")
_RATE = re.compile(r"(?:.*/)?(?:lr|learning[_-]?rate)$|lr-\w+$", re.IGNORECASE)
_BY_TRAINER = re.compile(r"eval[_/].*samples_per_second$")  # only transformers' Trainer logs these


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Series:
    """One logged metric: finished optimiser steps, rising, and values, both of shape (points,)."""

    steps: IntArray
    values: FloatArray


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingLog:
    """The metrics of one run as a tool wrote them."""

    where: str
    """File or directory, for messages."""
    metrics: Mapping[str, Series]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Columns that are no numbers: the first cell that is none, and where it stands."""
    total_steps: int | None = None
    """Steps of the schedule, where the tool says so."""
    by_trainer: bool = False
    """Written by transformers' Trainer, whose step i (from 0) runs at its schedule's value at time i."""
    warnings: tuple[CurveWarning, ...] = ()


def make_series(
    name: str, points: Iterable[tuple[float, float]], where: str
) -> tuple[Series, tuple[CurveWarning, ...]]:
    """A series from points in the order they were written; after a restart the later attempt holds.

    Args:      points: (step, value) pairs.
    Returns:   the series, and a warning if a restart threw away points with other values.
    Raises:    CurveError for a step that is no whole number >= 0, or steps that are in no order.
    """
    kept: list[tuple[int, float]] = []
    dropped: list[tuple[int, float]] = []
    for step, value in points:
        if not (0 <= step < LAST_EXACT_STEP and step == int(step)):
            raise CurveError(
                f"step must be a whole number of finished optimiser steps; got {step:g} for {name} in {where}.",
                hint="name the column that counts them, with --step-column",
            )
        while kept and kept[-1][0] >= step:
            dropped.append(kept.pop())
        kept.append((int(step), value))
    values = dict(kept)
    lost = sorted(step for step, value in dropped if values.get(step) != value)
    if len(lost) > len(kept):
        raise CurveError(f"steps of {name} must rise; got them in no order in {where}.", hint="sort the rows by step")
    warnings = []
    if lost:
        warnings.append(
            CurveWarning(
                code="restart",
                message=f"{name} goes back in steps, as after a restart: {len(lost)} earlier values from step "
                f"{lost[0]} on were dropped for the later ones in {where}",
                curves=(),
            )
        )
    steps, numbers = list(values), list(values.values())
    series = Series(steps=np.asarray(steps, dtype=np.int64), values=np.asarray(numbers, dtype=np.float64))
    return series, tuple(warnings)


def make_log(
    where: str,
    points: Mapping[str, Iterable[tuple[float, float]]],
    *,
    unreadable: Mapping[str, str] | None = None,
    total_steps: int | None = None,
    warnings: tuple[CurveWarning, ...] = (),
) -> TrainingLog:
    """A log from the points of every metric, in the order they were written."""
    metrics: dict[str, Series] = {}
    for name, written in points.items():
        metrics[name], found = make_series(name, written, where)
        warnings += found
    return TrainingLog(
        where=where,
        metrics=metrics,
        unreadable=unreadable or {},
        total_steps=total_steps,
        by_trainer=any(_BY_TRAINER.match(name) for name in metrics),
        warnings=warnings,
    )


def loss_metrics(log: TrainingLog, columns: Mapping[str, str]) -> dict[str, str]:
    """Which metric holds the validation loss of each set.

    Args:      columns: metric by set name, as the user gave them; found by their names when empty.
    Raises:    CurveError if one is not there, or none can be told from its name.
    """
    if columns:
        for column in columns.values():
            pick(log, column, "--loss")
        return dict(columns)
    found: dict[str, str] = {}
    for name in log.metrics:
        match = _OF_A_SET.match(name)
        if match and found.setdefault(match["own"] or match["set"], name) != name:
            other = found[match["own"] or match["set"]]
            raise CurveError(
                f"a set must have one loss column; got {other} and {name} in {log.where}.", hint="name one with --loss"
            )
    if found:
        return found
    lonely = [name for name in log.metrics if _OF_NO_SET.match(name)]
    raise CurveError(
        f"a validation loss must say which set it is of; got {lonely[0] if lonely else _shown(log.metrics)} in "
        f"{log.where}.",
        hint=f"give --loss general={lonely[0] if lonely else '<column>'} (or the name of your domain)",
    )


def rate_metric(log: TrainingLog, column: str | None) -> Series | None:
    """The logged learning rates: of the column that is named, or of the only one whose name says so."""
    if column is not None:
        return pick(log, column, "--lr-column")
    found = [name for name in log.metrics if _RATE.match(name)]
    if len(found) > 1:
        raise CurveError(
            f"one column must hold the learning rate; got {', '.join(found)} in {log.where}.", hint="give --lr-column"
        )
    return pick(log, found[0], "--lr-column") if found else None


def pick(log: TrainingLog, name: str, option: str) -> Series:
    """A metric whose values are all finite numbers.

    Raises:    CurveError if it is not there, or a value is no finite number.
    """
    if name in log.unreadable:
        raise CurveError(f"{name} must hold numbers; got {log.unreadable[name]}.", hint="mend the cell")
    if name not in log.metrics:
        raise CurveError(
            f"{option} must name a column or tag of the log; got {name!r} for {log.where}.",
            hint=suggest(name, log.metrics) or f"there: {_shown(log.metrics)}",
        )
    series = log.metrics[name]
    broken = np.flatnonzero(~np.isfinite(series.values))
    if len(broken):
        row = broken[0]
        raise CurveError(
            f"{name} must be finite; got {series.values[row]:g} at step {series.steps[row]} in {log.where}.",
            hint="cut the log before the run broke",
        )
    return series


def _shown(names: Iterable[str], most: int = 12) -> str:
    listed = list(names)
    return (", ".join(listed[:most]) + ", .." * (len(listed) > most)) or "none"
