"""Run directories as an executor leaves them, made up: files only, nothing trained."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from cptplan.mixture import ConstantMixture
from cptplan.run_spec import ModelSource, RunSpec, Source, ValidationSet, write_run_spec
from cptplan.schedule import ConstantSchedule

LOSSES = {0: (3.0, 4.0), 10: (3.1, 3.5), 20: (3.3, 3.3)}
"""General and domain loss by step: with general=0.4 the scores are 0, -0.26 and -0.30."""


def write_model(directory: Path, content: bytes = b"weights") -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(content)
    return directory


def write_run(
    directory: Path,
    losses: Mapping[int, tuple[float, ...]] = LOSSES,
    *,
    base: Path | None = None,
    sets: Iterable[str] = ("general", "domain"),
    tasks: Mapping[int, Mapping[str, float]] | None = None,
    exports: Iterable[int] = (10, 20),
    complete: bool = True,
) -> Path:
    """A run with evaluations between its steps, and a model directory for each export."""
    names = tuple(sets)
    spec = RunSpec(
        name=directory.name,
        phase="cpt",
        model=ModelSource(path="org/base" if base is None else str(base)),
        sources=(Source(name="general", role="general", path="g"), Source(name="domain", role="domain", path="d")),
        validation=tuple(ValidationSet(name=name, path=name, num_tokens=16) for name in names),
        schedule=ConstantSchedule(kind="constant", peak_lr=1e-4, total_steps=max(losses)),
        mixture=ConstantMixture(replay_ratio=0.1),
        seq_len=8,
        batch_tokens=16,
    )
    directory.mkdir(parents=True)
    write_run_spec(directory / "spec.json", spec)
    lines = []
    for step, values in losses.items():
        if step:
            lines.append({"step": step, "lr": 1e-4, "train_loss": 3.0})
        named = {f"loss_{name}": value for name, value in zip(names, values, strict=True)}
        scores = {"task_scores": tasks[step]} if tasks and step in tasks else {}
        lines.append({"step": step, **named, "eval_seconds": 0.1, **scores})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in exports:
        write_model(directory / "export" / f"step-{step}", f"{directory.name} {step}".encode())
    if complete:
        (directory / "result.json").write_text("{}")
    return directory
