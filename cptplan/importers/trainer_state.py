"""trainer_state.json of transformers' Trainer: log_history has the losses, and a learning rate every logging_steps.

Which rate a row has: step i (from 0) runs at the scheduler's value at time i. In older versions the row of global_step
g holds the value at time g, the rate of the next step; since pull request 36973 of huggingface/transformers (spring of
2025) that at time g - 1, the rate of the step just done. The file does not say which, so both are tried.
"""

from __future__ import annotations

from pathlib import Path

from cptplan.errors import CurveError
from cptplan.files import read_json
from cptplan.importers.training_log import TrainingLog, make_log

NO_METRICS = ("step", "epoch")


def read_trainer_state(path: Path) -> TrainingLog:
    """All numbers of log_history by name, and max_steps as the schedule's length.

    Raises:    CurveError if it is not such a file; ConfigError if it is no JSON.
    """
    state = read_json(path)
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        raise CurveError(f"trainer state must hold a log_history; got none in {path}.", hint="check the file")
    points: dict[str, list[tuple[float, float]]] = {}
    for row in history:
        for name, value in row.items():
            if name not in NO_METRICS and isinstance(value, int | float) and isinstance(row.get("step"), int):
                points.setdefault(name, []).append((row["step"], value))
    if not points:
        raise CurveError(f"log_history must hold at least one row of numbers; got none in {path}.", hint="log more")
    steps = state.get("max_steps")
    return make_log(str(path), points, total_steps=steps if isinstance(steps, int) and steps > 0 else None)
