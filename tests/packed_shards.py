"""Token shards as packing leaves them, made up from arrays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

EOS = 0


def some_documents(count: int, length: int, *, vocab_size: int = 1000, seed: int = 0) -> list[np.ndarray]:
    """Random documents: no two share a run of tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(1, vocab_size, length) for _ in range(count)]


def write_shard(
    directory: Path,
    split: str,
    documents: Sequence[np.ndarray],
    *,
    num_bytes: int | None = None,
    vocab_size: int = 1000,
) -> None:
    """<split>.bin and <split>.json of documents, each followed by its end of text."""
    parts = [part for document in documents for part in (document, [EOS])]
    tokens = np.concatenate(parts).astype("<u2") if parts else np.zeros(0, dtype="<u2")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{split}.bin").write_bytes(tokens.tobytes())
    index = {
        "schema_version": 1,
        "source": directory.name,
        "split": split,
        "dtype": "uint16",
        "num_tokens": len(tokens),
        "num_documents": len(documents),
        "num_bytes": 4 * len(tokens) if num_bytes is None else num_bytes,
        "eos_token_id": EOS,
        "vocab_size": vocab_size,
    }
    (directory / f"{split}.json").write_text(json.dumps(index))
