"""A model directory that takes the place of its base model: weights, tokenizer, configuration, model card.

transformers 4 and 5 read it alike. The weights are in the type that the base model is stored in, and are rounded to it
from the fp32 weights that were trained; checkpoints keep those.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cptplan.errors import CptplanError
from cptplan.files import read_json, storage_error, write_json, write_text
from cptplan.run_spec import RunSpec
from executor.checkpoint import sync_directory

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
GENERAL = "general"  # the validation set that forgetting is measured on


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """What a model directory says of how it was made: the plan, the data it saw, and what it forgot."""

    spec: RunSpec
    step: int
    """Optimiser steps done."""
    tokens_by_source: Mapping[str, int]
    losses_start: Mapping[str, float]
    """Validation losses at step 0 by set, nats per token."""
    losses_now: Mapping[str, float]
    """The same at this step; empty if it was not evaluated."""
    versions: Mapping[str, str]

    @property
    def forgetting_ratio(self) -> float | None:
        """Adapted over base perplexity on the general set: exp(loss now - loss at step 0); None if not measured."""
        if GENERAL not in self.losses_now or GENERAL not in self.losses_start:
            return None
        return math.exp(min(self.losses_now[GENERAL] - self.losses_start[GENERAL], 700.0))

    def render(self, dtype: torch.dtype) -> str:
        """The card as Markdown with the header that model hubs read.

        Args:      dtype: type of the weights in the directory.
        """
        spec = self.spec
        header = ["library_name: transformers", "pipeline_tag: text-generation"]
        if spec.model.path is not None and HUB_ID.fullmatch(spec.model.path) and not Path(spec.model.path).exists():
            header.insert(0, f"base_model: {json.dumps(spec.model.path)}")
        phase = {"cpt": "continual-pretraining", "pretrain": "pretraining"}[spec.phase]
        header += ["tags:", f"- {phase}", "- cptplan"]
        forgetting = self.forgetting_ratio
        parts = [
            "\n".join(["---", *header, "---"]),
            f"# {spec.name}, step {self.step} of {spec.total_steps}",
            "## Run",
            _table(("setting", "value"), self._settings(dtype).items()),
            "## Data",
            _table(("source", "role", "tokens seen", "share"), self._sources()),
            "## Validation loss (nats per token)",
            _table(("set", "step 0", f"step {self.step}", "change"), self._losses()),
        ]
        if forgetting is not None:
            parts.append(f"forgetting_ratio (general perplexity over that at step 0): {forgetting:.4f}")
        return "\n\n".join(parts) + "\n"

    def _settings(self, dtype: torch.dtype) -> dict[str, str]:
        spec, ratios = self.spec, self.spec.replay_ratios()
        source, lora = spec.model, spec.lora
        drawn = f"drawn from seed {spec.seed} ({(source.config or {}).get('model_type')})"
        return {
            "base model": source.path or drawn,
            "spec hash": spec.hash,
            "schedule": spec.schedule.kind,
            "peak_lr": f"{getattr(spec.schedule, 'peak_lr', spec.lr().max()):g}",
            "lr of the last step": f"{spec.lr()[max(self.step - 1, 0)]:g}",
            "replay_ratio, first and last step of the plan": f"{ratios[0]:g}, {ratios[-1]:g}",
            "batch_tokens": f"{spec.batch_tokens:,}",
            "seq_len": f"{spec.seq_len:,}",
            "seed": str(spec.seed),
            **(
                {"lora": f"rank {lora.rank}, alpha {lora.alpha:g}, merged into the weights"} if lora is not None else {}
            ),
            "weights": str(dtype).removeprefix("torch.")
            + ("" if dtype == torch.float32 else ", as the base model; rounded from fp32"),
            **{f"version of {name}": version for name, version in self.versions.items()},
        }

    def _sources(self) -> list[tuple[str, ...]]:
        roles = {source.name: source.role for source in self.spec.sources}
        total = max(sum(self.tokens_by_source.values()), 1)
        return [
            (name, roles.get(name, ""), f"{tokens:,}", f"{tokens / total:.1%}")
            for name, tokens in self.tokens_by_source.items()
        ]

    def _losses(self) -> list[tuple[str, ...]]:
        def number(value: float | None, form: str = ".4f") -> str:
            return "not measured" if value is None else format(value, form)

        rows: list[tuple[str, ...]] = []
        for name, start in self.losses_start.items():
            now = self.losses_now.get(name)
            rows.append((name, number(start), number(now), number(None if now is None else now - start, "+.4f")))
        return rows


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def export_model(
    directory: Path,
    model: PreTrainedModel,
    state: Mapping[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase | None,
    card: ModelCard | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a model directory that transformers 4 and 5 read alike; whole, or not at all.

    Args:      model: unwrapped. state: full weights on this process, each under one name. card: for README.md.
               dtype: type to write the weights in (executor.model.stored_dtype).
    """
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        model.save_pretrained(temporary, state_dict=_in_dtype(model, state, dtype))
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        _write_dual_config(temporary, model, dtype)
        _write_dual_tokenizer(temporary)
        if card is not None:
            write_text(temporary / "README.md", card.render(dtype))
        readable = (temporary / "config.json").stat().st_mode
        for path in temporary.iterdir():
            path.chmod(readable)  # safetensors come for their owner only, and a team shares its models
        sync_directory(temporary)
        shutil.rmtree(directory, ignore_errors=True)
        temporary.rename(directory)
    except (OSError, SafetensorError, CptplanError) as error:
        shutil.rmtree(temporary, ignore_errors=True)  # give the room back
        raise _export_error(error, directory) from error


