"""Checkpoints from which a run goes on exactly, one implementation for one process, DDP and FSDP2.

A checkpoint is written to a temporary directory by all processes (torch.distributed.checkpoint: each its own shards,
readable by any number of processes), then rank 0 adds checkpoint.json with checksums, syncs, and renames. So a
directory named step-N is whole; one that storage damaged later is found by its checksums and the one before is taken.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from cptplan.errors import ConfigError, CptplanError, RunFailedError
from cptplan.files import hash_file, read_json, storage_error, write_json
from cptplan.run_spec import RunSpec
from executor.distributed import on_main, spread
from executor.run_dir import check_spec_hash

logger = logging.getLogger(__name__)

MARKER = "checkpoint.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """Where a run stands: all that is not in the model or the optimizer."""

    step: int = 0
    metrics_bytes: int = 0
    """Length of metrics.jsonl; what follows was written after the checkpoint and is cut off on resume."""
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    wall_seconds: float = 0.0
    device_seconds: float = 0.0
    """Wall-clock time of every process together, over all attempts of the run."""
    watched: dict[str, Any] = field(default_factory=dict)
    """What spike detector, monitor and reweighting remember, by their name; empty only before the first checkpoint."""


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, directory: Path, spec: RunSpec, accelerator: Accelerator) -> None:
        self._directory = directory
        self._spec_hash = spec.hash
        self._kept = spec.keep_checkpoints
        self._accelerator = accelerator

    def save(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, position: Position) -> None:
        """Write one checkpoint and drop all but the last ones. Called by all processes.

        Raises:    RunFailedError or StorageError if it cannot be written; those before it stay.
        """
        final = self._directory / f"step-{position.step:08d}"
        temporary = self._directory / f".{final.name}.tmp"
        weights, moments = get_state_dict(model, optimizer)
        try:
            on_main(lambda: _make_room(temporary, num_bytes([weights, moments])), self._accelerator)
            dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=temporary, no_dist=self._alone)
            names = on_main(lambda: sorted(path.name for path in temporary.iterdir()), self._accelerator)
            files = spread(names, lambda name: hash_file(temporary / name), self._accelerator)
            on_main(lambda: self._complete(temporary, final, position, files), self._accelerator)
        except (CheckpointException, CptplanError, OSError) as failure:
            shutil.rmtree(temporary, ignore_errors=True)  # give the room back
            raise _readable(failure, temporary) from failure
        _forget_step_made_up(optimizer, position)

    def _complete(self, temporary: Path, final: Path, position: Position, files: dict[str, str]) -> None:
        """Mark a checkpoint as whole, give it its name and drop the oldest.

        Args:      files: checksum of each.
        """
        marker = {"schema_version": 1, "spec_hash": self._spec_hash, **asdict(position), "files": files}
        write_json(temporary / MARKER, marker)
        sync_directory(temporary)
        shutil.rmtree(final, ignore_errors=True)  # a damaged one that resume passed over
        temporary.rename(final)
        sync_directory(self._directory)
        for old in self._complete_ones()[: -self._kept]:
            shutil.rmtree(old)

    def load_latest(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Position:
        """Put the last good checkpoint into model and optimizer; the start of the run if there is none.

        Raises:    StorageError if the checkpoints belong to another run spec.
        """
        directory, position = self._find()
        if directory is None:
            return position
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments}
        dcp.load(state, checkpoint_id=directory, no_dist=self._alone)
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        _forget_step_made_up(optimizer, position)
        logger.info("resumed from %s", directory)
        return position

    def remove(self) -> None:
        """Drop all checkpoints: the run is complete."""
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def _alone(self) -> bool:
        return self._accelerator.num_processes == 1

    def _complete_ones(self) -> list[Path]:
        return sorted(self._directory.glob("step-*"))

    def _find(self) -> tuple[Path | None, Position]:
        """The newest whole checkpoint. Called by all processes."""
        for directory, marker in on_main(self._markers, self._accelerator):
            if marker is None or not self._is_intact(directory, marker["files"]):
                if self._accelerator.is_main_process:
                    logger.warning("damaged checkpoint passed over: %s", directory)
                continue
            check_spec_hash(marker["spec_hash"], self._spec_hash, directory)
            return directory, Position(**{name: marker[name] for name in Position.__dataclass_fields__})
        return None, Position()

    def _markers(self) -> list[tuple[Path, dict[str, Any] | None]]:
        """All checkpoints, the newest first, with what they say of themselves; None where that cannot be read."""
        for torn in self._directory.glob(".step-*.tmp"):
            shutil.rmtree(torn)
        return [(directory, _read_marker(directory)) for directory in reversed(self._complete_ones())]

    def _is_intact(self, directory: Path, files: Mapping[str, str]) -> bool:
        """Whether every file has its checksum."""
        found = spread(sorted(files), lambda name: _hash_or_none(directory / name), self._accelerator)
        return found == files


def _hash_or_none(path: Path) -> str | None:
    try:
        return hash_file(path)
    except OSError:
        return None


def _make_room(temporary: Path, needed: int) -> None:
    """An empty directory with room for so many bytes."""
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    require_space(temporary, needed)


def _forget_step_made_up(optimizer: torch.optim.Optimizer, position: Position) -> None:
    """Before the first step an optimizer has no state; torch makes one step of rate 0 to have some, and counts it."""
    if position.step == 0:
        optimizer.state.clear()


def _read_marker(directory: Path) -> dict[str, Any] | None:
    try:
        marker = read_json(directory / MARKER)
        return marker if isinstance(marker["files"], dict) else None
    except (ConfigError, OSError, KeyError, TypeError):
        return None


def num_bytes(state: object) -> int:
    """Bytes of all tensors in nested dictionaries and lists, over all processes together."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return sum(num_bytes(value) for value in state.values())
    return sum(num_bytes(value) for value in state) if isinstance(state, list | tuple) else 0


def require_space(directory: Path, needed: int) -> None:
    """Refuse to begin what will not fit.

    Args:      needed: bytes.
    Raises:    RunFailedError naming what is free and needed.
    """
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise RunFailedError(
            f"disk must have {needed / 1e9:.3g} GB free for a checkpoint; got {free / 1e9:.3g} GB in "
            f"{directory.parent}.",
            hint="free some space, then run the same command again: it goes on from the last checkpoint",
        )


def sync_directory(directory: Path) -> None:
    """Force a directory's files and names to storage."""
    for path in [*directory.iterdir(), directory]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _readable(failure: CheckpointException | CptplanError | OSError, path: Path) -> CptplanError:
    """The user's words for what stopped a checkpoint."""
    if isinstance(failure, CptplanError):
        return failure
    causes = [failure]
    if isinstance(failure, CheckpointException):
        causes = [cause for cause, _ in failure.failures.values()]
    for cause in causes:
        if isinstance(cause, OSError):
            return storage_error(cause, path)
    return RunFailedError(
        f"checkpoint must be writable; got {causes[0]} for {path}.",
        hint="mend the storage, then run the same command again",
    )
