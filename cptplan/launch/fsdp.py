"""Settings of accelerate, FSDP2 and DeepSpeed; FSDP2's are checked, as accelerate ignores what it does not know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cptplan.errors import ConfigError, suggest

FSDP_KEYS = (
    "fsdp_version",
    "fsdp_reshard_after_forward",
    "fsdp_auto_wrap_policy",
    "fsdp_transformer_layer_cls_to_wrap",
    "fsdp_min_num_params",
    "fsdp_state_dict_type",
    "fsdp_cpu_ram_efficient_loading",
    "fsdp_offload_params",
    "fsdp_activation_checkpointing",
    "fsdp_activation_checkpointing_offload",
    "fsdp_ignored_modules",
)
"""Keys of fsdp_config that FSDP2 reads (accelerate 1.15); those of FSDP1 alone are left out on purpose."""


def fsdp_settings(layer_class: str | None) -> dict[str, Any]:
    """fsdp_config of a run: everything sharded, gathered again layer by layer, checkpoints sharded.

    Args:      layer_class: decoder layer to shard by; None leaves it to the model's own list.
    """
    settings: dict[str, Any] = {
        "fsdp_version": 2,  # accelerate's default is still 1
        "fsdp_reshard_after_forward": True,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_cpu_ram_efficient_loading": True,
        "fsdp_offload_params": False,
        "fsdp_activation_checkpointing": False,  # the run spec says so, and the trainer obeys; both would do it twice
    }
    if layer_class is not None:
        settings["fsdp_transformer_layer_cls_to_wrap"] = layer_class
    return check_fsdp_settings(settings)


def check_fsdp_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings, if FSDP2 reads every one of them.

    Raises:    ConfigError with the closest key: accelerate would ignore a misspelt one and train on.
    """
    for key in settings:
        if key not in FSDP_KEYS:
            hint = suggest(key, FSDP_KEYS) or f"known keys: {', '.join(FSDP_KEYS)}"
            raise ConfigError(f"fsdp_config keys must be known to FSDP2; got {key!r}.", hint=hint)
    if settings.get("fsdp_version") != 2:
        raise ConfigError(f"fsdp_version must be 2; got {settings.get('fsdp_version')!r}.", hint="say fsdp_version: 2")
    return dict(settings)


def fsdp_environment(settings: Mapping[str, Any]) -> dict[str, str]:
    """The same settings as the environment variables that accelerate reads under torchrun."""
    renamed = {"fsdp_transformer_layer_cls_to_wrap": "FSDP_TRANSFORMER_CLS_TO_WRAP"}
    variables = {renamed.get(key, key.upper()): value for key, value in check_fsdp_settings(settings).items()}
    text = {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in variables.items()}
    return {"ACCELERATE_USE_FSDP": "true", **text}


def accelerate_config(
    *, num_processes: int, num_nodes: int, precision: str, settings: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The accelerate configuration file of a run on accelerators.

    Args:      num_processes: of all nodes together. settings: fsdp_config; None copies the model to each device (DDP).
    """
    kind = "NO" if num_processes == 1 else "FSDP" if settings is not None else "MULTI_GPU"
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": kind,
        "mixed_precision": "bf16" if precision == "bf16" else "no",
        "num_machines": num_nodes,
        "num_processes": num_processes,
        "rdzv_backend": "static",
        "same_network": True,
        "main_training_function": "main",
        "use_cpu": False,
        "debug": False,
    }
    if kind == "FSDP" and settings is not None:
        config["fsdp_config"] = check_fsdp_settings(settings)
    return config


def deepspeed_config(
    *, num_processes: int, num_nodes: int, precision: str, grad_accum_steps: int, max_grad_norm: float
) -> dict[str, Any]:
    """The accelerate configuration file of a run under DeepSpeed ZeRO-3, for a trainer that knows it.

    Args:      num_processes: of all nodes together.
    """
    config = accelerate_config(num_processes=num_processes, num_nodes=num_nodes, precision=precision, settings=None)
    settings = {
        "zero_stage": 3,
        "gradient_accumulation_steps": grad_accum_steps,
        "gradient_clipping": max_grad_norm,
        "offload_optimizer_device": "none",
        "offload_param_device": "none",
        "zero3_init_flag": False,
        "zero3_save_16bit_model": True,
    }
    if num_nodes > 1:
        settings["deepspeed_multinode_launcher"] = "standard"  # each node starts its own, as launch.sh does
    return {**config, "distributed_type": "DEEPSPEED", "deepspeed_config": settings}
