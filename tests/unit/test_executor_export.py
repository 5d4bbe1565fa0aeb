"""The exported model directory: configuration of two versions, types, tokenizer, model card."""

from __future__ import annotations

import json
import re
import stat

import pytest
import torch
from architectures import ARCHITECTURES, ROPE_GEMMA3, SIZES, draw
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from cptplan.errors import RunFailedError
from cptplan.mixture import RampMixture
from cptplan.run_options import Lora
from cptplan.run_spec import ModelSource, RunSpec, Source, ValidationSet
from cptplan.schedule import CosineSchedule
from executor.export import ModelCard, export_model
from executor.model import tied_names


def export(directory, model, tokenizer=None, **settings):
    once = {name: tensor for name, tensor in model.state_dict().items() if name not in tied_names(model)}
    export_model(directory, model, once, tokenizer, **settings)
    return json.loads((directory / "config.json").read_text())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_export_loads_with_the_same_weights(tmp_path, name):
    model = draw(ARCHITECTURES[name])
    export(tmp_path / "step-1", model)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "step-1").iterdir()}
    assert len(modes) == 1
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "step-1", dtype=torch.float32)
    assert getattr(again.config, "rope_parameters", None) == getattr(model.config, "rope_parameters", None)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    # what is written for transformers 4 is understood here, and leaves nothing behind
    assert again.config.to_diff_dict().keys() == model.config.to_diff_dict().keys()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", {"rope_theta": 500000.0, "rope_scaling": None}),
        ("gemma3", {"rope_theta": 2e6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        ("gemma3", {"rope_local_base_freq": 5000.0, "rope_parameters": ROPE_GEMMA3}),
        ("qwen3_moe", {"num_experts": 4}),
    ],
)
def test_config_says_what_transformers_4_looks_for(tmp_path, name, fields):
    config = export(tmp_path / "step-1", draw(ARCHITECTURES[name]))
    assert {key: config[key] for key in fields} == fields
    assert config["torch_dtype"] == config["dtype"] == "float32"


def test_config_keeps_the_scaling_of_rope_apart_from_its_base(tmp_path):
    config = export(tmp_path / "step-1", draw(ARCHITECTURES["llama3"]))
    scaling = {key: value for key, value in config["rope_parameters"].items() if key != "rope_theta"}
    assert scaling["rope_type"] == "llama3"
    assert config["rope_scaling"] == scaling


