"""Costs rise with what is asked for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cptplan.price.cost import price_run, tokens_within
from cptplan.price.hardware import find_hardware
from cptplan.price.memory import estimate_memory
from cptplan.price.model_shape import ModelShape, shape_from_config

HARDWARE = find_hardware("a100-80gb")


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    """Llama shapes of many sizes."""
    kv_heads = draw(st.integers(1, 4))
    config = {
        "model_type": "llama",
        "num_key_value_heads": kv_heads,
        "num_attention_heads": kv_heads * draw(st.integers(1, 4)),
        "head_dim": draw(st.sampled_from([32, 64, 128])),
        "hidden_size": 64 * draw(st.integers(1, 64)),
        "intermediate_size": 64 * draw(st.integers(1, 200)),
        "num_hidden_layers": draw(st.integers(2, 80)),  # one layer alone gains nothing from checkpointing
        "vocab_size": draw(st.integers(100, 200_000)),
    }
    return shape_from_config(config, "drawn")


@given(shape=shapes(), tokens=st.integers(1, 10**12), more=st.integers(1, 10**12), seq_len=st.integers(1, 10**5))
def test_cost_rises_with_tokens(shape, tokens, more, seq_len):
    less, greater = (price_run(shape, count, seq_len, HARDWARE, 8) for count in (tokens, tokens + more))
    assert greater.flops_exact > less.flops_exact
    assert greater.flops_6nd > less.flops_6nd
    assert greater.price_usd > less.price_usd
    assert greater.energy_kwh > less.energy_kwh


@given(shape=shapes(), seq_len=st.integers(1, 10**5), more=st.integers(1, 10**5))
def test_flops_rise_with_sequence_and_recompute(shape, seq_len, more):
    short, long = (price_run(shape, 10**9, length, HARDWARE) for length in (seq_len, seq_len + more))
    assert long.flops_exact > short.flops_exact
    assert price_run(shape, 10**9, seq_len, HARDWARE, recompute=True).flops_exact > short.flops_exact


@given(shape=shapes(), seq_len=st.integers(1, 10**5), devices=st.integers(1, 512))
def test_memory_falls_with_sharding_and_checkpointing(shape, seq_len, devices):
    def total(count, checkpointing):
        return estimate_memory(
            shape, seq_len=seq_len, num_devices=count, strategy="fsdp", activation_checkpointing=checkpointing
        ).total_bytes

    assert total(2 * devices, False) <= total(devices, False)
    assert total(devices, True) <= total(devices, False)


@given(shape=shapes(), seq_len=st.integers(1, 10**5), rank=st.integers(1, 8), more=st.integers(1, 8))
def test_adapters_cost_more_with_their_rank_and_need_less_state_than_all_weights(shape, seq_len, rank, more):
    small, large = (price_run(shape, 10**9, seq_len, HARDWARE, lora_rank=r) for r in (rank, rank + more))
    assert large.flops_exact > small.flops_exact
    assert large.checkpoint_bytes > small.checkpoint_bytes
    full, lora = (estimate_memory(shape, seq_len=seq_len, strategy="ddp", lora_rank=r) for r in (None, rank))
    assert lora.gradients_bytes + lora.optimizer_bytes <= full.gradients_bytes + full.optimizer_bytes


@given(
    shape=shapes(),
    seq_len=st.integers(1, 10**5),
    budget=st.floats(1e-3, 1e9),
    kind=st.sampled_from(["flops", "gpu_hours", "usd", "hours"]),
)
def test_tokens_within_is_the_inverse_of_the_price(shape, seq_len, budget, kind):
    tokens = tokens_within(shape, seq_len, HARDWARE, 8, **{kind: budget})
    cost = price_run(shape, tokens, seq_len, HARDWARE, 8)
    spent = {"flops": cost.flops_exact, "gpu_hours": cost.gpu_hours, "usd": cost.price_usd,
             "hours": cost.wall_seconds / 3600}  # fmt: skip
    assert abs(spent[kind] - budget) <= 1e-9 * budget
