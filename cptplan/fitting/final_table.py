"""Final losses as a table: one row for each finished run, for people who have one number per run and not its curve.

A table is a CSV file with a row for each run: tokens, replay_ratio or domain_share, one or more loss_<set>, and where
known num_params, unique_tokens and name. tokens 0 is the checkpoint before CPT. A curve directory serves as well: the
last losses of its CPT curves are taken.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cptplan.curves import LOSS_PREFIX, LossCurve, read_curve_directory
from cptplan.errors import CurveError, suggest
from cptplan.laws.final.protocol import FloatArray, Runs, make_runs

COLUMNS = ("replay_ratio", "domain_share", "tokens", "num_params", "unique_tokens")
LARGEST_LOSS = 15.0  # nats per token: more than guessing among 3 million tokens, so it is a perplexity


@dataclass(frozen=True, kw_only=True, slots=True)
class FinalLosses:
    """A table of finished runs; rows with tokens 0 are checkpoints before CPT."""

    names: tuple[str, ...]
    runs: Runs
    losses: Mapping[str, FloatArray]
    """Final validation loss by set name, nats per token, NaN where not measured, each of shape (rows,)."""
    where: str
    """File or directory it was read from, for messages."""
    notes: tuple[str, ...] = ()
    """In words, what is known of the runs that no law of final losses sees."""

    def take(self, rows: NDArray[np.bool_]) -> FinalLosses:
        """Some of the rows."""
        return FinalLosses(
            names=tuple(name for name, kept in zip(self.names, rows, strict=True) if kept),
            runs=self.runs.take(rows),
            losses={name: values[rows] for name, values in self.losses.items()},
            where=self.where,
            notes=self.notes,
        )

    def rows_of(self, set_name: str) -> NDArray[np.bool_]:
        """Which rows are finished runs with a loss of the set, shape (rows,).

        Raises:    CurveError if the table has no such set.
        """
        return np.isfinite(self._losses_of(set_name)) & (self.runs.tokens > 0.0)

    def _losses_of(self, set_name: str) -> FloatArray:
        if set_name not in self.losses:
            raise CurveError(
                f"table must have a column {LOSS_PREFIX}{set_name}; got {', '.join(self.losses)} in {self.where}.",
                hint=suggest(set_name, self.losses) or "name a set that was measured",
            )
        return self.losses[set_name]

    def start_loss(self, set_name: str, num_params: float | None = None) -> float:
        """Loss before CPT, nats per token: the mean of the rows with tokens 0 (of one model size, when given).

        Raises:    CurveError if there is none.
        """
        rows = np.isfinite(self._losses_of(set_name)) & (self.runs.tokens == 0.0)
        if num_params is not None and self.runs.levels("num_params"):
            rows &= np.isclose(self.runs.num_params, num_params, rtol=1e-6)
        if not rows.any():
            raise CurveError(
                f"table must have a row with tokens 0 for loss_{set_name}; got none in {self.where}.",
                hint="add the losses of the checkpoint before CPT, or give the start loss",
            )
        return float(np.mean(self.losses[set_name][rows]))


def read_final_losses(path: Path) -> FinalLosses:
    """A table of final losses from a CSV file or a curve directory.

    Raises:    CurveError for a column that is missing or misspelt, a cell that is no number or breaks its rule, or a
               loss that is no nats per token; for a directory as read_curve_directory.
    """
    if path.is_dir():
        curves = read_curve_directory(path)
        return final_losses_of_curves([c for c in curves.values() if c.record.phase == "cpt"], str(path))
    header, rows = _read_cells(path)
    sets = [name.removeprefix(LOSS_PREFIX) for name in header if name.startswith(LOSS_PREFIX)]
    _check_header(header, sets, path)
    numbers = {
        name: np.array([_number(name, row, header, f"{path}:{line}") for line, row in rows])
        for name in header
        if name in COLUMNS or name.startswith(LOSS_PREFIX)
    }
    share = numbers["domain_share"] if "domain_share" in numbers else 1.0 - numbers["replay_ratio"]
    tokens = numbers["tokens"]
    runs = make_runs(share, tokens, numbers.get("num_params"), numbers.get("unique_tokens"))
    for name in ("domain_share", "num_params", "unique_tokens"):
        _check_complete(name, getattr(runs, name)[tokens > 0.0], path)
    seen = np.minimum(runs.unique_tokens, np.where(tokens > 0.0, tokens, np.inf))
    names = [row[header.index("name")].strip() if "name" in header else "" for _, row in rows]
    return FinalLosses(
        names=tuple(name or f"row {line}" for name, (line, _) in zip(names, rows, strict=True)),
        runs=make_runs(share, tokens, runs.num_params, seen),
        losses={name: numbers[f"{LOSS_PREFIX}{name}"] for name in sets},
        where=str(path),
    )


def _read_cells(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and numbered rows of a CSV file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [cell.strip() for cell in next(reader, [])]
            rows = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CurveError(f"table must be a CSV file; got {error} in {path}.", hint="write it as UTF-8 text") from error
    for line, cells in rows:
        if len(cells) != len(header):
            raise CurveError(
                f"row must have {len(header)} cells; got {len(cells)} in {path}:{line}.", hint="mend or remove the row"
            )
    if not rows:
        raise CurveError(f"table must have at least one row; got none in {path}.", hint="add the finished runs")
    return header, rows


def _check_header(header: Sequence[str], sets: Sequence[str], path: Path) -> None:
    """Raise CurveError unless the columns that are needed are there, once, and none looks misspelt."""
    listed = ", ".join(header) or "none"
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise CurveError(f"columns must have different names; got {twice[0]} twice in {path}.", hint="remove one")
    for name in header:
        absent = [c for c in (*COLUMNS, "name") if c not in header]
        if name not in COLUMNS and not name.startswith(LOSS_PREFIX) and (close := suggest(name, absent)):
            raise CurveError(f"columns must be known; got {name} in {path}.", hint=close)
    if "tokens" not in header:
        raise CurveError(f"table must have a column tokens; got {listed} in {path}.", hint="count CPT tokens in it")
    if ("replay_ratio" in header) == ("domain_share" in header):
        raise CurveError(
            f"table must have one of replay_ratio and domain_share; got {listed} in {path}.",
            hint="replay_ratio is the general share of the tokens, domain_share is 1 - replay_ratio",
        )
    if not sets:
        raise CurveError(
            f"table must have a column loss_<set> for each validation set; got {listed} in {path}.",
            hint="name the columns loss_general and loss_domain",
        )


def _number(column: str, row: Sequence[str], header: Sequence[str], where: str) -> float:
    """One cell as a number that keeps its column's rule; NaN when empty."""
    cell = row[header.index(column)].strip()
    if not cell:
        if column == "tokens":
            raise CurveError(f"tokens must be given in every row; it is missing in {where}.", hint="add it")
        return math.nan
    try:
        number = float(cell)
    except ValueError as error:
        raise CurveError(f"{column} must be a number; got {cell!r} in {where}.", hint="such as 2e9 or 0.3") from error
    rule, hint = _broken_rule(column, number)
    if rule:
        raise CurveError(f"{column} {rule}; got {cell} in {where}.", hint=hint)
    return number


