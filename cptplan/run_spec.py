"""RunSpec: all that one training run needs, hashed and immutable. The planner writes it, the executor obeys it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cptplan.contract import Contract
from cptplan.errors import ConfigError, MixtureError, suggest
from cptplan.files import read_json, write_json
from cptplan.mixture import Mixture
from cptplan.run_options import Accounting, Anchor, Lora, Monitor, Reweight, Spikes, Tasks
from cptplan.schedule import Schedule, read_schedule

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]


class Source(Contract):
    """One stream of training tokens: a directory with train.bin and train.json (see executor.corpus)."""

    name: str
    role: Literal["general", "domain"]
    path: str
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Share among the sources of the same role."""
    max_tokens: Positive | None = None
    """Only so many tokens are read, again and again, in windows that lie evenly over the shard; None: all of it."""


class ValidationSet(Contract):
    """Held-out tokens whose loss is logged as loss_<name>: always the same windows, evenly over the shard."""

    name: str
    path: str
    num_tokens: Positive


class ModelSource(Contract):
    """Where the weights come from: a directory or hub id, or a configuration to start from scratch."""

    path: str | None = None
    config: dict[str, Any] | None = None
    """transformers configuration with model_type; weights are drawn from the run's seed."""
    tokenizer: str | None = None
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.path is None) == (self.config is None):
            got = "neither" if self.path is None else "both"
            raise ConfigError(f"model must have either path or config; got {got}.", hint="give model.path")
        return self


