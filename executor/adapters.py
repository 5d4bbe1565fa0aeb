"""Low-rank adapters (LoRA, through peft): put into a model, merged into its weights, exported by themselves.

The adapters are put into the model in place, which stays what it was: a transformers model whose names have no prefix.
Linear layers are adapted (Conv1D of GPT-2 too). The experts of a mixture that transformers 5 keeps as one tensor for
all, and routers that are bare parameters, are none: they stay as they are.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cptplan.errors import ConfigError, suggest
from cptplan.files import write_bytes, write_json
from cptplan.run_options import Lora

logger = logging.getLogger(__name__)
ALL_LINEAR = ("all-linear",)
ADAPTER = "default"  # peft's name for the only one


def apply_lora(model: PreTrainedModel, settings: Lora) -> PreTrainedModel:
    """Put adapters into a model, in place, and train nothing else.

    They change nothing yet: A is drawn, B is 0. Seed torch before, and count parameters before. Activation
    checkpointing works as it is set: it is the kind that does not need inputs with gradients.
    Returns:   the same model.
    Raises:    ConfigError if a target names no linear layer, or one that cannot be adapted alone.
    """
    layers = _target_layers(model, settings)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=layers,
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in layers),
        base_model_name_or_path=model.name_or_path or None,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers that are not as expected, which is looked at below
            inject_adapter_in_model(config, model)
        adapted = set(_adapted_layers(model))
    except ValueError:  # peft cannot do what it took the names for
        adapted = set()
    if wrong := sorted(set(layers) ^ adapted):
        # peft reads gate_proj and the like, in a mixture of experts, as the experts of older transformers
        raise ConfigError(
            f"lora.targets must be layers that peft adapts in a {model.config.model_type}; got {wrong[0]}.",
            hint="name the layers of the attention only, such as q_proj",
        )
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logger.info("lora: %d linear layers adapted, %d parameters to train", len(layers), trained)
    return model


def _target_layers(model: PreTrainedModel, settings: Lora) -> list[str]:
    """Full names of the layers to adapt, each target matching one or more."""
    modules = dict(model.named_modules())
    linear = {name: module for name, module in modules.items() if isinstance(module, nn.Linear | Conv1D)}
    output = model.get_output_embeddings()
    if settings.targets == ALL_LINEAR:
        return [name for name, module in linear.items() if module is not output]
    found: dict[str, None] = {}
    for target in settings.targets:
        matching = [name for name in linear if _ends_with(name, target)]
        if not matching:
            others = {type(module).__name__ for name, module in modules.items() if _ends_with(name, target)}
            ends = sorted({name.rpartition(".")[2] for name in linear})
            raise ConfigError(
                f"lora.targets must name linear layers; got {target!r}{_which_is(others)}.",
                hint=suggest(target, ends) or f"the model has {', '.join(ends)}",
            )
        found.update(dict.fromkeys(matching))
    tied = getattr(output, "weight", None) is model.get_input_embeddings().weight
    if tied and any(linear[name] is output for name in found):
        raise ConfigError(
            f"lora.targets must not name an output layer tied to the embedding; got {', '.join(settings.targets)}.",
            hint="drop it: merged, it would change the embedding too",
        )
    return list(found)


def _ends_with(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def _which_is(kinds: set[str]) -> str:
    return f", which is {', '.join(sorted(kinds))}" if kinds else ""


def _adapted_layers(model: nn.Module) -> dict[str, LoraLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def merged_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the plain model that computes what the adapted one does: W + alpha / rank x B A.

    Args:      model: unwrapped, with adapters. state: all of its weights, unsharded, as the adapted model names them.
    Returns:   weights under the names of the plain model; what was not adapted is passed on as it is, so a name that
               was left out of state (of a tied weight) is left out here.
    Reference: Hu et al. 2021, arXiv:2106.09685, eq. 3.
    """
    merged = {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if not _is_adapter(name)}
    for name, layer in _adapted_layers(model).items():
        down, up = (state[f"{name}.{part}.{ADAPTER}.weight"] for part in ("lora_A", "lora_B"))
        change = layer.scaling[ADAPTER] * (up @ down)
        merged[f"{name}.weight"] = merged[f"{name}.weight"] + (change.T if layer.fan_in_fan_out else change)
    return merged


def adapter_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapters alone, out of all weights of an adapted model, under the names that peft gives them in a file."""
    return {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": tensor.contiguous()
        for name, tensor in state.items()
        if _is_adapter(name)
    }


def _is_adapter(name: str) -> bool:
    return f".lora_A.{ADAPTER}." in name or f".lora_B.{ADAPTER}." in name


def export_adapter(directory: Path, model: PreTrainedModel, state: Mapping[str, Tensor]) -> None:
    """Write the adapters as a directory that peft's PeftModel.from_pretrained puts on the base model.

    adapter_config.json is written last: a directory without it is not one.
    Args:      model: unwrapped, with adapters. state: all of its weights, unsharded.
    Raises:    StorageError if the place cannot be written; RunFailedError if the disk is full.
    """
    config = {**model.peft_config[ADAPTER].to_dict(), "inference_mode": True}
    weights = safetensors.torch.save(adapter_state(state), metadata={"format": "pt"})
    write_bytes(directory / "adapter_model.safetensors", weights)
    sortable = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    write_json(directory / "adapter_config.json", dict(sorted(sortable.items())))
