"""What a run says of itself: training and validation losses, gradient norms, tokens by source, events.

Read from run directories (metrics.jsonl, spec.json, curve.json) and from curve directories, which have less.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cptplan.curves import LOSS_PREFIX, LossCurve, read_curve, read_curve_directory
from cptplan.errors import ConfigError
from cptplan.metrics import read_metrics
from cptplan.run_spec import RunSpec, read_run_spec

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
METRICS = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Values by finished optimiser step; what was not finite is NaN."""

    steps: IntArray
    values: FloatArray

    def __len__(self) -> int:
        return len(self.steps)


EMPTY = Series(steps=np.zeros(0, dtype=np.int64), values=np.zeros(0))


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLog:
    """One run as it was logged."""

    name: str
    directory: Path
    phase: str = "cpt"
    losses: Mapping[str, Series]
    """Validation loss by set, nats per token."""
    train_loss: Series = EMPTY
    grad_norm: Series = EMPTY
    lr: FloatArray = field(default_factory=lambda: np.zeros(0))
    """Planned rate of every step, shape (total_steps,); empty when unknown."""
    replay_ratios: FloatArray = field(default_factory=lambda: np.zeros(0))
    """Planned general share of every step; empty when unknown."""
    tokens_by_source: Mapping[str, int] = field(default_factory=dict)
    """Trained on so far."""
    events: tuple[tuple[int, str, str], ...] = ()
    """Step, kind and words."""
    unique_tokens: Mapping[str, int] = field(default_factory=dict)
    """Training tokens that are there, by source."""
    curve: LossCurve | None = None
    """For a law, with the names of the runs that it continues."""
    spec: RunSpec | None = None

    @property
    def total_steps(self) -> int:
        """Steps of the schedule; of the log when that is unknown."""
        last = max([int(s.steps[-1]) for s in (*self.losses.values(), self.train_loss) if len(s)], default=0)
        return len(self.lr) or last

    @property
    def domains(self) -> tuple[str, ...]:
        """Sets that should be learnt: those whose source was trained on as a domain; all but general if unknown."""
        others = tuple(name for name in self.losses if name != "general")
        if self.spec is None:
            return others
        sources = {source.name for source in self.spec.sources if source.role == "domain"}
        return tuple(name for name in others if name in sources) or others


def read_logs(directories: Iterable[Path]) -> list[RunLog]:
    """Every run of the directories given: a run directory, a directory of them, or a curve directory.

    Raises:    ConfigError if one is none of these; CurveError for a file that is broken.
    """
    found: list[RunLog] = []
    for directory in directories:
        inner = sorted(path.parent for path in directory.glob(f"*/{METRICS}"))
        if (directory / METRICS).is_file():
            found.append(read_run_log(directory))
        elif inner:
            found += [read_run_log(path) for path in inner]
        elif any(directory.glob("*.csv")):
            found += [_of_curve(directory, curve) for curve in read_curve_directory(directory).values()]
        else:
            raise ConfigError(
                f"--runs must be a run directory, one that holds some, or a curve directory; got {directory}.",
                hint="such as campaign/runs or campaign/curves",
            )
    return found


def _of_curve(directory: Path, curve: LossCurve) -> RunLog:
    return RunLog(
        name=curve.name,
        directory=directory,
        phase=curve.record.phase,
        losses={name: _finite(curve.steps, values) for name, values in curve.losses.items()},
        lr=curve.lr(),
        replay_ratios=curve.replay_ratios(),
        unique_tokens=curve.record.unique_tokens or {},
        curve=curve,
    )


def read_run_log(directory: Path) -> RunLog:
    """A run directory's log, complete or not; a last line that is cut off is left out.

    Raises:    CurveError for a line that is no JSON object with a step; ConfigError for a broken spec.
    """
    records = read_metrics(directory / METRICS)
    spec = read_run_spec(directory / "spec.json") if (directory / "spec.json").is_file() else None
    curve = read_curve(directory, "curve") if (directory / "curve.json").is_file() else None
    evaluated = [record for record in records if any(key.startswith(LOSS_PREFIX) for key in record)]
    stepped = [record for record in records if "train_loss" in record]
    sets = dict.fromkeys(key for record in evaluated for key in record if key.startswith(LOSS_PREFIX))
    counted = [record["tokens_by_source"] for record in stepped if isinstance(record.get("tokens_by_source"), dict)]
    rates = curve.lr() if curve is not None else spec.lr() if spec is not None else _logged(stepped, "lr").values
    ratios = spec.replay_ratios() if spec is not None else curve.replay_ratios() if curve is not None else np.zeros(0)
    return RunLog(
        name=spec.name if spec is not None else directory.name,
        directory=directory,
        phase=spec.phase if spec is not None else "cpt",
        losses={key.removeprefix(LOSS_PREFIX): _finite(*_pairs(evaluated, key)) for key in sets},
        train_loss=_logged(stepped, "train_loss"),
        grad_norm=_logged(stepped, "grad_norm"),
        lr=rates,
        replay_ratios=ratios,
        tokens_by_source={name: int(count) for name, count in counted[-1].items()} if counted else {},
        events=tuple(
            (int(record["step"]), str(record["event"]), str(record.get("text", "")))
            for record in records
            if "event" in record
        ),
        unique_tokens=(curve.record.unique_tokens if curve is not None else None) or {},
        curve=curve,
        spec=spec,
    )


def _pairs(records: Iterable[Mapping[str, Any]], key: str) -> tuple[IntArray, FloatArray]:
    """Steps and values of a key, NaN for what is no number."""
    rows = [(int(record["step"]), _number(record.get(key))) for record in records if key in record]
    return np.array([step for step, _ in rows], dtype=np.int64), np.array(
        [value for _, value in rows], dtype=np.float64
    )


def _logged(records: Iterable[Mapping[str, Any]], key: str) -> Series:
    steps, values = _pairs(records, key)
    return Series(steps=steps, values=values)


def _finite(steps: IntArray, values: FloatArray) -> Series:
    known = np.isfinite(values)
    return Series(steps=steps[known], values=values[known])


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan
