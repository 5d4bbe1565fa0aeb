"""Packed token shards as the planner reads them: <split>.json beside <split>.bin, mapped, never loaded whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cptplan.errors import ConfigError, DataError
from cptplan.files import read_json

Tokens = NDArray[np.unsignedinteger[Any]]
DTYPES = ("uint16", "uint32")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One side of a source: its tokens and what its index says of them."""

    source: str
    split: str
    tokens: Tokens
    """Token ids, documents one after the other, each ended by eos_token_id, shape (num_tokens,), read-only."""
    num_documents: int
    num_bytes: int
    """UTF-8 bytes of the text."""
    eos_token_id: int
    vocab_size: int

    @property
    def num_tokens(self) -> int:
        """End-of-text tokens included."""
        return len(self.tokens)

    @property
    def tokens_per_byte(self) -> float:
        """Fertility of the tokenizer on this text; the fewer the better it fits."""
        return self.num_tokens / max(self.num_bytes, 1)


def read_shard(directory: Path, split: str) -> Shard:
    """Map one side of a source.

    Raises:    DataError if a file is missing, says nothing usable, or is not as long as its index says.
    """
    path = directory / f"{split}.bin"
    try:
        index = read_json(path.with_suffix(".json"))
        counts = {key: int(index[key]) for key in ("num_tokens", "num_documents", "num_bytes", "eos_token_id")}
        name, vocab_size, dtype = str(index["source"]), int(index["vocab_size"]), str(index["dtype"])
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"shard must have its index; got {error} in {path.with_suffix('.json')}.", hint="pack the corpora again"
        ) from error
    size = path.stat().st_size if path.is_file() else -1
    if dtype not in DTYPES or size != counts["num_tokens"] * np.dtype(dtype).itemsize:
        raise DataError(
            f"token file must hold {counts['num_tokens']} tokens of {dtype}, as its index says; got "
            f"{'no file' if size < 0 else f'{size} bytes'} in {path}.",
            hint="pack the corpora again",
        )
    kind = np.dtype(dtype).newbyteorder("<")
    # numpy cannot map an empty file
    tokens: Tokens = np.memmap(path, dtype=kind, mode="r") if size else np.empty(0, dtype=kind)
    return Shard(
        source=name,
        split=split,
        tokens=tokens,
        num_documents=counts["num_documents"],
        num_bytes=counts["num_bytes"],
        eos_token_id=counts["eos_token_id"],
        vocab_size=vocab_size,
    )


def sample_tokens(shard: Shard, most: int) -> Tokens:
    """At most so many tokens of a shard, in 16 stretches spread evenly over it, shape (<= most,)."""
    if shard.num_tokens <= most:
        return np.asarray(shard.tokens)
    stretch = max(most // 16, 1)
    begins = np.linspace(0, shard.num_tokens - stretch, 16).astype(np.int64)
    return np.concatenate([np.asarray(shard.tokens[begin : begin + stretch]) for begin in begins])
