"""Runs to launch: tiny token shards, specs of them, and stand-ins for commands that write down how they were called."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from cptplan.launch import parse_options, write_launch
from cptplan.price.hardware import find_hardware
from cptplan.run_spec import RunSpec

GPU = find_hardware("h100-sxm")
CPU = find_hardware("cpu")
OPTIONS = {
    "skypilot": ["bucket=runs"],
    "kubernetes": ["image=org/image:1", "claim=project"],
    "torchtitan": ["flavor=8B"],
}
"""What a target cannot do without."""


def write_shards(root: Path, *names: str, num_tokens: int = 2000, tokenizer_hash: str = "abc") -> None:
    """Token shards with their indices, in a directory for each name."""
    for name in names:
        directory = root / name
        directory.mkdir(parents=True, exist_ok=True)
        for split in ("train", "validation"):
            (directory / f"{split}.bin").write_bytes(np.arange(num_tokens, dtype="<u2").tobytes())
            index = {"schema_version": 1, "source": name, "split": split, "dtype": "uint16", "num_tokens": num_tokens,
                     "num_documents": 3, "num_bytes": 9, "eos_token_id": 0, "vocab_size": 4096,
                     "tokenizer_hash": tokenizer_hash, "corpus_hash": "", "sha256": "",
                     "provenance": "original"}  # fmt: skip
            (directory / f"{split}.json").write_text(json.dumps(index))


def write_model(project: Path, **tokens: str) -> None:
    """A model directory, as far as a planner looks into it."""
    (project / "model").mkdir(parents=True, exist_ok=True)
    (project / "model" / "config.json").write_text('{"model_type": "llama"}')
    (project / "model" / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", **tokens}))


def make_spec(**changes) -> RunSpec:
    values = {
        "name": "final-1",
        "phase": "cpt",
        "model": {"config": {"model_type": "qwen3"}},
        "sources": [{"name": "code", "role": "domain", "path": "tokens/code"}],
        "validation": [{"name": "code", "path": "tokens/code", "num_tokens": 512}],
        "schedule": {"kind": "constant", "peak_lr": 1e-3, "total_steps": 100},
        "mixture": {"kind": "constant", "replay_ratio": 0.0},
        "seq_len": 32,
        "batch_tokens": 32 * 16,
        "precision": "bf16",
    }
    return RunSpec.parse({**values, **changes}, "test")


def make_mixed_spec(**changes) -> RunSpec:
    """A run from a model directory, on general text and two domains."""
    values = {
        "model": {"path": "model"},
        "sources": [
            {"name": "general", "role": "general", "path": "tokens/general"},
            {"name": "code", "role": "domain", "path": "tokens/code", "weight": 3.0},
            {"name": "law", "role": "domain", "path": "tokens/law"},
        ],
        "validation": [{"name": name, "path": f"tokens/{name}", "num_tokens": 512} for name in ("general", "code")],
        "schedule": {"kind": "wsd", "peak_lr": 3e-4, "total_steps": 100, "warmup_steps": 10, "decay_steps": 30},
        "mixture": {"kind": "constant", "replay_ratio": 0.4},
        "micro_batch_tokens": 32 * 2,
    }
    return make_spec(**{**values, **changes})


def write(target, project, spec=None, *, option=(), **changes):
    """Launch files under project/launch, for accelerators but for target local."""
    settings = {
        "hardware": CPU if target == "local" else GPU,
        "project_dir": project,
        "python": "/opt/my env/python",
        "options": parse_options(target, [*OPTIONS.get(target, ()), *option]),
    }
    return write_launch(target, spec or make_spec(), project / "launch", **{**settings, **changes})


def write_stand_ins(directory: Path, names: list[str]) -> Path:
    """Commands that write what they were called with, NUL after each argument, into <directory>/<name>.args."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        script = directory / name
        script.write_text('#!/usr/bin/env bash\nprintf "%s\\0" "$@" >> "$0.args"\n')
        script.chmod(0o755)
    return directory


def calls(script: Path) -> list[str]:
    """The arguments of a stand-in's only call."""
    return script.with_name(f"{script.name}.args").read_text().split("\0")[:-1]
