"""Start of the processes of a run: the accelerator, and guards against runs that look parallel and are not."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    KwargsHandler,
    ParallelismConfig,
    broadcast_object_list,
    gather_object,
)

from cptplan.errors import ConfigError, CptplanError
from cptplan.run_spec import Optimizer, RunSpec
from executor.trackers import check_trackers

logger = logging.getLogger(__name__)
Shared = TypeVar("Shared")

TASKS_TIMEOUT = timedelta(hours=6)


def open_accelerator(spec: RunSpec, run_dir: Path) -> Accelerator:
    """The accelerator of this process, checked against what the launcher meant.

    Args:      run_dir: trackers that keep files write below it.
    Raises:    ConfigError if the launcher's settings do not fit together, the processes do not see one another, FSDP
               was asked for and is off, or a tracker is not there.
    """
    check_trackers(spec.report_to)
    handlers: list[KwargsHandler] = [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    if spec.tasks is not None:  # which the main process does alone, for as long as it takes
        handlers.append(InitProcessGroupKwargs(timeout=TASKS_TIMEOUT))
    try:
        check_parallelism()
        accelerator = Accelerator(
            mixed_precision="bf16" if spec.precision == "bf16" else "no",
            kwargs_handlers=handlers,
            log_with=list(spec.report_to) or None,
            project_dir=run_dir / "trackers" if spec.report_to else None,
        )
    except ValueError as error:
        raise ConfigError(
            f"the launcher's settings must fit together; got {str(error).splitlines()[0].rstrip('.')}.",
            hint="mend the accelerate configuration, or the FSDP_ and PARALLELISM_CONFIG_ variables",
        ) from error
    check_processes(accelerator)
    if accelerator.is_fsdp2:
        # the spec decides, through the model's own checkpointing; doing both would recompute twice
        plugin = accelerator.state.fsdp_plugin
        plugin.activation_checkpointing = False
        if plugin.mixed_precision_policy is not None:
            # accelerate would add up the gradients of all processes in bf16; DDP does it in fp32, and so does this
            plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, reduce_dtype=torch.float32)
        # accelerate ignores misspelt keys of fsdp_config, so say what arrived
        logger.info("fsdp: %s", {k: v for k, v in sorted(os.environ.items()) if k.startswith("FSDP_")})
    return accelerator


def check_processes(accelerator: Accelerator) -> None:
    """Refuse a launch that accelerate would quietly turn into something else.

    Raises:    ConfigError if the world size differs from the launcher's, or FSDP is asked for and not version 2.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != world_size:
        raise ConfigError(
            f"num_processes must be WORLD_SIZE; got {accelerator.num_processes} and {world_size} in the launcher's "
            "environment: every process would train alone.",
            hint="on a CPU start with ACCELERATE_USE_CPU=true and distributed_type MULTI_CPU, not FSDP",
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" and not accelerator.is_fsdp2:
        raise ConfigError(
            f"FSDP must be version 2 and active when asked for; got distributed_type "
            f"{accelerator.distributed_type.value}.",
            hint="set fsdp_version: 2 and run on accelerators, or start without FSDP",
        )


def check_parallelism() -> None:
    """Refuse sizes of the launcher's parallelism_config that do not fit its processes, or make some share their data.

    Raises:    ConfigError naming the sizes.
    """
    if os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() != "true":
        return
    sizes, processes = ParallelismConfig(), int(os.environ.get("WORLD_SIZE", "1"))
    if sizes.non_data_parallel_size > 1:
        raise ConfigError(
            "parallelism_config must hold dp_replicate_size and dp_shard_size only; got "
            f"tp_size {sizes.tp_size}, cp_size {sizes.cp_size}, sp_size {sizes.sp_size}.",
            hint="set the others to 1: each process trains on sequences of its own",
        )
    if sizes.total_size != processes:
        raise ConfigError(
            f"dp_replicate_size x dp_shard_size must be the number of processes; got {sizes.dp_replicate_size} x "
            f"{sizes.dp_shard_size} for {processes}.",
            hint="change parallelism_config or the number of processes",
        )


def sequences_per_process(spec: RunSpec, num_processes: int) -> int:
    """Sequences of one step that one process trains on.

    Raises:    ConfigError if the batch does not divide evenly, which would weigh tokens unequally.
    """
    if spec.sequences_per_step % num_processes:
        raise ConfigError(
            f"batch_tokens must be a multiple of seq_len x processes; got {spec.batch_tokens} tokens for "
            f"{num_processes} processes of seq_len {spec.seq_len}.",
            hint="change batch_tokens or the number of processes",
        )
    return spec.sequences_per_step // num_processes


def sequences_per_forward(spec: RunSpec, share: int) -> int:
    """Sequences of one forward pass: the largest divisor of a process's share that micro_batch_tokens allows.

    Raises:    ConfigError if not one sequence fits.
    """
    if spec.micro_batch_tokens is None:
        return share
    most = spec.micro_batch_tokens // spec.seq_len
    if most < 1:
        raise ConfigError(
            f"micro_batch_tokens must be at least seq_len; got {spec.micro_batch_tokens} and {spec.seq_len}.",
            hint="raise micro_batch_tokens, or shorten seq_len",
        )
    return next(size for size in range(min(most, share), 0, -1) if share % size == 0)


def prepare(
    accelerator: Accelerator, model: torch.nn.Module, spec: RunSpec
) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """The model on its device, wrapped for DDP or FSDP2, and its plain torch optimizer.

    No scheduler goes through accelerate: a prepared one would step once for every process.
    """
    # FSDP2 replaces parameters, which accelerate only does for a model and an optimizer prepared together
    model, optimizer = accelerator.prepare(model, build_optimizer(model, spec.optimizer))
    if spec.compile:
        model.compile()
    return model, optimizer.optimizer


def build_optimizer(model: torch.nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """AdamW with decay on matrices only: gains of norms and biases are scales, which decay would pull to 0.

    The learning rate is 0 here; the loop sets it before every step.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=0.0,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=True,
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Put the schedule's rate into every group. A restored optimizer brings its old rate back, so: every step."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def share_from_main(value: Shared, accelerator: Accelerator) -> Shared:
    """What rank 0 has, on every rank."""
    if accelerator.num_processes == 1:
        return value
    shared: Shared = broadcast_object_list([value])[0]
    return shared


def on_main(work: Callable[[], Shared], accelerator: Accelerator) -> Shared:
    """What work gives on rank 0, on every rank; where it ends in an error that people can mend, so do all ranks.

    Else the others would wait for one that is gone. Called by all processes.
    """
    if accelerator.num_processes == 1:
        return work()
    given: tuple[Shared | None, CptplanError | OSError | None] = (None, None)
    if accelerator.is_main_process:
        try:
            given = (work(), None)
        except (CptplanError, OSError) as error:
            given = (None, error)
    value, failure = share_from_main(given, accelerator)
    if failure is not None:
        raise failure
    return value  # type: ignore[return-value]


def spread(names: Sequence[str], work: Callable[[str], Shared], accelerator: Accelerator) -> dict[str, Shared]:
    """What work gives for every name, on every rank; the names are dealt out, so that none waits long for another.

    An error that people can mend ends all ranks, as in on_main. Called by all processes with the same names.
    """
    found: tuple[dict[str, Shared], CptplanError | OSError | None] = ({}, None)
    try:
        mine = names[accelerator.process_index :: accelerator.num_processes]
        found = ({name: work(name) for name in mine}, None)
    except (CptplanError, OSError) as error:
        found = ({}, error)
    every = gather_object([found]) if accelerator.num_processes > 1 else [found]
    for _, failure in every:
        if failure is not None:
            raise failure
    return {name: value for values, _ in every for name, value in values.items()}
