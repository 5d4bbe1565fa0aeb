"""From what people call a model to its shape: a size such as 8B, a directory or config.json, or a hub id."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cptplan.errors import ConfigError, ModelError
from cptplan.price.model_shape import ModelShape, read_model_shape, shape_from_config

SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
SIZE_RANGE = (1e7, 2e12)

_ANCHORS = ((1.35e8, 576, 30), (1.24e9, 2048, 16), (8.0e9, 4096, 32), (7.0e10, 8192, 80), (4.05e11, 16384, 126))
"""Parameters, hidden size and layers of SmolLM2-135M, Llama-3.2-1B, Llama-3 8B and 70B, Llama-3.1 405B (published:
their config.json); sizes between them are assumed to lie between them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedShape:
    """A shape and where it comes from, in words."""

    name: str
    shape: ModelShape
    source: str


def find_shape(text: str) -> NamedShape:
    """The shape of a model by size, path or hub id; nothing is downloaded.

    Args:      text: 8B, 1.5B, 350M; a directory with config.json, or that file; or org/name, looked for in the local
               cache of the hub.
    Raises:    ModelError if there is no such model here, with the next step; ConfigError for a size out of range.
    """
    path = Path(text)
    if path.is_file() or path.is_dir():
        directory = path.parent if path.is_file() else path
        return NamedShape(name=text, shape=read_model_shape(directory), source=f"config.json of {directory}")
    if parse_size(text) is not None:
        shape = shape_of_size(text)
        source = f"a size alone is taken as a Llama of {shape.num_layers} layers x {shape.hidden}, tables tied"
        return NamedShape(name=text, shape=shape, source=source)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        snapshot = _cached(text)
        if snapshot is None:
            raise ModelError(
                f"model must be in the hub's local cache; got {text}, which is not in {_hub_cache()}.",
                hint=f"hf download {text} config.json; or give a size such as 8B",
            )
        return NamedShape(name=text, shape=read_model_shape(snapshot), source=f"config.json of {text}")
    raise ModelError(
        f"model must be a size, a directory with config.json, or a hub id; got {text!r}.",
        hint="such as 8B, ./my-model or org/name",
    )


def parse_size(text: str) -> float | None:
    """Parameters that a size such as 8B, 1.5B or 350M means; None when it is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:[eE]\+?\d+)?)([KMBT]?)", text.strip(), flags=re.IGNORECASE)
    return float(match[1]) * SUFFIXES[match[2].upper()] if match else None


def shape_of_size(text: str) -> ModelShape:
    """A stand-in of that many parameters: Llama-3 proportions between published ones, and a tied head.

    The tables are tied so that the size is both all parameters and the N of 6 N D; the MLP's width takes what is left.
    Raises:    ConfigError if it is no size, or out of range.
    """
    size = parse_size(text)
    if size is None or not SIZE_RANGE[0] <= size <= SIZE_RANGE[1]:
        raise ConfigError(f"model size must be in [10M, 2T]; got {text!r}.", hint="such as 8B or 350M")
    hidden, num_layers = _proportions(size)
    head_dim = 128 if hidden >= 4096 else 64
    num_heads = hidden // head_dim
    num_kv_heads = max(n for n in range(1, min(num_heads, 8) + 1) if num_heads % n == 0)
    vocabulary = 128_256 if size >= 5e8 else 32_000 if size >= 5e7 else 16_000
    layers = size - vocabulary * hidden - hidden
    attention = 2 * hidden * head_dim * (num_heads + num_kv_heads)
    width = round((layers / num_layers - attention - 2 * hidden) / (3 * hidden))
    return shape_from_config(
        {
            "model_type": "llama",
            "hidden_size": hidden,
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_kv_heads,
            "head_dim": head_dim,
            "intermediate_size": width,
            "vocab_size": vocabulary,
            "tie_word_embeddings": True,
        },
        f"size {text}",
    )


def _proportions(size: float) -> tuple[int, int]:
    """Hidden size (whole heads, when wide eight groups of them) and layers: straight in logarithms between anchors."""
    low, high = next(
        (pair for pair in zip(_ANCHORS, _ANCHORS[1:], strict=False) if size <= pair[1][0]), (_ANCHORS[-2], _ANCHORS[-1])
    )
    share = math.log(size / low[0]) / math.log(high[0] / low[0])
    hidden = math.exp(math.log(low[1]) + share * math.log(high[1] / low[1]))
    layers = math.exp(math.log(low[2]) + share * math.log(high[2] / low[2]))
    if size < low[0]:  # below the smallest: narrower and shallower alike
        shrink = (size / low[0]) ** (1 / 3)
        hidden, layers = low[1] * shrink, low[2] * shrink
    unit = 1024 if hidden >= 3584 else 512 if hidden >= 768 else 64
    return max(round(hidden / unit), 1) * unit, max(round(layers), 2)


def _hub_cache(environment: Mapping[str, str] = os.environ) -> Path:
    """Where huggingface_hub keeps what it has downloaded, by its own rules."""
    if cache := environment.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    home = environment.get("HF_HOME") or os.path.join(environment.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"


def _cached(hub_id: str) -> Path | None:
    """The newest snapshot of a model in the cache that holds a config.json, or None."""
    repository = _hub_cache() / f"models--{hub_id.replace('/', '--')}"
    named = repository / "refs" / "main"
    if named.is_file():
        snapshot = repository / "snapshots" / named.read_text(encoding="utf-8").strip()
        if (snapshot / "config.json").is_file():
            return snapshot
    found = sorted(repository.glob("snapshots/*/config.json"), key=lambda path: path.stat().st_mtime)
    return found[-1].parent if found else None
