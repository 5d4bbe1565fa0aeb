"""Places of a general corpus where generated texts begin: document starts, and more within long documents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cptplan.errors import DataError
from executor.corpus.documents import read_documents
from executor.corpus.pack import open_shard
from executor.corpus.tokenizer import TextTokenizer
from executor.data import permute

_SCANNED_TOKENS = 1 << 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """The first tokens of different places, in a seeded order."""

    tokens: NDArray[np.integer]
    """Documents, each followed by the end of text, shape (num_tokens,)."""
    starts: NDArray[np.int64]
    """Where the places begin."""
    length: int
    """Tokens of a prompt."""
    content: str
    """Hash of the tokens."""

    def read(self, numbers: range, seed: int) -> NDArray[np.int64]:
        """Prompts by their number, each place once, shape (len(numbers), length)."""
        key = np.full(len(numbers), int.from_bytes(hashlib.sha256(f"prompts/{seed}".encode()).digest()[:8]), np.uint64)
        order = permute(np.array(numbers), len(self.starts), key)
        places = self.starts[order][:, None] + np.arange(self.length)
        return np.asarray(self.tokens[places], dtype=np.int64)


def open_prompts(path: Path, tokenizer: TextTokenizer, *, length: int, spacing: int) -> Prompts:
    """Find the places in the training side of a packed corpus, or in the documents of a plain one (held in memory).

    Args:      tokenizer: of the model. length: tokens of a prompt. spacing: tokens between the places of one document.
    Raises:    DataError if there is no place, or the shard was packed with another tokenizer.
    """
    if (path / "train.json").is_file():
        shard = open_shard(path, "train")
        found = shard.index.vocab_size, shard.index.eos_token_id
        if found != (tokenizer.vocab_size, tokenizer.eos_token_id):
            raise DataError(
                f"prompts must be packed with the model's tokenizer ({tokenizer.vocab_size} tokens, end of text "
                f"{tokenizer.eos_token_id}); got {found[0]} and {found[1]} in {path}.",
                hint="pack the corpus with the tokenizer of the model",
            )
        tokens, content = shard.tokens, shard.index.sha256
    else:
        tokens = np.concatenate(list(_tokenized(path, tokenizer)))
        content = hashlib.sha256(tokens.tobytes()).hexdigest()
    starts = find_places(tokens, tokenizer.eos_token_id, length=length, spacing=spacing)
    if not len(starts):
        raise DataError(
            f"prompts must hold a document of at least {length} tokens; got none in {path}.",
            hint="shorten --prompt-tokens, or give other text",
        )
    return Prompts(tokens=tokens, starts=starts, length=length, content=content)


def find_places(tokens: NDArray[np.integer], eos_token_id: int, *, length: int, spacing: int) -> NDArray[np.int64]:
    """Starts of prompts: of every document, and every `spacing` tokens after it, while `length` tokens follow in it.

    Args:      tokens: shape (num_tokens,); an end of text closes each document.
    Returns:   places, rising, shape (n,).
    """
    parts = range(0, len(tokens), _SCANNED_TOKENS)  # a mask of the whole file would not fit into memory
    ends = [np.flatnonzero(tokens[at : at + _SCANNED_TOKENS] == eos_token_id) + at for at in parts]
    bounds = np.concatenate([np.array([-1]), *ends, np.array([len(tokens)])])
    starts, sizes = bounds[:-1] + 1, np.diff(bounds) - 1
    counts = np.where(sizes < length, 0, (sizes - length) // spacing + 1)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.asarray(np.repeat(starts, counts) + within * spacing, dtype=np.int64)


def _tokenized(path: Path, tokenizer: TextTokenizer) -> Iterator[NDArray[np.uint32]]:
    end = np.array([tokenizer.eos_token_id], dtype=np.uint32)
    for document in read_documents(path):
        yield from (*tokenizer.encode([document.text]), end)
