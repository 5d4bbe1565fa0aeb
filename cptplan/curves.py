"""Loss curves: read, check, write. What the executor leaves behind and what people bring of their own.

A curve directory holds <name>.csv (step, loss_<set> ...) and <name>.json (phase, lr, replay_ratio, parent, ...) for
each run, and <name>.lr.npy where the rates are a long table. Steps count finished optimiser steps: the loss at step s
has seen lr[0] .. lr[s - 1].
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cptplan.contract import Contract
from cptplan.errors import CurveError, suggest
from cptplan.files import read_json, write_bytes, write_json, write_text
from cptplan.mixture import ConstantMixture, Mixture, read_mixture
from cptplan.schedule import Schedule, TableSchedule, read_schedule

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

LOSS_PREFIX = "loss_"
EXAMPLE_SCHEDULE = '{"kind": "cosine", "peak_lr": 3e-4, "warmup_steps": 100, "total_steps": 10000}'
LONGEST_INLINE_TABLE = 100  # steps; a longer table of rates is written as .npy, so that the .json stays readable


class PretrainSummary(Contract):
    """What is known of the pre-training before a curve without a parent; null is unknown."""

    forward_area: Annotated[float, Field(ge=0)] | None = None
    annealing_area: float | None = None
    loss_potential: Annotated[float, Field(ge=0, le=1)] | None = None
    """Last rate over peak rate; says the last rate when peak_lr is known."""
    peak_lr: Annotated[float, Field(gt=0)] | None = None
    final_lr: Annotated[float, Field(ge=0)] | None = None
    """Rate of its last step."""

    @property
    def last_lr(self) -> float | None:
        """Rate of the last step, from whichever of the fields tells it."""
        if self.final_lr is not None or self.loss_potential is None:
            return self.final_lr
        if self.loss_potential == 0.0:
            return 0.0
        return self.loss_potential * self.peak_lr if self.peak_lr is not None else None


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
        """General share of the tokens of every step, shape (total_steps,); not given means 1 in pretrain, 0 in cpt."""
        default = 1.0 if self.record.phase == "pretrain" else 0.0
        mixture = self.record.replay_ratio or ConstantMixture(replay_ratio=default)
        return np.asarray(mixture.replay_ratios(self.total_steps), dtype=np.float64)

    def final_loss(self, name: str) -> float:
        """Last evaluated loss of a set, nats per token."""
        known = self.losses[name][np.isfinite(self.losses[name])]
        return float(known[-1])


def read_curve(directory: Path, name: str) -> LossCurve:
    """One curve of a curve directory, checked.

    Raises:    CurveError for a missing file, no lr, a missing or non-numeric column, NaN, steps that do not rise or
               go past the schedule, infinite or non-positive losses, or no loss column; ConfigError for what the JSON
               says.
    """
    table_path, record_path = directory / f"{name}.csv", directory / f"{name}.json"
    for path, content in ((table_path, "its losses"), (record_path, "its schedule and phase")):
        if not path.is_file():
            other = record_path if path == table_path else table_path
            raise CurveError(
                f"curve {name} must have {content} in a file; got no {path}.",
                hint=f"add the file, or move {other.name} elsewhere if it is no curve",
            )
    values = read_json(record_path)
    if isinstance(values, dict):
        values = dict(values)
        if values.get("lr") is None:
            raise CurveError(
                f"lr must give the rate of every optimiser step; it is missing in {record_path}.",
                hint=f"add the schedule, such as {EXAMPLE_SCHEDULE}, or every rate in a table, {name}.lr.npy",
            )
        values["lr"] = read_schedule(values["lr"], f"lr of {record_path}", directory)
        if values.get("replay_ratio") is not None:
            values["replay_ratio"] = read_mixture(values["replay_ratio"], f"replay_ratio of {record_path}")
    record = CurveRecord.parse(values, str(record_path))
    steps, losses = _read_table(table_path)
    return check_curve(LossCurve(name=name, record=record, steps=steps, losses=losses), str(table_path))


def _read_table(path: Path) -> tuple[IntArray, dict[str, FloatArray]]:
    """Steps and losses of a CSV file: every cell a finite number, or empty where a loss was not evaluated."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [cell.strip() for cell in next(reader, [])]
            rows = [(reader.line_num, cells) for cells in reader if cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CurveError(f"curve must be a CSV file; got {error} in {path}.", hint="write it as UTF-8 text") from error
    columns = [name for name in header if name.startswith(LOSS_PREFIX)]
    if "step" not in header:
        hint = suggest("step", header) or "count finished optimiser steps in it"
        raise CurveError(f"curve must have a column step; got {', '.join(header) or 'none'} in {path}.", hint=hint)
    if not columns or len(set(columns)) < len(columns):
        raise CurveError(
            f"curve must have a validation column loss_<set> for each set; got {', '.join(header)} in {path}.",
            hint="name the columns loss_general and loss_domain",
        )
    for line, cells in rows:
        if len(cells) != len(header):
            raise CurveError(
                f"row must have {len(header)} cells; got {len(cells)} in {path}:{line}.", hint="mend or remove the row"
            )
    numbers = {
        name: [_number(name, cells[header.index(name)], f"{path}:{line}") for line, cells in rows]
        for name in ("step", *columns)
    }
    losses = {name.removeprefix(LOSS_PREFIX): np.asarray(numbers[name], dtype=np.float64) for name in columns}
    return np.asarray(numbers["step"], dtype=np.int64), losses


def _number(column: str, cell: str, where: str) -> float:
    try:
        number = float(cell) if cell.strip() or column == "step" else None
    except ValueError as error:
        raise CurveError(f"{column} must be a number; got {cell!r} in {where}.", hint="mend or remove it") from error
    if number is None:
        return math.nan
    if not math.isfinite(number):
        raise CurveError(
            f"{column} must be finite; got {cell.strip()} in {where}.",
            hint="cut the curve before the run broke; leave the cell empty where it was not evaluated",
        )
    if column == "step" and (number != round(number) or abs(number) > 2**53):
        raise CurveError(f"step must be a whole number; got {cell.strip()} in {where}.", hint="mend the row")
    return number


def check_curve(curve: LossCurve, where: str) -> LossCurve:
    """The same curve, if it keeps the contract.

    Args:      where: the file, for the message; its first row is the header.
    Raises:    CurveError naming the first row that breaks a rule.
    """
    if not len(curve.steps):
        raise CurveError(f"curve must have at least one row; got none in {where}.", hint="remove the curve")
    backwards = np.flatnonzero(np.diff(curve.steps) <= 0)
    if len(backwards):
        row = int(backwards[0]) + 1
        raise CurveError(
            f"step must rise from row to row; got {curve.steps[row]} after {curve.steps[row - 1]} in "
            f"{where}:{row + 2}.",
            hint="after a resume keep one row for each step",
        )
    outside = np.flatnonzero((curve.steps < 0) | (curve.steps > curve.total_steps))
    if len(outside):
        row = int(outside[0])
        raise CurveError(
            f"step must lie in [0, {curve.total_steps}], the steps of the schedule; got {curve.steps[row]} in "
            f"{where}:{row + 2}.",
            hint="mend lr in the .json: it must cover every optimiser step",
        )
    for name, losses in curve.losses.items():
        wrong = np.flatnonzero(np.isinf(losses) | (losses <= 0))
        if len(wrong):
            row = int(wrong[0])
            raise CurveError(
                f"{LOSS_PREFIX}{name} must be finite and positive; got {losses[row]:g} at step {curve.steps[row]} in "
                f"{where}:{row + 2}.",
                hint="cut the curve before the run broke",
            )
        if np.isnan(losses).all():
            raise CurveError(f"{LOSS_PREFIX}{name} must have a value somewhere; got none in {where}.", hint="drop it")
    return curve


def read_curve_directory(directory: Path, names: Iterable[str] | None = None) -> dict[str, LossCurve]:
    """All curves of a directory, or those named with the runs that they continue, by name, sorted.

    Args:      names: names or patterns such as pilot-* (fnmatch); all curves when None.
    Raises:    CurveError if there is none, a name matches nothing, two names differ only in case, or a parent is
               missing or too short; else as read_curve.
    """
    there = curve_names(directory)
    waiting = there if names is None else select_names(directory, names)
    curves: dict[str, LossCurve] = {}
    while waiting:
        curve = read_curve(directory, waiting[0])
        curves[curve.name] = curve
        parent = curve.record.parent
        if parent is not None and parent not in there:
            raise CurveError(
                f"parent must be a curve of the same directory; got {parent!r} in {directory / curve.name}.json.",
                hint=suggest(parent, there) or "add its files, or give pretrain instead",
            )
        waiting = [name for name in dict.fromkeys([*waiting[1:], parent]) if name is not None and name not in curves]
    for curve in curves.values():
        _check_parent_step(curve, curves, directory)
        _check_ancestry(curves, curve.name, directory)
    return dict(sorted(curves.items()))


def curve_names(directory: Path) -> list[str]:
    """The names of all curves of a directory, sorted.

    Raises:    CurveError if there is none, or two names differ only in case.
    """
    there = sorted({p.stem for s in ("csv", "json") for p in directory.glob(f"*.{s}") if not p.name.startswith(".")})
    if not there:
        raise CurveError(f"curve directory must hold <name>.csv files; got none in {directory}.", hint="check the path")
    _check_case(there, directory)
    return there


def select_names(directory: Path, names: Iterable[str]) -> list[str]:
    """The curves of a directory that are asked for, by name or pattern such as pilot-*, each once.

    Raises:    CurveError if a name matches nothing.
    """
    there = curve_names(directory)
    chosen: list[str] = []
    for name in names:
        matches = [name] if name in there else [found for found in there if fnmatchcase(found, name)]
        if not matches:
            raise CurveError(
                f"name must be a curve, or a pattern that matches one; got {name!r} for {directory}.",
                hint=suggest(name, there) or f"curves there: {', '.join(there[:10])}{', ..' * (len(there) > 10)}",
            )
        chosen += matches
    if not chosen:
        raise CurveError(f"names must hold at least one curve; got none for {directory}.", hint="name one, or give *")
    return list(dict.fromkeys(chosen))


def _check_case(names: Sequence[str], directory: Path) -> None:
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise CurveError(
                f"names must differ in more than case; got {other} and {name} in {directory}.",
                hint="rename one: some file systems take them for one file",
            )


def _check_parent_step(curve: LossCurve, curves: Mapping[str, LossCurve], directory: Path) -> None:
    if curve.record.parent is None or curve.record.parent_step is None:
        return
    parent = curves[curve.record.parent]
    if curve.record.parent_step > parent.total_steps:
        raise CurveError(
            f"parent_step must be at most {parent.total_steps}, the steps of {parent.name}; got "
            f"{curve.record.parent_step} in {directory / curve.name}.json.",
            hint="mend parent_step",
        )


def _check_ancestry(curves: Mapping[str, LossCurve], name: str, directory: Path) -> None:
    line: list[str] = []
    ancestor: str | None = name
    while ancestor is not None:
        if ancestor in line:
            raise CurveError(
                f"parents must not form a circle; got {' <- '.join([*line, ancestor])} in {directory / name}.json.",
                hint="remove one parent",
            )
        line.append(ancestor)
        ancestor = curves[ancestor].record.parent


def write_curve(directory: Path, curve: LossCurve) -> None:
    """Write <name>.csv and <name>.json, a long table of rates as <name>.lr.npy; reading gives an equal curve back."""
    record = curve.record.to_json()
    if isinstance(curve.record.lr, TableSchedule) and curve.total_steps > LONGEST_INLINE_TABLE:
        buffer = io.BytesIO()
        np.save(buffer, curve.lr())
        write_bytes(directory / f"{curve.name}.lr.npy", buffer.getvalue())
        record["lr"] = {"kind": "table", "file": f"{curve.name}.lr.npy"}
    write_text(directory / f"{curve.name}.csv", table_text(curve.steps, curve.losses))
    write_json(directory / f"{curve.name}.json", record)


def table_text(steps: IntArray, losses: Mapping[str, FloatArray]) -> str:
    """The CSV text of a curve: shortest digits that read back as the same float64, empty where not evaluated."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["step", *(f"{LOSS_PREFIX}{name}" for name in losses)])
    for row, step in enumerate(steps):
        values = [float(column[row]) for column in losses.values()]
        writer.writerow([int(step), *("" if math.isnan(value) else value for value in values)])
    return buffer.getvalue()
