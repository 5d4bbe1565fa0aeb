"""Tiny configurations of the architectures that the executor is tested with."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

ROPE = {"rope_theta": 500000.0, "rope_type": "default"}
ROPE_LLAMA3 = {
    **ROPE,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
ROPE_GEMMA3 = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
}
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts_per_tok": 2, "rope_parameters": ROPE, "tie_word_embeddings": False}
WINDOW = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **SIZES, "rope_parameters": ROPE, "tie_word_embeddings": False},
    "llama3": {"model_type": "llama", **SIZES, "rope_parameters": ROPE_LLAMA3, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **SIZES, "rope_parameters": ROPE, "tie_word_embeddings": True},
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": 64,
        "n_positions": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "gemma2": {"model_type": "gemma2", **SIZES, **WINDOW},
    "gemma3": {"model_type": "gemma3_text", **SIZES, **WINDOW, "rope_parameters": ROPE_GEMMA3},
    "mixtral": {"model_type": "mixtral", **SIZES, **EXPERTS, "num_local_experts": 4},
    "qwen3_moe": {"model_type": "qwen3_moe", **SIZES, **EXPERTS, "num_experts": 4, "moe_intermediate_size": 32},
}


def draw(config: dict[str, Any], *, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A model of a configuration, its weights drawn, a little larger than usual so that its parts matter."""
    values = dict(config)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values), **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()
