"""Counting, checking and exporting a model."""

from __future__ import annotations

import json
import stat

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM

from cptplan.errors import ModelError, RunFailedError
from executor import model as executor_model

LLAMA = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
}
GPT2 = {
    "n_embd": 8,
    "n_layer": 1,
    "n_head": 2,
    "vocab_size": 32,
    "n_positions": 16,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def build(kind, values, **changes):
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**values, **changes}))


@pytest.mark.parametrize(
    ("kind", "values", "total", "outside"),
    [
        # 4 attention matrices 8 x 8, 3 of the MLP 8 x 16, 3 norms of 8; embedding and head 32 x 8
        ("llama", {**LLAMA, "tie_word_embeddings": False}, 256 + 384 + 24 + 512, 512),
        ("llama", {**LLAMA, "tie_word_embeddings": True}, 256 + 384 + 24 + 256, 256),
        # attention 4 x 64 + 32, MLP 2 x 256 + 40, 3 norms of 16; tokens 32 x 8 (tied) and positions 16 x 8
        ("gpt2", GPT2, 288 + 552 + 48 + 384, 384),
    ],
)
def test_count_params_leaves_out_embeddings_and_output_layer(kind, values, total, outside):
    assert executor_model.count_params(build(kind, values)) == (total, total - outside)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_names_are_the_second_names(tied):
    names = executor_model.tied_names(build("llama", LLAMA, tie_word_embeddings=tied))
    assert names == ({"lm_head.weight"} if tied else set())


def test_check_vocabulary_refuses_ids_without_embedding():
    model = build("llama", LLAMA)
    executor_model.check_vocabulary(model, None, {"general": 32})
    with pytest.raises(ModelError, match="must fit the model's 32 embeddings; got 33 in domain"):
        executor_model.check_vocabulary(model, None, {"general": 32, "domain": 33})


def test_export_model_writes_what_transformers_4_and_5_look_for(tmp_path):
    model = build("llama", LLAMA, tie_word_embeddings=True)
    executor_model.export_model(tmp_path / "step-1", model, model.state_dict(), None)
    config = json.loads((tmp_path / "step-1" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500000.0
    assert config["rope_scaling"] is None
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "step-1").iterdir()}
    assert len(modes) == 1
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "step-1", dtype=torch.float32)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_export_model_keeps_rope_scaling_for_transformers_4(tmp_path):
    rope = {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0}
    model = build("llama", LLAMA, rope_parameters=rope)
    executor_model.export_model(tmp_path / "step-1", model, model.state_dict(), None)
    config = json.loads((tmp_path / "step-1" / "config.json").read_text())
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


def test_export_model_on_a_full_disk_fails_the_run_and_keeps_the_old(tmp_path, monkeypatch):
    model = build("llama", LLAMA)
    (tmp_path / "step-1").mkdir()

    def full(directory, state_dict):
        directory.mkdir()
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(RunFailedError, match="disk must have room; got No space left on device"):
        executor_model.export_model(tmp_path / "step-1", model, model.state_dict(), None)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
