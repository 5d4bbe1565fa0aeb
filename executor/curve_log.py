"""What a run says while it goes on: metrics.jsonl (all), curve.csv and curve.json (for the planner), progress.json.

metrics.jsonl is the source of truth: one line for each optimiser step and one for each evaluation, in order; the
curve is made from its evaluations. Only rank 0 writes.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cptplan.errors import StorageError
from cptplan.files import storage_error, write_progress
from cptplan.mixture import TableMixture
from cptplan.run_spec import RunSpec
from cptplan.schedule import TableSchedule

FloatArray = NDArray[np.float64]
PROGRESS_SECONDS = 0.5
LOSS_PREFIX = "loss_"


class CurveLog:
    """The log files of one run directory, from where a checkpoint left them."""

    def __init__(
        self, run_dir: Path, spec: RunSpec, *, num_params: int, unique_tokens: dict[str, int], tokenizer: str | None
    ) -> None:
        """Nothing is written yet.

        Args:      tokenizer: its hash, by which curves of one tokenizer know each other.
        """
        self._run_dir = run_dir
        self._spec = spec
        self._num_params = num_params
        self._unique_tokens = unique_tokens
        self._tokenizer = tokenizer
        self._rates, self._ratios = spec.lr(), spec.replay_ratios()
        self._path = run_dir / "metrics.jsonl"
        self._lines: list[str] = []
        self._evaluations: dict[int, dict[str, float]] = {}
        self._next_progress = 0.0

    def resume(self, num_bytes: int) -> None:
        """Cut off what was logged after the checkpoint, so that no step appears twice.

        Raises:    StorageError if the file is shorter than the checkpoint knew it.
        """
        try:
            with self._path.open("ab") as file:
                there = file.tell()
                if there < num_bytes:
                    raise StorageError(
                        f"metrics.jsonl must hold at least the {num_bytes} bytes its checkpoint knows; got {there} in "
                        f"{self._path}.",
                        hint="remove the run directory's checkpoints to start again",
                    )
                file.truncate(num_bytes)
        except OSError as error:
            raise storage_error(error, self._path) from error
        self._evaluations = {}
        for line in self._path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if "eval_seconds" in record:
                self._evaluations[record["step"]] = _losses_in(record)

    def follow(self, rates: FloatArray, ratios: FloatArray) -> None:
        """Take what the run really does into the curve, where it departs from the spec.

        Args:      rates, ratios: learning rate and replay ratio of every step, shape (steps,).
        """
        self._rates, self._ratios = rates, ratios

    def losses(self, step: int) -> dict[str, float]:
        """The losses after a step by set; empty if it was not evaluated."""
        return self._evaluations.get(step, {})

    @property
    def final_losses(self) -> dict[str, float]:
        """The losses of the last evaluation by set."""
        return self._evaluations[max(self._evaluations)]

    def step(self, **values: Any) -> None:
        """Log one optimiser step; written to the file at once. What is not finite becomes null."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._append(finite)

    def event(self, step: int, kind: str, text: str) -> None:
        """Log something that was done about the run, in words."""
        self._append({"step": step, "event": kind, "text": text})

    def evaluation(self, step: int, losses: dict[str, float], seconds: float, **more: Any) -> None:
        """Log one evaluation and bring the curve up to date."""
        self._evaluations[step] = losses
        named = {f"{LOSS_PREFIX}{name}": loss for name, loss in losses.items()}
        self._append({"step": step, **named, **more, "eval_seconds": round(seconds, 4)})
        self.write_curve()

    def sync(self) -> int:
        """Force the metrics to storage and say their length: what a checkpoint records."""
        try:
            with self._path.open("ab") as file:
                os.fsync(file.fileno())
                return file.tell()
        except OSError as error:
            raise storage_error(error, self._path) from error

    def progress_due(self) -> bool:
        """Whether the last progress is half a second old."""
        return time.monotonic() >= self._next_progress

    def progress(self, step: int, message: str, **extra: Any) -> None:
        """Say how far the run is."""
        self._next_progress = time.monotonic() + PROGRESS_SECONDS
        path = self._run_dir / "progress.json"
        try:
            write_progress(path, done=step, total=self._spec.total_steps, unit="steps", message=message, extra=extra)
        except OSError as error:
            raise storage_error(error, path) from error

    def _append(self, values: dict[str, Any]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise storage_error(error, self._path) from error

    def write_curve(self) -> None:
        """Write curve.csv and curve.json from the evaluations so far."""
        # imported here: pandas takes a third of a second that the first step need not wait for
        from cptplan.curves import CurveRecord, LossCurve, write_curve

        spec = self._spec
        record = CurveRecord(
            phase=spec.phase,
            lr=spec.schedule if np.array_equal(self._rates, spec.lr()) else _as_schedule(self._rates),
            replay_ratio=spec.mixture
            if np.array_equal(self._ratios, spec.replay_ratios())
            else _as_mixture(self._ratios),
            parent=spec.parent,
            parent_step=spec.parent_step,
            batch_tokens=spec.batch_tokens,
            seq_len=spec.seq_len,
            num_params=self._num_params,
            unique_tokens=self._unique_tokens,
            seed=spec.seed,
            tokenizer=self._tokenizer or spec.model.tokenizer or spec.model.path,
        )
        steps = sorted(self._evaluations)
        losses = {
            chosen.name: np.array([self._evaluations[step][chosen.name] for step in steps])
            for chosen in spec.validation
        }
        curve = LossCurve(name="curve", record=record, steps=np.array(steps, dtype=np.int64), losses=losses)
        write_curve(self._run_dir, curve)


def _as_schedule(rates: FloatArray) -> TableSchedule:
    return TableSchedule(kind="table", values=tuple(rates.tolist()))


def _as_mixture(ratios: FloatArray) -> TableMixture:
    """The ratios as steps from which each holds."""
    changes = [0, *(np.flatnonzero(np.diff(ratios)) + 1).tolist()]
    return TableMixture(kind="table", steps=tuple(changes), ratios=tuple(ratios[changes].tolist()))


def _losses_in(record: dict[str, Any]) -> dict[str, float]:
    return {key.removeprefix(LOSS_PREFIX): value for key, value in record.items() if key.startswith(LOSS_PREFIX)}