def _broken_rule(column: str, number: float) -> tuple[str, str]:
    """The rule of a column that a number breaks and what to do, or empty words."""
    if not math.isfinite(number):
        return "must be finite", "leave the cell empty where it was not measured"
    if column in ("replay_ratio", "domain_share") and not 0.0 <= number <= 1.0:
        return "must be in [0, 1]", "give the share of tokens, such as 0.2"
    if column == "tokens" and number < 0.0:
        return "must be at least 0", "count CPT tokens; 0 is the checkpoint before CPT"
    if column in ("num_params", "unique_tokens") and number <= 0.0:
        return "must be greater than 0", "give a count, such as 1.8e9"
    if column.startswith(LOSS_PREFIX) and number <= 0.0:
        return "must be greater than 0", "give nats per token"
    if column.startswith(LOSS_PREFIX) and number > LARGEST_LOSS:
        return "must be in nats per token", "it looks like a perplexity: take its logarithm"
    return "", ""


def _check_complete(name: str, values: FloatArray, path: Path) -> None:
    missing = int(np.sum(np.isnan(values)))
    if missing and (missing < len(values) or name == "domain_share"):
        raise CurveError(
            f"{name} must be given for every finished run; {missing} of {len(values)} rows lack it in {path}.",
            hint="fill the column, or leave those rows out",
        )


