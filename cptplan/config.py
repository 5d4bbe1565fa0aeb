"""cptplan.yaml: the user's project. Read strictly (YAML 1.2, so 1e-5 is a number), unknown keys refused."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cptplan.contract import Contract
from cptplan.errors import ConfigError, suggest

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(gt=0)]
ScheduleKind = Literal["constant", "wsd", "cosine", "linear"]
RISK = re.compile(r"cvar:(0?\.\d+)")


def read_share(value: object) -> object:
    """A share given as 0.03 or as 3%; anything else as it came, for the rules to refuse."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value) if isinstance(value, str) else None
    return float(match[1]) / 100.0 if match else value


Percent = BeforeValidator(read_share)


class Start(Contract):
    """A checkpoint that CPT may begin from."""

    name: str
    path: str
    """Model directory (config.json, safetensors, tokenizer) or hub id."""
    parent: str | None = None
    """Pre-training run in model.pretrain_curves that it comes from, when known."""
    parent_step: Positive | None = None
    final_lr: Annotated[float, Field(ge=0)] | None = None
    """Rate of the last pre-training step when there is no curve of it; not given: taken as annealed to 0."""


class Model(Contract):
    """The base model and what is known of its pre-training."""

    starts: Annotated[tuple[Start, ...], Field(min_length=1)]
    pretrain_peak_lr: Annotated[float, Field(gt=0)]
    """Peak learning rate of pre-training: the unit of the pilots' rates and of the rule of thumb."""
    pretrain_curves: str | None = None
    """Curve directory of the pre-training runs, when there is one."""
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [start.name for start in self.starts]
        if len(set(names)) < len(names):
            raise ConfigError(f"model.starts must have different names; got {', '.join(names)}.", hint="rename one")
        return self


class Corpus(Contract):
    """One corpus: files, or one of the two embedded ones."""

    name: str
    path: str
    """File or directory of .jsonl, .jsonl.zst, .txt or .parquet; or embedded:general, embedded:domain."""
    text_column: str = "text"
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Share among the domains."""
    max_bytes: Positive | None = None
    provenance: Literal["original", "proxy", "synthetic"] | None = None
    """Of general text: the base model's own pre-training data, text like it, or samples of a model."""


class Data(Contract):
    """General and domain text, and how it is cut."""

    general: Corpus
    domains: Annotated[tuple[Corpus, ...], Field(min_length=1)]
    tokenizer: str | None = None
    """Directory or hub id; the first start's own when absent."""
    train_tokenizer: Positive | None = None
    """Vocabulary size of a new tokenizer, when there is no base model yet (the demo)."""
    seq_len: Positive = 4096
    validation_tokens: Positive = 200_000
    """Tokens of each validation set that an evaluation reads."""
    validation_share: Annotated[float, Field(gt=0, le=0.5)] = 0.02
    """Share of the documents held out, by document."""
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.general.name != "general":
            raise ConfigError(
                f"data.general.name must be general, the name of its loss; got {self.general.name}.", hint="rename it"
            )
        names = [self.general.name, *(domain.name for domain in self.domains)]
        if len(set(names)) < len(names):
            raise ConfigError(f"corpora must have different names; got {', '.join(names)}.", hint="rename one")
        return self


