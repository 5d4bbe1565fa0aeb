"""The model of a run: loaded or drawn, and checked against its tokenizer, its data and this machine.

Any architecture that AutoModelForCausalLM knows. A mixture of experts is trained on the cross entropy of its logits
like any other; what balances its experts is added where its own configuration asks for it: auxiliary_loss.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from cptplan.errors import ConfigError, ModelError, suggest
from cptplan.run_spec import ModelSource, RunSpec

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
PICKLED_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# where configurations say how many positions there are; some keep an older field beside the one that counts
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx")
NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
LOAD_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    AttributeError,
    ImportError,
    RuntimeError,
    TypeError,
    SafetensorError,
    StrictDataclassError,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Loading:
    """What the loading of a model depends on, for one that is not trained; a RunSpec says the same and more."""

    model: ModelSource
    seq_len: int
    attention: str = "auto"
    precision: str = "fp32"
    seed: int = 0
    activation_checkpointing: bool = False


def load_model(spec: RunSpec | Loading) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """The model with fp32 master weights in training mode, and its tokenizer (None only for a bare configuration).

    Raises:    ModelError if a part is missing or does not load; ConfigError if seq_len is longer than its positions or
               its attention cannot run here.
    """
    source = spec.model
    set_verbosity_error()
    disable_progress_bar()
    if source.path is not None:
        _check_directory(source)
    try:
        _check_type(_config_values(source), source)
        tokenizer = _load_tokenizer(source)
        config = _load_config(source)
        _check_positions(config, spec)
        model = _load_weights(source, config, spec)
    except LOAD_ERRORS as error:
        raise ModelError(
            f"model must load; got {_first_line(error)} for {_place(source)}.",
            hint="check model.path, model.config and attention, or load it with transformers to see more",
        ) from error
    if spec.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    return model, tokenizer


def stored_dtype(source: ModelSource) -> torch.dtype:
    """Type of a loaded base model's stored weights if bf16 or fp16, so that an export can take its place; else fp32."""
    if source.path is None:
        return torch.float32
    values = _config_values(source)
    text = values.get("text_config") or {}
    found = next((part[key] for part in (values, text) for key in ("dtype", "torch_dtype") if part.get(key)), None)
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(str(found), torch.float32)


def resolve_attention(spec: RunSpec | Loading, config: PreTrainedConfig) -> str:
    """The attention to ask transformers for: auto takes flash, else sdpa, else eager, whichever can run first.

    Args:      config: of the model: not every architecture has them all.
    Raises:    ConfigError if the one that is asked for by name cannot run.
    """
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)  # None for a model that brings its code
    lacking = _flash_lacks(spec)
    if spec.attention == "flash_attention_2" and lacking is not None:
        raise ConfigError(
            f"attention flash_attention_2 must have flash_attn, CUDA and precision bf16; got {lacking}.",
            hint="install flash-attn, or set attention to auto",
        )
    if spec.attention == "flex_attention" and not torch.cuda.is_available():
        raise ConfigError(
            "attention flex_attention must have CUDA, since it has no gradient elsewhere; got no CUDA.",
            hint="set attention to auto",
        )
    if spec.attention != "auto":
        return spec.attention
    if lacking is None and getattr(architecture, "_supports_flash_attn", False):
        return "flash_attention_2"
    return "sdpa" if getattr(architecture, "_supports_sdpa", True) else "eager"


def _flash_lacks(spec: RunSpec | Loading) -> str | None:
    if importlib.util.find_spec("flash_attn") is None:
        return "no flash_attn"
    if not torch.cuda.is_available():
        return "no CUDA"
    return None if spec.precision == "bf16" else f"precision {spec.precision}"


def _config_values(source: ModelSource) -> dict[str, Any]:
    """The configuration as it is written down."""
    if source.config is not None:
        return dict(source.config)
    values: dict[str, Any] = PreTrainedConfig.get_config_dict(source.path)[0]
    return values


def _check_type(values: Mapping[str, Any], source: ModelSource) -> None:
    """Refuse what transformers does not know, or knows as something else than a causal language model."""
    kind = str(values.get("model_type") or "no model_type")
    brings_code = "AutoModelForCausalLM" in (values.get("auto_map") or {})
    if brings_code and source.trust_remote_code:
        return
    if kind in CONFIG_MAPPING and CONFIG_MAPPING[kind] in MODEL_FOR_CAUSAL_LM_MAPPING:
        return
    if brings_code:
        raise ModelError(
            f"model must not need code of its own unless trusted; got model_type {kind} with auto_map in "
            f"{_place(source)}.",
            hint="read its code, then set model.trust_remote_code to true",
        )
    if kind in CONFIG_MAPPING:
        raise ModelError(
            f"model must be a causal language model; got model_type {kind} in {_place(source)}.",
            hint="give a decoder that AutoModelForCausalLM loads",
        )
    raise ModelError(
        f"model_type must be one that transformers {transformers.__version__} knows; got {kind} in {_place(source)}.",
        hint=suggest(kind, CONFIG_MAPPING.keys()) or "check model_type, or install a transformers that knows it",
    )


