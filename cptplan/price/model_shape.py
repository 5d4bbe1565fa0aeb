"""The shape of a decoder: what a transformers config.json says of its matrices, without importing transformers.

From the shape follow the number of parameters, the FLOPs of a token (cost.py) and the memory of a run (memory.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cptplan.errors import ConfigError, ModelError, suggest
from cptplan.files import read_json


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """Sizes of a decoder-only language model; the counts are of a model with its head tied as said."""

    model_type: str
    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate: int
    """Width of a dense layer's MLP."""
    vocab_size: int
    tied_embeddings: bool
    gated_mlp: bool
    """Three matrices (gate, up, down) instead of two."""
    fused_inputs: bool = False
    """Queries, keys and values in one matrix (gate and up projection likewise)."""
    num_experts: int = 0
    """Experts of a mixture layer; 0 is a dense model."""
    experts_per_token: int = 0
    expert_intermediate: int = 0
    shared_expert_intermediate: int = 0
    """Width of the expert that all tokens pass through; 0 when there is none."""
    num_dense_layers: int
    """Layers with a plain MLP; the others hold experts."""
    position_embeddings: int = 0
    """Rows of a learned position table (GPT-2)."""
    vectors_per_layer: int
    """Gains and biases of one layer."""
    final_vectors: int
    """Gains and biases after the last layer."""
    sliding_window: int | None = None
    num_sliding_layers: int = 0
    """Layers whose attention sees only the last sliding_window positions."""

    @property
    def attention_weights(self) -> int:
        """Matrix weights of one layer's attention: queries, keys, values, output."""
        return 2 * self.hidden * self.head_dim * (self.num_heads + self.num_kv_heads)

    def mlp_weights(self, width: int) -> int:
        """Matrix weights of an MLP of that width."""
        return (3 if self.gated_mlp else 2) * self.hidden * width

    def expert_weights(self, experts: int) -> int:
        """Matrix weights of a mixture layer that holds (or, for a token, uses) so many experts: with its routers."""
        routers = self.hidden * self.num_experts + (self.hidden if self.shared_expert_intermediate else 0)
        shared = self.mlp_weights(self.shared_expert_intermediate)
        return experts * self.mlp_weights(self.expert_intermediate) + shared + routers

    def matrix_weights(self, experts: int) -> int:
        """Matrix weights of all layers, with so many experts in each mixture layer; embeddings and head excluded."""
        mixtures = (self.num_layers - self.num_dense_layers) * self.expert_weights(experts)
        return (
            self.num_layers * self.attention_weights
            + self.num_dense_layers * self.mlp_weights(self.intermediate)
            + mixtures
        )

    def lora_params(self, rank: int) -> int:
        """Parameters of adapters of that rank on all linear layers: rank x (inputs + outputs) of each matrix.

        The experts and the router of a mixture, which transformers 5 keeps as tensors, have none; a shared expert has.
        """
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        if self.fused_inputs:
            attention = (self.hidden + queries + 2 * keys) + (queries + self.hidden)
        else:
            attention = (self.hidden + queries) + 2 * (self.hidden + keys) + (queries + self.hidden)
        mixtures = self.num_layers - self.num_dense_layers
        shared = self._adapted_mlp(self.shared_expert_intermediate) + self.hidden + 1  # and the gate of the shared one
        return rank * (
            self.num_layers * attention
            + self.num_dense_layers * self._adapted_mlp(self.intermediate)
            + (mixtures * shared if self.shared_expert_intermediate else 0)
        )

    def _adapted_mlp(self, width: int) -> int:
        """Inputs and outputs of the matrices of an MLP of that width, summed."""
        if not self.gated_mlp:
            return 2 * (self.hidden + width)
        into = self.hidden + 2 * width if self.fused_inputs else 2 * (self.hidden + width)
        return into + width + self.hidden

    @property
    def vector_params(self) -> int:
        """Gains and biases of the whole model."""
        return self.num_layers * self.vectors_per_layer + self.final_vectors

    @property
    def embedding_params(self) -> int:
        """Token and position tables, and the head when it is not tied."""
        tables = 1 if self.tied_embeddings else 2
        return (tables * self.vocab_size + self.position_embeddings) * self.hidden

    @property
    def non_embedding_params(self) -> int:
        """num_params as the laws count it: all parameters except token and position tables and the head."""
        return self.matrix_weights(self.num_experts) + self.vector_params

    @property
    def total_params(self) -> int:
        """All parameters, tied tables once."""
        return self.non_embedding_params + self.embedding_params

    @property
    def active_params(self) -> int:
        """Parameters that one token uses: all of them, less the experts it is not sent to."""
        unused = self.matrix_weights(self.num_experts) - self.matrix_weights(self.experts_per_token)
        return self.total_params - unused


