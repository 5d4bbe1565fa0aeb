"""Checks before anything is paid for: base models are whole, corpora are where the project says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cptplan.config import Project
from cptplan.errors import DataError, ModelError
from cptplan.files import read_json
from cptplan.planning.budget import budget_tokens
from cptplan.price.model_shape import read_model_shape

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def check_project(project: Project) -> list[tuple[str, str]]:
    """Check what the project points to, and say what is there.

    Returns:   rows of what and value.
    Raises:    ModelError for a model directory without configuration, tokenizer or weights; DataError for a corpus
               that is not there. A hub id is left for the trainer to find.
    """
    rows = []
    for start in project.model.starts:
        path = Path(start.path)
        if path.exists() or path.is_absolute() or start.path.startswith("."):
            rows.append((f"start {start.name}", _model_words(path, project.data.tokenizer)))
        else:
            rows.append((f"start {start.name}", f"{start.path} (hub id, not checked)"))
    for corpus in (project.data.general, *project.data.domains):
        if not corpus.path.startswith("embedded:") and not Path(corpus.path).exists():
            raise DataError(
                f"corpus must exist; got no {corpus.path} for {corpus.name}.", hint="mend data in the project file"
            )
        rows.append((f"corpus {corpus.name}", corpus.path))
    low, high = project.peak_lr_range
    budget = budget_tokens(project)
    steps = budget // project.pilot.batch_tokens
    pilot_tokens = project.pilot.num_runs * project.pilot.total_steps * project.pilot.batch_tokens
    rows += [
        ("pilots", f"{project.pilot.num_runs} x {project.pilot.total_steps} steps, peak_lr {low:.3g} to {high:.3g}"),
        ("pilot tokens", f"{pilot_tokens:,} ({pilot_tokens / budget:.1%} of the budget's)"),
        ("longest final run", f"{steps:,} steps of {project.pilot.batch_tokens:,} tokens"),
    ]
    return rows


def _model_words(path: Path, tokenizer: str | None) -> str:
    shape = read_model_shape(path)
    if tokenizer is None and not any((path / name).exists() for name in TOKENIZER_FILES):
        raise ModelError(
            f"model directory must hold a tokenizer; got none of {', '.join(TOKENIZER_FILES)} in {path}.",
            hint="save the tokenizer there, or give data.tokenizer",
        )
    if not any(path.glob("*.safetensors")):
        raise ModelError(
            f"model directory must hold its weights; got no *.safetensors in {path}.",
            hint="save it with save_pretrained",
        )
    return f"{shape.model_type}, {shape.total_params / 1e6:,.1f} M parameters, vocabulary {shape.vocab_size:,}"


def check_vocabulary(project: Project, corpora: Mapping[str, Any], data_dir: Path) -> None:
    """Raise ModelError if a start cannot read the packed tokens: too few embeddings, or a tokenizer of its own.

    Args:      corpora: corpora.json. data_dir: where it lies. Starts that are not on this machine are left for the
               trainer to check.
    """
    packed, size = _vocabulary(data_dir / corpora["tokenizer"]["path"]), corpora["tokenizer"]["vocab_size"]
    for start in project.model.starts:
        path = Path(start.path)
        if not (path / "config.json").exists():
            continue
        rows = read_json(path / "config.json").get("vocab_size")
        if isinstance(rows, int) and size > rows:
            raise ModelError(
                f"vocabulary of the tokenizer must fit the model's {rows:,} embeddings; got {size:,} in {data_dir} "
                f"for {path}.",
                hint="pack the corpora with the model's own tokenizer, into another --out",
            )
        own = _vocabulary(path)
        if packed is not None and own is not None and own != packed:
            raise ModelError(
                f"tokenizer must be the model's own; got one of another vocabulary in {data_dir} for {path}.",
                hint="leave data.tokenizer out, and pack into another --out",
            )


def _vocabulary(directory: Path) -> object:
    """Tokens and their ids as tokenizer.json has them; None when there is none."""
    path = directory / "tokenizer.json"
    return read_json(path).get("model", {}).get("vocab") if path.exists() else None
