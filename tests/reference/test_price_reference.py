"""Prices and memory against figures that others published or that everyone in the field computes by hand."""

from __future__ import annotations

import pytest

from cptplan.price.cost import gpu_hours_6nd, price_run, training_flops
from cptplan.price.hardware import find_hardware
from cptplan.price.memory import estimate_memory
from cptplan.price.model_lookup import shape_of_size
from cptplan.price.model_shape import shape_from_config

GIB = 2**30
LLAMA_3_8B = shape_from_config(
    {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
     "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256}, "8B")  # fmt: skip
LLAMA_32_1B = shape_from_config(
    {"model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
     "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True},
    "1B")  # fmt: skip


def test_8b_on_50b_tokens_at_300_tflops():
    hours = gpu_hours_6nd(8e9, 50e9, 300e12)
    assert round(hours) == 2222
    assert round(hours * 2.0, -1) == 4440  # 4,444 USD at 2 USD an hour
    assert hours * 2.0 == pytest.approx(4444.4, abs=0.1)
    assert hours / 32 == pytest.approx(69.4, abs=0.1)  # hours on 32 devices


def test_70b_on_100b_tokens_at_300_tflops():
    assert gpu_hours_6nd(70e9, 100e9, 300e12) == pytest.approx(38_900, abs=50)  # published with three digits


@pytest.mark.parametrize(("size", "num_params"), [("8B", 8e9), ("70B", 70e9)])
def test_size_alone_is_counted_as_everyone_counts_it(size, num_params):
    shape = shape_of_size(size)
    cost = price_run(shape, 50e9, 4096, find_hardware("h100-sxm"))
    assert shape.total_params == pytest.approx(num_params, rel=1e-3)
    assert cost.flops_6nd == pytest.approx(6 * num_params * 50e9, rel=1e-3)


def test_20_checkpoints_of_70b_weights():
    cost = price_run(shape_of_size("70B"), 1e9, 4096, find_hardware("h100-sxm"), kept_exports=20)
    assert cost.export_bytes == pytest.approx(2.8e12, rel=1e-3)


@pytest.mark.parametrize(
    ("shape", "seq_len", "weights", "attention", "causal_share"),
    [(LLAMA_32_1B, 4096, 7.41e9, 1.61e9, 0.11), (LLAMA_3_8B, 8192, 4.50e10, 1.29e10, 0.14)],
    ids=["llama-3.2-1b", "llama-3-8b"],
)
def test_flops_of_a_training_token(shape, seq_len, weights, attention, causal_share):
    # derived by hand from the published shapes, three digits each: matrices and head, and the full attention square
    full = training_flops(shape, 1, seq_len, causal=False)
    assert full == pytest.approx(weights + attention, rel=3e-3)
    assert training_flops(shape, 1, seq_len) / weights - 1 == pytest.approx(causal_share, abs=0.005)


def saved_by_torchtitan(shape, tokens):
    """Bytes that its selective activation checkpointing keeps beside the inputs of the layers, in bf16.

    Every second matrix product in the order q, k, v, output, gate, up, down, and the output of the attention.
    Source: _get_custom_policy of torchtitan at the commit of its table.
    """
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    widths = queries + keys + queries + shape.intermediate + shape.hidden  # q, v, attention, gate, down
    return shape.num_layers * tokens * 2 * widths


@pytest.mark.parametrize(("num_devices", "measured_gib"), [(8, 82.4), (128, 67.0)])
def test_memory_of_a_full_8b_with_adamw_is_what_torchtitan_measured(num_devices, measured_gib):
    # published: github.com/pytorch/torchtitan, benchmarks/llama3_h100_202412_torchtitan.md, tables 1 and 3: Llama 3.1
    # 8B, FSDP without compile, 2 sequences of 8192 on each device, float32 states, bf16 compute, AdamW
    tokens = 2 * 8192
    estimate = estimate_memory(
        LLAMA_3_8B, seq_len=8192, micro_batch_tokens=tokens, num_devices=num_devices, activation_checkpointing=True
    )
    found = estimate.total_bytes + saved_by_torchtitan(LLAMA_3_8B, tokens)
    assert found / GIB == pytest.approx(measured_gib, rel=0.02)  # asked for within 10 %


def test_memory_under_full_checkpointing_is_near_what_torchtitan_measured():
    # published: the same file, table 2: one sequence of 32768 on each of 8 devices; compiled and in float8, which
    # saves copies of the logits, so ours must be above, and within 10 %
    estimate = estimate_memory(LLAMA_3_8B, seq_len=32768, num_devices=8, activation_checkpointing=True)
    assert 1.0 < estimate.total_bytes / GIB / 83.9 < 1.1


def test_memory_of_one_device_is_near_llama_factorys_rule():
    # published: LLaMA-Factory README, hardware requirement (estimated there): 18 bytes a parameter, bf16 with AdamW
    estimate = estimate_memory(LLAMA_3_8B, seq_len=1024, strategy="ddp", activation_checkpointing=True)
    assert estimate.total_bytes == pytest.approx(18 * LLAMA_3_8B.total_params, rel=0.1)


@pytest.mark.parametrize(
    ("name", "num_devices", "tokens_per_second", "mfu"),
    [("a100-80gb", 8, 4641, 0.642), ("h100-sxm", 8, 10643, 0.464)],
)
def test_hours_of_a_7b_are_those_of_the_published_throughput(name, num_devices, tokens_per_second, mfu):
    # published: llm-foundry, scripts/train/benchmarking: MPT-7B, 2k sequence, tokens per second of each device
    mpt = shape_from_config(
        {"model_type": "gpt2", "n_embd": 4096, "n_layer": 32, "n_head": 32, "n_positions": 2048, "vocab_size": 50368},
        "7B",
    )
    cost = price_run(mpt, 1e9, 2048, find_hardware(name), num_devices)
    assert cost.gpu_hours == pytest.approx(1e9 / tokens_per_second / 3600, rel=0.01)
    assert cost.mfu == pytest.approx(mfu, rel=0.01)