@dataclass(frozen=True, kw_only=True, slots=True)
class _Family:
    """What a model_type fixes and its config.json does not say."""

    layer_class: str
    norms: int = 2
    """Norm gains of one layer, in units of hidden."""
    qk_norm: str | None = None
    """Norms of queries and keys: over one head, over the full width, or none."""
    qkv_bias: bool = False
    head_dim: int | None = None
    """Default when the config has none; None is hidden / num_heads."""
    tied: bool = False
    gated: bool = True
    fused: bool = False
    layer_norm: bool = False
    """LayerNorm (gain and bias) and biases on all matrices, instead of RMSNorm and none."""


FAMILIES: Mapping[str, _Family] = {
    "llama": _Family(layer_class="LlamaDecoderLayer"),
    "mistral": _Family(layer_class="MistralDecoderLayer"),
    "mixtral": _Family(layer_class="MixtralDecoderLayer"),
    "qwen2": _Family(layer_class="Qwen2DecoderLayer", qkv_bias=True),
    "qwen2_moe": _Family(layer_class="Qwen2MoeDecoderLayer", qkv_bias=True),
    "qwen3": _Family(layer_class="Qwen3DecoderLayer", qk_norm="head", head_dim=128),
    "qwen3_moe": _Family(layer_class="Qwen3MoeDecoderLayer", qk_norm="head"),
    "gemma": _Family(layer_class="GemmaDecoderLayer", head_dim=256, tied=True),
    "gemma2": _Family(layer_class="Gemma2DecoderLayer", norms=4, head_dim=256, tied=True),
    "gemma3_text": _Family(layer_class="Gemma3DecoderLayer", norms=4, qk_norm="head", head_dim=256, tied=True),
    "gpt2": _Family(layer_class="GPT2Block", tied=True, gated=False, fused=True, layer_norm=True),
    "gpt_neox": _Family(layer_class="GPTNeoXLayer", gated=False, fused=True, layer_norm=True),
    "olmo2": _Family(layer_class="Olmo2DecoderLayer", qk_norm="full"),
    "phi3": _Family(layer_class="Phi3DecoderLayer", fused=True),
    "smollm3": _Family(layer_class="SmolLM3DecoderLayer", tied=True),
}
"""Known model types: read from the layer definitions of transformers 5.23; a test compares the counts with them."""

GPT2_KEYS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
}


def read_model_shape(directory: Path) -> ModelShape:
    """The shape of a model directory.

    Raises:    ModelError if config.json is missing, of an unknown kind, or lacks a size.
    """
    path = directory / "config.json"
    try:
        config = read_json(path)
    except ConfigError as error:
        raise ModelError(error.message, hint="model.path must be a directory with config.json") from error
    if not isinstance(config, dict):
        raise ModelError(f"config.json must be an object; got {type(config).__name__} in {path}.")
    return shape_from_config(config, str(path))