class Goal(Contract):
    """What a good run is."""

    weights: dict[str, float] = Field(default_factory=lambda: {"general": 0.4})
    """By validation set; those not named share the rest of 1."""
    max_general_increase: Annotated[float, Percent, Field(ge=0)] | None = None
    """Largest relative rise of general loss over the base model, such as 0.03 or 3%."""
    max_forgetting_ratio: Amount | None = None
    """Largest general perplexity over the base model's, such as 1.1."""
    max_general_loss: Amount | None = None
    """Largest general loss, nats per token."""
    confidence: Annotated[float, Percent, Field(gt=0, lt=1)] = 0.9
    """Share of the posterior draws in which the limits on general loss hold."""
    risk: str = "mean"
    """What of the uncertain objective counts: mean, or cvar:0.8, the mean of the worst 20 % of its draws."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.risk != "mean" and not RISK.fullmatch(self.risk):
            raise ConfigError(f"goal.risk must be mean or cvar:<share>; got {self.risk!r}.", hint="such as cvar:0.8")
        return self

    @property
    def cvar(self) -> float | None:
        """Share of the better draws that do not count; None for the mean of all."""
        match = RISK.fullmatch(self.risk)
        return float(match[1]) if match else None


class Budget(Contract):
    """What the final run may cost: all amounts that are given hold."""

    tokens: Positive | None = None
    flops: Amount | None = None
    gpu_hours: Amount | None = None
    usd: Amount | None = None
    deadline_hours: Amount | None = None
    """Wall clock on num_devices."""
    hardware: str = "h100-sxm"
    num_devices: Positive = 8
    max_epochs: Annotated[float, Field(ge=1)] = 1.0
    """Times that a run may read its general and its domain tokens."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.amounts:
            raise ConfigError(
                "budget must give an amount; got none of tokens, flops, gpu_hours, usd, deadline_hours.",
                hint="such as tokens: 5000000000",
            )
        return self

    @property
    def amounts(self) -> dict[str, float]:
        """The amounts that are given, by key."""
        keys = ("tokens", "flops", "gpu_hours", "usd", "deadline_hours")
        return {key: float(value) for key in keys if (value := getattr(self, key)) is not None}


class Search(Contract):
    """Which runs may be planned."""

    schedules: Annotated[tuple[ScheduleKind, ...], Field(min_length=1)] = ("constant", "wsd")
    """Kinds of schedule; the default ones are the pilots'."""
    curriculum: bool = False
    """The replay ratio may change along the run, on a straight line."""
    extrapolate: bool = False
    """Rates, ratios and lengths may lie somewhat beyond what the pilots support; the plan is marked."""


class Pilot(Contract):
    """The short runs that the law is fitted to."""

    total_steps: Positive
    batch_tokens: Positive
    num_runs: Annotated[int, Field(ge=6)] = 8
    peak_lr_range: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = None
    """Default: a thirtieth of pretrain_peak_lr up to pretrain_peak_lr."""
    replay_range: tuple[Share, Share] = (0.0, 0.6)
    warmup_steps: Annotated[int, Field(ge=0)] = 10
    parallel: Positive = 1
    """Runs at the same time on this machine."""
    processes: Positive = 1
    """Processes (devices) of each run."""
    threads: Positive | None = None
    """CPU threads of each process."""
    eval_points: Positive = 24
    micro_batch_tokens: Positive | None = None
    precision: Literal["fp32", "bf16"] = "bf16"
    max_share: Annotated[float, Percent, Field(gt=0)] = 0.05
    """Of the final run's cost that all pilots together should not exceed; more is said, not refused."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_steps >= self.total_steps:
            raise ConfigError(
                f"pilot.total_steps must be greater than pilot.warmup_steps; got {self.total_steps} and "
                f"{self.warmup_steps}.",
                hint="lengthen the pilots",
            )
        low, high = self.replay_range
        if low > high or (self.peak_lr_range and self.peak_lr_range[0] > self.peak_lr_range[1]):
            raise ConfigError("pilot ranges must rise; got a low end above the high end.", hint="swap the two numbers")
        return self


class Launch(Contract):
    """Where the final run is started from; the command line's --target and --option come before it."""

    target: str = "accelerate"
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Of the target, such as partition; they count for this target alone."""
    allow_loss_of: tuple[str, ...] = ()
    """What a recipe for another trainer may drop of the plan."""


class Project(Contract):
    """The whole of cptplan.yaml."""

    schema_version: Literal[1] = 1
    name: str = "campaign"
    model: Model
    data: Data
    goal: Goal = Goal()
    budget: Budget
    pilot: Pilot
    search: Search = Search()
    launch: Launch = Launch()
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        pilot, unit = self.pilot, self.data.seq_len * self.pilot.processes
        if pilot.batch_tokens % unit:
            raise ConfigError(
                f"pilot.batch_tokens must be a multiple of data.seq_len x pilot.processes, {unit}; got "
                f"{pilot.batch_tokens}.",
                hint=f"{max(pilot.batch_tokens // unit, 1) * unit} is one",
            )
        if self.budget.tokens is not None and self.budget.tokens < pilot.total_steps * pilot.batch_tokens:
            raise ConfigError(
                f"budget.tokens must be at least a pilot's tokens, {pilot.total_steps * pilot.batch_tokens}; got "
                f"{self.budget.tokens}.",
                hint="shorten the pilots or raise the budget",
            )
        return self

    @property
    def peak_lr_range(self) -> tuple[float, float]:
        """Peak learning rates that the pilots span, low and high."""
        peak = self.model.pretrain_peak_lr
        return self.pilot.peak_lr_range or (peak / 30.0, peak)


def read_project(path: Path, overrides: Sequence[str] = ()) -> Project:
    """The project of a YAML file, with command-line overrides such as pilot.num_runs=10.

    Raises:    ConfigError with the rule, the value, the key and the file; unknown keys with a suggestion.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"project file must be readable; got {reason} for {path}.", hint="cptplan init writes one"
        ) from error
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise ConfigError(
            f"project file must hold keys and values; got {type(value).__name__} in {path}.",
            hint="cptplan init writes a commented example",
        )
    for override in overrides:
        _override(value, override)
    project = Project.parse(value, str(path))
    check_weights(project.goal.weights, [d.name for d in project.data.domains], str(path))
    return project


