"""Parameter counts of shapes: against real models built by transformers, and against published totals."""

from __future__ import annotations

import json

import pytest

from cptplan.errors import ModelError
from cptplan.price.model_shape import FAMILIES, read_model_shape, shape_from_config
from cptplan.run_options import Lora

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
TINY_GPT2 = {
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "vocab_size": 96,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CONFIGS = [
    {"model_type": "llama", **TINY},
    {"model_type": "llama", **TINY, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    {"model_type": "llama", **TINY, "head_dim": 16},
    {"model_type": "mistral", **TINY},
    {"model_type": "mixtral", **TINY, "num_local_experts": 4, "num_experts_per_tok": 2},
    {"model_type": "qwen2", **TINY},
    {"model_type": "qwen2_moe", **TINY, **EXPERTS, "shared_expert_intermediate_size": 40, "mlp_only_layers": [1]},
    {"model_type": "qwen3", **TINY, "tie_word_embeddings": True},
    {"model_type": "qwen3", **TINY, "head_dim": 8, "attention_bias": True},
    {"model_type": "qwen3_moe", **TINY, **EXPERTS, "decoder_sparse_step": 2},
    {"model_type": "gemma", **TINY},
    {"model_type": "gemma2", **TINY, "head_dim": 8},
    {"model_type": "gemma3_text", **TINY, "head_dim": 8},
    {"model_type": "gpt2", **TINY_GPT2},
    {"model_type": "gpt2", **TINY_GPT2, "n_inner": 100},
    {"model_type": "gpt_neox", **TINY, "num_key_value_heads": 4},  # it has no grouped heads
    {"model_type": "olmo2", **TINY},
    {"model_type": "phi3", **TINY},
    {"model_type": "smollm3", **TINY},
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c['model_type']}-{len(c)}")
def test_params_equal_real_model(config):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    values = {key: value for key, value in config.items() if key != "model_type"}
    real_config = transformers.AutoConfig.for_model(config["model_type"], **values)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(real_config)
    shape = shape_from_config(config, "test")
    tables = {"embed_tokens", "embed_in", "wte", "wpe"}
    inside = {name: p.numel() for name, p in model.named_parameters() if not tables & set(name.split("."))}
    head = sum(count for name, count in inside.items() if name.startswith(("lm_head", "embed_out")))
    assert shape.total_params == sum(p.numel() for p in model.parameters())
    assert shape.non_embedding_params == sum(inside.values()) - head
    assert model._no_split_modules is not None
    assert FAMILIES[config["model_type"]].layer_class in model._no_split_modules


@pytest.mark.parametrize(
    "config", [c for c in CONFIGS if c["model_type"] != "qwen3_moe"], ids=lambda config: config["model_type"]
)
def test_adapters_have_as_many_parameters_as_peft_makes(config):
    # not qwen3_moe: peft takes the dense layer's MLP in it for experts, and the trainer refuses it
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    adapters = pytest.importorskip("executor.adapters", reason="needs peft")
    values = {key: value for key, value in config.items() if key != "model_type"}
    real_config = transformers.AutoConfig.for_model(config["model_type"], **values)
    model = transformers.AutoModelForCausalLM.from_config(real_config)
    adapters.apply_lora(model, Lora(rank=3, alpha=1.0))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert shape_from_config(config, "test").lora_params(3) == trained


def test_every_family_is_compared():
    assert {config["model_type"] for config in CONFIGS} == set(FAMILIES)


LLAMA_3_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}
LLAMA_32_1B = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
MIXTRAL_8X7B = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 32000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": None,
}
QWEN3_30B_A3B = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151936,
}
GPT2_SMALL = {
    "model_type": "gpt2",
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
}


@pytest.mark.parametrize(
    ("config", "total"),
    [
        (LLAMA_3_8B, 8_030_261_248),  # published: size in the model's safetensors index
        (LLAMA_32_1B, 1_235_814_400),  # published likewise
        (GPT2_SMALL, 124_439_808),  # published: the checkpoint without attention masks
        (MIXTRAL_8X7B, 46_702_792_704),  # published: 46.7B
    ],
    ids=["llama-3-8b", "llama-3.2-1b", "gpt2", "mixtral-8x7b"],
)
def test_params_equal_published_totals(config, total):
    assert shape_from_config(config, "test").total_params == total


def test_active_params_of_mixtures_match_their_names():
    assert shape_from_config(MIXTRAL_8X7B, "t").active_params == pytest.approx(12.9e9, rel=0.005)  # arXiv:2401.04088
    qwen = shape_from_config(QWEN3_30B_A3B, "t")
    assert qwen.total_params == pytest.approx(30.5e9, rel=0.005)  # arXiv:2505.09388, table 2: 30B total, 3B active
    assert qwen.active_params == pytest.approx(3.3e9, rel=0.02)


@pytest.mark.parametrize(
    ("config", "layers", "window"),
    [
        ({"model_type": "mistral", **TINY, "sliding_window": 16}, 3, 16),
        ({"model_type": "qwen2", **TINY, "sliding_window": 16}, 0, None),  # off unless use_sliding_window
        (
            {"model_type": "qwen2", **TINY, "sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1},
            2,
            16,
        ),
        ({"model_type": "gemma2", **TINY, "sliding_window": 16}, 2, 16),
        ({"model_type": "gemma3_text", **TINY, "num_hidden_layers": 12, "sliding_window": 16}, 10, 16),
        ({"model_type": "llama", **TINY}, 0, None),
    ],
)
def test_sliding_layers_follow_the_family(config, layers, window):
    shape = shape_from_config(config, "test")
    assert (shape.num_sliding_layers, shape.sliding_window) == (layers, window)
    transformers = pytest.importorskip("transformers")
    values = {key: value for key, value in config.items() if key != "model_type"}
    kinds = getattr(transformers.AutoConfig.for_model(config["model_type"], **values), "layer_types", None)
    if kinds is not None:
        assert sum(kind == "sliding_attention" for kind in kinds) == layers


def test_model_type_unknown_names_the_closest():
    with pytest.raises(ModelError, match=r"model_type must be known; got 'lama' in here.*did you mean 'llama'"):
        shape_from_config({"model_type": "lama", **TINY}, "here")


@pytest.mark.parametrize(
    ("key", "value"), [("hidden_size", None), ("vocab_size", 0), ("num_hidden_layers", "3"), ("hidden_size", -1)]
)
def test_size_missing_or_wrong_is_named(key, value):
    with pytest.raises(ModelError, match=key):
        shape_from_config({"model_type": "llama", **TINY, key: value}, "config.json")


def test_directory_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_32_1B))
    assert read_model_shape(tmp_path) == shape_from_config(LLAMA_32_1B, "x")


@pytest.mark.parametrize("text", [None, "[]", "{"])
def test_directory_without_a_good_config_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        read_model_shape(tmp_path)
