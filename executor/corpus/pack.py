"""Token shards: documents as one stream of token ids, each followed by the end of text, in a file that is mapped."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cptplan.contract import Contract
from cptplan.errors import ConfigError, DataError
from cptplan.files import read_json, storage_error, write_json
from executor.corpus.documents import Document
from executor.corpus.split import SPLITS, Split
from executor.corpus.tokenizer import TextTokenizer

# Texts are tokenized in batches, so that both cores work and memory stays small however long the corpus is.
_BATCH_CHARACTERS = 4_000_000

Count = Annotated[int, Field(ge=0)]


class ShardIndex(Contract):
    """What <split>.json says of <split>.bin."""

    schema_version: Literal[1] = 1
    source: str
    split: Split
    dtype: Literal["uint16", "uint32"]
    """Little-endian."""
    num_tokens: Count
    """End-of-text tokens included."""
    num_documents: Count
    num_bytes: Count
    """UTF-8 bytes of the text, for bits per byte."""
    eos_token_id: Count
    vocab_size: Annotated[int, Field(gt=0)]
    tokenizer_hash: str
    corpus_hash: str
    """Of the kept documents and their split."""
    sha256: str
    """Of the token file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenShard:
    """One side of a source: its tokens, mapped from the file, and its index."""

    index: ShardIndex
    tokens: NDArray[np.unsignedinteger]
    """Token ids, shape (num_tokens,), read-only."""
    path: Path


def open_shard(directory: Path, split: Split) -> TokenShard:
    """Map <directory>/<split>.bin.

    Raises:    DataError if a file is missing, or the token file is not as long as its index says.
    """
    path = directory / f"{split}.bin"
    try:
        index = ShardIndex.parse(read_json(path.with_suffix(".json")), str(path.with_suffix(".json")))
    except ConfigError as error:
        raise DataError(error.message, hint="pack the corpora again") from error
    dtype = np.dtype(index.dtype).newbyteorder("<")
    size = path.stat().st_size if path.is_file() else -1
    if size != index.num_tokens * dtype.itemsize:
        raise DataError(
            f"token file must have {index.num_tokens * dtype.itemsize} bytes, as its index says; "
            f"got {'no file' if size < 0 else size} in {path}.",
            hint="pack the corpora again",
        )
    # numpy cannot map an empty file
    tokens = np.memmap(path, dtype=dtype, mode="r") if size else np.empty(0, dtype=dtype)
    return TokenShard(index=index, tokens=tokens, path=path)


def require_tokens(shard: TokenShard, needed: int, what: str) -> None:
    """Refuse a shard that has fewer tokens than something needs.

    Args:      needed: tokens. what: that needs them, such as "the validation set", for the message.
    Raises:    DataError saying how many tokens are there and needed.
    """
    if shard.index.num_tokens < needed:
        raise DataError(
            f"corpus must have at least {needed:,} {shard.index.split} tokens for {what}; got "
            f"{shard.index.num_tokens:,} of source {shard.index.source!r} in {shard.path}.",
            hint="give more text, or plan with fewer tokens",
        )


def require_vocabulary(shard: TokenShard, vocab_size: int, where: str) -> None:
    """Refuse a shard whose token ids a model does not have.

    Args:      vocab_size: rows of the model's embedding. where: the model is, for the message.
    Raises:    DataError if the tokenizer has larger ids than the model.
    """
    if shard.index.vocab_size > vocab_size:
        raise DataError(
            f"vocabulary of the model must hold the {shard.index.vocab_size} ids of the tokenizer; got {vocab_size} "
            f"in {where}, with {shard.path}.",
            hint="pack the corpora with the tokenizer of this model",
        )


def pack_source(
    documents: Iterable[tuple[Document, Split]],
    *,
    directory: Path,
    source: str,
    tokenizer: TextTokenizer,
    corpus_hash: str,
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> dict[Split, ShardIndex]:
    """Tokenize documents into train.bin and validation.bin; each file whole or not at all, the indices last.

    Args:      progress: called after every batch with the UTF-8 bytes of text packed so far.
    Raises:    StorageError if the directory cannot be written; RunFailedError if the disk is full.
    """
    try:
        with contextlib.ExitStack() as stack:
            writers = {split: stack.enter_context(_Writer(directory, split, tokenizer)) for split in SPLITS}
            for batch in _batches(documents):
                token_ids = tokenizer.encode([document.text for document, _ in batch])
                for (document, split), ids in zip(batch, token_ids, strict=True):
                    writers[split].add(document.text, ids)
                progress(sum(writer.num_bytes for writer in writers.values()))
            for split in SPLITS:  # an old index must not describe a new file
                (directory / f"{split}.json").unlink(missing_ok=True)
            for writer in writers.values():
                writer.commit()
    except OSError as error:
        raise storage_error(error, directory) from error
    indices = {split: writer.index(source, corpus_hash) for split, writer in writers.items()}
    for split, index in indices.items():
        write_json(directory / f"{split}.json", index.to_json())
    return indices


def read_packed(directory: Path, *, tokenizer: TextTokenizer, corpus_hash: str) -> dict[Split, ShardIndex] | None:
    """Both indices, if both sides are there already, from the same documents and tokenizer; else None."""
    try:
        indices = {split: open_shard(directory, split).index for split in SPLITS}
    except DataError:
        return None
    wanted = (corpus_hash, tokenizer.hash)
    return indices if all((i.corpus_hash, i.tokenizer_hash) == wanted for i in indices.values()) else None


def _batches(documents: Iterable[tuple[Document, Split]]) -> Iterator[list[tuple[Document, Split]]]:
    batch: list[tuple[Document, Split]] = []
    num_characters = 0
    for document, split in documents:
        batch.append((document, split))
        num_characters += len(document.text)
        if num_characters >= _BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


class _Writer:
    """One token file under a temporary name, given its own name by commit, removed if that does not come."""

    def __init__(self, directory: Path, split: Split, tokenizer: TextTokenizer) -> None:
        self.split = split
        self.tokenizer = tokenizer
        self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self.num_tokens = self.num_documents = self.num_bytes = 0
        self._path = directory / f"{split}.bin"
        self._temporary = directory / f".{split}.bin.{os.getpid()}.tmp"
        self._digest = hashlib.sha256()
        self._file: BinaryIO

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._temporary.open("wb")
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def add(self, text: str, token_ids: NDArray[np.uint32]) -> None:
        content = np.append(token_ids, np.uint32(self.tokenizer.eos_token_id)).astype(self.dtype).tobytes()
        self._file.write(content)
        self._digest.update(content)
        self.num_tokens += len(token_ids) + 1
        self.num_documents += 1
        self.num_bytes += len(text.encode())

    def commit(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._temporary.replace(self._path)

    def index(self, source: str, corpus_hash: str) -> ShardIndex:
        return ShardIndex(
            source=source,
            split=self.split,
            dtype="uint16" if self.dtype.itemsize == 2 else "uint32",
            num_tokens=self.num_tokens,
            num_documents=self.num_documents,
            num_bytes=self.num_bytes,
            eos_token_id=self.tokenizer.eos_token_id,
            vocab_size=self.tokenizer.vocab_size,
            tokenizer_hash=self.tokenizer.hash,
            corpus_hash=corpus_hash,
            sha256=self._digest.hexdigest(),
        )
