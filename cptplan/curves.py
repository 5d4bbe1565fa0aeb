"""Loss curves: read, check, write. What the executor leaves behind and what people bring of their own.

A curve directory holds <name>.csv (step, loss_<set> ...) and <name>.json (phase, lr, replay_ratio, parent, ...) for
each run. Steps count finished optimiser steps: the loss at step s has seen lr[0] .. lr[s - 1].
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from cptplan.contract import Contract, parse_as
from cptplan.errors import CurveError, suggest
from cptplan.files import read_json, write_json, write_text
from cptplan.mixture import ConstantMixture, Mixture, read_mixture
from cptplan.schedule import Schedule, read_schedule

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

LOSS_PREFIX = "loss_"


class PretrainSummary(Contract):
    """What is known of the pre-training before a curve without a parent; null is unknown."""

    forward_area: Annotated[float, Field(ge=0)] | None = None
    annealing_area: float | None = None
    loss_potential: Annotated[float, Field(ge=0, le=1)] | None = None


class CurveRecord(Contract):
    """The <name>.json beside a curve."""

    schema_version: Literal[1] = 1
    phase: Literal["pretrain", "cpt"]
    lr: Schedule
    replay_ratio: Mixture | None = None
    parent: str | None = None
    parent_step: Annotated[int, Field(ge=0)] | None = None
    pretrain: PretrainSummary | None = None
    batch_tokens: Annotated[int, Field(gt=0)] | None = None
    seq_len: Annotated[int, Field(gt=0)] | None = None
    num_params: Annotated[int, Field(gt=0)] | None = None
    unique_tokens: dict[str, int] | None = None
    seed: int | None = None
    tokenizer: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LossCurve:
    """One run's validation losses with all that the laws need to know of it."""

    name: str
    record: CurveRecord
    steps: IntArray
    """Finished optimiser steps of every row, rising, shape (points,)."""
    losses: Mapping[str, FloatArray]
    """Validation loss by set name, nats per token, NaN where not evaluated, each of shape (points,)."""

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the schedule, which may go on past the last row."""
        return int(self.record.lr.total_steps)

    def lr(self) -> FloatArray:
        """Learning rate of every optimiser step, shape (total_steps,)."""
        return np.asarray(self.record.lr.lr(), dtype=np.float64)

    def replay_ratios(self) -> FloatArray:
        """General share of the tokens of every step, shape (total_steps,): 1 in pre-training, 0 in CPT when not given."""
        default = 1.0 if self.record.phase == "pretrain" else 0.0
        mixture = self.record.replay_ratio or ConstantMixture(replay_ratio=default)
        return np.asarray(mixture.replay_ratios(self.total_steps), dtype=np.float64)

    def final_loss(self, name: str) -> float:
        """Last evaluated loss of a set, nats per token."""
        known = self.losses[name][np.isfinite(self.losses[name])]
        return float(known[-1])


def read_curve(directory: Path, name: str) -> LossCurve:
    """One curve of a curve directory, checked.

    Raises:    CurveError for a missing file, a missing or non-numeric column, NaN steps, steps that do not rise or go
               past the schedule, infinite or non-positive losses, or no loss column; ConfigError for the JSON.
    """
    table_path, record_path = directory / f"{name}.csv", directory / f"{name}.json"
    raw = read_json(record_path)
    if not isinstance(raw, dict):
        raise CurveError(f"curve record must be a JSON object; got {type(raw).__name__} in {record_path}.")
    values = dict(raw)
    if "lr" in values:
        values["lr"] = read_schedule(values["lr"], str(record_path), directory)
    if values.get("replay_ratio") is not None:
        values["replay_ratio"] = read_mixture(values["replay_ratio"], str(record_path))
    record: CurveRecord = parse_as(CurveRecord, values, str(record_path))
    return check_curve(_read_table(table_path, name, record), str(table_path))


def _read_table(path: Path, name: str, record: CurveRecord) -> LossCurve:
    try:
        table = pd.read_csv(path)
    except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise CurveError(
            f"curve must be a CSV file with a header; got {error} for {path}.", hint="check the path"
        ) from error
    if "step" not in table.columns:
        hint = suggest("step", table.columns) or f"columns there: {', '.join(map(str, table.columns))}"
        raise CurveError(f"curve must have a column step; it is missing in {path}.", hint=hint)
    columns = [c for c in table.columns if str(c).startswith(LOSS_PREFIX)]
    if not columns:
        raise CurveError(
            f"curve must have a validation column loss_<set>; got {', '.join(map(str, table.columns))} in {path}.",
            hint="name the columns loss_general and loss_domain",
        )
    for column in ["step", *columns]:
        if not pd.api.types.is_numeric_dtype(table[column]):
            bad = table.index[pd.to_numeric(table[column], errors="coerce").isna() & table[column].notna()]
            row = int(bad[0]) + 2 if len(bad) else 2
            raise CurveError(
                f"{column} must hold numbers; got {table[column].iloc[row - 2]!r} in {path}:{row}.",
                hint="mend or remove the row",
            )
    steps = table["step"].to_numpy(dtype=np.float64)
    if not np.all(np.isfinite(steps)) or np.any(steps != np.round(steps)):
        raise CurveError(f"step must be a whole number in every row; got another in {path}.", hint="remove the row")
    _check_text_nan(path, columns)
    losses = {str(c).removeprefix(LOSS_PREFIX): table[c].to_numpy(dtype=np.float64) for c in columns}
    return LossCurve(name=name, record=record, steps=steps.astype(np.int64), losses=losses)


def _check_text_nan(path: Path, columns: list[str]) -> None:
    """A loss written as nan is a broken run; only an empty cell means not evaluated."""
    raw = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column in columns:
        broken = raw.index[
            raw[column].str.strip().str.lower().isin(["nan", "-nan", "+nan", "null", "none", "na", "n/a"])
        ]
        if len(broken):
            row = int(broken[0])
            raise CurveError(
                f"{column} must be finite; got {raw[column].iloc[row]} at step {raw['step'].iloc[row]} in {path}:{row + 2}.",
                hint="cut the curve before the run broke, or leave the cell empty if it was not evaluated",
            )


def check_curve(curve: LossCurve, where: str) -> LossCurve:
    """The same curve, if it keeps the contract.

    Raises:    CurveError naming the first row that breaks a rule.
    """
    if not len(curve.steps):
        raise CurveError(f"curve must have at least one row; got none in {where}.", hint="remove the curve")
    backwards = np.flatnonzero(np.diff(curve.steps) <= 0)
    if len(backwards):
        row = int(backwards[0])
        raise CurveError(
            f"step must rise from row to row; got {curve.steps[row + 1]} after {curve.steps[row]} in {where}.",
            hint="after a resume keep one row for each step",
        )
    if curve.steps[0] < 0 or curve.steps[-1] > curve.total_steps:
        raise CurveError(
            f"step must lie in [0, {curve.total_steps}], the steps of the schedule; got {curve.steps[0]} to "
            f"{curve.steps[-1]} in {where}.",
            hint="mend lr in the .json: it must cover every optimiser step",
        )
    for name, losses in curve.losses.items():
        known = np.isfinite(losses)
        wrong = np.flatnonzero(np.isinf(losses) | (known & (losses <= 0)))
        if len(wrong):
            raise CurveError(
                f"{LOSS_PREFIX}{name} must be finite and positive; got {losses[wrong[0]]} at step "
                f"{curve.steps[wrong[0]]} in {where}.",
                hint="cut the curve before the run broke",
            )
        if not known.any():
            raise CurveError(f"{LOSS_PREFIX}{name} must have a value somewhere; got none in {where}.", hint="drop it")
    return curve


def read_curve_directory(directory: Path, names: Iterable[str] | None = None) -> dict[str, LossCurve]:
    """All curves of a directory (or those named), by name, sorted; parents must be among them.

    Raises:    CurveError if there is none, or a parent is missing or too short; else as read_curve.
    """
    found = sorted(p.stem for p in directory.glob("*.csv")) if names is None else list(names)
    if not found:
        raise CurveError(f"curve directory must hold <name>.csv files; got none in {directory}.", hint="check the path")
    curves = {name: read_curve(directory, name) for name in found}
    for curve in curves.values():
        parent = curve.record.parent
        if parent is None:
            continue
        if parent not in curves:
            raise CurveError(
                f"parent must be a curve of the same directory; got {parent!r} in {directory / curve.name}.json.",
                hint=suggest(parent, curves) or "add its files, or give pretrain instead",
            )
        if (curve.record.parent_step or 0) > curves[parent].total_steps:
            raise CurveError(
                f"parent_step must be at most {curves[parent].total_steps}, the steps of {parent}; got "
                f"{curve.record.parent_step} in {directory / curve.name}.json.",
                hint="mend parent_step",
            )
    return curves


def write_curve(directory: Path, curve: LossCurve) -> None:
    """Write <name>.csv and <name>.json; reading them back gives an equal curve."""
    write_text(directory / f"{curve.name}.csv", table_text(curve.steps, curve.losses))
    write_json(directory / f"{curve.name}.json", curve.record.to_json())


def table_text(steps: IntArray, losses: Mapping[str, FloatArray]) -> str:
    """The CSV text of a curve: shortest digits that read back as the same float64, empty where not evaluated."""
    table: dict[str, Any] = {
        "step": steps,
        **{f"{LOSS_PREFIX}{name}": values for name, values in losses.items()},
    }
    buffer = io.StringIO()
    pd.DataFrame(table).to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue()
