"""Memory: against what autograd really saves, and against sums written out by hand."""

from __future__ import annotations

import pytest

from cptplan.errors import ConfigError, InfeasiblePlanError
from cptplan.price.hardware import find_hardware
from cptplan.price.memory import activation_bytes, estimate_memory, smallest_num_devices
from cptplan.price.model_shape import shape_from_config
from cptplan.run_options import Lora

SIZES = {"hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4, "num_key_value_heads": 2,
         "vocab_size": 40, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
GPT2_SIZES = {"n_embd": 64, "n_head": 4, "n_positions": 128, "vocab_size": 40, "bos_token_id": 0, "eos_token_id": 0,
              "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}  # fmt: skip
LLAMA_3_8B = shape_from_config(
    {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
     "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256}, "8B")  # fmt: skip
N_8B = 8_030_261_248


def saved_bytes(config, *, bf16=False, attention="sdpa", autocast=False, lora_rank=None, tokens=96):
    """Bytes of the distinct tensors, other than weights, that one forward pass saves."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    values = {key: value for key, value in config.items() if key != "model_type"}
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(config["model_type"], **values), attn_implementation=attention
    )
    model = model.to(torch.bfloat16) if bf16 else model
    if lora_rank is not None:
        adapters = pytest.importorskip("executor.adapters", reason="needs peft")
        adapters.apply_lora(model, Lora(rank=lora_rank, alpha=1.0))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor too: a freed address would be used again
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = model(input_ids=torch.zeros((2, tokens), dtype=torch.long), use_cache=False)
    assert output.logits.shape == (2, tokens, 40)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize(
    ("kind", "bf16", "attention", "tolerance"),
    [
        ("llama", False, "sdpa", 0.01),  # 1 %: the scale of each norm, a float32 for each token, is not counted
        ("llama", True, "sdpa", 0.01),
        ("llama", True, "eager", 0.03),  # 3 %: repeated keys and values of the grouped heads
        ("gpt2", False, "sdpa", 0.02),  # 2 %: mean and scale of LayerNorm
        ("gpt2", True, "sdpa", 0.02),
    ],
)
def test_activation_bytes_equal_saved_tensors(kind, bf16, attention, tolerance):
    layers_key, sizes = ("n_layer", GPT2_SIZES) if kind == "gpt2" else ("num_hidden_layers", SIZES)
    configs = [{"model_type": kind, **sizes, layers_key: layers} for layers in (1, 3)]
    one, three = (saved_bytes(config, bf16=bf16, attention=attention) for config in configs)
    per_token = (three - one) / 2 / (2 * 96)
    size = 2 if bf16 else 4
    expected = activation_bytes(
        shape_from_config(configs[0], kind), 96, compute_bytes=size, residual_bytes=size,
        eager_attention=attention == "eager",
    )  # fmt: skip
    assert per_token == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_activation_bytes_equal_saved_tensors_under_autocast(kv_heads):
    sizes = {"model_type": "llama", **SIZES, "num_key_value_heads": kv_heads}
    configs = [{**sizes, "num_hidden_layers": layers} for layers in (1, 3)]
    one, three = (saved_bytes(config, autocast=True) for config in configs)
    shape = shape_from_config(configs[0], "llama")
    copies = 2 * shape.matrix_weights(0)  # bf16 copies of weights, which are counted apart
    per_token = ((three - one) / 2 - copies) / (2 * 96)
    expected = activation_bytes(shape, 96, compute_bytes=2, residual_bytes=4)
    assert per_token == pytest.approx(expected, rel=0.01)  # 1 %: the scale of each norm


@pytest.mark.parametrize("autocast", [False, True])
def test_activations_of_adapters_are_bounded_and_grow_by_their_outputs(autocast):
    configs = [{"model_type": "llama", **SIZES, "num_hidden_layers": layers} for layers in (1, 3)]
    shape = shape_from_config(configs[0], "llama")
    size = 2 if autocast else 4
    kept = {}
    for rank in (4, 8):
        one, three = (saved_bytes(config, autocast=autocast, lora_rank=rank) for config in configs)
        copies = 2 * (shape.matrix_weights(0) + shape.lora_params(rank)) if autocast else 0
        kept[rank] = ((three - one) / 2 - copies) / (2 * 96)
    assert kept[8] - kept[4] == pytest.approx(4 * 7 * size)
    bound = activation_bytes(shape, 96, compute_bytes=size, residual_bytes=4) + 4 * 7 * size
    assert 0.88 * bound < kept[4] < bound  # frozen norms keep less


def test_adapters_need_no_gradients_of_frozen_weights():
    estimate = estimate_memory(LLAMA_3_8B, seq_len=2048, strategy="ddp", lora_rank=16)
    adapters = LLAMA_3_8B.lora_params(16)
    assert estimate.weights_bytes == 4 * (N_8B + adapters)
    assert (estimate.gradients_bytes, estimate.optimizer_bytes) == (4 * adapters, 8 * adapters)
    full, lora = (estimate_memory(LLAMA_3_8B, seq_len=2048, num_devices=8, lora_rank=rank) for rank in (None, 16))
    assert lora.total_bytes < full.total_bytes


def test_hsdp_shards_over_its_group_alone():
    group = estimate_memory(LLAMA_3_8B, seq_len=4096, num_devices=64, shard_devices=8)
    assert group == estimate_memory(LLAMA_3_8B, seq_len=4096, num_devices=8)


@pytest.mark.parametrize("shards", [0, 9])
def test_shard_devices_outside_the_devices_are_refused(shards):
    with pytest.raises(ConfigError, match=r"shard_devices must be in \[1, num_devices\]"):
        estimate_memory(LLAMA_3_8B, seq_len=4096, num_devices=8, shard_devices=shards)


def test_one_device_alone_does_not_shard():
    # 18 bytes a parameter rather than 16 and what FSDP gathers: 1.2B fit into 24 GB, not into less
    small = shape_from_config(
        {"model_type": "llama", **SIZES, "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
         "num_key_value_heads": 8, "intermediate_size": 8192, "tie_word_embeddings": True}, "1B")  # fmt: skip
    room = estimate_memory(small, seq_len=64, strategy="ddp").total_bytes / 24e9
    assert smallest_num_devices(small, find_hardware("rtx4090"), seq_len=64, usable_share=room * 1.001) == 1
    assert smallest_num_devices(small, find_hardware("rtx4090"), seq_len=64, usable_share=room * 0.999) == 2


def test_plain_layer_agrees_with_korthikanti():
    # without dropout and with its norms fused: 34 h less the masks 1 h + 1 h of dropout, plus flash's log-sum-exp
    shape = shape_from_config({"model_type": "gpt_neox", **SIZES, "num_key_value_heads": 4, "num_hidden_layers": 1,
                               "intermediate_size": 256}, "plain")  # fmt: skip
    assert activation_bytes(shape, 128, compute_bytes=2, residual_bytes=2) == 32 * 64 + 4 * 4


def test_ddp_holds_everything_on_each_device():
    estimate = estimate_memory(LLAMA_3_8B, seq_len=4096, num_devices=8, strategy="ddp")
    assert estimate.weights_bytes == 4 * N_8B
    assert estimate.gradients_bytes == 4 * N_8B
    assert estimate.optimizer_bytes == 8 * N_8B
    assert estimate.gathered_bytes == 2 * N_8B
    assert estimate.logits_bytes == 4096 * 128256 * 14


def test_fsdp_shards_state_and_gathers_layers():
    estimate = estimate_memory(LLAMA_3_8B, seq_len=4096, num_devices=16)
    assert estimate.weights_bytes + estimate.gradients_bytes + estimate.optimizer_bytes == N_8B
    tables = 2 * 128256 * 4096 + 4096
    layer = (N_8B - 2 * 128256 * 4096) / 32
    assert estimate.gathered_bytes == pytest.approx(2 * (3 * layer + 2 * tables), rel=1e-12)


def test_fp32_needs_no_copies_and_more_activations():
    full, half = (estimate_memory(LLAMA_3_8B, seq_len=512, strategy="ddp", precision=p) for p in ("fp32", "bf16"))
    assert full.gathered_bytes == 0
    assert full.activations_bytes > half.activations_bytes


def test_checkpointing_keeps_one_layer_and_all_inputs():
    plain = estimate_memory(LLAMA_3_8B, seq_len=1024)
    spared = estimate_memory(LLAMA_3_8B, seq_len=1024, activation_checkpointing=True)
    assert spared.activations_bytes == plain.activations_bytes / 32 + 1024 * 32 * 2 * 4096


def test_micro_batch_scales_activations():
    one = estimate_memory(LLAMA_3_8B, seq_len=1024)
    four = estimate_memory(LLAMA_3_8B, seq_len=1024, micro_batch_tokens=4096)
    assert four.activations_bytes == 4 * one.activations_bytes
    assert four.logits_bytes == 4 * one.logits_bytes


def test_experts_count_only_those_a_token_meets():
    dense = {"model_type": "mixtral", **SIZES, "num_hidden_layers": 2, "num_local_experts": 4}
    two, three = (
        activation_bytes(
            shape_from_config({**dense, "num_experts_per_tok": k}, "m"), 8, compute_bytes=2, residual_bytes=2
        )
        for k in (2, 3)
    )
    assert three - two == 2 * (4 * 176 + 2 * 64)


@pytest.mark.parametrize(
    ("name", "num_devices"),
    [("h100-sxm", 4), ("h200-sxm", 2), ("a100-40gb", 8)],  # 16 bytes a parameter: 128 GB of state for an 8B
)
def test_smallest_num_devices_of_an_8b(name, num_devices):
    hardware = find_hardware(name)
    found = smallest_num_devices(LLAMA_3_8B, hardware, seq_len=2048, activation_checkpointing=True)
    assert found == num_devices
    fits = [
        estimate_memory(LLAMA_3_8B, seq_len=2048, num_devices=n, activation_checkpointing=True).total_bytes
        <= 0.9 * hardware.memory_bytes.value
        for n in (num_devices // 2, num_devices)
    ]
    assert fits == [False, True]


def test_smallest_num_devices_when_none_fits():
    with pytest.raises(InfeasiblePlanError, match=r"must fit into 72 GB of h100-sxm.*with ddp"):
        smallest_num_devices(LLAMA_3_8B, find_hardware("h100-sxm"), seq_len=2048, strategy="ddp")


@pytest.mark.parametrize(
    "wrong", [{"seq_len": 0}, {"micro_batch_tokens": 0}, {"num_devices": 0}, {"lora_rank": 0}], ids=str
)
def test_number_below_one_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        estimate_memory(LLAMA_3_8B, **{"seq_len": 128, **wrong})
