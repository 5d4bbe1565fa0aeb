"""The pre-flight checklist: what is looked at before a run is paid for, each with value, threshold and next step.

Thresholds are published where a source is named; all others are rules of thumb.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cptplan.advice.overlap import find_overlap
from cptplan.advice.shards import Shard, read_shard, sample_tokens
from cptplan.checks import check_project, check_vocabulary
from cptplan.config import Project
from cptplan.errors import CptplanError
from cptplan.files import read_json
from cptplan.planning.budget import budget_tokens, known_rates
from cptplan.planning.plan import read_plan
from cptplan.price.cost import EXPORT_BYTES, STATE_BYTES
from cptplan.price.memory import USABLE_SHARE, estimate_memory, smallest_num_devices
from cptplan.workspace import Workspace

Status = Literal["ok", "warn", "fail", "skipped"]

MOST_EPOCHS = 4.0  # published: up to 4 epochs are worth nearly as much as fresh text (arXiv:2305.16264)
OVERLAP_WARN, OVERLAP_FAIL = 0.02, 0.1  # rule of thumb; 4 % of standard validation sets overlap (arXiv:2107.06499)
SHARED_WARN = 0.05  # rule of thumb: of domain text that is also replayed
FERTILITY_WARN = 1.5  # rule of thumb: tokens per byte of the domain over those of general text
UNSEEN_WARN = 0.05  # rule of thumb: share of domain tokens whose id general text hardly has
UNKNOWN_WARN = 0.001  # rule of thumb: share of tokens that the tokenizer could not write
RARE = 1e-6  # of general tokens: an id below is hardly seen
SAMPLE_TOKENS = 4_000_000
KEPT_STATES = 3  # checkpoints at a time: the executor keeps 2 and writes the next before it drops one
DISK_MARGIN = 2.0  # rule of thumb
UNITS = {"GB": 1e9, "MB": 1e6, "kB": 1e3}


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One line of the list."""

    name: str
    status: Status
    value: str
    threshold: str
    next_step: str = ""
    blocks: bool = False
    """Whether a run is impossible while it fails."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Flight:
    """What the checks look at."""

    project: Project
    workspace: Workspace
    seconds: float
    """Time for the search of shared text, all sources together."""
    shards: Mapping[tuple[str, str], Shard]
    """Packed sides by source and split; none when nothing is packed."""

    @property
    def names(self) -> tuple[str, ...]:
        """General and the domains."""
        return ("general", *(domain.name for domain in self.project.data.domains))


def preflight(project: Project, workspace: Workspace, seconds: float = 20.0) -> tuple[Check, ...]:
    """The checklist of a project, in the order in which things must be mended.

    Args:      seconds: most time that the search for shared text may take; what it did not reach is said.
    """
    flight = Flight(project=project, workspace=workspace, seconds=seconds, shards=_read_shards(project, workspace))
    checks: tuple[tuple[str, Callable[[Flight], Iterable[Check]]], ...] = (
        ("project", _project),
        ("packed corpora", _packed),
        ("tokens", _tokens),
        ("validation", _validation),
        ("tokenizer", _tokenizer),
        ("shared text", _shared),
        ("disk", _disk),
        ("memory", _memory),
    )
    found: list[Check] = []
    for name, check in checks:
        try:
            found += check(flight)
        except CptplanError as error:
            found.append(_refused(name, error))
    return tuple(found)


def _refused(name: str, error: CptplanError) -> Check:
    """What stops a stage stops a run."""
    return Check(
        name=name, status="fail", value=error.message, threshold="-", next_step=error.hint or "mend it", blocks=True
    )


def _read_shards(project: Project, workspace: Workspace) -> dict[tuple[str, str], Shard]:
    names = ("general", *(domain.name for domain in project.data.domains))
    if not (workspace.data / "corpora.json").exists():
        return {}
    found = {}
    for name in names:
        for split in ("train", "validation"):
            if (workspace.data / name / f"{split}.json").exists():
                found[name, split] = read_shard(workspace.data / name, split)
    return found


def _project(flight: Flight) -> Iterable[Check]:
    rows = check_project(flight.project)
    yield Check(name="project", status="ok", value=f"{len(rows)} things are where it says", threshold="all there")


def _packed(flight: Flight) -> Iterable[Check]:
    if not flight.shards:
        yield Check(
            name="packed corpora",
            status="skipped",
            value="nothing is packed yet",
            threshold="-",
            next_step="cptplan data pack, then cptplan advise again",
        )
        return
    missing = [f"{name}/{split}" for name in flight.names for split in ("train", "validation")]
    missing = [name for name in missing if tuple(name.split("/")) not in flight.shards]
    yield Check(
        name="packed corpora",
        status="fail" if missing else "ok",
        value=f"missing: {', '.join(missing)}" if missing else ", ".join(flight.names),
        threshold="train and validation of every source",
        next_step="cptplan data pack" if missing else "",
        blocks=bool(missing),
    )
    if not missing:
        corpora: dict[str, Any] = read_json(flight.workspace.data / "corpora.json")
        check_vocabulary(flight.project, corpora, flight.workspace.data)
        yield Check(
            name="vocabulary",
            status="ok",
            value=f"{flight.shards['general', 'train'].vocab_size:,} ids",
            threshold="the model's own tokenizer",
        )


def _needed(flight: Flight) -> tuple[dict[str, float], str]:
    """Training tokens of the final run by source, and whose they are: the plan's, or the whole budget's at its best."""
    domains = flight.project.data.domains
    weights = sum(domain.weight for domain in domains) or 1.0
    if (flight.workspace.plans / "latest.json").exists():
        plan = read_plan(flight.workspace.latest("plans") / "plan.json")
        total = float(plan.chosen.total_steps * plan.batch_tokens)
        least = most = plan.chosen.knobs().mean_replay
        whose = "the plan"
    else:
        total, whose = float(budget_tokens(flight.project, flight.workspace.runs)), "the budget"
        least, most = flight.project.pilot.replay_range  # the ratio that needs least of each source
    needed = {"general": least * total}
    needed.update({domain.name: (1.0 - most) * total * domain.weight / weights for domain in domains})
    return needed, whose


def _tokens(flight: Flight) -> Iterable[Check]:
    there = {name: flight.shards[name, "train"].num_tokens for name in flight.names if (name, "train") in flight.shards}
    if not there:
        return
    needed, whose = _needed(flight)
    allowed = flight.project.budget.max_epochs
    for name, tokens in there.items():
        epochs = needed[name] / max(tokens, 1)
        short = epochs > allowed
        many = epochs > MOST_EPOCHS
        yield Check(
            name=f"tokens of {name}",
            status="fail" if short else "warn" if many else "ok",
            value=f"{tokens:,} there, {needed[name]:,.0f} needed by {whose} ({epochs:.2g} epochs)",
            threshold=f"{allowed:g} epochs by budget.max_epochs, {MOST_EPOCHS:g} published (arXiv:2305.16264)",
            next_step=f"add text, shorten the run, or allow budget.max_epochs={np.ceil(epochs):.0f}"
            if short
            else "the law knows repetition only from pilots that repeat alike"
            if many
            else "",
            blocks=short,
        )


def _validation(flight: Flight) -> Iterable[Check]:
    """Enough validation tokens, and none of them trained on."""
    wanted = flight.project.data.validation_tokens
    sides = [name for name in flight.names if (name, "validation") in flight.shards]
    for name in sides:
        there = flight.shards[name, "validation"].num_tokens
        if there < wanted:
            yield Check(
                name=f"validation tokens of {name}",
                status="fail",
                value=f"{there:,}",
                threshold=f"{wanted:,} (data.validation_tokens)",
                next_step="raise data.validation_share, or lower data.validation_tokens",
                blocks=True,
            )
    training = [flight.shards[name, "train"] for name in flight.names if (name, "train") in flight.shards]
    for name in sides:
        if not training:
            return
        found = find_overlap(flight.shards[name, "validation"], training, seconds=flight.seconds / (len(sides) + 1))
        status: Status = "fail" if found.share > OVERLAP_FAIL else "warn" if found.share > OVERLAP_WARN else "ok"
        yield Check(
            name=f"validation of {name} not trained on",
            status=status,
            value=f"{found.found_windows} of {found.windows} stretches and {found.found_documents} of "
            f"{found.documents} documents stand in training text ({found.scanned:.0%} of it searched)",
            threshold=f"warn above {OVERLAP_WARN:.0%}, fail above {OVERLAP_FAIL:.0%} (rule of thumb)",
            next_step="remove duplicates from the corpora before packing: loss on this set is too good"
            if status != "ok"
            else "",
        )


def _tokenizer(flight: Flight) -> Iterable[Check]:
    """Tokens per byte and vocabulary of each domain against general text."""
    if ("general", "train") not in flight.shards:
        return
    general = flight.shards["general", "train"]
    counts = _counts(general)
    seen = counts > RARE * counts.sum()
    unknown = _unknown_id(flight.workspace.data / "tokenizer" / "tokenizer.json")
    for name in flight.names[1:]:
        if (name, "train") not in flight.shards:
            continue
        domain = flight.shards[name, "train"]
        ratio = domain.tokens_per_byte / general.tokens_per_byte
        yield Check(
            name=f"fertility on {name}",
            status="warn" if ratio > FERTILITY_WARN else "ok",
            value=f"{domain.tokens_per_byte:.3f} tokens per byte, {ratio:.2f} times general text's",
            threshold=f"{FERTILITY_WARN:g} times (rule of thumb)",
            next_step="consider extending the vocabulary: the domain costs more tokens and context"
            if ratio > FERTILITY_WARN
            else "",
        )
        own = _counts(domain)
        unseen = float(own[~seen].sum() / max(own.sum(), 1))
        shared = float((seen & (own > 0)).sum() / max((own > 0).sum(), 1))
        yield Check(
            name=f"vocabulary of {name}",
            status="warn" if unseen > UNSEEN_WARN else "ok",
            value=f"{unseen:.2%} of its tokens are hardly in general text; {shared:.0%} of its ids are shared",
            threshold=f"{UNSEEN_WARN:.0%} of the tokens (rule of thumb)",
            next_step="embeddings of these ids are little trained: expect a longer start"
            if unseen > UNSEEN_WARN
            else "",
        )
        if unknown is not None and unknown < len(own):
            share = float(own[unknown] / max(own.sum(), 1))
            yield Check(
                name=f"unknown tokens of {name}",
                status="warn" if share > UNKNOWN_WARN else "ok",
                value=f"{share:.3%}",
                threshold=f"{UNKNOWN_WARN:.1%} (rule of thumb)",
                next_step="the tokenizer cannot write this text: use one with bytes" if share > UNKNOWN_WARN else "",
            )


def _counts(shard: Shard) -> np.ndarray[Any, np.dtype[np.int64]]:
    """How often each id is in a sample of a shard, shape (vocab_size,); ends of text left out."""
    found = np.bincount(sample_tokens(shard, SAMPLE_TOKENS), minlength=shard.vocab_size)
    found[shard.eos_token_id] = 0
    return np.asarray(found[: shard.vocab_size])


def _unknown_id(path: Path) -> int | None:
    """Id of the unknown token of a tokenizer.json, when it has one."""
    if not path.exists():
        return None
    model = read_json(path).get("model", {})
    word, vocabulary = model.get("unk_token"), model.get("vocab")
    by_word = isinstance(vocabulary, dict) and isinstance(word, str)
    number = (
        vocabulary.get(word) if by_word else model.get("unk_id")
    )  # unigram: a list, and the place of the unknown one
    return number if isinstance(number, int) else None


def _shared(flight: Flight) -> Iterable[Check]:
    """Text that the domain and the general corpus share."""
    if ("general", "train") not in flight.shards:
        return
    domains = [name for name in flight.names[1:] if (name, "train") in flight.shards]
    for name in domains:
        searched, general = flight.shards[name, "train"], flight.shards["general", "train"]
        found = find_overlap(searched, [general], seconds=flight.seconds / (2 * len(domains)))
        much = found.share > SHARED_WARN
        yield Check(
            name=f"{name} apart from general",
            status="warn" if much else "ok",
            value=f"{found.share:.1%} of {name} text stands in general text ({found.scanned:.0%} of it searched)",
            threshold=f"{SHARED_WARN:.0%} (rule of thumb)",
            next_step="remove it from one of them: replay would train the domain" if much else "",
        )


def _disk(flight: Flight) -> Iterable[Check]:
    """Checkpoints to resume from and the exported model against the free space."""
    rates = known_rates(flight.project)
    if rates is None:
        yield Check(
            name="disk", status="skipped", value="base model is not on this machine", threshold="-", next_step=""
        )
        return
    needed = rates.shape.total_params * float(KEPT_STATES * STATE_BYTES + EXPORT_BYTES)
    place = next(
        path for path in (flight.workspace.root.resolve(), *flight.workspace.root.resolve().parents) if path.exists()
    )
    free = float(shutil.disk_usage(place).free)
    status: Status = "fail" if free < needed else "warn" if free < DISK_MARGIN * needed else "ok"
    yield Check(
        name="disk",
        status=status,
        value=f"{_size(free)} free in {place}, {_size(needed)} needed for {KEPT_STATES} checkpoints and the model",
        threshold=f"{DISK_MARGIN:g} times what is needed",
        next_step="free space, or choose another --out" if status != "ok" else "",
        blocks=status == "fail",
    )


def _memory(flight: Flight) -> Iterable[Check]:
    """A training step on the budget's devices."""
    project, rates = flight.project, known_rates(flight.project)
    if rates is None:
        yield Check(
            name="memory", status="skipped", value="base model is not on this machine", threshold="-", next_step=""
        )
        return
    room = USABLE_SHARE * rates.hardware.memory_bytes.value
    options: dict[str, Any] = {
        "seq_len": project.data.seq_len,
        "micro_batch_tokens": project.pilot.micro_batch_tokens,
        "precision": project.pilot.precision,
    }
    plain, saving = (
        estimate_memory(
            rates.shape, num_devices=rates.num_devices, activation_checkpointing=checkpointing, **options
        ).total_bytes
        for checkpointing in (False, True)
    )
    status: Status = "ok" if plain <= room else "warn" if saving <= room else "fail"
    step = {"ok": "", "warn": "set activation_checkpointing: about a third more FLOPs"}.get(status)
    if step is None:
        fewest = smallest_num_devices(rates.shape, rates.hardware, activation_checkpointing=True, **options)
        step = f"budget.num_devices={fewest} is the least that fits"
    yield Check(
        name="memory",
        status=status,
        value=f"{_size(plain)} on each of {rates.num_devices} x {rates.hardware.name} "
        f"({_size(saving)} with activation checkpointing)",
        threshold=f"{_size(room)} usable",
        next_step=step,
        blocks=status == "fail",
    )


def _size(count: float) -> str:
    """Bytes in words."""
    unit = next((unit for unit in ("GB", "MB") if count >= UNITS[unit]), "kB")
    return f"{count / UNITS[unit]:,.1f} {unit}"