def final_losses_of_curves(curves: Sequence[LossCurve], where: str) -> FinalLosses:
    """The last row of each curve that has all its losses, and its row of step 0 as the checkpoint before CPT.

    Args:      curves: CPT runs of one recipe. where: their place, for messages.
    Raises:    CurveError if there is none, or one lacks batch_tokens or a row with all losses.
    """
    if not curves:
        raise CurveError(f"curve directory must hold CPT curves; got none in {where}.", hint="check phase in the .json")
    sets = list(dict.fromkeys(name for curve in curves for name in curve.losses))
    names: list[str] = []
    columns: dict[str, list[float]] = {key: [] for key in ("share", "tokens", "params", "unique", *sets)}
    for curve in curves:
        known = np.all(np.isfinite(np.stack(list(curve.losses.values()))), axis=0)
        finished = np.flatnonzero(known & (curve.steps > 0))
        if curve.record.batch_tokens is None or not len(finished):
            raise CurveError(
                f"curve must have batch_tokens and a row with all its losses; got {curve.name} without in {where}.",
                hint="add batch_tokens to its .json, or take the curve out",
            )
        starts = np.flatnonzero(known & (curve.steps == 0))
        for row in (*starts[:1], finished[-1]):
            names.append(curve.name if curve.steps[row] else f"{curve.name} at step 0")
            share, tokens, unique = _amounts(curve, int(curve.steps[row]), curve.record.batch_tokens)
            columns["share"].append(share)
            columns["tokens"].append(tokens)
            columns["unique"].append(unique)
            columns["params"].append(math.nan if curve.record.num_params is None else float(curve.record.num_params))
            for name in sets:
                columns[name].append(float(curve.losses[name][row]) if name in curve.losses else math.nan)
    return FinalLosses(
        names=tuple(names),
        runs=make_runs(columns["share"], columns["tokens"], columns["params"], columns["unique"]),
        losses={name: np.array(columns[name]) for name in sets},
        where=where,
        notes=_unseen(curves),
    )


def _unseen(curves: Sequence[LossCurve]) -> tuple[str, ...]:
    """Words on recipes that differ: no law of final losses knows the rates or the checkpoint."""
    peaks = [float(np.max(curve.lr())) for curve in curves]
    starts = {(curve.record.parent, curve.record.parent_step) for curve in curves}
    words = []
    if max(peaks) > 1.01 * min(peaks):
        words.append(
            f"peak rates go from {min(peaks):.3g} to {max(peaks):.3g}, which these laws do not see: fit the curves"
        )
    if len(starts) > 1:
        words.append(f"runs start from {len(starts)} checkpoints, which these laws do not see")
    return tuple(words)


def _amounts(curve: LossCurve, steps: int, batch_tokens: int) -> tuple[float, float, float]:
    """Domain share, tokens, and different tokens (NaN when a corpus's size is not known) of a run's first steps."""
    tokens = float(steps * batch_tokens)
    if steps == 0:
        return math.nan, 0.0, math.nan
    share = float(np.mean(1.0 - curve.replay_ratios()[:steps]))
    corpora = curve.record.unique_tokens or {}
    general = corpora.get("general", math.nan if share < 1.0 else 0.0)
    domain = sum(size for name, size in corpora.items() if name != "general") or (math.nan if share > 0.0 else 0.0)
    return share, tokens, float(np.minimum(general, tokens * (1.0 - share)) + np.minimum(domain, tokens * share))
