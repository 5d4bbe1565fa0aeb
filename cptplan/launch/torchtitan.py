"""Recipe for torchtitan, whose configurations are Python functions: settings as JSON, and a module that reads them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from cptplan.errors import ConfigError
from cptplan.launch.options import TitanOptions
from cptplan.launch.recipe import FloatArray, Recipe

MODULES = {"llama": "llama3", "qwen3": "qwen3"}
"""torchtitan's name of a family, by the model_type of transformers."""


def titan_rates(recipe: Recipe) -> FloatArray:
    """Rates that torchtitan runs at, shape (total_steps,): ours, but that its warm-up begins at 0.

    It takes the schedule at the end of a step in the warm-up, and at the start of it in the decay; settings.json makes
    up for the latter by a schedule that is one step shorter.
    """
    rates, warmup = recipe.spec.lr(), recipe.decay.warmup_steps
    rates[:warmup] = recipe.decay.peak_lr * np.arange(1, warmup + 1) / max(warmup, 1)
    return rates


def titan_files(recipe: Recipe) -> dict[str, str]:
    """settings.json; the module that reads it is a template.

    Raises:    ConfigError for a family of models that torchtitan has no code for.
    """
    spec, decay, adam = recipe.spec, recipe.decay, recipe.spec.optimizer
    options = recipe.options if isinstance(recipe.options, TitanOptions) else TitanOptions(flavor="")
    module = MODULES.get(recipe.model_type or "")
    if module is None:
        raise ConfigError(
            f"model_type must be one of {', '.join(MODULES)} for target torchtitan; got {recipe.model_type}.",
            hint="take target accelerate, torchrun or llama-factory",
        )
    settings: dict[str, Any] = {
        "model": recipe.model,
        "module": module,
        "flavor": options.flavor,
        "data": f"{recipe.here}/data",
        "dump_folder": f"{recipe.here}/output",
        "seq_len": spec.seq_len,
        "steps": spec.total_steps,
        "global_batch_size": spec.sequences_per_step,
        "local_batch_size": recipe.batch.micro_sequences,
        "max_norm": adam.max_grad_norm,
        "precision": "bfloat16" if spec.precision == "bf16" else "float32",
        "optimizer": {"lr": decay.peak_lr, "betas": [adam.beta1, adam.beta2], "eps": adam.eps},
        "weight_decay": adam.weight_decay,
        "lr_scheduler": {
            "warmup_steps": decay.warmup_steps,
            "total_steps": spec.total_steps - 1,
            "decay_ratio": decay.decay_steps / max(spec.total_steps - 1, 1),
            "decay_type": decay.shape,
            "min_lr_factor": decay.min_ratio,
        },
        "checkpoint_every": spec.checkpoint_every,
        "keep_checkpoints": max(spec.keep_checkpoints, 2),
        "activation_checkpointing": spec.activation_checkpointing,
        "compile": spec.compile,
        "seed": spec.seed,
    }
    return {"settings.json": json.dumps(settings, indent=2) + "\n"}