def _in_dtype(model: PreTrainedModel, state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights in the type to write; those that transformers loads in fp32 whatever the type stay so."""
    kept = {*(model._keep_in_fp32_modules_strict or ())}
    if dtype == torch.float16:
        kept |= {*(model._keep_in_fp32_modules or ())}

    def cast(name: str, tensor: torch.Tensor) -> torch.Tensor:
        stays = not tensor.is_floating_point() or any(re.search(rf"(^|\.){part}(\.|$)", name) for part in kept)
        return tensor if stays else tensor.to(dtype)

    return {name: cast(name, tensor) for name, tensor in state.items()}


def _export_error(error: Exception, directory: Path) -> Exception:
    """The user's words for a failed export; safetensors puts the system's error number into its message."""
    number = re.search(r"os error (\d+)", str(error))
    if isinstance(error, SafetensorError) and number:
        error = OSError(int(number[1]), os.strerror(int(number[1])))
    return storage_error(error, directory) if isinstance(error, OSError) else error


def _write_dual_config(directory: Path, model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Add what transformers 4 looks for: without it, it takes rope_theta 10000 or 128 experts."""
    config = read_json(directory / "config.json")
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        if "dtype" in part:
            part["dtype"] = part["torch_dtype"] = str(dtype).removeprefix("torch.")
        rope = part.get("rope_parameters")
        if isinstance(rope, dict):
            part.update(_rope_of_4(rope))
    if config["model_type"].startswith("gpt_neox"):
        config.update(rotary_emb_base=config["rope_theta"], rotary_pct=config["partial_rotary_factor"])
    if model.config.attribute_map.get("num_experts") in config:  # the older name (Qwen 3)
        config["num_experts"] = config[model.config.attribute_map["num_experts"]]
    write_json(directory / "config.json", config)


def _rope_of_4(rope: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of transformers 4 that say the same as rope_parameters of 5."""
    if "full_attention" in rope:  # each kind of layer has its own (Gemma 3)
        local = rope.get("sliding_attention") or {}
        named = {"rope_local_base_freq": local["rope_theta"]} if "rope_theta" in local else {}
        return {**_rope_of_4(rope["full_attention"] or {}), **named}
    if "rope_theta" not in rope:
        return {}
    apart = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    rest = {key: value for key, value in rope.items() if key not in apart}
    return {**apart, "rope_scaling": None if rope.get("rope_type", "default") == "default" else rest}


def _write_dual_tokenizer(directory: Path) -> None:
    """Let tokenizer.json say all of it in both versions.

    Classes of transformers 4 that are named after a model build parts of it anew (Llama's puts a token in front), and a
    list of extra_special_tokens does not load there.
    """
    path = directory / "tokenizer_config.json"
    if not (path.is_file() and (directory / "tokenizer.json").is_file()):
        return
    settings = read_json(path)
    listed, named = settings.pop("extra_special_tokens", None), settings.get("model_specific_special_tokens")
    if isinstance(listed, list) and listed:
        settings["additional_special_tokens"] = listed
    if isinstance(listed, dict) or named:
        settings["extra_special_tokens"] = named or listed
    write_json(path, {**settings, "tokenizer_class": "PreTrainedTokenizerFast"})
