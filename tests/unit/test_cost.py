"""Costs: against published FLOPs and throughputs, and against sums written out by hand."""

from __future__ import annotations

from dataclasses import fields

import pytest

from cptplan.errors import ConfigError
from cptplan.price.cost import (
    TrainingCost,
    forward_flops,
    measured_mfu,
    price_run,
    tokens_within,
    training_flops,
)
from cptplan.price.hardware import Provenance, find_hardware
from cptplan.price.model_shape import shape_from_config

LLAMA_3_8B = shape_from_config(
    {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
     "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256}, "8B")  # fmt: skip
LLAMA_32_1B = shape_from_config(
    {"model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
     "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True},
    "1B")  # fmt: skip
# MPT-7B of the llm-foundry table: a GPT-2 shape without position table
MPT_7B = shape_from_config(
    {"model_type": "gpt2", "n_embd": 4096, "n_layer": 32, "n_head": 32, "n_positions": 2048, "vocab_size": 50368},
    "7B")  # fmt: skip
MIXTRAL = shape_from_config(
    {"model_type": "mixtral", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
     "num_key_value_heads": 1, "intermediate_size": 10, "vocab_size": 6, "num_local_experts": 4,
     "num_experts_per_tok": 2}, "moe")  # fmt: skip
H100 = find_hardware("h100-sxm")


@pytest.mark.parametrize(
    ("name", "tokens_per_second", "mfu"),
    [("a100-80gb", 4641, 0.642), ("h100-sxm", 10643, 0.464)],  # llm-foundry, 7B, 2k sequence, for each device
)
def test_measured_mfu_matches_published_throughput(name, tokens_per_second, mfu):
    # 0.5 %: they count embeddings of a slightly different size, and round to three digits
    assert measured_mfu(MPT_7B, 2048, tokens_per_second, find_hardware(name)) == pytest.approx(mfu, rel=5e-3)


def test_price_run_reproduces_published_throughput():
    cost = price_run(MPT_7B, 1e9, 2048, H100, 8)
    assert cost.tokens_per_second == pytest.approx(8 * 10643, rel=0.01)  # 1 %: 6.65B lies just below the 6.7B row
    assert cost.gpu_hours == pytest.approx(1e9 / 10643 / 3600, rel=0.01)
    assert cost.wall_seconds == pytest.approx(cost.gpu_hours * 3600 / 8, rel=1e-12)
    assert cost.price_usd == pytest.approx(cost.gpu_hours * 6.88, rel=1e-12)
    assert cost.energy_kwh == pytest.approx(cost.gpu_hours * 0.7 * 1.2, rel=1e-12)
    assert cost.provenance["gpu_hours"].basis == "published"
    assert cost.provenance["price_usd"].basis == "published"
    assert cost.provenance["energy_kwh"].basis == "assumed"


def test_eval_tokens_cost_one_forward():
    extra = training_flops(LLAMA_32_1B, 10, 512, eval_tokens=7) - training_flops(LLAMA_32_1B, 10, 512)
    assert extra == pytest.approx(7 * forward_flops(LLAMA_32_1B, 512), rel=1e-9)
    with_eval = price_run(LLAMA_32_1B, 9e6, 512, H100, eval_tokens=3e6)
    without = price_run(LLAMA_32_1B, 9e6, 512, H100)
    assert with_eval.gpu_hours / without.gpu_hours == pytest.approx(10 / 9, rel=1e-12)


def test_measured_speed_wins():
    cost = price_run(LLAMA_32_1B, 1e6, 128, find_hardware("cpu"), mfu=0.9, measured_tokens_per_second=500.0)
    assert cost.wall_seconds == 2000.0
    assert cost.price_usd is None
    assert cost.provenance["wall_seconds"].basis == "measured"
    assert cost.mfu == pytest.approx(measured_mfu(LLAMA_32_1B, 128, 500.0, find_hardware("cpu")), rel=1e-12)


def test_given_price_and_intensity_are_used():
    cost = price_run(LLAMA_32_1B, 1e9, 2048, H100, mfu=0.4, usd_per_gpu_hour=2.0, co2_kg_per_kwh=0.25)
    assert cost.price_usd == pytest.approx(2.0 * cost.gpu_hours, rel=1e-12)
    assert cost.co2_kg == pytest.approx(0.25 * cost.energy_kwh, rel=1e-12)
    assert cost.mfu == pytest.approx(0.4, rel=1e-12)
    assert cost.provenance["price_usd"].basis == "assumed"


def test_storage_counts_state_and_exports():
    cost = price_run(LLAMA_32_1B, 1e9, 2048, H100, kept_checkpoints=3, kept_exports=5)
    assert cost.checkpoint_bytes == 1_235_814_400 * 3 * 12
    assert cost.export_bytes == 1_235_814_400 * 5 * 2


def test_storage_of_adapters_keeps_the_frozen_weights_and_merged_exports():
    cost = price_run(LLAMA_32_1B, 1e9, 2048, H100, lora_rank=16, kept_checkpoints=1, kept_exports=1)
    assert cost.checkpoint_bytes == 4 * 1_235_814_400 + 12 * LLAMA_32_1B.lora_params(16)
    assert cost.export_bytes == 2 * 1_235_814_400


def test_lora_takes_two_thirds_of_the_time_and_little_more():
    full, lora = (price_run(LLAMA_3_8B, 1e9, 2048, H100, mfu=0.4, lora_rank=rank) for rank in (None, 16))
    assert lora.mfu == pytest.approx(0.4, rel=1e-12)
    assert 2 / 3 < lora.gpu_hours / full.gpu_hours < 0.7


def test_synthetic_replay_costs_a_forward_at_the_speed_of_generation():
    without = price_run(LLAMA_32_1B, 1e9, 2048, H100, 4)
    cost = price_run(LLAMA_32_1B, 1e9, 2048, H100, 4, synthetic_tokens=1e8)
    assert cost.flops_exact - without.flops_exact == pytest.approx(1e8 * forward_flops(LLAMA_32_1B, 2048), rel=1e-9)
    hours = 1e8 * forward_flops(LLAMA_32_1B, 2048, causal=False) / (989e12 * 0.05) / 3600
    assert cost.generation_gpu_hours == pytest.approx(hours, rel=1e-12)
    assert cost.gpu_hours - without.gpu_hours == pytest.approx(hours, rel=1e-9)
    assert cost.provenance["gpu_hours"].basis == "assumed"


def test_speed_of_another_source_is_said():
    scaled = Provenance(basis="assumed", source="half of it")
    cost = price_run(LLAMA_32_1B, 1e9, 2048, H100, measured_tokens_per_second=10.0, speed_source=scaled)
    assert cost.provenance["gpu_hours"] == scaled


def test_every_figure_has_provenance():
    cost = price_run(LLAMA_3_8B, 1e9, 4096, find_hardware("a100-80gb"), 64)
    assert set(cost.provenance) == {field.name for field in fields(TrainingCost)} - {"provenance"}
    assert all(p.source for p in cost.provenance.values())
    assert cost.provenance["price_usd"].basis == "published"
    l4 = price_run(LLAMA_3_8B, 1e9, 4096, find_hardware("l4"), 64)
    assert l4.provenance["price_usd"].basis == "assumed"  # as its MFU and its hourly price


@pytest.mark.parametrize(
    "wrong",
    [{"tokens": 0}, {"seq_len": 0}, {"num_devices": 0}, {"mfu": 0.0}, {"mfu": 1.2}, {"eval_tokens": -1},
     {"usd_per_gpu_hour": -2.0}, {"lora_rank": 0}, {"synthetic_tokens": -1}, {"kept_exports": -1},
     {"co2_kg_per_kwh": -0.1}, {"measured_tokens_per_second": 0.0}, {"tokens": float("inf")}],
    ids=str,
)  # fmt: skip
def test_number_outside_its_range_is_refused(wrong):
    arguments = {"shape": LLAMA_32_1B, "tokens": 1e6, "seq_len": 128, "hardware": H100, **wrong}
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        price_run(**arguments)


@pytest.mark.parametrize("budget", ["flops", "gpu_hours", "usd", "hours"])
@pytest.mark.parametrize("speed", [None, 5e4])
def test_tokens_within_a_budget_cost_that_budget(budget, speed):
    options = {"measured_tokens_per_second": speed, "usd_per_gpu_hour": 2.0}
    tokens = tokens_within(LLAMA_3_8B, 4096, H100, 16, **{budget: 1e6}, eval_share=0.01, **options)
    cost = price_run(LLAMA_3_8B, tokens, 4096, H100, 16, eval_tokens=0.01 * tokens, **options)
    spent = {"flops": cost.flops_exact, "gpu_hours": cost.gpu_hours, "usd": cost.price_usd,
             "hours": cost.wall_seconds / 3600}  # fmt: skip
    assert spent[budget] == pytest.approx(1e6, rel=1e-12)


@pytest.mark.parametrize("budgets", [{}, {"usd": 1.0, "hours": 1.0}])
def test_tokens_within_none_or_two_budgets_is_refused(budgets):
    with pytest.raises(ConfigError, match="a budget must be one of flops, gpu_hours, usd, hours; got"):
        tokens_within(LLAMA_3_8B, 4096, H100, **budgets)


def test_tokens_within_money_needs_a_price():
    with pytest.raises(ConfigError, match="usd must have a price of cpu"):
        tokens_within(LLAMA_32_1B, 128, find_hardware("cpu"), usd=5.0)
    assert tokens_within(LLAMA_32_1B, 128, find_hardware("cpu"), usd=5.0, usd_per_gpu_hour=0.1) > 0
