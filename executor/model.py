"""The model of a run: loaded or drawn, checked against its tokenizer and data, exported as a model directory."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from cptplan.errors import ConfigError, CptplanError, ModelError
from cptplan.files import read_json, storage_error, write_json
from cptplan.run_spec import ModelSource, RunSpec
from executor.checkpoint import sync_directory

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def load_model(spec: RunSpec) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """The model with fp32 master weights in training mode, and its tokenizer (None only for a bare configuration).

    Raises:    ModelError if a part is missing or does not load; ConfigError if seq_len is longer than its positions.
    """
    source = spec.model
    set_verbosity_error()
    disable_progress_bar()
    if source.path is not None:
        _check_directory(source)
    try:
        tokenizer = _load_tokenizer(source)
        config = _load_config(source)
        _check_positions(config, spec)
        model = _load_weights(source, config, spec)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"model must load; got {_first_line(error)} for {source.path or 'model.config'}.",
            hint="check model.path, model.config and attention, or load it with transformers to see more",
        ) from error
    if spec.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    return model, tokenizer


def _load_config(source: ModelSource) -> PretrainedConfig:
    if source.config is not None:
        values = dict(source.config)
        return AutoConfig.for_model(values.pop("model_type"), **values)
    return AutoConfig.from_pretrained(source.path, trust_remote_code=source.trust_remote_code)


def _load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase | None:
    place = source.tokenizer or source.path
    if place is None:
        return None
    return AutoTokenizer.from_pretrained(place, trust_remote_code=source.trust_remote_code)


def _load_weights(source: ModelSource, config: PretrainedConfig, spec: RunSpec) -> PreTrainedModel:
    # the stored type is often bf16, and updates smaller than its precision would be lost: say fp32 always
    settings: dict[str, Any] = {
        "dtype": torch.float32,
        "attn_implementation": spec.attention,
        "trust_remote_code": source.trust_remote_code,
    }
    if source.path is None:
        torch.manual_seed(spec.seed)
        return AutoModelForCausalLM.from_config(config, **settings)
    model, info = AutoModelForCausalLM.from_pretrained(
        source.path, config=config, use_safetensors=True, output_loading_info=True, **settings
    )
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would draw them at random and say so in a warning only
        raise ModelError(
            f"model must have all its weights; got {len(missing)} missing, such as {missing[0]}, in {source.path}.",
            hint="check that config.json and the weights belong together",
        )
    return model


def _check_directory(source: ModelSource) -> None:
    """Say what a local directory lacks, before transformers takes it for a hub id."""
    path = Path(str(source.path))
    if not path.exists() and (path.is_absolute() or str(source.path).startswith((".", "~")) or len(path.parts) > 2):
        raise ModelError(f"model.path must exist; got no {path}.", hint="check the path, or give a hub id")
    if not path.is_dir():
        return
    if not (path / "config.json").is_file():
        raise ModelError(f"model directory must hold config.json; got none in {path}.", hint="give a complete export")
    if not list(path.glob("*.safetensors")):
        raise ModelError(
            f"model directory must hold *.safetensors; got none in {path}.", hint="save it with save_pretrained"
        )
    has_tokenizer = any((path / name).is_file() for name in TOKENIZER_FILES)
    if source.tokenizer is None and not has_tokenizer:
        raise ModelError(
            f"model directory must hold a tokenizer; got none in {path}.", hint="copy it there or set model.tokenizer"
        )


def _check_positions(config: PretrainedConfig, spec: RunSpec) -> None:
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and spec.seq_len > longest:
        raise ConfigError(
            f"seq_len must be at most max_position_embeddings; got {spec.seq_len} and {longest} in the model.",
            hint="shorten seq_len",
        )


def check_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, shards: Mapping[str, int]
) -> None:
    """Refuse token ids that the model has no embedding for.

    Args:      shards: vocabulary size of every shard by name.
    Raises:    ModelError naming the two sizes.
    """
    rows = int(model.get_input_embeddings().num_embeddings)
    sizes = {"tokenizer": len(tokenizer)} if tokenizer is not None else {}
    for name, size in {**sizes, **shards}.items():
        if size > rows:
            raise ModelError(
                f"vocabulary must fit the model's {rows} embeddings; got {size} in {name}.",
                hint="pack the corpus with the model's own tokenizer, or resize the model's embeddings",
            )


def count_params(model: PreTrainedModel) -> tuple[int, int]:
    """Parameters in all, and without those of embeddings (tokens, positions) and of the output layer."""
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    output = model.get_output_embeddings()
    outside = [*embeddings, output] if output is not None else embeddings
    excluded = {p: p.numel() for module in outside for p in module.parameters()}
    total = sum(p.numel() for p in model.parameters())
    return total, total - sum(excluded.values())


def tied_names(model: PreTrainedModel) -> frozenset[str]:
    """Names that are second names of a parameter: an export holds each parameter once.

    Asked before FSDP2 wraps the model, whose gathered weights no longer show that they are one.
    """
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return frozenset(every - {name for name, _ in model.named_parameters()})


def export_model(
    directory: Path,
    model: PreTrainedModel,
    state: Mapping[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    """Write a model directory that transformers 4 and 5 read alike; whole, or not at all.

    Args:      model: unwrapped. state: full weights on this process, each under one name.
    """
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        model.save_pretrained(temporary, state_dict=dict(state))
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        _write_dual_config(temporary)
        readable = (temporary / "config.json").stat().st_mode
        for path in temporary.iterdir():
            path.chmod(readable)  # safetensors come for their owner only, and a team shares its models
        sync_directory(temporary)
        shutil.rmtree(directory, ignore_errors=True)
        temporary.rename(directory)
    except (OSError, SafetensorError, CptplanError) as error:
        shutil.rmtree(temporary, ignore_errors=True)  # give the room back
        raise _export_error(error, directory) from error


def _export_error(error: Exception, directory: Path) -> Exception:
    """The user's words for a failed export; safetensors puts the system's error number into its message."""
    number = re.search(r"os error (\d+)", str(error))
    if isinstance(error, SafetensorError) and number:
        error = OSError(int(number[1]), os.strerror(int(number[1])))
    return storage_error(error, directory) if isinstance(error, OSError) else error


def _write_dual_config(directory: Path) -> None:
    """Add what transformers 4 looks for: without it, it takes rope_theta 10000 and finds no tokenizer class."""
    config = read_json(directory / "config.json")
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        config["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else scaling
    config["torch_dtype"] = config.get("dtype")
    write_json(directory / "config.json", config)
    path = directory / "tokenizer_config.json"
    if path.is_file():
        settings = read_json(path)
        if settings.get("tokenizer_class") == "TokenizersBackend":
            write_json(path, {**settings, "tokenizer_class": "PreTrainedTokenizerFast"})


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}".rstrip(".")
