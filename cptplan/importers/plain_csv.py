"""Plain CSV logs: a step column, loss columns, perhaps the learning rate. What the step counts is the user's word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cptplan.errors import CurveError, suggest
from cptplan.importers.table import read_table
from cptplan.importers.training_log import TrainingLog, make_log

STEP_NAMES = ("step", "steps", "global_step", "train/global_step", "iteration", "iter")


def read_csv(paths: Sequence[Path], step_column: str | None = None) -> TrainingLog:
    """All numeric columns of one or more CSV files of one run.

    Raises:    CurveError without a step column, or if two files have the same column.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    unreadable: dict[str, str] = {}
    for path in paths:
        table = read_table(path)
        step = find_step(table.header, STEP_NAMES, step_column, path)
        for column in (name for name in table.header if name and name != step):
            if column in points or column in unreadable:
                raise CurveError(f"a column must be in one file; got {column!r} again in {path}.", hint="remove one")
            found, wrong = table.points(step, column)
            if wrong is None:
                points[column] = found
            else:
                unreadable[column] = wrong
    where = ", ".join(str(path) for path in paths)
    return make_log(where, {name: found for name, found in points.items() if found}, unreadable=unreadable)


def find_step(header: Sequence[str], known: Sequence[str], named: str | None, path: Path) -> str:
    """The column that counts finished optimiser steps: the one that is named, or the first with a known name."""
    if named is not None:
        if named not in header:
            raise CurveError(
                f"--step-column must name a column; got {named!r} for {path}.",
                hint=suggest(named, header) or f"columns there: {', '.join(header[:12])}",
            )
        return named
    for name in known:
        match = next((column for column in header if column.lower() == name), None)
        if match is not None:
            return match
    raise CurveError(
        f"log must have a column that counts optimiser steps; got {', '.join(header[:12])} in {path}.",
        hint="name it with --step-column",
    )
