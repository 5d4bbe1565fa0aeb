"""Recipes for other trainers: the schedule that they will run at, the batch, and what they refuse to lose."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from launch_examples import make_mixed_spec, write, write_model, write_shards

from cptplan.errors import ConfigError
from cptplan.launch.hf_recipes import trainer_schedule
from cptplan.launch.recipe import (
    LOSABLE,
    area_change,
    batch_of,
    decay_of,
    early_warmup,
    pads_with_end_of_text,
    rates_at_step_start,
)
from cptplan.launch.recipes import TRAINERS

RAMP = {"kind": "ramp", "start_ratio": 0.5, "end_ratio": 0.2, "end_step": 50}
MONITOR = {"rules": [{"when": "general_increase", "threshold": 0.1, "action": "stop"}]}
PEAK = {"peak_lr": 1e-3, "total_steps": 60}
SCHEDULES = [
    {"kind": "constant", **PEAK, "warmup_steps": 7},
    {"kind": "constant", **PEAK},
    {"kind": "linear", **PEAK, "warmup_steps": 3, "min_lr": 1e-4},
    {"kind": "cosine", **PEAK, "min_lr": 1e-4},
    {"kind": "cosine", **PEAK, "warmup_steps": 1},
    {"kind": "wsd", **PEAK, "warmup_steps": 10, "decay_steps": 20},
    {"kind": "wsd", **PEAK, "warmup_steps": 2, "decay_steps": 58, "decay_shape": "sqrt", "min_lr": 5e-5},
    {"kind": "wsd", **PEAK, "decay_steps": 0},
]


@pytest.fixture(autouse=True)
def project(tmp_path):
    write_shards(tmp_path / "tokens", "general", "code", "law")
    write_model(tmp_path, pad_token="<pad>")
    return tmp_path


def transformers_rates(schedule, decay):
    """transformers' own warmup_stable_decay and constant_with_warmup, written out anew: f(0), f(1), .."""
    rates, warmup = [], schedule["warmup_steps"]
    given = schedule.get("lr_scheduler_kwargs", {})
    floor = given.get("min_lr_ratio", 0.0)
    shapes = {
        "linear": lambda p: 1 - p,
        "cosine": lambda p: (1 + np.cos(np.pi * p)) / 2,
        "1-sqrt": lambda p: 1 - p**0.5,
    }
    for step in range(decay.total_steps):
        if step < warmup:
            factor = step / warmup * (1 - floor) + floor
        elif not given or step < warmup + given["num_stable_steps"]:
            factor = 1.0
        elif step < warmup + given["num_stable_steps"] + given["num_decay_steps"]:
            done = (step - warmup - given["num_stable_steps"]) / given["num_decay_steps"]
            factor = shapes[given["decay_type"]](done) * (1 - floor) + floor
        else:
            factor = floor
        rates.append(factor * decay.peak_lr)
    return np.array(rates)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_rates_after_the_warmup_are_the_plans(schedule):
    spec = make_mixed_spec(schedule=schedule)
    decay = decay_of(spec, "llama-factory")
    rates = transformers_rates(trainer_schedule(decay), decay)
    # 1e-12: one rounding or two of the same formula
    np.testing.assert_allclose(rates[decay.warmup_steps :], spec.lr()[decay.warmup_steps :], rtol=1e-12, atol=1e-18)
    stated = rates_at_step_start(spec, decay, decay.min_ratio * decay.peak_lr)
    np.testing.assert_allclose(rates, stated, rtol=1e-12, atol=1e-18)


