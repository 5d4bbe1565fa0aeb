"""FLOPs: against published shapes, and against sums written out by hand."""

from __future__ import annotations

import pytest

from cptplan.price.flops import attention_span, forward_flops, training_flops, training_flops_6nd
from cptplan.price.model_shape import shape_from_config

LLAMA_3_8B = shape_from_config(
    {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
     "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256}, "8B")  # fmt: skip
LLAMA_32_1B = shape_from_config(
    {"model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
     "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True},
    "1B")  # fmt: skip
MIXTRAL = shape_from_config(
    {"model_type": "mixtral", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
     "num_key_value_heads": 1, "intermediate_size": 10, "vocab_size": 6, "num_local_experts": 4,
     "num_experts_per_tok": 2}, "moe")  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "seq_len", "weights", "attention"),
    [(LLAMA_32_1B, 4096, 7.41e9, 1.61e9), (LLAMA_3_8B, 8192, 4.50e10, 1.29e10)],
    ids=["llama-3.2-1b", "llama-3-8b"],
)
def test_training_flops_per_token_match_the_published_shapes(shape, seq_len, weights, attention):
    full = training_flops(shape, 1, seq_len, causal=False)
    square = 3 * 4 * shape.num_layers * shape.num_heads * shape.head_dim * seq_len
    # 0.3 %: the references have three digits
    assert full - square == pytest.approx(weights, rel=3e-3)
    assert square == pytest.approx(attention, rel=3e-3)
    assert training_flops_6nd(shape, 1) == pytest.approx(
        full - square, rel=1e-3
    )  # norms are in N, not in the exact sum
    causal = training_flops(shape, 1, seq_len)
    assert causal - (full - square) == pytest.approx(square * (seq_len + 1) / (2 * seq_len), rel=1e-12)


def test_forward_flops_of_experts_by_hand():
    # hidden 8, 2 heads of 4, 1 key/value head: queries 8x8, keys and values 8x4 each, output 8x8; router 8x4;
    # 2 of 4 experts of 3 matrices 8x10; head 8x6; attention over 5 positions, full square
    matrices = 64 + 32 + 32 + 64 + 32 + 2 * 3 * 80 + 48
    assert forward_flops(MIXTRAL, 5, causal=False) == 2 * matrices + 4 * 5 * 8


@pytest.mark.parametrize("window", [None, 1, 3, 7, 20])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_span_equals_the_sum(window, causal):
    seq_len = 7
    width = window or seq_len
    direct = [min(i, width) if causal else min(seq_len, width) for i in range(1, seq_len + 1)]
    assert attention_span(seq_len, causal=causal, window=window) == pytest.approx(sum(direct) / seq_len, rel=1e-14)


def test_sliding_layers_cost_less():
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64,
             "vocab_size": 10}  # fmt: skip
    windowed = shape_from_config({"model_type": "mistral", **sizes, "sliding_window": 16}, "w")
    full = shape_from_config({"model_type": "mistral", **sizes}, "f")
    spans = attention_span(256) - attention_span(256, window=16)
    assert forward_flops(full, 256) - forward_flops(windowed, 256) == pytest.approx(4 * 4 * 64 * spans, rel=1e-12)


def test_recompute_adds_the_layers_once():
    straight = training_flops(LLAMA_3_8B, 10, 512)
    head = 2 * 4096 * 128256
    again = 10 * (forward_flops(LLAMA_3_8B, 512) - head)
    assert training_flops(LLAMA_3_8B, 10, 512, recompute=True) == pytest.approx(straight + again, rel=1e-12)


def test_lora_spares_the_gradients_of_frozen_weights_only():
    # by hand: 1 layer, hidden 8, 2 heads of 4, 1 key/value head, MLP 10, vocabulary 6, 5 positions, full square
    shape = shape_from_config(
        {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1, "intermediate_size": 10, "vocab_size": 6}, "tiny")  # fmt: skip
    matrices, square, head = 2 * (64 + 32 + 32 + 64 + 3 * 80), 4 * 5 * 8, 2 * 48
    adapters = 2 * 3 * ((8 + 8) + 2 * (8 + 4) + (8 + 8) + 3 * (8 + 10))
    spared = training_flops(shape, 1, 5, causal=False, lora_rank=3)
    assert spared == 2 * (matrices + head) + 3 * square + 3 * adapters
    again = training_flops(shape, 1, 5, causal=False, lora_rank=3, recompute=True) - spared
    assert again == matrices + square + adapters
