"""The loss of an exported model by a path that shares no code with the executor: numpy and transformers alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

ROWS = 8  # windows of one forward pass


def window_losses(model_dir: Path, shard: Path, seq_len: int) -> NDArray[np.float64]:
    """Mean loss of every window of a validation shard in fp32, nats per token, shape (windows,).

    A window predicts seq_len tokens from those before them; the next one starts where it ends.
    Args:      shard: directory with validation.bin and validation.json.
    """
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    index = json.loads((shard / "validation.json").read_text(encoding="utf-8"))
    tokens = torch.from_numpy(np.fromfile(shard / "validation.bin", dtype=index["dtype"]).astype(np.int64))
    rows = tokens.unfold(0, seq_len + 1, seq_len)
    losses = []
    for batch in rows.split(ROWS):
        with torch.no_grad():
            logits = model(batch[:, :-1]).logits
        losses.append(cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none").double().mean(1))
    return torch.cat(losses).numpy()


def num_trained(export: Path, base: Path, freeze: Sequence[str]) -> int:
    """Parameters that a run trained: those of its adapter if it has one, else all that no pattern freezes."""
    for adapter in export.rglob("adapter_model.safetensors"):
        return sum(tensor.numel() for tensor in load_file(adapter).values())
    named = AutoModelForCausalLM.from_pretrained(base).named_parameters()
    return sum(p.numel() for name, p in named if not any(fnmatchcase(name, pattern) for pattern in freeze))
