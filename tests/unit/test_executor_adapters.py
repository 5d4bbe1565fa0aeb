"""Adapters put into models, merged and exported, against peft's own wrapper and merge."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from cptplan.errors import ConfigError
from cptplan.run_options import Lora
from executor import adapters
from executor.export import export_model
from executor.model import tied_names

COMMON = {"vocab_size": 32, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
SMALL = {
    **COMMON,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 32,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MODELS = {
    "llama": ("llama", {**SMALL, "tie_word_embeddings": True}),
    "untied": ("llama", {**SMALL, "tie_word_embeddings": False}),
    "gpt2": ("gpt2", {**COMMON, "n_embd": 16, "n_layer": 2, "n_head": 2}),
    "qwen3": ("qwen3", SMALL),
    "gemma": ("gemma3_text", SMALL),
    "experts": ("qwen3_moe", {**SMALL, **EXPERTS}),
    "mixtral": ("mixtral", {**SMALL, "num_local_experts": 4}),
}
ATTENTION_OF_2 = 8  # query, key, value, output of 2 layers
# Llama's layers have 3 linear layers in the MLP; GPT-2 has 4 in all; experts and their routers are no linear layers
ADAPTED = {"llama": 14, "untied": 14, "gpt2": 8, "qwen3": 14, "gemma": 14, "experts": 8, "mixtral": 8}
IDS = torch.randint(32, (4, 12), generator=torch.Generator().manual_seed(0))


def build(name, **changes):
    kind, values = MODELS[name]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**values, **changes}))


def train(model, steps=5):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    model.train()
    losses = []
    for _ in range(steps):
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS).logits


def adapted(name, **settings):
    model = adapters.apply_lora(build(name), Lora(**{"rank": 4, "alpha": 12.0, **settings}))
    train(model)
    return model


def once(model):
    """Each weight under one name, as the trainer exports them."""
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied_names(model)}


@pytest.mark.parametrize("name", MODELS)
def test_apply_lora_trains_adapters_of_all_linear_layers_only(name):
    plain, model = build(name), build(name)
    assert adapters.apply_lora(model, Lora(rank=4, alpha=12.0)) is model
    torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=0)
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * ADAPTED[name]
    assert all(".lora_A.default.weight" in key or ".lora_B.default.weight" in key for key in trained)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    losses = train(model)
    assert losses[-1] < losses[0]
    moved = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert moved == trained


@pytest.mark.parametrize("name", MODELS)
def test_merged_state_in_a_model_directory_computes_what_the_adapted_model_does(name, tmp_path):
    model = adapted(name)
    export_model(tmp_path / "merged", model, adapters.merged_state(model, once(model)), None)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    # 1e-5: the same products in another order, fp32
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-5)
    assert (logits(build(name)) - logits(model)).abs().max() > 0.01


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["llama", "untied", "gpt2", "experts"])
def test_merged_state_is_what_peft_merges(name):
    model = adapted(name)
    merged = adapters.merged_state(model, model.state_dict())
    names = list(adapters._adapted_layers(model))
    settings = {"r": 4, "lora_alpha": 12.0, "target_modules": names, "fan_in_fan_out": name == "gpt2"}
    its = get_peft_model(build(name), LoraConfig(task_type="CAUSAL_LM", **settings))
    its.load_state_dict({f"base_model.model.{key}": tensor for key, tensor in model.state_dict().items()})
    expected = its.merge_and_unload().state_dict()
    assert merged.keys() == expected.keys() == build(name).state_dict().keys()
    for key, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=1e-6)


def test_merged_state_keeps_the_single_name_of_a_tied_weight():
    model = adapted("llama")
    assert adapters.merged_state(model, once(model)).keys() == build("llama").state_dict().keys() - {"lm_head.weight"}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["llama", "gpt2", "experts", "mixtral"])
def test_exported_adapter_loads_with_peft(name, tmp_path):
    model = adapted(name)
    adapters.export_adapter(tmp_path / "adapter", model, once(model))
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    its = PeftModel.from_pretrained(build(name), tmp_path / "adapter")
    torch.testing.assert_close(logits(its), logits(model), rtol=0, atol=0)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["inference_mode"]) == (4, 12.0, True)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["llama", "gpt2", "experts"])
def test_activation_checkpointing_does_not_change_the_training(name):
    losses = {}
    for recompute in (False, True):
        model = build(name)
        if recompute:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(1)
        adapters.apply_lora(model, Lora(rank=4, alpha=12.0, dropout=0.2))
        losses[recompute] = train(model)
    assert losses[True] == pytest.approx(losses[False], abs=1e-6)
    assert losses[True][-1] < losses[True][0]


def test_dropout_of_adapters_acts_in_training_only():
    model = adapted("llama", dropout=0.5)
    torch.testing.assert_close(logits(model), logits(model), rtol=0, atol=0)
    model.train()
    first, second = (model(input_ids=IDS).logits for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("seeds", "same"), [((7, 7), True), ((7, 8), False)])
def test_initialisation_follows_torchs_seed(seeds, same):
    drawn = []
    for seed in seeds:
        model = build("llama")
        torch.manual_seed(seed)
        adapters.apply_lora(model, Lora(rank=4, alpha=12.0))
        drawn.append(model.state_dict()["model.layers.0.self_attn.q_proj.lora_A.default.weight"])
    assert torch.equal(*drawn) is same


@pytest.mark.parametrize(
    ("name", "targets", "expected"),
    [
        ("llama", ("q_proj", "v_proj"), 4),
        ("llama", ("layers.1.self_attn.q_proj", "q_proj"), 2),
        ("gpt2", ("c_attn",), 2),
        ("gpt2", ("attn.c_proj",), 2),
        ("untied", ("lm_head",), 1),
    ],
)
def test_targets_are_ends_of_names(name, targets, expected):
    model = adapted(name, targets=targets)
    layers = adapters._adapted_layers(model)
    assert len(layers) == expected
    assert all(f".{layer}".endswith(tuple(f".{target}" for target in targets)) for layer in layers)


@pytest.mark.parametrize(
    ("name", "targets", "message", "hint"),
    [
        ("llama", ("q_proj", "v_pro"), "must name linear layers; got 'v_pro'.", "did you mean 'v_proj'?"),
        ("llama", ("h",), "got 'h'.", "the model has down_proj, gate_proj, k_proj, "),
        ("gpt2", ("q_proj",), "got 'q_proj'.", "did you mean 'c_proj'?"),
        ("llama", ("embed_tokens",), "got 'embed_tokens', which is Embedding.", "the model has"),
        ("llama", ("all-linear", "q_proj"), "got 'all-linear'.", "the model has"),
        ("experts", ("experts",), "got 'experts', which is Qwen3MoeExperts.", "the model has k_proj, lm_head, o_proj"),
        ("llama", ("q_proj", "lm_head"), "tied to the embedding; got q_proj, lm_head.", "drop it"),
    ],
)
def test_targets_that_are_no_linear_layer_are_refused(name, targets, message, hint):
    with pytest.raises(ConfigError) as caught:
        adapters.apply_lora(build(name), Lora(rank=4, alpha=12.0, targets=targets))
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("targets", [("all-linear",), ("gate_proj",)])
def test_layers_that_peft_takes_for_experts_are_refused(targets):
    # the first layer has no experts; peft adapts the experts of the second in its place
    model = build("experts", mlp_only_layers=[0])
    with pytest.raises(ConfigError, match=r"layers that peft adapts in a qwen3_moe; got model\.layers\.0\.mlp\."):
        adapters.apply_lora(model, Lora(rank=4, alpha=12.0, targets=targets))


def test_applying_is_silent():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for name in MODELS:
            copy.deepcopy(adapters.apply_lora(build(name), Lora(rank=4, alpha=12.0)))
    assert not said
