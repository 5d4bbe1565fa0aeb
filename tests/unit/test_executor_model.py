"""Loading, checking and counting a model."""

from __future__ import annotations

import importlib.util
import json
from types import SimpleNamespace

import pytest
import torch
from architectures import ARCHITECTURES, SIZES, draw
from tokenizers import Tokenizer, models
from transformers import AutoConfig

from cptplan.errors import ConfigError, ModelError
from cptplan.mixture import ConstantMixture
from cptplan.run_spec import ModelSource, RunSpec, Source, ValidationSet
from cptplan.schedule import ConstantSchedule
from executor import model as executor_model


def make_spec(source: ModelSource, **changes) -> RunSpec:
    values = {
        "name": "run",
        "phase": "cpt",
        "model": source,
        "sources": (Source(name="general", role="general", path="g"),),
        "validation": (ValidationSet(name="general", path="g", num_tokens=64),),
        "schedule": ConstantSchedule(kind="constant", peak_lr=1e-3, total_steps=4),
        "mixture": ConstantMixture(replay_ratio=1.0),
        "seq_len": 16,
        "batch_tokens": 64,
    }
    return RunSpec(**{**values, **changes})


def config_of(name, **changes):
    values = {**ARCHITECTURES[name], **changes}
    return AutoConfig.for_model(values.pop("model_type"), **values)


