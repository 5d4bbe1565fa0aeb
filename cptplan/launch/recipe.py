"""What recipes for other trainers share: what each can express, the schedule in their terms, and the batch.

A recipe must not drop silently what moves the loss: what a trainer cannot express is refused, unless it is named in
--allow-loss-of. What it changes a little (the first steps of a warm-up) is computed and said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cptplan.errors import ConfigError, suggest
from cptplan.files import read_json
from cptplan.launch.options import TargetOptions
from cptplan.run_spec import RunSpec
from cptplan.schedule import ConstantSchedule, CosineSchedule, LinearSchedule, WsdSchedule

FloatArray = NDArray[np.float64]

LOSABLE: Mapping[str, str] = {
    "ramped_replay": "the replay ratio would stay at its mean",
    "isolate_documents": "a token would see the documents before its own",
    "anchor": "nothing would pull back to the starting weights",
    "lora": "all weights would be trained",
    "freeze": "frozen weights would be trained",
    "reweight": "the weights of the domains would not be learnt",
    "spikes": "a spike of the loss would be trained on",
    "monitor_actions": "nothing would act on what validation says",
    "warmup": "the warm-up would be another, with a forward area more than 1 % off",
    "end_of_text": "the end of text would not be learnt, because the tokenizer has no padding token of its own",
    "float32_weights": "weights and moments would be held in bf16, not in float32",
}
"""What a recipe may lose, by the name that --allow-loss-of takes, and what would happen instead."""

VALIDATIONS = 24  # as many as a run makes whose plan says nothing
AREA_TOLERANCE = 0.01  # assumed: what a warm-up may change of the forward area without a word from the user


@dataclass(frozen=True, kw_only=True, slots=True)
class Decay:
    """A schedule as warm-up, hold, decay: the form that all trainers here know."""

    peak_lr: float
    init_lr: float
    min_lr: float
    warmup_steps: int
    decay_steps: int
    total_steps: int
    shape: Literal["linear", "cosine", "sqrt"]

    @property
    def min_ratio(self) -> float:
        """Floor as a share of the peak."""
        return self.min_lr / self.peak_lr if self.decay_steps else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One optimiser step: sequences of a forward pass on a device, and how many such passes."""

    micro_sequences: int
    grad_accum_steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What a trainer needs to know of a run. Paths start in the project, where launch.sh goes first."""

    target: str
    spec: RunSpec
    here: str
    """The launch directory."""
    model: str
    """Directory or hub id."""
    model_type: str | None
    layer_class: str | None
    num_processes: int
    num_nodes: int
    sharded: bool
    decay: Decay
    batch: Batch
    options: TargetOptions

    @property
    def eval_every(self) -> int:
        """Steps between validations, evenly spaced."""
        return max(self.spec.total_steps // VALIDATIONS, 1)


def decay_of(spec: RunSpec, target: str) -> Decay:
    """The schedule in the trainers' terms.

    Raises:    ConfigError for a schedule that they do not know: no flag drops it, as the plan is that schedule.
    """
    schedule = spec.schedule
    match schedule:
        case ConstantSchedule():
            decay_steps, shape, min_lr = 0, "linear", 0.0
        case LinearSchedule() | CosineSchedule():
            decay_steps, shape = schedule.total_steps - schedule.warmup_steps, schedule.kind
            min_lr = schedule.min_lr
        case WsdSchedule() if schedule.decay_shape != "exponential":
            decay_steps, shape, min_lr = schedule.decay_steps, schedule.decay_shape, schedule.min_lr
        case _:
            raise ConfigError(
                f"schedule must be constant, linear, cosine or wsd (no exponential decay) for target {target}; got "
                f"{schedule.kind}.",
                hint="take target accelerate, torchrun or slurm",
            )
    return Decay(
        peak_lr=schedule.peak_lr,
        init_lr=schedule.init_lr,
        min_lr=min_lr,
        warmup_steps=schedule.warmup_steps,
        decay_steps=decay_steps,
        total_steps=schedule.total_steps,
        shape=shape,  # type: ignore[arg-type]  # mypy widens the literals of the branches
    )


def early_warmup(decay: Decay) -> int:
    """Warm-up steps for a trainer that takes the schedule at the start of a step, where ours takes it at the end.

    Its rate i / n is behind ours, (i + 1) / warmup_steps; n = warmup_steps - 2 has the same sum over the warm-up.
    """
    steps = decay.warmup_steps
    return steps - 2 if steps > 2 else max(steps - 1, 0)


def rates_at_step_start(spec: RunSpec, decay: Decay, first_lr: float) -> FloatArray:
    """Rates of a trainer that takes the schedule at the start of a step: lr of step i = f(i), where ours is f(i + 1).

    The recipes begin its decay one step earlier, so that only the warm-up differs:
    first_lr + (peak_lr - first_lr) min(i / n, 1), with n of early_warmup.
    Args:      first_lr: rate at f(0), dimensionless.
    Returns:   learning rate of every optimiser step, dimensionless, shape (total_steps,).
    """
    rates, end, length = spec.lr(), decay.warmup_steps, early_warmup(decay)
    rising = np.minimum(np.arange(end) / max(length, 1), 1.0) if length else np.ones(end)
    rates[:end] = first_lr + (decay.peak_lr - first_lr) * rising
    return rates


def area_change(spec: RunSpec, rates: FloatArray) -> float:
    """Relative change of the forward area: sum(rates) / sum(lr) - 1.

    Args:      rates: what the trainer runs at, shape (total_steps,).
    """
    return float(rates.sum() / spec.lr().sum()) - 1.0


def batch_of(spec: RunSpec, num_processes: int) -> Batch:
    """The largest micro batch, not above the spec's, that divides a device's share of the batch."""
    sequences = spec.sequences_per_step // num_processes
    most = sequences if spec.micro_batch_tokens is None else max(spec.micro_batch_tokens // spec.seq_len, 1)
    micro = next(size for size in range(min(most, sequences), 0, -1) if sequences % size == 0)
    return Batch(micro_sequences=micro, grad_accum_steps=sequences // micro)


def used_features(spec: RunSpec) -> set[str]:
    """What a run spec asks for beyond plain training, by its name in LOSABLE."""
    asked = {
        "ramped_replay": bool(np.ptp(spec.replay_ratios()) > 0),
        "isolate_documents": spec.isolate_documents,
        "anchor": spec.anchor is not None,
        "lora": spec.lora is not None,
        "freeze": bool(spec.freeze),
        "reweight": spec.reweight is not None,
        "spikes": spec.spikes is not None,
        "monitor_actions": bool(spec.actions - {"warn"}),
    }
    return {name for name, wanted in asked.items() if wanted}


def check_losses(target: str, lost: set[str], allowed: Sequence[str]) -> tuple[str, ...]:
    """What is lost, in the order of LOSABLE, if all of it is allowed.

    Raises:    ConfigError for a loss that is not allowed, a name that is not known, or one that is not lost here.
    """
    for name in allowed:
        if name not in LOSABLE:
            hint = suggest(name, LOSABLE) or f"known: {', '.join(LOSABLE)}"
            raise ConfigError(f"--allow-loss-of must name what can be lost; got {name!r}.", hint=hint)
        if name not in lost:
            raise ConfigError(
                f"--allow-loss-of must name what {target} loses of this run; got {name!r}.", hint="drop it"
            )
    names = [name for name in LOSABLE if name in lost and name not in allowed]
    if names:
        flags = " ".join(f"--allow-loss-of {name}" for name in names)
        raise ConfigError(
            f"target must keep what moves the loss; got {names[0]}, which {target} cannot express: "
            f"{LOSABLE[names[0]]}.",
            hint=f"take target accelerate, torchrun or slurm, or accept it with {flags}",
        )
    return tuple(name for name in LOSABLE if name in lost)


def plain(name: str) -> str:
    """A name of letters, digits and _, for keys and file names of other tools."""
    return re.sub(r"\W", "_", name, flags=re.ASCII)


def shard_name(split: str, number: int, name: str) -> str:
    """File name, without suffix, of an exported shard."""
    return f"{split}-{number}-{plain(name)}"


def pads_with_end_of_text(model_dir: Path) -> bool:
    """Whether a tokenizer has no padding token but its end of text: trainers that mask padding then mask it, too."""
    path = model_dir / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    tokens = {}
    for name in ("pad_token", "eos_token"):
        token = config.get(name) if isinstance(config, dict) else None
        tokens[name] = token.get("content") if isinstance(token, dict) else token
    return tokens["pad_token"] in (None, tokens["eos_token"])
