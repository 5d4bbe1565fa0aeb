"""Whole curves of runs with bands, from fitted laws: what `cptplan predict` writes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from cptplan.curves import LOSS_PREFIX, CurveRecord, LossCurve
from cptplan.errors import CurveError, suggest
from cptplan.fitting.fitted import FittedLaw, Prediction
from cptplan.laws.history import history_of
from cptplan.run_spec import RunSpec
from cptplan.simulation.known_law import check_start
from cptplan.simulation.simulation import eval_steps

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

POINTS = 100  # of a curve that was not measured


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictedRun:
    """What the laws say of one run."""

    name: str
    steps: IntArray
    """Finished steps of its phase, shape (points,)."""
    bands: Mapping[str, Prediction]
    """By validation set: mean curve and its interval, with the noise of an evaluation where the run was evaluated."""
    measured: Mapping[str, FloatArray]
    """By validation set: measured losses at the steps, NaN where there are none; only of sets that the run has."""
    notes: tuple[str, ...]
    """Where the run leaves what the law was fitted to, one sentence each."""


def predict_runs(
    laws: Mapping[str, FittedLaw],
    runs: Mapping[str, LossCurve],
    names: Iterable[str] | None = None,
    *,
    level: float = 0.9,
    seed: int = 0,
) -> dict[str, PredictedRun]:
    """Curves of runs on every validation set that was fitted.

    Args:      laws: by validation set. runs: those to predict and those that they continue, by name. names: names or
               patterns of those to predict; the CPT runs when None, or all when none is. level: of the interval.
    Returns:   by name; the steps are a grid that is dense early, and those at which the run was evaluated.
    Raises:    CurveError if a name is not there; ConfigError if a law needs a pre-training that is not known.
    """
    records = {name: run.record for name, run in runs.items()}
    found = {}
    for name in choose(runs, names):
        run = runs[name]
        grid = eval_steps(name, records, POINTS)
        steps = np.union1d(grid, run.steps[run.steps >= grid[0]]).astype(np.int64)
        history = history_of(run, runs)
        bands: dict[str, Prediction] = {}
        notes: list[str] = []
        for number, (set_name, law) in enumerate(laws.items()):
            check_start(law.law, history, name)
            law.support.check_batch(history, name)
            # an interval that is held against measured losses must allow for their noise
            bands[set_name] = law.predict(history, steps, level, seed + number, measured=set_name in run.losses)
            notes += law.support.flags(history, law.law.reference_lr)
        measured = {set_name: _at(run, set_name, steps) for set_name in laws if set_name in run.losses}
        found[name] = PredictedRun(
            name=name, steps=steps, bands=bands, measured=measured, notes=tuple(dict.fromkeys(notes))
        )
    return found


def choose(runs: Mapping[str, LossCurve], names: Iterable[str] | None) -> list[str]:
    """The runs that are asked for, in the order of the directory.

    Raises:    CurveError for a name or pattern that matches none.
    """
    if names is None:
        return [name for name, run in runs.items() if run.record.phase == "cpt"] or list(runs)
    wanted = list(names)
    for pattern in wanted:
        if not any(name == pattern or fnmatchcase(name, pattern) for name in runs):
            raise CurveError(
                f"name must be a run, or a pattern that matches one; got {pattern!r}.",
                hint=suggest(pattern, runs) or f"known: {', '.join(runs)}",
            )
    return [name for name in runs if any(name == p or fnmatchcase(name, p) for p in wanted)]


def run_of_spec(spec: RunSpec) -> LossCurve:
    """A run that has not been trained, as a curve without points."""
    record = CurveRecord(
        phase=spec.phase,
        lr=spec.schedule,
        replay_ratio=spec.mixture,
        parent=spec.parent,
        parent_step=spec.parent_step,
        batch_tokens=spec.batch_tokens,
        seq_len=spec.seq_len,
        seed=spec.seed,
    )
    return LossCurve(name=spec.name, record=record, steps=np.zeros(0, dtype=np.int64), losses={})


def band_text(run: PredictedRun) -> str:
    """CSV text: step, and loss_<set>, low_<set>, high_<set> for each validation set."""
    columns: dict[str, FloatArray] = {}
    for name, band in run.bands.items():
        columns.update({f"{LOSS_PREFIX}{name}": band.mean, f"low_{name}": band.low, f"high_{name}": band.high})
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["step", *columns])
    for row, step in enumerate(run.steps.tolist()):
        writer.writerow([step, *(float(column[row]) for column in columns.values())])
    return buffer.getvalue()


def _at(run: LossCurve, set_name: str, steps: IntArray) -> FloatArray:
    """Measured losses at the steps, NaN elsewhere."""
    values = np.full(len(steps), np.nan)
    kept = run.steps >= steps[0]
    values[np.searchsorted(steps, run.steps[kept])] = run.losses[set_name][kept]
    return values