def parse_yaml(text: str, where: str) -> Any:
    """Decoded YAML 1.2: 1e-5 is a number (in YAML 1.1 it is a string), off is a word."""
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        raise ConfigError(f"file must be YAML; got {problem or error} in {place}.", hint="check the line") from error
    return _plain_numbers(value)


def _plain_numbers(value: Any) -> Any:
    """Numbers such as 1e-5, which the YAML core schema reads as text for want of a dot, as numbers."""
    if isinstance(value, dict):
        return {key: _plain_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(item) for item in value]
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def _override(value: dict[str, Any], text: str) -> None:
    """Set one dotted key from key=value; the value is read as YAML."""
    key, equals, raw = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set must be key=value; got {text!r}.", hint="for example --set pilot.num_runs=10")
    *parents, last = key.split(".")
    place = value
    for part in parents:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise ConfigError(f"--set must name a key of a section; got {key!r}.", hint="lists are set in the file")
    place[last] = parse_yaml(raw, f"--set {key}")


def parse_weights(text: str, domains: Sequence[str], others: Sequence[str] = ()) -> dict[str, float]:
    """Weights from general=0.4 or general=0.4,domain=0.6; general and domains not named share the rest of 1 equally.

    Args:      others: further sets that may be named, such as out-of-domain ones; without a name they count nothing.
    Raises:    ConfigError for a name that is no set, a weight that is no number, negative, or all zero.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, equals, raw = part.strip().partition("=")
        try:
            weights[name] = float(raw)
        except ValueError:
            raise ConfigError(
                f"--weights must be name=number pairs; got {part.strip()!r}.", hint="general=0.4"
            ) from None
        if not equals:
            raise ConfigError(f"--weights must be name=number pairs; got {part.strip()!r}.", hint="general=0.4")
    check_weights(weights, [*domains, *others], "--weights")
    unnamed = [name for name in ("general", *domains) if name not in weights]
    rest = max(1.0 - sum(weights.values()), 0.0)
    weights.update({name: rest / len(unnamed) for name in unnamed})
    if sum(weights.values()) <= 0.0:
        raise ConfigError(f"weights must not all be zero; got {text.strip()!r} in --weights.", hint="general=0.4")
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def check_weights(weights: Mapping[str, float], domains: Sequence[str], where: str) -> None:
    """Raise ConfigError unless the weights name known sets, are not negative, and not all are there and zero."""
    known = ["general", *domains]
    for name, weight in weights.items():
        if name not in known:
            raise ConfigError(
                f"weights must name a validation set; got {name!r} in {where}.",
                hint=suggest(name, known) or f"known: {', '.join(known)}",
            )
        if not 0.0 <= weight < float("inf"):
            raise ConfigError(f"weights must be >= 0; got {name}={weight:g} in {where}.", hint="general=0.4,domain=0.6")
    if len(weights) == len(known) and sum(weights.values()) <= 0.0:
        raise ConfigError(f"weights must not all be zero; got 0 for {', '.join(known)} in {where}.", hint="general=0.4")


def project_text(project: Project) -> str:
    """The project as YAML text."""
    stream = io.StringIO()
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(project.to_json(), stream)
    return stream.getvalue()