@pytest.mark.filterwarnings("ignore:Both num_training_steps and num_stable_steps")  # as the trainers call it, too
def test_transformers_schedule_is_the_one_written_out_here():
    torch, optimization = pytest.importorskip("torch"), pytest.importorskip("transformers.optimization")
    for given in SCHEDULES:
        decay = decay_of(make_mixed_spec(schedule=given), "axolotl")
        schedule = trainer_schedule(decay)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=decay.peak_lr)
        found = optimization.get_scheduler(
            schedule["lr_scheduler_type"], optimizer, schedule["warmup_steps"], decay.total_steps,
            scheduler_specific_kwargs=schedule.get("lr_scheduler_kwargs"),
        )  # fmt: skip
        rates = []
        for _ in range(decay.total_steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            found.step()
        np.testing.assert_allclose(rates, transformers_rates(schedule, decay), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(("warmup", "change"), [(0, 0.0), (1, 0.0), (2, -0.5), (3, 0.0), (10, 0.0), (59, 0.0)])
def test_shorter_warmup_keeps_the_forward_area(warmup, change):
    schedule = {"kind": "constant", "peak_lr": 1.0, "total_steps": 60, "warmup_steps": warmup}
    spec = make_mixed_spec(schedule=schedule)
    decay = decay_of(spec, "x")
    assert early_warmup(decay) < max(warmup, 1)
    difference = rates_at_step_start(spec, decay, 0.0).sum() - spec.lr().sum()
    assert difference == pytest.approx(change, abs=1e-9)
    assert area_change(spec, spec.lr()) == 0.0


@pytest.mark.parametrize(
    "schedule",
    [
        {"kind": "two_stage", **PEAK, "switch_step": 30},
        {"kind": "infinite", **PEAK, "const_lr": 5e-4, "cooldown_steps": 10},
        {"kind": "wsd", **PEAK, "decay_steps": 20, "decay_shape": "exponential"},
        {"kind": "table", "values": [1e-3] * 60},
    ],
    ids=lambda schedule: schedule["kind"],
)
@pytest.mark.parametrize("target", TRAINERS)
def test_schedule_that_no_trainer_knows_is_refused(target, schedule, tmp_path):
    with pytest.raises(ConfigError, match=f"schedule must be constant, linear, cosine or wsd .* for target {target}"):
        write(target, tmp_path, make_mixed_spec(schedule=schedule, precision="fp32"))


@pytest.mark.parametrize(
    ("micro_batch_tokens", "processes", "expected"),
    [(None, 1, (16, 1)), (None, 4, (4, 1)), (64, 1, (2, 8)), (64, 8, (2, 1)), (96, 1, (2, 8)), (1, 2, (1, 8))],
)
def test_batch_is_the_plans_in_passes_that_fit(micro_batch_tokens, processes, expected):
    batch = batch_of(make_mixed_spec(micro_batch_tokens=micro_batch_tokens), processes)
    assert (batch.micro_sequences, batch.grad_accum_steps) == expected
    assert batch.micro_sequences * batch.grad_accum_steps * processes == 16


LOSSES = [
    ("ramped_replay", {"mixture": RAMP}),
    ("isolate_documents", {"isolate_documents": True}),
    ("anchor", {"anchor": {"kind": "l2", "strength": 1.0}}),
    ("lora", {"lora": {"rank": 8, "alpha": 16.0}}),
    ("freeze", {"freeze": ["*embed*"]}),
    ("reweight", {"reweight": {"reference": "model"}}),
    ("spikes", {"spikes": {"policy": "skip"}}),
    ("monitor_actions", {"monitor": MONITOR}),
    ("warmup", {"schedule": {"kind": "constant", "peak_lr": 1e-3, "init_lr": 9e-4, "total_steps": 60,
                             "warmup_steps": 30}}),
]  # fmt: skip


@pytest.mark.parametrize("target", TRAINERS)
@pytest.mark.parametrize(("name", "changes"), LOSSES, ids=[name for name, _ in LOSSES])
def test_what_moves_the_loss_is_never_dropped_silently(target, name, changes, tmp_path):
    spec = make_mixed_spec(precision="fp32", **changes)
    if name in TRAINERS[target].keeps or (name, target) == ("warmup", "nemo-automodel"):
        write(target, tmp_path, spec)
        return
    with pytest.raises(ConfigError, match=f"got {name}, which {target} cannot express") as caught:
        write(target, tmp_path, spec)
    assert f"--allow-loss-of {name}" in caught.value.hint
    assert not (tmp_path / "launch").exists()
    launch = write(target, tmp_path, spec, allow_loss_of=[name])
    assert f"- `{name}`: {LOSABLE[name]}." in (launch.directory / "NOTES.md").read_text()


def test_every_loss_is_tried():
    elsewhere = {"end_of_text", "float32_weights"}
    assert {name for name, _ in LOSSES} | elsewhere == set(LOSABLE)


@pytest.mark.parametrize(("tokens", "expected"), [
    ({}, True), ({"pad_token": "</s>"}, True), ({"pad_token": "<pad>"}, False),
    ({"pad_token": {"content": "<pad>"}, "eos_token": {"content": "</s>"}}, False),
    ({"pad_token": {"content": "</s>"}}, True),
])  # fmt: skip
def test_tokenizer_without_padding_of_its_own_loses_the_end_of_text(tokens, expected, tmp_path):
    write_model(tmp_path, **tokens)
    assert pads_with_end_of_text(tmp_path / "model") is expected
    if expected:
        with pytest.raises(ConfigError, match="got end_of_text, which llama-factory cannot express"):
            write("llama-factory", tmp_path, make_mixed_spec())
    else:
        write("llama-factory", tmp_path, make_mixed_spec())


def test_axolotl_holds_weights_in_the_precision_of_the_passes(tmp_path):
    with pytest.raises(ConfigError, match="got float32_weights, which axolotl cannot express"):
        write("axolotl", tmp_path, make_mixed_spec(precision="bf16"))
    write("axolotl", tmp_path, make_mixed_spec(precision="bf16"), allow_loss_of=["float32_weights"])


@pytest.mark.parametrize(
    ("allowed", "match"),
    [("ancor", "did you mean 'anchor'"), ("anchor", "must name what llama-factory loses of this run; got 'anchor'")],
)
def test_permission_that_is_not_needed_is_refused(allowed, match, tmp_path):
    with pytest.raises(ConfigError, match=match):
        write("llama-factory", tmp_path, make_mixed_spec(), allow_loss_of=[allowed])


def test_monitor_that_only_warns_is_no_loss(tmp_path):
    rules = [{"when": "general_increase", "threshold": 0.1}]
    write("llama-factory", tmp_path, make_mixed_spec(monitor={"rules": rules}))


def read(launch, name):
    return yaml.safe_load((launch.directory / name).read_text())


def test_llama_factory_gets_the_plan(tmp_path):
    config = read(write("llama-factory", tmp_path, make_mixed_spec(), num_processes=4), "llama_factory.yaml")
    expected = {
        "model_name_or_path": "model", "stage": "pt", "finetuning_type": "full", "disable_shuffling": True,
        "tokenized_path": "launch/llama-factory/data", "max_steps": 100, "learning_rate": 3e-4, "bf16": True,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "adam_beta2": 0.95, "weight_decay": 0.1,
        "lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 8, "cutoff_len": 33, "eval_steps": 4,
    }  # fmt: skip
    assert {key: config[key] for key in expected} == expected
    assert config["lr_scheduler_kwargs"] == {
        "num_stable_steps": 61, "num_decay_steps": 30, "decay_type": "linear", "min_lr_ratio": 0.0,
    }  # fmt: skip


def test_deepspeed_is_accelerates_zero_3_around_the_same_recipe(tmp_path):
    launch = write("deepspeed", tmp_path, make_mixed_spec(), num_processes=4)
    config = read(launch, "accelerate.yaml")
    assert config["distributed_type"] == "DEEPSPEED"
    settings = config["deepspeed_config"]
    assert (settings["zero_stage"], settings["gradient_accumulation_steps"], settings["gradient_clipping"]) == (3, 2, 1)
    assert "FSDP2 and DDP alone" in (launch.directory / "NOTES.md").read_text()
    config_args = pytest.importorskip("accelerate.commands.config.config_args")
    loaded = config_args.load_config_from_file(str(launch.directory / "accelerate.yaml"))
    assert (loaded.distributed_type, loaded.num_processes, loaded.mixed_precision) == ("DEEPSPEED", 4, "bf16")


def test_axolotl_gets_the_plan(tmp_path):
    config = read(write("axolotl", tmp_path, make_mixed_spec(precision="fp32"), num_processes=4), "axolotl.yaml")
    assert config["datasets"] == [{"path": "launch/axolotl/data", "split": "train", "type": None}]
    assert config["curriculum_sampling"] is True
    assert config["shuffle_merged_datasets"] is False
    assert (config["sequence_len"], config["micro_batch_size"], config["gradient_accumulation_steps"]) == (33, 2, 2)
    assert (config["fsdp_version"], config["fsdp_config"]["transformer_layer_cls_to_wrap"]) == (2, "LlamaDecoderLayer")


def test_nemo_automodel_mixes_by_tokens(tmp_path):
    config = read(write("nemo-automodel", tmp_path, make_mixed_spec()), "automodel.yaml")
    here = "launch/nemo-automodel/data"
    assert config["dataset"]["paths"] == [
        "0.4", f"{here}/train-0-general", "0.45", f"{here}/train-1-code", "0.15", f"{here}/train-2-law",
    ]  # fmt: skip
    assert config["dataset"]["num_train_samples"] == 100 * 16
    assert config["validation_dataset_code"]["paths"] == [f"{here}/validation-1-code"]
    assert config["lr_scheduler"]["lr_decay_steps"] == 99
    assert config["distributed"]["mp_policy"]["param_dtype"] == "bfloat16"


def test_nemo_automodel_gets_the_mean_of_a_ramp_when_asked(tmp_path):
    mixture = {"kind": "ramp", "start_ratio": 0.5, "end_ratio": 0.0, "end_step": 99}
    spec = make_mixed_spec(mixture=mixture)
    config = read(write("nemo-automodel", tmp_path, spec, allow_loss_of=["ramped_replay"]), "automodel.yaml")
    assert float(config["dataset"]["paths"][0]) == pytest.approx(0.25)


def test_torchtitan_runs_at_the_plans_rates(tmp_path):
    launch = write("torchtitan", tmp_path, make_mixed_spec())
    settings = json.loads((launch.directory / "settings.json").read_text())
    assert (settings["module"], settings["flavor"], settings["global_batch_size"]) == ("llama3", "8B", 16)
    assert settings["lr_scheduler"]["total_steps"] == 99
    assert round(settings["lr_scheduler"]["decay_ratio"] * 99) == 30
    assert "The learning rate of every step is the plan's." in (launch.directory / "NOTES.md").read_text()


def test_model_that_a_trainer_cannot_have_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="model must have a path for target axolotl"):
        write("axolotl", tmp_path, make_mixed_spec(model={"config": {"model_type": "llama"}}, precision="fp32"))
    (tmp_path / "model" / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ConfigError, match="model_type must be one of llama, qwen3 for target torchtitan; got gpt2"):
        write("torchtitan", tmp_path, make_mixed_spec())
