"""Recipe for NeMo Automodel: the token shards as Megatron files, mixed by their share of the tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from cptplan.launch.recipe import Decay, FloatArray, Recipe, early_warmup, plain, rates_at_step_start, shard_name
from cptplan.launch.render import yaml_text

SHAPES = {"linear": "linear", "cosine": "cosine", "sqrt": "minus_sqrt"}
NORMS_AND_BIASES = r"(norm|ln_\d|ln_f)[^.]*\.|bias$"
"""Parameters of one dimension, by their names: they are not decayed."""
DATASET = "nemo_automodel.components.datasets.llm.megatron_dataset.MegatronPretraining"
LOADER = {
    "_target_": "torchdata.stateful_dataloader.StatefulDataLoader",
    "collate_fn": "torch.utils.data.default_collate",
}


def megatron_rates(recipe: Recipe) -> FloatArray:
    """Rates that Megatron's scheduler runs at, shape (total_steps,)."""
    return rates_at_step_start(recipe.spec, recipe.decay, recipe.decay.init_lr)


def automodel_files(recipe: Recipe) -> dict[str, str]:
    """automodel.yaml."""
    spec, adam, decay = recipe.spec, recipe.spec.optimizer, recipe.decay
    common = {"_target_": DATASET, "seq_length": spec.seq_len, "index_mapping_dir": f"{recipe.here}/index"}
    dtype = "bfloat16" if spec.precision == "bf16" else "float32"
    config: dict[str, Any] = {
        "recipe": "TrainFinetuneRecipeForNextTokenPrediction",
        "seed": spec.seed,
        "step_scheduler": {
            "global_batch_size": spec.sequences_per_step,
            "local_batch_size": recipe.batch.micro_sequences,
            "max_steps": spec.total_steps,
            "num_epochs": 1,
            "ckpt_every_steps": spec.checkpoint_every,
            "val_every_steps": recipe.eval_every,
        },
        "dist_env": {"backend": "nccl", "timeout_minutes": 30},
        "model": {
            "_target_": "nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained",
            "pretrained_model_name_or_path": recipe.model,
            "trust_remote_code": spec.model.trust_remote_code,
            "torch_dtype": "float32",  # master weights; mp_policy has the precision of the passes
        },
        "distributed": {
            "strategy": "fsdp2",
            "activation_checkpointing": spec.activation_checkpointing,
            "mp_policy": {"_target_": "torch.distributed.fsdp.MixedPrecisionPolicy",
                          "param_dtype": dtype, "reduce_dtype": "float32"},
        },
        "loss_fn": {"_target_": "nemo_automodel.components.loss.masked_ce.MaskedCrossEntropy"},
        "dataset": {**common, "paths": _blend(recipe), "split": "100,0,0", "splits_to_build": "train",
                    "num_train_samples": spec.total_steps * spec.sequences_per_step},
        "dataloader": LOADER,
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": decay.peak_lr, "betas": [adam.beta1, adam.beta2],
                      "eps": adam.eps, "weight_decay": adam.weight_decay,
                      "param_group_overrides": [{"pattern": NORMS_AND_BIASES, "wd_mult": 0.0}]},
        "lr_scheduler": megatron_schedule(decay),
        "clip_grad_norm": {"max_norm": adam.max_grad_norm},
        "checkpoint": {"enabled": True, "checkpoint_dir": f"{recipe.here}/output",
                       "model_save_format": "safetensors", "save_consolidated": True},
    }  # fmt: skip
    for number, chosen in enumerate(spec.validation):
        config[f"validation_dataset_{plain(chosen.name)}"] = {
            **common, "paths": [f"{recipe.here}/data/{shard_name('validation', number, chosen.name)}"],
            "split": "0,100,0", "splits_to_build": "validation",
            "num_val_samples": max(chosen.num_tokens // spec.seq_len, 1),
        }  # fmt: skip
    config["validation_dataloader"] = LOADER
    return {"automodel.yaml": yaml_text(config)}


def megatron_schedule(decay: Decay) -> dict[str, Any]:
    """Megatron's scheduler takes the rate at the start of a step, too; it ends one step earlier therefore."""
    warmup = early_warmup(decay)
    common = {"init_lr": decay.init_lr, "max_lr": decay.peak_lr, "min_lr": decay.min_lr, "lr_warmup_steps": warmup}
    if decay.decay_steps == 0:
        return {**common, "lr_decay_style": "constant", "lr_decay_steps": decay.total_steps}
    wsd = {"wsd_decay_steps": decay.decay_steps, "lr_wsd_decay_style": SHAPES[decay.shape]}
    return {**common, "lr_decay_style": "WSD", "lr_decay_steps": decay.total_steps - 1, **wsd}


def _blend(recipe: Recipe) -> list[str]:
    """Share of the tokens and prefix of every source, one after another."""
    spec, replay = recipe.spec, float(np.mean(recipe.spec.replay_ratios()))
    domains = sum(source.weight for source in spec.sources if source.role == "domain")
    parts: list[str] = []
    for number, source in enumerate(spec.sources):
        share = replay if source.role == "general" else (1.0 - replay) * source.weight / domains
        if share > 0:
            parts += [f"{share:.10g}", f"{recipe.here}/data/{shard_name('train', number, source.name)}"]
    return parts
