"""The facts that advice needs, from options, packed corpora, runs and the project, in that order."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cptplan.advice.advise import Fact, Situation, Use
from cptplan.advice.run_log import RunLog
from cptplan.advice.shards import read_shard
from cptplan.config import Project
from cptplan.errors import ConfigError, CptplanError, DataError
from cptplan.planning.budget import Rates, budget_tokens, known_rates
from cptplan.price.hardware import find_hardware
from cptplan.price.memory import USABLE_SHARE, estimate_memory
from cptplan.price.model_lookup import find_shape
from cptplan.workspace import Workspace

BYTES_PER_TOKEN = 4.0  # rule of thumb: English text under a vocabulary of 100,000
LORA_RANK = 64  # rule of thumb, for the memory of adapters


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """What a person says of the situation; None is left to the files."""

    use: Use = "knowledge"
    corpus_tokens: float | None = None
    domain_perplexity: float | None = None
    general_perplexity: float | None = None
    model: str | None = None
    gpu: str | None = None
    num_devices: int | None = None
    budget_tokens: float | None = None


def find_situation(
    told: Told, project: Project | None = None, workspace: Workspace | None = None, logs: Iterable[RunLog] = ()
) -> Situation:
    """What is known of a situation.

    Raises:    ConfigError for perplexities that are not above 1, or only one of the two; for unknown hardware.
    """
    rates = _rates(told, project)
    full, lora = (None, None) if rates is None else _fits(rates, project)
    return Situation(
        use=told.use,
        corpus_tokens=_corpus(told, project, workspace),
        gap=_gap(told, project, workspace, logs),
        budget_tokens=_budget(told, project, workspace),
        num_params=None if rates is None else float(rates.shape.total_params),
        full_fits=full,
        lora_fits=lora,
        pretrain_peak_lr=None if project is None else project.model.pretrain_peak_lr,
    )


def _corpus(told: Told, project: Project | None, workspace: Workspace | None) -> Fact | None:
    """Training tokens of the domains: told, packed, or guessed from the size of the files."""
    if told.corpus_tokens is not None:
        return Fact(value=told.corpus_tokens, basis="told", source="--corpus-tokens")
    if project is None:
        return None
    names = [domain.name for domain in project.data.domains]
    if workspace is not None:
        try:
            packed = sum(read_shard(workspace.data / name, "train").num_tokens for name in names)
            return Fact(value=float(packed), basis="measured", source="packed shards")
        except DataError:
            pass  # not packed yet
    paths = [Path(domain.path) for domain in project.data.domains if not domain.path.startswith("embedded:")]
    if not paths or not all(path.exists() for path in paths):
        return None
    size = sum(file.stat().st_size for path in paths for file in ([path] if path.is_file() else path.rglob("*")))
    return Fact(
        value=size / BYTES_PER_TOKEN, basis="rule of thumb", source=f"file sizes, {BYTES_PER_TOKEN:g} bytes per token"
    )


def _gap(told: Told, project: Project | None, workspace: Workspace | None, logs: Iterable[RunLog]) -> Fact | None:
    """Bits per byte on the domain over those on general text, from perplexities told or a run's step 0."""
    given = (told.domain_perplexity, told.general_perplexity)
    if given != (None, None):
        domain, general = (value if value is not None else math.nan for value in given)
        if not (domain > 1.0 and general > 1.0):
            raise ConfigError(
                f"perplexities must both be given and above 1; got {given[0]} on the domain and {given[1]} on general "
                "text.",
                hint="measure both with the base model, --domain-perplexity and --general-perplexity",
            )
        return Fact(
            value=math.log(domain) / math.log(general),
            basis="told",
            source="perplexities told, per token of one tokenizer",
        )
    for log in logs:
        first = {name: float(s.values[0]) for name, s in log.losses.items() if len(s) and s.steps[0] == 0}
        domains = [name for name in log.domains if name in first]
        if log.phase != "cpt" or "general" not in first or not domains:
            continue
        fertility = {name: _fertility(workspace, name) for name in ("general", *domains)}
        if all(value is not None for value in fertility.values()):
            bits = {name: first[name] * float(fertility[name] or 0.0) for name in fertility}
            unit = "bits per byte"
        else:
            bits, unit = first, "loss per token"
        ratio = sum(bits[name] for name in domains) / len(domains) / bits["general"]
        return Fact(value=ratio, basis="measured", source=f"{unit} at step 0 of {log.name}")
    return None


def _fertility(workspace: Workspace | None, name: str) -> float | None:
    """Tokens per byte of a packed validation set."""
    try:
        return None if workspace is None else read_shard(workspace.data / name, "validation").tokens_per_byte
    except DataError:
        return None


def _budget(told: Told, project: Project | None, workspace: Workspace | None) -> Fact | None:
    if told.budget_tokens is not None:
        return Fact(value=told.budget_tokens, basis="told", source="--budget-tokens")
    if project is None:
        return None
    try:
        tokens = budget_tokens(project, None if workspace is None else workspace.runs)
    except CptplanError:
        return None  # a budget in hours or money of a model that is not on this machine
    return Fact(value=float(tokens), basis="told", source="the project's budget")


def _rates(told: Told, project: Project | None) -> Rates | None:
    """Model and hardware: told, or the project's when its model is on this machine."""
    if told.model is not None:
        hardware = told.gpu or (project.budget.hardware if project is not None else "h100-sxm")
        devices = told.num_devices or (project.budget.num_devices if project is not None else 8)
        return Rates(
            shape=find_shape(told.model).shape,
            hardware=find_hardware(hardware),
            num_devices=devices,
            tokens_per_second=None,
        )
    return None if project is None else known_rates(project)


def _fits(rates: Rates, project: Project | None) -> tuple[bool, bool]:
    """Whether a step with all weights, and one with adapters, fits the devices with activation checkpointing."""
    room = USABLE_SHARE * rates.hardware.memory_bytes.value
    seq_len = project.data.seq_len if project is not None else 4096
    full, lora = (
        estimate_memory(
            rates.shape, seq_len=seq_len, num_devices=rates.num_devices, activation_checkpointing=True, lora_rank=rank
        ).total_bytes
        <= room
        for rank in (None, LORA_RANK)
    )
    return full, lora
