"""CSV exports of Weights & Biases: of a chart ("<run> - <metric>" columns) or of a run's history (one per metric).

A chart has one metric, so loss and learning rate come in several files. Its Step counts calls of wandb.log, which is
the optimiser step only if the run logged so; and it may show means over stretches instead of what was logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cptplan.advice.curve_symptoms import CurveWarning
from cptplan.errors import CurveError, suggest
from cptplan.importers.plain_csv import find_step
from cptplan.importers.table import Table, read_table
from cptplan.importers.training_log import TrainingLog, make_log

STEP_NAMES = ("train/global_step", "trainer/global_step", "global_step", "step", "_step")
CALL_COUNTS = ("step", "_step")
SEPARATOR = " - "


def read_wandb(paths: Sequence[Path], step_column: str | None = None, run: str | None = None) -> TrainingLog:
    """All metrics of one run from one or more exported files.

    Args:      run: the run's name where the files hold several.
    Raises:    CurveError if the run cannot be told, or two files have the same metric.
    """
    tables = [read_table(path) for path in paths]
    where = ", ".join(str(path) for path in paths)
    run = _run(tables, run, where)
    points: dict[str, list[tuple[float, float]]] = {}
    unreadable: dict[str, str] = {}
    warnings: dict[str, CurveWarning] = {}
    for table in tables:
        step = find_step(table.header, STEP_NAMES, step_column, table.path)
        if step_column is None and step.lower() in CALL_COUNTS:
            warnings["wandb_step"] = CurveWarning(
                code="wandb_step",
                message=f"{step} in {table.path} counts calls of wandb.log, which are optimiser steps only if the run "
                "logged with step=; export against train/global_step to be sure",
                curves=(),
            )
        for column in (name for name in table.header if name != step and not name.endswith(("__MIN", "__MAX"))):
            owner, separator, metric = column.rpartition(SEPARATOR)
            if not metric or (separator and owner != run):
                continue
            if metric in points or metric in unreadable:
                raise CurveError(
                    f"a metric must be in one file; got {metric!r} again in {table.path}.", hint="drop one"
                )
            found, wrong = table.points(step, column)
            if wrong is not None:
                unreadable[metric] = wrong
            elif found:
                points[metric] = found
            if wrong is None and _is_mean(table, step, column):
                warnings[metric] = CurveWarning(
                    code="wandb_mean",
                    message=f"{metric} in {table.path} is a mean over stretches of steps, since its __MIN and __MAX "
                    "differ; export the run's history to have what was logged",
                    curves=(),
                )
    return make_log(where, points, unreadable=unreadable, warnings=tuple(warnings.values()))


def looks_like_wandb(header: Sequence[str]) -> bool:
    """Whether a CSV header is one of W&B's."""
    return "_step" in header or any(SEPARATOR in name for name in header[1:])


def _run(tables: Sequence[Table], run: str | None, where: str) -> str | None:
    runs = list(
        dict.fromkeys(name.rpartition(SEPARATOR)[0] for table in tables for name in table.header if SEPARATOR in name)
    )
    if run is None and len(runs) > 1:
        raise CurveError(
            f"one run must be chosen; got {', '.join(runs[:10])} in {where}.", hint=f"give --run {runs[0]!r}"
        )
    if run is not None and run not in runs:
        raise CurveError(
            f"--run must be a run of the export; got {run!r} for {where}.",
            hint=suggest(run, runs) or f"runs there: {', '.join(runs[:10]) or 'not named'}",
        )
    return run or next(iter(runs), None)


def _is_mean(table: Table, step: str, column: str) -> bool:
    low, high = f"{column}__MIN", f"{column}__MAX"
    return {low, high} <= set(table.header) and table.points(step, low) != table.points(step, high)