def test_config_of_rotary_embeddings_on_a_part_of_the_head(tmp_path):
    rope = {"rope_theta": 20000.0, "rope_type": "default", "partial_rotary_factor": 0.5}
    config = export(tmp_path / "step-1", draw({"model_type": "gpt_neox", **SIZES, "rope_parameters": rope}))
    assert (config["rotary_emb_base"], config["rotary_pct"], config["rope_scaling"]) == (20000.0, 0.5, None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_export_in_the_type_of_the_base_model(tmp_path, dtype):
    model = draw(ARCHITECTURES["qwen3"])
    config = export(tmp_path / "step-1", model, dtype=dtype)
    assert config["dtype"] == config["torch_dtype"] == str(dtype).removeprefix("torch.")
    stored = load_file(tmp_path / "step-1" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    for name, tensor in stored.items():
        assert torch.equal(tensor, model.state_dict()[name].to(dtype))
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "step-1").dtype == dtype


def test_export_keeps_fp32_what_transformers_always_loads_so(tmp_path, monkeypatch):
    model = draw(ARCHITECTURES["llama"])
    monkeypatch.setattr(model, "_keep_in_fp32_modules_strict", {"input_layernorm"})
    export(tmp_path / "step-1", model, dtype=torch.bfloat16)
    stored = load_file(tmp_path / "step-1" / "model.safetensors")
    kept = {name for name, tensor in stored.items() if tensor.dtype == torch.float32}
    assert kept == {f"model.layers.{number}.input_layernorm.weight" for number in (0, 1)}


def make_tokenizer(**settings):
    words = Tokenizer(models.WordLevel({"a": 0, "<s>": 1, "</s>": 2, "<|x|>": 3, "<|y|>": 4}, unk_token="a"))
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", **settings)


@pytest.mark.parametrize("settings", [{}, {"additional_special_tokens": ["<|x|>", "<|y|>"]}])
def test_tokenizer_loads_as_it_was(tmp_path, settings):
    tokenizer = make_tokenizer(**settings)
    export(tmp_path / "step-1", draw(ARCHITECTURES["llama"]), tokenizer)
    written = json.loads((tmp_path / "step-1" / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    # transformers 4 takes a list under the old name only
    assert "extra_special_tokens" not in written
    assert written.get("additional_special_tokens") == settings.get("additional_special_tokens")
    again = AutoTokenizer.from_pretrained(tmp_path / "step-1")
    assert again("a <|x|>")["input_ids"] == tokenizer("a <|x|>")["input_ids"]
    assert set(again.all_special_tokens) == set(tokenizer.all_special_tokens)


def test_tokenizer_keeps_special_tokens_with_names(tmp_path):
    make_tokenizer(extra_special_tokens={"image_token": "<|x|>"}).save_pretrained(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    export(tmp_path / "step-1", draw(ARCHITECTURES["llama"]), tokenizer)
    written = json.loads((tmp_path / "step-1" / "tokenizer_config.json").read_text())
    assert written["extra_special_tokens"] == {"image_token": "<|x|>"}
    assert AutoTokenizer.from_pretrained(tmp_path / "step-1").image_token == "<|x|>"


def test_export_on_a_full_disk_fails_the_run_and_keeps_the_old(tmp_path, monkeypatch):
    model = draw(ARCHITECTURES["llama"])
    (tmp_path / "step-1").mkdir()

    def full(directory, state_dict):
        directory.mkdir()
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(RunFailedError, match="disk must have room; got No space left on device"):
        export_model(tmp_path / "step-1", model, model.state_dict(), None)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def make_card(**changes) -> ModelCard:
    spec = RunSpec(
        name="final",
        phase="cpt",
        model=changes.pop("model", ModelSource(path="org/base-1b")),
        sources=(Source(name="web", role="general", path="g"), Source(name="law|eu", role="domain", path="d")),
        validation=(ValidationSet(name="general", path="g", num_tokens=64),),
        schedule=CosineSchedule(kind="cosine", peak_lr=2e-4, total_steps=100, min_lr=2e-5),
        mixture=RampMixture(kind="ramp", start_ratio=0.5, end_ratio=0.2, end_step=99),
        seq_len=8,
        batch_tokens=64000,
        seed=7,
        lora=changes.pop("lora", None),
    )
    values = {
        "step": 100,
        "tokens_by_source": {"web": 2_500_000, "law|eu": 7_500_000},
        "losses_start": {"general": 2.0, "law": 3.0},
        "losses_now": {"general": 2.1, "law": 2.5},
        "versions": {"torch": "2.13.0"},
    }
    return ModelCard(spec=spec, **{**values, **changes})


def read_card(card, dtype=torch.float32):
    """Header lines, and the cells of each table row by their first cell."""
    _, header, body = card.render(dtype).split("---\n", 2)
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in body.splitlines() if line.startswith("|")]
    return header.splitlines(), {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}, body


def test_card_says_how_the_model_was_made():
    header, rows, body = read_card(make_card())
    assert header == [
        'base_model: "org/base-1b"',
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags:",
        "- continual-pretraining",
        "- cptplan",
    ]
    card = make_card()
    assert rows["base model"] == ["org/base-1b"]
    assert rows["spec hash"] == [card.spec.hash]
    assert (rows["schedule"], rows["peak_lr"], rows["lr of the last step"]) == (["cosine"], ["0.0002"], ["2e-05"])
    assert rows["replay_ratio, first and last step of the plan"] == ["0.5, 0.2"]
    assert (rows["batch_tokens"], rows["seed"], rows["version of torch"]) == (["64,000"], ["7"], ["2.13.0"])
    assert rows["web"] == ["general", "2,500,000", "25.0%"]
    assert rows["general"] == ["2.0000", "2.1000", "+0.1000"]
    assert rows["law\\|eu"] == ["domain", "7,500,000", "75.0%"]
    assert rows["law"] == ["3.0000", "2.5000", "-0.5000"]
    assert rows["weights"] == ["float32"]
    assert "# final, step 100 of 100" in body
    # exp(2.1 - 2.0)
    assert "forgetting_ratio (general perplexity over that at step 0): 1.1052" in body
    assert "lora" not in rows


def test_card_of_a_step_that_was_not_evaluated_says_so():
    card = make_card(step=50, losses_now={})
    _, rows, body = read_card(card)
    assert rows["general"] == ["2.0000", "not measured", "not measured"]
    assert card.forgetting_ratio is None
    assert "forgetting_ratio" not in body


def test_card_of_a_directory_names_no_base_in_its_header(tmp_path):
    # a hub refuses a header with a base model that is no id
    header, rows, _ = read_card(make_card(model=ModelSource(path=str(tmp_path))))
    assert not any(line.startswith("base_model") for line in header)
    assert rows["base model"] == [str(tmp_path)]
    _, rows, _ = read_card(make_card(model=ModelSource(config={"model_type": "llama"})))
    assert rows["base model"] == ["drawn from seed 7 (llama)"]


def test_card_says_type_and_adapters():
    _, rows, _ = read_card(make_card(lora=Lora(rank=8, alpha=16)), torch.bfloat16)
    assert rows["weights"] == ["bfloat16, as the base model; rounded from fp32"]
    assert rows["lora"] == ["rank 8, alpha 16, merged into the weights"]


def test_export_writes_the_card(tmp_path):
    card = make_card()
    export(tmp_path / "step-1", draw(ARCHITECTURES["llama"]), card=card, dtype=torch.bfloat16)
    assert (tmp_path / "step-1" / "README.md").read_text() == card.render(torch.bfloat16)