def shape_from_config(config: Mapping[str, Any], where: str) -> ModelShape:
    """The shape that a transformers configuration describes.

    Args:      config: the decoded config.json. where: file or field it came from, for the message.
    Raises:    ModelError for an unknown model_type, or a size that is missing or not a positive whole number.
    """
    model_type = str(config.get("model_type"))
    if model_type not in FAMILIES:
        hint = (
            suggest(model_type, FAMILIES) or f"known: {', '.join(FAMILIES)}; a multimodal model has it in text_config"
        )
        raise ModelError(f"model_type must be known; got {config.get('model_type')!r} in {where}.", hint=hint)
    family = FAMILIES[model_type]
    sizes = _Sizes(config=config, gpt2=model_type == "gpt2", where=where)
    hidden, num_heads, num_layers = (
        sizes.need("hidden_size"),
        sizes.need("num_attention_heads"),
        sizes.need("num_hidden_layers"),
    )
    num_kv_heads = sizes.get("num_key_value_heads") or num_heads
    head_dim = sizes.get("head_dim") or family.head_dim or hidden // num_heads
    intermediate = (
        sizes.get("intermediate_size") or 4 * hidden if model_type == "gpt2" else sizes.need("intermediate_size")
    )
    num_sliding = _num_sliding_layers(config, model_type, num_layers)
    return ModelShape(
        model_type=model_type,
        num_layers=num_layers,
        hidden=hidden,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate=intermediate,
        vocab_size=sizes.need("vocab_size"),
        tied_embeddings=bool(config.get("tie_word_embeddings", family.tied)),
        gated_mlp=family.gated,
        fused_inputs=family.fused,
        **_experts(sizes, model_type, num_layers),
        position_embeddings=sizes.need("max_position_embeddings") if model_type == "gpt2" else 0,
        vectors_per_layer=_vectors_per_layer(
            config, family, hidden, num_heads * head_dim, num_kv_heads * head_dim, head_dim, intermediate
        ),
        final_vectors=(2 if family.layer_norm else 1) * hidden,
        sliding_window=sizes.get("sliding_window") if num_sliding else None,
        num_sliding_layers=num_sliding,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sizes:
    """Whole numbers of a configuration, checked when asked for."""

    config: Mapping[str, Any]
    gpt2: bool
    where: str

    def get(self, key: str) -> int | None:
        key = GPT2_KEYS.get(key, key) if self.gpt2 else key
        value = self.config.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ModelError(
                f"{key} must be a whole number >= 0; got {value!r} in {self.where}.", hint="mend config.json"
            )
        return value

    def need(self, key: str) -> int:
        value = self.get(key)
        if not value:
            name = GPT2_KEYS.get(key, key) if self.gpt2 else key
            raise ModelError(
                f"{name} must be given and positive; got {value} in {self.where}.", hint="complete config.json"
            )
        return value


def _experts(sizes: _Sizes, model_type: str, num_layers: int) -> dict[str, int]:
    """The mixture-of-experts fields of the shape."""
    if model_type not in ("mixtral", "qwen2_moe", "qwen3_moe"):
        return {"num_dense_layers": num_layers}
    if model_type == "mixtral":
        num_experts, width, dense = sizes.need("num_local_experts"), sizes.need("intermediate_size"), 0
    else:
        num_experts, width = sizes.need("num_experts"), sizes.need("moe_intermediate_size")
        plain, every = sizes.config.get("mlp_only_layers") or (), sizes.get("decoder_sparse_step") or 1
        dense = sum(layer in plain or (layer + 1) % every != 0 for layer in range(num_layers))
    return {
        "num_experts": num_experts,
        "experts_per_token": sizes.need("num_experts_per_tok"),
        "expert_intermediate": width,
        "shared_expert_intermediate": sizes.get("shared_expert_intermediate_size") or 0,
        "num_dense_layers": dense,
    }


def _vectors_per_layer(
    config: Mapping[str, Any], family: _Family, hidden: int, queries: int, keys: int, head_dim: int, intermediate: int
) -> int:
    """Gains and biases of one layer: norms, norms of queries and keys, biases of attention and MLP."""
    if family.layer_norm:
        attention = queries + 2 * keys + hidden if config.get("attention_bias", True) else 0
        return 2 * family.norms * hidden + attention + intermediate + hidden
    gains = family.norms * hidden + {"head": 2 * head_dim, "full": queries + keys, None: 0}[family.qk_norm]
    all_biases = bool(config.get("attention_bias", False))
    attention = queries + 2 * keys if all_biases or config.get("qkv_bias", family.qkv_bias) else 0
    output = hidden if all_biases else 0
    mlp = 2 * intermediate + hidden if config.get("mlp_bias", False) else 0
    return gains + attention + output + mlp


def _num_sliding_layers(config: Mapping[str, Any], model_type: str, num_layers: int) -> int:
    """Layers with windowed attention, by the rules of each family's configuration."""
    if config.get("sliding_window") is None or not config.get("use_sliding_window", not model_type.startswith("qwen")):
        return 0
    kinds = config.get("layer_types")
    if kinds is not None:
        return sum(kind == "sliding_attention" for kind in kinds)
    if model_type == "gemma2":
        return (num_layers + 1) // 2
    if model_type == "gemma3_text":
        return num_layers - num_layers // int(config.get("sliding_window_pattern", 6))
    if model_type.startswith("qwen2"):
        return max(0, num_layers - int(config.get("max_window_layers", 28)))
    return num_layers
