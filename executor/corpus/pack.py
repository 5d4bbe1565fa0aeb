"""Token shards: documents as one stream of token ids, each followed by the end of text, in a file that is mapped.

Packing can be killed at any moment: every so many bytes the files are saved with a checksum, and a later call goes on
from there, with the same bytes at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cptplan.contract import Contract
from cptplan.errors import ConfigError, DataError
from cptplan.files import read_json, storage_error, write_json
from executor.corpus.documents import Document
from executor.corpus.encode import Encoder
from executor.corpus.split import SPLITS, Split
from executor.corpus.tokenizer import TextTokenizer

# Texts are tokenized in batches, so that memory stays small however long the corpus is.
_BATCH_CHARACTERS = 2_000_000
# Text after which the work is saved: what a killed process loses, some seconds (measured).
_SAVE_EVERY_BYTES = 32_000_000
_STATE = "packing.json"
_COUNTED = ("num_tokens", "num_documents", "num_bytes", "sha256")

log = logging.getLogger(__name__)

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
    """Of the texts in order and their split."""
    sha256: str
    """Of the token file."""
    provenance: Literal["original", "proxy", "synthetic"] = "original"
    """Of the text, as SourceSpec says."""


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
    provenance: Literal["original", "proxy", "synthetic"] = "original",
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> dict[Split, ShardIndex]:
    """Tokenize documents into train.bin and validation.bin, or go on with it; the indices come last.

    Args:      documents: always all of them; those that are packed already are passed over. progress: called after
               every batch with the UTF-8 bytes of text packed so far.
    Raises:    StorageError if the directory cannot be written; RunFailedError if the disk is full.
    """
    encoder = Encoder(tokenizer)
    empty = ShardIndex(
        source=source,
        split="train",
        dtype="uint16" if encoder.dtype.itemsize == 2 else "uint32",
        num_tokens=0,
        num_documents=0,
        num_bytes=0,
        eos_token_id=tokenizer.eos_token_id,
        vocab_size=tokenizer.vocab_size,
        tokenizer_hash=tokenizer.hash,
        corpus_hash=corpus_hash,
        sha256=hashlib.sha256().hexdigest(),
        provenance=provenance,
    )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        saved = _read_state(directory, empty)
        with contextlib.ExitStack() as stack:
            writers = {split: stack.enter_context(_Writer(directory, saved[split])) for split in SPLITS}
            num_saved = num_bytes = sum(writer.index.num_bytes for writer in writers.values())
            packed = sum(writer.index.num_documents for writer in writers.values())
            for batch in _batches(islice(documents, packed, None)):
                for split, writer in writers.items():
                    texts = [document.text for document, side in batch if side == split]
                    writer.add(texts, encoder.encode(texts))
                num_bytes = sum(writer.num_bytes for writer in writers.values())
                progress(num_bytes)
                if num_bytes - num_saved >= _SAVE_EVERY_BYTES:
                    _save(directory, writers)
                    num_saved = num_bytes
            _save(directory, writers)
        return _publish(directory, {split: writer.index for split, writer in writers.items()})
    except OSError as error:
        raise storage_error(error, directory) from error


def read_packed(
    directory: Path, *, tokenizer: TextTokenizer, corpus_hash: str, provenance: str = "original"
) -> dict[Split, ShardIndex] | None:
    """Both indices, if both sides are there already, from the same documents and tokenizer; else None."""
    try:
        indices = {split: open_shard(directory, split).index for split in SPLITS}
    except DataError:
        return None
    wanted = (corpus_hash, tokenizer.hash, tokenizer.eos_token_id, provenance)
    found = {(i.corpus_hash, i.tokenizer_hash, i.eos_token_id, i.provenance) for i in indices.values()}
    return indices if found == {wanted} else None


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


def _partial(directory: Path, split: Split) -> Path:
    return directory / f"{split}.bin.partial"


def _save(directory: Path, writers: dict[Split, _Writer]) -> None:
    """Put what is packed so far on the disk, then say so."""
    indices = {split: writer.save() for split, writer in writers.items()}
    sides = {split: index.to_json() for split, index in indices.items()}
    write_json(directory / _STATE, {"schema_version": 1, **sides})


def _publish(directory: Path, indices: dict[Split, ShardIndex]) -> dict[Split, ShardIndex]:
    """Give the finished files their names; killed in between, the next call finds them by either name."""
    for split in SPLITS:  # an old index must not describe a new file
        (directory / f"{split}.json").unlink(missing_ok=True)
    for split in SPLITS:
        _partial(directory, split).replace(directory / f"{split}.bin")
    for split, index in indices.items():
        write_json(directory / f"{split}.json", index.to_json())
    (directory / _STATE).unlink()
    return indices


def _read_state(directory: Path, empty: ShardIndex) -> dict[Split, tuple[ShardIndex, hashlib._Hash]]:
    """What was saved of the same work, its files cut to what the state says; nothing if a checksum differs."""
    fresh = {split: empty.model_copy(update={"split": split}) for split in SPLITS}
    nothing = {split: (index, hashlib.sha256()) for split, index in fresh.items()}
    saved: dict[Split, tuple[ShardIndex, hashlib._Hash]] = {}
    try:
        record = read_json(directory / _STATE)
        for split, index in fresh.items():
            found = ShardIndex.parse(record[split], str(directory / _STATE))
            if found.model_copy(update={key: getattr(index, key) for key in _COUNTED}) != index:
                return nothing  # other texts or another tokenizer
            path = _partial(directory, split)
            if not path.exists():
                path = directory / f"{split}.bin"
            size = found.num_tokens * np.dtype(found.dtype).itemsize
            digest = _hash_beginning(path, size)
            if digest.hexdigest() != found.sha256:
                log.warning("%s is not what was saved: %s is packed from its beginning", path, found.source)
                return nothing
            path.replace(_partial(directory, split))
            saved[split] = (found, digest)
    except (ConfigError, FileNotFoundError, KeyError, TypeError):
        return nothing
    done = sum(index.num_bytes for index, _ in saved.values())
    log.info("%s: going on after %d bytes of text", empty.source, done)
    return saved


def _hash_beginning(path: Path, size: int) -> hashlib._Hash:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (block := file.read(min(size, 1 << 20))):
            digest.update(block)
            size -= len(block)
    return digest


class _Writer:
    """One token file that grows behind what was saved of it."""

    def __init__(self, directory: Path, saved: tuple[ShardIndex, hashlib._Hash]) -> None:
        self.index, self._digest = saved
        """Of what is saved."""
        self.num_bytes = self.index.num_bytes
        self._num_tokens, self._num_documents = self.index.num_tokens, self.index.num_documents
        self._path = _partial(directory, self.index.split)
        self._file: BinaryIO

    def __enter__(self) -> Self:
        self._file = self._path.open("r+b" if self._num_tokens else "wb")
        self._file.truncate(self._num_tokens * np.dtype(self.index.dtype).itemsize)
        self._file.seek(0, os.SEEK_END)
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add(self, texts: Sequence[str], tokens: NDArray[np.unsignedinteger]) -> None:
        content = tokens.tobytes()
        self._file.write(content)
        self._digest.update(content)
        self._num_tokens += len(tokens)
        self._num_documents += len(texts)
        self.num_bytes += sum(len(text) if text.isascii() else len(text.encode()) for text in texts)

    def save(self) -> ShardIndex:
        self._file.flush()
        os.fsync(self._file.fileno())
        counted = (self._num_tokens, self._num_documents, self.num_bytes, self._digest.hexdigest())
        self.index = self.index.model_copy(update=dict(zip(_COUNTED, counted, strict=True)))
        return self.index