# one layer: attention 32 x 32 and 32 x 16 twice each, MLP 3 x 32 x 64, 2 gains of norms of 32
ATTENTION, MLP, NORM, EMBEDDING = 2 * (32 * 32 + 32 * 16), 3 * 32 * 64, 32, 64 * 32
LAYER = ATTENTION + MLP + 2 * NORM
EXPECTED = {
    # inside, embeddings and output layer, idle experts of each token
    "llama": (2 * LAYER + NORM, 2 * EMBEDDING, 0),
    "llama3": (2 * LAYER + NORM, EMBEDDING, 0),
    "qwen3": (2 * (LAYER + 2 * 8) + NORM, EMBEDDING, 0),  # gains of queries and keys, of one head's size
    # 4 attention matrices, 2 of the MLP 32 x 128, their biases, 2 norms with bias; 64 positions
    "gpt2": (2 * (4 * 1024 + 128 + 2 * 4096 + 160 + 128) + 64, EMBEDDING + 64 * 32, 0),
    "gemma2": (2 * (LAYER + 2 * NORM) + NORM, EMBEDDING, 0),
    "gemma3": (2 * (LAYER + 2 * NORM + 2 * 8) + NORM, EMBEDDING, 0),
    # 4 experts, of which a token meets 2, and their router
    "mixtral": (2 * (LAYER + 3 * MLP + 4 * 32) + NORM, 2 * EMBEDDING, 2 * 2 * MLP),
    "qwen3_moe": (2 * (LAYER + 2 * 8 + MLP + 4 * 32) + NORM, 2 * EMBEDDING, 2 * MLP),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_counts_of_parameters(name):
    inside, outside, idle = EXPECTED[name]
    model = draw(ARCHITECTURES[name])
    assert executor_model.count_params(model) == (inside + outside, inside)
    assert executor_model.num_used_params(model) == inside + EMBEDDING - idle


@pytest.mark.parametrize("tied", [True, False])
def test_tied_names_are_the_second_names(tied):
    names = executor_model.tied_names(draw({**ARCHITECTURES["llama"], "tie_word_embeddings": tied}))
    assert names == ({"lm_head.weight"} if tied else set())


def test_check_vocabulary_refuses_ids_without_embedding():
    model = draw(ARCHITECTURES["llama"])
    executor_model.check_vocabulary(model, None, {"general": 64})
    with pytest.raises(ModelError, match="must fit the model's 64 embeddings; got 65 in domain"):
        executor_model.check_vocabulary(model, None, {"general": 64, "domain": 65})


@pytest.fixture
def flash(monkeypatch):
    """A machine that can run flash attention."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: object() if name == "flash_attn" else find_spec(name, *rest)
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.parametrize(
    ("name", "attention"), [("llama", "sdpa"), ("gpt2", "sdpa"), ("gemma2", "eager"), ("mixtral", "sdpa")]
)
def test_auto_attention_here_is_sdpa_or_what_the_class_has(name, attention):
    spec = make_spec(ModelSource(config=ARCHITECTURES[name]), precision="bf16")
    assert executor_model.resolve_attention(spec, config_of(name)) == attention
    model, _ = executor_model.load_model(spec)
    assert model.config._attn_implementation == attention


@pytest.mark.usefixtures("flash")
def test_auto_attention_is_flash_where_it_runs():
    spec = make_spec(ModelSource(config=ARCHITECTURES["llama"]), precision="bf16")
    assert executor_model.resolve_attention(spec, config_of("llama")) == "flash_attention_2"
    in_fp32 = spec.model_copy(update={"precision": "fp32"})
    assert executor_model.resolve_attention(in_fp32, config_of("llama")) == "sdpa"
    without_flash = AutoConfig.for_model("mamba")  # a class that has no attention at all
    assert executor_model.resolve_attention(spec, without_flash) == "eager"
    named = spec.model_copy(update={"attention": "eager"})
    assert executor_model.resolve_attention(named, config_of("llama")) == "eager"


@pytest.mark.usefixtures("flash")
def test_named_flash_attention_needs_bf16_and_cuda(monkeypatch):
    spec = make_spec(ModelSource(config=ARCHITECTURES["llama"]), attention="flash_attention_2", precision="bf16")
    assert executor_model.resolve_attention(spec, config_of("llama")) == "flash_attention_2"
    with pytest.raises(ConfigError, match="got precision fp32"):
        executor_model.resolve_attention(spec.model_copy(update={"precision": "fp32"}), config_of("llama"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="got no CUDA"):
        executor_model.resolve_attention(spec, config_of("llama"))


def test_named_flash_attention_that_is_not_installed_is_refused():
    spec = make_spec(ModelSource(config=ARCHITECTURES["llama"]), attention="flash_attention_2", precision="bf16")
    with pytest.raises(ConfigError, match="must have flash_attn, CUDA and precision bf16; got no flash_attn"):
        executor_model.load_model(spec)


def test_flex_attention_needs_cuda(monkeypatch):
    spec = make_spec(ModelSource(config=ARCHITECTURES["llama"]), attention="flex_attention")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="flex_attention must have CUDA"):
        executor_model.resolve_attention(spec, config_of("llama"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert executor_model.resolve_attention(spec, config_of("llama")) == "flex_attention"


@pytest.fixture
def saved(tmp_path):
    """A complete model directory in bf16."""
    directory = tmp_path / "base"
    draw(ARCHITECTURES["llama"]).to(torch.bfloat16).save_pretrained(directory)
    write_tokenizer(directory)
    return directory


def write_tokenizer(directory, vocab_size=64):
    words = {f"w{number}": number for number in range(vocab_size)}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def change_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(source, **changes) -> str:
    with pytest.raises((ModelError, ConfigError)) as error:
        executor_model.load_model(make_spec(source, **changes))
    assert "\n" not in str(error.value)
    assert error.value.hint
    return str(error.value)


def test_load_trains_in_fp32_whatever_is_stored(saved):
    model, tokenizer = executor_model.load_model(make_spec(ModelSource(path=str(saved))))
    assert model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert len(tokenizer) == 64


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({}, torch.bfloat16),
        ({"dtype": None, "torch_dtype": "float16"}, torch.float16),
        ({"dtype": "float32"}, torch.float32),
        ({"dtype": None}, torch.float32),
        ({"dtype": None, "text_config": {"dtype": "bfloat16"}}, torch.bfloat16),
    ],
)
def test_stored_dtype_is_that_of_the_base_model(saved, changes, dtype):
    change_config(saved, **changes)
    assert executor_model.stored_dtype(ModelSource(path=str(saved))) == dtype


def test_stored_dtype_of_a_drawn_model_is_fp32():
    source = ModelSource(config={**ARCHITECTURES["llama"], "dtype": "bfloat16"})
    assert executor_model.stored_dtype(source) == torch.float32


def test_unknown_architecture_is_named_with_the_nearest_known(saved):
    change_config(saved, model_type="lamma")
    said = refused(ModelSource(path=str(saved)))
    assert "model_type must be one that transformers " in said
    assert f"knows; got lamma in {saved}. hint: did you mean 'llama'?" in said
    assert "got lamma in model.config" in refused(ModelSource(config={"model_type": "lamma"}))
    change_config(saved, model_type="entirely-new")
    assert "hint: check model_type, or install a transformers that knows it" in refused(ModelSource(path=str(saved)))
    assert "got no model_type in model.config" in refused(ModelSource(config={"hidden_size": 8}))


def test_hub_id_that_cannot_be_reached_is_one_line():
    assert "model must load; got OSError: " in refused(ModelSource(path="someone/nothing"))


def test_architecture_that_is_no_decoder_is_refused(saved):
    change_config(saved, model_type="vit")
    said = refused(ModelSource(path=str(saved)))
    assert f"must be a causal language model; got model_type vit in {saved}." in said


@pytest.mark.parametrize("kind", ["own_kind", "vit"])
def test_code_of_the_model_is_refused_unless_trusted(saved, kind):
    change_config(saved, model_type=kind, auto_map={"AutoModelForCausalLM": "own.Own", "AutoConfig": "own.OwnConfig"})
    said = refused(ModelSource(path=str(saved)))
    assert f"must not need code of its own unless trusted; got model_type {kind} with auto_map in {saved}." in said
    assert "hint: read its code, then set model.trust_remote_code to true" in said


def test_trusted_code_is_used(saved):
    change_config(
        saved, model_type="own_kind", auto_map={"AutoModelForCausalLM": "own.Own", "AutoConfig": "own.OwnConfig"}
    )
    (saved / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own_kind'\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    model, _ = executor_model.load_model(make_spec(ModelSource(path=str(saved), trust_remote_code=True)))
    assert type(model).__name__ == "Own"


def test_pickled_weights_are_refused_by_name(saved):
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    said = refused(ModelSource(path=str(saved)))
    assert f"must hold *.safetensors; got only pickled weights (pytorch_model.bin) in {saved}." in said


def test_values_that_a_configuration_cannot_have_are_one_line(saved):
    change_config(saved, hidden_size="wide")
    assert "model must load; got Strict" in refused(ModelSource(path=str(saved)))


def test_torn_weights_are_one_line(saved):
    content = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert "model must load; got SafetensorError" in refused(ModelSource(path=str(saved)))


NESTED = SimpleNamespace(max_position_embeddings=32, rope_parameters={"rope_type": "default"})
STRETCHED = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 8}


@pytest.mark.parametrize(
    ("text", "name", "longest"),
    [
        (SimpleNamespace(max_position_embeddings=16), "max_position_embeddings", 16),
        (SimpleNamespace(n_positions=32, n_ctx=16), "n_positions", 32),
        (SimpleNamespace(n_ctx=16), "n_ctx", 16),
        (NESTED, "max_position_embeddings", 32),
        (SimpleNamespace(max_position_embeddings=8, rope_parameters=STRETCHED), "max_position_embeddings", 32),
        (SimpleNamespace(max_position_embeddings=None, rope_parameters=None), None, 10**6),
    ],
)
def test_seq_len_is_at_most_the_positions_of_the_text_model(text, name, longest):
    config = SimpleNamespace(get_text_config=lambda: text, max_position_embeddings=4)
    source = ModelSource(config={"model_type": "llama"})

    def spec(seq_len):
        return make_spec(source, seq_len=seq_len, batch_tokens=seq_len)

    executor_model._check_positions(config, spec(longest))
    if name is not None:
        with pytest.raises(ConfigError, match=f"seq_len must be at most {name}; got {longest + 1} and"):
            executor_model._check_positions(config, spec(longest + 1))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_sequences_longer_than_the_positions_are_refused(name):
    said = refused(ModelSource(config=ARCHITECTURES[name]), seq_len=65, batch_tokens=65)
    assert "got 65 and 64 in the model" in said


def reference_balance(router_logits, num_experts, top_k):
    """num_experts x sum over experts of share of tokens x mean probability, as in arXiv:2101.03961, eq. 4."""
    probabilities = torch.softmax(torch.cat([layer.flatten(0, -2) for layer in router_logits]), dim=-1)
    chosen = torch.topk(probabilities, top_k, dim=-1).indices
    shares = torch.nn.functional.one_hot(chosen, num_experts).float().sum(dim=1).mean(dim=0)
    return num_experts * (shares * probabilities.mean(dim=0)).sum()


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_auxiliary_loss_is_the_balance_times_its_coefficient(name):
    rows = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(1))
    model = draw({**ARCHITECTURES[name], "output_router_logits": True, "router_aux_loss_coef": 0.25})
    outputs = model(input_ids=rows, use_cache=False)
    found = executor_model.auxiliary_loss(SimpleNamespace(module=model), outputs)
    torch.testing.assert_close(found, 0.25 * reference_balance(outputs.router_logits, 4, 2))
    found.backward()
    assert all(
        parameter.grad.abs().sum() > 0
        for parameter_name, parameter in model.named_parameters()
        if parameter_name.endswith(("router.weight", "gate.weight"))
    )
    silent = draw(ARCHITECTURES[name])
    assert executor_model.auxiliary_loss(silent, silent(input_ids=rows, use_cache=False)) is None


def test_auxiliary_loss_of_a_dense_model_is_none():
    model = draw({"model_type": "llama", **SIZES})
    assert executor_model.auxiliary_loss(model, model(input_ids=torch.ones(1, 4, dtype=torch.int64))) is None
