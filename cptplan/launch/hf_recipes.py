"""Recipes for trainers over transformers' Trainer: LLaMA-Factory (with FSDP2, or with DeepSpeed ZeRO-3) and axolotl."""

from __future__ import annotations

from typing import Any

from cptplan.launch.fsdp import accelerate_config, deepspeed_config, fsdp_settings
from cptplan.launch.recipe import Decay, FloatArray, Recipe, early_warmup, rates_at_step_start
from cptplan.launch.render import yaml_text

SHAPES = {"linear": "linear", "cosine": "cosine", "sqrt": "1-sqrt"}


def trainer_schedule(decay: Decay) -> dict[str, Any]:
    """A schedule for transformers' Trainer, which takes it at the start of a step (see rates_at_step_start)."""
    warmup = early_warmup(decay)
    if decay.decay_steps == 0:
        return {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": warmup}
    stable = decay.total_steps - 1 - decay.decay_steps - warmup
    kwargs = {
        "num_stable_steps": stable,
        "num_decay_steps": decay.decay_steps,
        "decay_type": SHAPES[decay.shape],
        "min_lr_ratio": decay.min_ratio,
    }
    return {"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": warmup, "lr_scheduler_kwargs": kwargs}


def trainer_rates(recipe: Recipe) -> FloatArray:
    """Rates that such a trainer runs at, shape (total_steps,)."""
    return rates_at_step_start(recipe.spec, recipe.decay, recipe.decay.min_ratio * recipe.decay.peak_lr)


def llama_factory_files(recipe: Recipe) -> dict[str, str]:
    """llama_factory.yaml, and the configuration of accelerate, which starts it."""
    spec, adam = recipe.spec, recipe.spec.optimizer
    config = {
        "model_name_or_path": recipe.model,
        "trust_remote_code": spec.model.trust_remote_code,
        "flash_attn": "sdpa",
        "disable_gradient_checkpointing": not spec.activation_checkpointing,
        "stage": "pt",
        "do_train": True,
        "finetuning_type": "full",
        "disable_shuffling": True,
        "tokenized_path": f"{recipe.here}/data",
        "dataset": "sequences",  # must be there, and is not read beside tokenized_path
        "eval_dataset": "sequences",
        "cutoff_len": spec.seq_len + 1,
        "output_dir": f"{recipe.here}/output",
        "report_to": "none",
        "logging_steps": 1,
        "save_steps": spec.checkpoint_every,
        "save_total_limit": spec.keep_checkpoints,
        "eval_strategy": "steps",
        "eval_steps": recipe.eval_every,
        "per_device_eval_batch_size": recipe.batch.micro_sequences,
        "per_device_train_batch_size": recipe.batch.micro_sequences,
        "gradient_accumulation_steps": recipe.batch.grad_accum_steps,
        "max_steps": spec.total_steps,
        "learning_rate": recipe.decay.peak_lr,
        **trainer_schedule(recipe.decay),
        "optim": "adamw_torch",
        "adam_beta1": adam.beta1,
        "adam_beta2": adam.beta2,
        "adam_epsilon": adam.eps,
        "weight_decay": adam.weight_decay,
        "max_grad_norm": adam.max_grad_norm,
        "bf16": spec.precision == "bf16",
        "seed": spec.seed,
    }
    shape: dict[str, Any] = {
        "num_processes": recipe.num_processes,
        "num_nodes": recipe.num_nodes,
        "precision": spec.precision,
    }
    if recipe.target == "deepspeed":
        passes = recipe.batch.grad_accum_steps
        launcher = deepspeed_config(**shape, grad_accum_steps=passes, max_grad_norm=adam.max_grad_norm)
    else:
        launcher = accelerate_config(**shape, settings=fsdp_settings(recipe.layer_class) if recipe.sharded else None)
    return {"llama_factory.yaml": yaml_text(config), "accelerate.yaml": yaml_text(launcher)}


def axolotl_files(recipe: Recipe) -> dict[str, str]:
    """axolotl.yaml."""
    spec, adam = recipe.spec, recipe.spec.optimizer
    schedule = trainer_schedule(recipe.decay)
    config: dict[str, Any] = {
        "base_model": recipe.model,
        "trust_remote_code": spec.model.trust_remote_code,
        "attn_implementation": "sdpa",
        "datasets": [{"path": f"{recipe.here}/data", "split": "train", "type": None}],  # token ids and labels
        "dataset_prepared_path": f"{recipe.here}/prepared",
        "shuffle_merged_datasets": False,
        "curriculum_sampling": True,
        "sequence_len": spec.seq_len + 1,
        "sample_packing": False,
        "pad_to_sequence_len": False,
        "val_set_size": 0.0,
        "output_dir": f"{recipe.here}/output",
        "logging_steps": 1,
        "save_steps": spec.checkpoint_every,
        "save_total_limit": spec.keep_checkpoints,
        "micro_batch_size": recipe.batch.micro_sequences,
        "gradient_accumulation_steps": recipe.batch.grad_accum_steps,
        "num_epochs": 1,
        "max_steps": spec.total_steps,
        "learning_rate": recipe.decay.peak_lr,
        "lr_scheduler": schedule["lr_scheduler_type"],
        "warmup_steps": schedule["warmup_steps"],
        "optimizer": "adamw_torch_fused",
        "adam_beta1": adam.beta1,
        "adam_beta2": adam.beta2,
        "adam_epsilon": adam.eps,
        "weight_decay": adam.weight_decay,
        "max_grad_norm": adam.max_grad_norm,
        "bf16": spec.precision == "bf16",
        "tf32": False,
        "gradient_checkpointing": spec.activation_checkpointing,
        "auto_resume_from_checkpoints": True,
        "seed": spec.seed,
    }
    if "lr_scheduler_kwargs" in schedule:
        config["lr_scheduler_kwargs"] = schedule["lr_scheduler_kwargs"]
    if recipe.sharded:
        settings = fsdp_settings(recipe.layer_class)
        config["fsdp_version"] = settings.pop("fsdp_version")
        config["fsdp_config"] = {key.removeprefix("fsdp_"): value for key, value in settings.items()}
    return {"axolotl.yaml": yaml_text(config)}