def _load_config(source: ModelSource) -> PreTrainedConfig:
    if source.config is not None:
        values = dict(source.config)
        return AutoConfig.for_model(values.pop("model_type"), **values)
    return AutoConfig.from_pretrained(source.path, trust_remote_code=source.trust_remote_code)


def _load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase | None:
    place = source.tokenizer or source.path
    if place is None:
        return None
    return AutoTokenizer.from_pretrained(place, trust_remote_code=source.trust_remote_code)


def _load_weights(source: ModelSource, config: PreTrainedConfig, spec: RunSpec | Loading) -> PreTrainedModel:
    # the stored type is often bf16, and updates smaller than its precision would be lost: say fp32 always
    settings: dict[str, Any] = {
        "dtype": torch.float32,
        "attn_implementation": resolve_attention(spec, config),
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
        pickled = sorted(file.name for pattern in PICKLED_WEIGHTS for file in path.glob(pattern))
        got = f"only pickled weights ({pickled[0]})" if pickled else "none"
        raise ModelError(
            f"model directory must hold *.safetensors; got {got} in {path}.",
            hint="pickles can run code when loaded; where you trust them, load and save_pretrained again"
            if pickled
            else "save it with save_pretrained",
        )
    has_tokenizer = any((path / name).is_file() for name in TOKENIZER_FILES)
    if source.tokenizer is None and not has_tokenizer:
        raise ModelError(
            f"model directory must hold a tokenizer; got none in {path}.", hint="copy it there or set model.tokenizer"
        )


def _check_positions(config: PreTrainedConfig, spec: RunSpec | Loading) -> None:
    text = config.get_text_config()
    for name in POSITIONS:
        longest = getattr(text, name, None)
        if longest is not None:
            break
    else:
        return
    rope = getattr(text, "rope_parameters", None) or {}
    stretched = rope.get("original_max_position_embeddings", 0) * rope.get("factor", 1)
    if spec.seq_len > max(longest, stretched):
        raise ConfigError(
            f"seq_len must be at most {name}; got {spec.seq_len} and {longest} in the model.", hint="shorten seq_len"
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


def auxiliary_loss(model: nn.Module, outputs: Any) -> torch.Tensor | None:
    """What a mixture of experts adds to the loss so that all experts are used: router_aux_loss_coef x its own measure.

    A model returns it only if output_router_logits is true in its configuration; the loop computes the cross entropy
    from the logits itself, so without this term experts would be trained out of balance in silence. It is no mean over
    tokens: each forward pass is measured as a whole, so micro_batch_tokens and the number of processes change it.
    Validation losses leave it out.
    Args:      model: wrapped or not. outputs: of its forward pass.
    Returns:   scalar, nats; None if the model asks for none.
    """
    measure = getattr(outputs, "aux_loss", None)
    if not isinstance(measure, torch.Tensor):
        return None
    config = getattr(model, "module", model).config.get_text_config()
    return float(config.router_aux_loss_coef) * measure


def count_params(model: PreTrainedModel) -> tuple[int, int]:
    """Parameters in all, and without those of embeddings (tokens, positions) and of the output layer."""
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    output = model.get_output_embeddings()
    outside = [*embeddings, output] if output is not None else embeddings
    excluded = {p: p.numel() for module in outside for p in module.parameters()}
    total = sum(p.numel() for p in model.parameters())
    return total, total - sum(excluded.values())


def num_used_params(model: PreTrainedModel) -> int:
    """Parameters that a token goes through, for FLOPs: those without embeddings, the output layer, k of E experts."""
    config, output = model.config.get_text_config(), model.get_output_embeddings()
    experts = next((number for name in NUM_EXPERTS if (number := getattr(config, name, None))), 1)
    chosen = getattr(config, "num_experts_per_tok", None) or experts
    in_experts = sum(p.numel() for name, p in model.named_parameters() if re.search(r"(^|\.)experts\.", name))
    in_output = sum(p.numel() for p in output.parameters()) if output is not None else 0
    return count_params(model)[1] + in_output - in_experts * (experts - chosen) // experts


def tied_names(model: PreTrainedModel) -> frozenset[str]:
    """Names that are second names of a parameter: an export holds each parameter once.

    Asked before FSDP2 wraps the model, whose gathered weights no longer show that they are one.
    """
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return frozenset(every - {name for name, _ in model.named_parameters()})


def _place(source: ModelSource) -> str:
    return source.path or "model.config"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}".rstrip(".")
