"""A run directory as its executor left it: the spec, what was measured at which step, and the exported models."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cptplan.errors import ConfigError, CurveError
from cptplan.metrics import read_metrics
from cptplan.run_spec import RunSpec, read_run_spec

LOSS_PREFIX = "loss_"
SAME_BASE = 1e-3  # assumed: other hardware moves the loss of one model by less, and two models differ by more
Values = Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedRun:
    """What a run has left so far."""

    directory: Path
    spec: RunSpec
    losses: Mapping[int, Values]
    """Validation losses by step and set, nats per token."""
    task_scores: Mapping[int, Values]
    """Scores of benchmarks by step and task; larger is better."""
    exports: Mapping[int, Path]
    """Whole model directories by step, rising."""
    left_out: tuple[str, ...]
    """Exports that are not whole, in words."""
    complete: bool

    @property
    def set_names(self) -> tuple[str, ...]:
        """Validation sets, in the order of the spec."""
        return tuple(chosen.name for chosen in self.spec.validation)

    @property
    def base_model(self) -> Path | None:
        """Directory of the model that the run began from; None for a hub id or a model from scratch."""
        path = self.spec.model.path
        return Path(path) if path is not None and (Path(path) / "config.json").is_file() else None


def read_trained_run(directory: Path) -> TrainedRun:
    """Read a run directory, complete or not.

    Raises:    ConfigError if it is none, or holds a broken file; CurveError if step 0 was not evaluated.
    """
    if not (directory / "spec.json").is_file():
        raise ConfigError(
            f"run directory must hold spec.json; got none in {directory}.",
            hint="give the directory of one run, such as campaign/runs/pilot-01",
        )
    spec = read_run_spec(directory / "spec.json")
    losses, task_scores = _evaluations(directory / "metrics.jsonl")
    missing = [chosen.name for chosen in spec.validation if chosen.name not in losses.get(0, {})]
    if missing:
        raise CurveError(
            f"step 0 must be evaluated on every set; got no {LOSS_PREFIX}{missing[0]} there in "
            f"{directory / 'metrics.jsonl'}.",
            hint="wait for the run's first evaluation",
        )
    exports, left_out = _find_exports(directory / "export")
    return TrainedRun(
        directory=directory,
        spec=spec,
        losses=losses,
        task_scores=task_scores,
        exports=exports,
        left_out=tuple(left_out),
        complete=(directory / "result.json").is_file(),
    )


def _evaluations(path: Path) -> tuple[dict[int, Values], dict[int, Values]]:
    """Losses and task scores by step."""
    losses: dict[int, Values] = {}
    task_scores: dict[int, Values] = {}
    for record in read_metrics(path, lambda line: f'"{LOSS_PREFIX}' in line or '"task_scores"' in line):
        step = int(record["step"])
        found = {key.removeprefix(LOSS_PREFIX): value for key, value in record.items() if key.startswith(LOSS_PREFIX)}
        if found:
            losses[step] = {name: float(loss) for name, loss in found.items() if _is_number(loss) and loss > 0}
        scores = record.get("task_scores")
        if isinstance(scores, dict):
            task_scores[step] = {name: float(score) for name, score in scores.items() if _is_number(score)}
    return losses, task_scores


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _find_exports(directory: Path) -> tuple[dict[int, Path], list[str]]:
    """Whole model directories by step, and a word on each that is not whole."""
    exports, left_out = {}, []
    for path in sorted(directory.glob("step-*")):
        number = re.fullmatch(r"step-([1-9]\d*)", path.name)
        if number is None:
            continue
        if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
            exports[int(number[1])] = path
        else:
            left_out.append(f"{path} is left out: config.json or weights are missing")
    return dict(sorted(exports.items())), left_out


def check_same_base(runs: Sequence[TrainedRun]) -> None:
    """Raise ConfigError unless all runs have the same validation sets, and the same losses on them at step 0."""
    first = runs[0]
    for run in runs[1:]:
        if set(run.set_names) != set(first.set_names):
            raise ConfigError(
                f"runs must have the same validation sets; got {', '.join(first.set_names)} in {first.directory} and "
                f"{', '.join(run.set_names)} in {run.directory}.",
                hint="select among them one by one",
            )
        for name in first.set_names:
            here, there = first.losses[0][name], run.losses[0][name]
            if abs(there - here) > SAME_BASE * here:
                raise ConfigError(
                    f"runs must begin from the same base; got {LOSS_PREFIX}{name} {here:.4f} at step 0 of "
                    f"{first.directory} and {there:.4f} of {run.directory}.",
                    hint="select among runs of one base and the same validation tokens",
                )