class Optimizer(Contract):
    """AdamW settings; defaults are those of arXiv:2505.07796, appendix B."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0


class RunSpec(Contract):
    """One run: data, model, schedule, mixture, batch, evaluation, seed."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    phase: Literal["pretrain", "cpt"]
    model: ModelSource
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    validation: Annotated[tuple[ValidationSet, ...], Field(min_length=1)]
    schedule: Schedule
    mixture: Mixture
    seq_len: Positive
    batch_tokens: Positive
    micro_batch_tokens: Positive | None = None
    """Tokens of one forward pass on one device; None means as much as batch_tokens / processes."""
    optimizer: Optimizer = Optimizer()
    precision: Literal["fp32", "bf16"] = "fp32"
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flex_attention"] = "auto"
    """auto takes flash_attention_2 where it is installed and can run (bf16 on CUDA), else sdpa."""
    isolate_documents: bool = False
    """Whether a token sees only its own document; then the first token of a document is not predicted either."""
    activation_checkpointing: bool = False
    compile: bool = False
    seed: NonNegative = 0
    eval_steps: tuple[NonNegative, ...] | None = None
    """Steps after which validation runs; None: default_eval_steps. 0, keep_steps, tasks.steps and the last come too."""
    checkpoint_every: Positive = 200
    keep_checkpoints: Positive = 2
    """Checkpoints to resume from that are kept; the older ones are dropped."""
    keep_steps: tuple[Positive, ...] = ()
    """Steps whose weights are exported as a model directory, besides the last one."""
    freeze: tuple[str, ...] = ()
    """Patterns of parameter names, with * and ?, that are not trained."""
    lora: Lora | None = None
    anchor: Anchor | None = None
    reweight: Reweight | None = None
    spikes: Spikes | None = None
    """None stops at a loss or gradient that is not finite, and does nothing else."""
    monitor: Monitor | None = None
    tasks: Tasks | None = None
    accounting: Accounting | None = None
    report_to: tuple[str, ...] = ()
    """Trackers that accelerate knows, such as tensorboard, wandb, trackio, mlflow; metrics.jsonl is always written."""
    parent: str | None = None
    parent_step: Positive | None = None

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        if self.batch_tokens % self.seq_len:
            below = self.batch_tokens - self.batch_tokens % self.seq_len
            raise ConfigError(
                f"batch_tokens must be a multiple of seq_len; got {self.batch_tokens} and {self.seq_len}.",
                hint=f"{below} is the nearest below" if below else f"give at least {self.seq_len}",
            )
        tested = self.tasks.steps or () if self.tasks is not None else ()
        beyond = [step for step in (*self.keep_steps, *tested, *(self.eval_steps or ())) if step > self.total_steps]
        if beyond:
            raise ConfigError(
                f"keep_steps, eval_steps and tasks.steps must lie within the run; got {beyond[0]} of "
                f"{self.total_steps}.",
                hint="lengthen the run or drop the step",
            )
        return self

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        has_general = any(source.role == "general" for source in self.sources)
        wants_fisher = (self.anchor is not None and self.anchor.kind == "ewc") or "ewc" in self.actions
        if wants_fisher and not has_general:
            raise ConfigError("sources must hold a general one for ewc; got none.", hint="add it, or take kind l2")
        if self.lora is not None and (self.anchor is not None or self.freeze or "ewc" in self.actions):
            raise ConfigError(
                "lora must stand without anchor, freeze and ewc; got them together.",
                hint="adapters leave the weights as they are; drop one of them",
            )
        if self.anchor is not None and self.anchor.kind == "l2" and "ewc" in self.actions:
            raise ConfigError("anchor must be of kind ewc beside action ewc; got l2.", hint="drop one of them")
        if "raise_replay" in self.actions and not has_general:
            raise ConfigError("sources must hold a general one to raise replay; got none.", hint="add a general source")
        domains = [source.name for source in self.sources if source.role == "domain"]
        if self.reweight is not None and len(domains) < 2:
            raise ConfigError(
                f"sources must hold two or more domains to reweight; got {len(domains)}.", hint="drop reweight"
            )
        if self.tasks is not None and 0 not in (self.tasks.steps or (0,)):
            drops = any(rule.when == "task_drop" for rule in (self.monitor.rules if self.monitor is not None else ()))
            if drops:
                raise ConfigError(
                    f"tasks.steps must hold 0 for task_drop; got {list(self.tasks.steps or ())}.", hint="add step 0"
                )
        for rule in self.monitor.rules if self.monitor is not None else ():
            tasks = self.tasks.names if self.tasks is not None else ()
            sources = tuple(source.name for source in self.sources)
            sets = tuple(chosen.name for chosen in self.validation)
            known = {"task_drop": tasks, "mixing_error": sources}.get(rule.when, sets)
            wanted = rule.of or ("general" if rule.when not in ("domain_plateau", "mixing_error") else None)
            if wanted is not None and wanted not in known:
                raise ConfigError(
                    f"of must name one of {', '.join(known) or 'no task'} for {rule.when}; got {wanted}.",
                    hint=suggest(wanted, known) or "name it in of",
                )
        return self

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ConfigError(f"sources must have different names; got {', '.join(names)}.", hint="rename one")
        general = [source.name for source in self.sources if source.role == "general"]
        domains = [source for source in self.sources if source.role == "domain"]
        if len(general) > 1:
            raise ConfigError(
                f"sources must hold at most one of role general; got {', '.join(general)}.", hint="pack them into one"
            )
        if domains and not any(source.weight for source in domains):
            raise ConfigError("weight must be above 0 for a domain source; got 0 for all.", hint="weigh one with 1")
        ratios = self.replay_ratios()
        if not general and ratios.max() > 0:
            raise MixtureError(
                f"replay_ratio must be 0 without a general source; got {ratios.max():g}.", hint="add a general source"
            )
        if not domains and ratios.min() < 1:
            raise MixtureError(
                f"replay_ratio must be 1 without a domain source; got {ratios.min():g}.", hint="add a domain source"
            )
        return self

    @property
    def actions(self) -> frozenset[str]:
        """What the monitor may do."""
        return frozenset(rule.action for rule in self.monitor.rules) if self.monitor is not None else frozenset()

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the run."""
        return int(self.schedule.total_steps)

    @property
    def sequences_per_step(self) -> int:
        """Sequences of seq_len tokens in one optimiser step, over all processes."""
        return self.batch_tokens // self.seq_len

    @property
    def total_tokens(self) -> int:
        """Training tokens of the run."""
        return self.total_steps * self.batch_tokens

    def lr(self) -> NDArray[np.float64]:
        """Learning rate of every optimiser step, shape (total_steps,)."""
        return np.asarray(self.schedule.lr(), dtype=np.float64)

    def replay_ratios(self) -> NDArray[np.float64]:
        """General share of the tokens of every step, shape (total_steps,)."""
        return np.asarray(self.mixture.replay_ratios(self.total_steps), dtype=np.float64)

    def steps_to_evaluate(self) -> tuple[int, ...]:
        """Steps after which validation runs, rising; 0, the last and every step whose weights are kept included."""
        chosen = self.eval_steps if self.eval_steps is not None else default_eval_steps(self.total_steps)
        tested = self.tasks.steps or () if self.tasks is not None else ()
        return tuple(sorted({0, self.total_steps, *self.keep_steps, *tested, *chosen}))


def default_eval_steps(total_steps: int, points: int = 24) -> tuple[int, ...]:
    """Steps to evaluate after, dense early because the shift is steepest first: quadratic spacing, no repeats."""
    grid = np.linspace(0.0, 1.0, points) ** 2 * total_steps
    return tuple(int(step) for step in np.unique(np.round(grid).astype(np.int64)))


def read_run_spec(path: Path) -> RunSpec:
    """A run spec from its JSON file.

    Raises:    ConfigError (or its schedule and mixture kinds) naming the rule, the value, the field and the file.
    """
    value = read_json(path)
    if isinstance(value, dict) and "schedule" in value:
        value = {**value, "schedule": read_schedule(value["schedule"], f"schedule of {path}", path.parent)}
    return RunSpec.parse(value, str(path))


def write_run_spec(path: Path, spec: RunSpec) -> None:
    """Write the spec for the executor."""
    write_json(path, spec.to_json())
