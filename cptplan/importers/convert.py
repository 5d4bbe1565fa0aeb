"""From the log of another tool to a curve of the curve directory."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from cptplan.advice.curve_symptoms import CurveWarning, check_units
from cptplan.curves import EXAMPLE_SCHEDULE, CurveRecord, FloatArray, IntArray, LossCurve, check_curve, write_curve
from cptplan.errors import ConfigError, CurveError, StorageError, suggest
from cptplan.importers.plain_csv import read_csv
from cptplan.importers.rates import LoggedRates, LrAt, Rates, check_schedule, unchecked, work_out
from cptplan.importers.table import read_table
from cptplan.importers.tensorboard import read_tensorboard
from cptplan.importers.trainer_state import read_trainer_state
from cptplan.importers.training_log import TrainingLog, loss_metrics, pick, rate_metric
from cptplan.importers.wandb_csv import looks_like_wandb, read_wandb
from cptplan.mixture import read_mixture
from cptplan.schedule import read_schedule

Format = Literal["csv", "trainer_state", "tensorboard", "wandb"]
Unit = Literal["nats", "bits", "perplexity"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportOptions:
    """What a log does not say of itself. Each is an option of the command line, named in brackets where it differs."""

    name: str
    """Name of the curve: its files are <name>.csv and <name>.json."""
    record: Mapping[str, Any]
    """What <name>.json says beside lr: phase at least; replay_ratio, parent, batch_tokens and so on (--set)."""
    format: Format | None = None
    """Tool that wrote the files; told from them when None."""
    losses: Mapping[str, str] = field(default_factory=dict)
    """Column or tag by validation set (--loss general=eval_loss); found by name when empty."""
    unit: Unit = "nats"
    """What the losses are in; they are written in nats per token."""
    step_column: str | None = None
    run: str | None = None
    """Run of a W&B export that holds several."""
    lr: object | None = None
    """Schedule object of the run; checked against the logged rates."""
    lr_column: str | None = None
    lr_at: LrAt | None = None
    """Whether a logged rate is of the step just done (used) or of the next one; found out when None."""
    total_steps: int | None = None
    """Length of the schedule, where neither the log nor lr says so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """A curve made from a log, and what must be known of how it was made."""

    curve: LossCurve
    warnings: tuple[CurveWarning, ...]


def import_into(
    directory: Path, sources: Sequence[Path], options: ImportOptions, *, replace_existing: bool = False
) -> Imported:
    """Import a curve and write it into a curve directory.

    Raises:    StorageError if a curve of that name is there already; else as import_curve.
    """
    taken = directory / f"{options.name}.csv"
    if taken.exists() and not replace_existing:
        raise StorageError(f"curve must be new; got one in {taken}.", hint="choose another --name, or give --force")
    imported = import_curve(sources, options)
    write_curve(directory, imported.curve)
    return imported


def import_curve(sources: Sequence[Path], options: ImportOptions) -> Imported:
    """A curve from the log of another tool, with the rate of every step.

    Args:      sources: one trainer_state.json, event file or directory of them; one or more CSV files of one run.
    Raises:    CurveError for what cannot be read or is not known, the rate of every step above all; ConfigError for
               options that break a rule.
    """
    _check_options(sources, options)
    log = _read_log(sources, options)
    steps, losses = _losses(log, options)
    rates = _rates(log, options, int(steps[-1]))
    values = {**options.record, "lr": rates.schedule}
    if values.get("replay_ratio") is not None:
        values["replay_ratio"] = read_mixture(values["replay_ratio"], "--set replay_ratio")
    record = CurveRecord.parse(values, "--set")
    curve = check_curve(LossCurve(name=options.name, record=record, steps=steps, losses=losses), log.where)
    check_units(curve, losses, log.where)
    warnings = tuple(replace(warning, curves=(options.name,)) for warning in (*log.warnings, *rates.warnings))
    return Imported(curve=curve, warnings=warnings)


def _check_options(sources: Sequence[Path], options: ImportOptions) -> None:
    if not re.fullmatch(r"\w[\w.+=-]*", options.name):
        raise ConfigError(
            f"--name must be a file name of letters, digits and . _ + = -; got {options.name!r}.",
            hint="such as pilot-01",
        )
    for option, value, kinds in (
        ("--format", options.format or "csv", Format),
        ("--unit", options.unit, Unit),
        ("--lr-at", options.lr_at or "used", LrAt),
    ):
        if value not in get_args(kinds):
            known = get_args(kinds)
            raise ConfigError(
                f"{option} must be {' or '.join(known)}; got {value!r}.", hint=suggest(value, known) or "choose one"
            )
    if "lr" in options.record:
        raise ConfigError("lr must be given with --lr; got it with --set.", hint=f"--lr '{EXAMPLE_SCHEDULE}'")
    for source in sources:
        if not source.exists():
            raise CurveError(f"log must exist; got no {source}.", hint="check the path")
    if not sources:
        raise CurveError("a log must be given; got none.", hint="name its file or directory")


def _read_log(sources: Sequence[Path], options: ImportOptions) -> TrainingLog:
    kind = options.format or _format_of(sources[0])
    if kind == "csv":
        return read_csv(sources, options.step_column)
    if kind == "wandb":
        return read_wandb(sources, options.step_column, options.run)
    if len(sources) > 1:
        raise CurveError(
            f"a {kind} log must be one file or directory; got {len(sources)}.", hint="import them one by one"
        )
    return read_trainer_state(sources[0]) if kind == "trainer_state" else read_tensorboard(sources[0])


def _format_of(source: Path) -> Format:
    if source.is_dir() or "tfevents" in source.name:
        return "tensorboard"
    if source.suffix == ".json":
        return "trainer_state"
    return "wandb" if looks_like_wandb(read_table(source).header) else "csv"


def _losses(log: TrainingLog, options: ImportOptions) -> tuple[IntArray, dict[str, FloatArray]]:
    """Losses of every set in nats over all steps at which one was evaluated."""
    columns = loss_metrics(log, options.losses)
    series = {name: pick(log, column, "--loss") for name, column in columns.items()}
    steps = np.unique(np.concatenate([found.steps for found in series.values()]))
    losses = {}
    for name, found in series.items():
        losses[name] = np.full(len(steps), np.nan)
        losses[name][np.searchsorted(steps, found.steps)] = _in_nats(
            found.values, options.unit, columns[name], log.where
        )
    return steps, losses


def _in_nats(values: FloatArray, unit: Unit, column: str, where: str) -> FloatArray:
    if unit == "bits":
        return values * math.log(2.0)
    if unit == "perplexity":
        if values.min() <= 1.0:
            raise CurveError(
                f"perplexity must be above 1; got {values.min():g} for {column} in {where}.", hint="check --unit"
            )
        return np.asarray(np.log(values))
    return values


def _rates(log: TrainingLog, options: ImportOptions, num_steps: int) -> Rates:
    series = rate_metric(log, options.lr_column)
    schedule = None if options.lr is None else read_schedule(options.lr, "--lr")
    if series is None:
        if schedule is None:
            raise CurveError(
                f"lr must be known at every optimiser step; got none in {log.where}.",
                hint=f"give the schedule of the run, such as --lr '{EXAMPLE_SCHEDULE}', or the column with --lr-column",
            )
        return unchecked(schedule, log.where, by_trainer=log.by_trainer)
    logged = LoggedRates(
        series=series, where=log.where, by_trainer=log.by_trainer, lr_at=options.lr_at, num_steps=num_steps
    )
    if schedule is not None:
        return check_schedule(schedule, logged)
    return work_out(logged, options.total_steps or log.total_steps)
