"""Tokens that every amount of the budget pays for, and whether a step fits the devices."""

from __future__ import annotations

import pytest
from command_line import model_config
from simple_laws import make_project

from cptplan.errors import ConfigError, InfeasiblePlanError, ModelError
from cptplan.files import write_json
from cptplan.planning.budget import (
    budget_limits,
    budget_rates,
    budget_tokens,
    check_memory,
    device_speed,
    known_rates,
    price,
)
from cptplan.price.hardware import find_hardware

BIG = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}


@pytest.fixture
def model(tmp_path):
    (tmp_path / "base").mkdir()
    write_json(tmp_path / "base" / "config.json", {**model_config(512), **BIG, "num_key_value_heads": 8})
    return f"model.starts=[{{name: base, path: '{tmp_path / 'base'}'}}]"


@pytest.fixture
def small(tmp_path):
    (tmp_path / "base").mkdir()
    write_json(tmp_path / "base" / "config.json", model_config(512))
    return f"model.starts=[{{name: base, path: '{tmp_path / 'base'}'}}]"


AMOUNTS = [
    ("flops", 1e18, "published"),
    ("gpu_hours", 2.0, "published"),
    ("usd", 30.0, "published"),
    ("deadline_hours", 0.5, "published"),
]


@pytest.mark.parametrize(("key", "amount", "basis"), AMOUNTS, ids=[a[0] for a in AMOUNTS])
def test_price_of_what_an_amount_pays_for_is_the_amount(tmp_path, model, key, amount, basis):
    project = make_project(tmp_path, model, f"budget={{{key}: {amount}, num_devices: 4}}")
    (limit,) = budget_limits(project)
    assert (limit.name, limit.amount, limit.basis) == (f"budget.{key}", amount, basis)
    cost = price(project, budget_rates(project), limit.tokens)
    spent = {
        "flops": cost.flops_exact,
        "gpu_hours": cost.gpu_hours,
        "usd": cost.price_usd,
        "deadline_hours": cost.wall_seconds / 3600,
    }
    assert spent[key] == pytest.approx(amount, rel=1e-3)  # evaluation's share is found in three rounds


def test_tightest_amount_comes_first(tmp_path, model):
    project = make_project(tmp_path, model, "budget={tokens: 1000000000, usd: 1, gpu_hours: 100, num_devices: 1}")
    limits = budget_limits(project)
    assert limits[0].name == "budget.usd"
    assert [one.tokens for one in limits] == sorted(one.tokens for one in limits)
    assert budget_tokens(project) == int(limits[0].tokens)


def test_deadline_counts_devices_and_hours_do_not(tmp_path, model):
    def tokens(key, devices):
        return budget_tokens(make_project(tmp_path, model, f"budget={{{key}: 10, num_devices: {devices}}}"))

    assert tokens("deadline_hours", 8) == pytest.approx(8 * tokens("deadline_hours", 1), rel=1e-3)
    assert tokens("gpu_hours", 8) == pytest.approx(tokens("gpu_hours", 1), rel=1e-3)


def test_tokens_need_no_model_and_others_do(tmp_path):
    project = make_project(tmp_path)
    assert budget_tokens(project) == 8192
    assert known_rates(project) is None
    with pytest.raises(ModelError, match=r"config\.json"):
        budget_limits(make_project(tmp_path, "budget={usd: 10}"))


def test_money_on_hardware_without_a_price(tmp_path, small):
    project = make_project(tmp_path, small, "budget={usd: 10, hardware: cpu}")
    with pytest.raises(ConfigError, match="price"):
        budget_limits(project)


def write_results(runs, *results):
    for number, (device, tokens, seconds, processes) in enumerate(results):
        values = {"device": device, "tokens": tokens, "train_seconds": seconds, "num_processes": processes}
        write_json(runs / f"pilot-{number:02d}" / "result.json", values)


def test_speed_of_pilots_on_the_same_hardware_wins(tmp_path, small):
    write_results(tmp_path, ("NVIDIA H100 80GB HBM3", 8000, 2.0, 4), ("cpu", 1000, 10.0, 1))
    assert device_speed(find_hardware("h100-sxm"), tmp_path) == 1000.0
    assert device_speed(find_hardware("cpu"), tmp_path) == 100.0
    assert device_speed(find_hardware("a100-80gb"), tmp_path) is None
    project = make_project(tmp_path, small, "budget={gpu_hours: 2, num_devices: 4}")
    (limit,) = budget_limits(project, tmp_path)
    assert limit.basis == "measured"
    assert limit.tokens < 2 * 3600 * 1000  # what is left of it after evaluation


@pytest.mark.parametrize(
    ("device", "name", "same"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80gb", True),
        ("NVIDIA A100-SXM4-80GB", "a100-40gb", False),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb", True),
        ("NVIDIA H100 PCIe", "h100-sxm", False),
        ("NVIDIA H200", "h100-sxm", False),
        ("NVIDIA H200", "h200-sxm", True),
        ("NVIDIA L40S", "l40s", True),
        ("cpu", "h100-sxm", False),
    ],
)
def test_device_names_of_drivers(tmp_path, device, name, same):
    write_results(tmp_path, (device, 8000, 2.0, 1))
    assert (device_speed(find_hardware(name), tmp_path) is not None) is same


def test_step_that_does_not_fit_names_the_devices_that_would(tmp_path, model):
    fits = make_project(tmp_path, model, "budget={tokens: 8192, num_devices: 8}", "pilot.precision=bf16")
    assert tuple(check_memory(fits, budget_rates(fits))) == ()
    one = make_project(tmp_path, model, "budget={tokens: 8192, num_devices: 1}", "pilot.precision=bf16")
    with pytest.raises(InfeasiblePlanError, match=r"memory must hold a training step, 1\d\d\.\d GB") as caught:
        check_memory(one, budget_rates(one))
    needed = int(caught.value.hint.split("budget.num_devices=")[1].split()[0])
    enough = make_project(tmp_path, model, f"budget={{tokens: 8192, num_devices: {needed}}}", "pilot.precision=bf16")
    check_memory(enough, budget_rates(enough))


def test_step_that_fits_only_with_checkpointing_says_so(tmp_path, model):
    more = ("data.seq_len=32768", "pilot.batch_tokens=32768", "budget={tokens: 1000000, num_devices: 8}")
    project = make_project(tmp_path, model, *more, "pilot.precision=bf16")
    (said,) = check_memory(project, budget_rates(project))
    assert "activation checkpointing" in said
