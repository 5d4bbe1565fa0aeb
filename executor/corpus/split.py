"""Which documents are kept, and which of them are held out: decided by what a document says, never by where it stands.

Equal texts (up to white space and case) count once, within a source and across the sources. Kept documents are ordered
by a seeded hash of their text, and the first ones, up to the wanted share of the text, are the validation set. So the
split does not depend on the order of the files, and no text is ever on both sides.

Texts are never held: a document takes 16 bytes while its source is read and three passing copies of that while it is
sorted; 9 bytes stay of it until all is packed.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cptplan.errors import DataError
from executor.corpus.documents import Document

Split = Literal["train", "validation"]
SPLITS: tuple[Split, Split] = ("train", "validation")
Keys = NDArray[np.uint64]

_DROPPED, _TRAIN, _VALIDATION = range(3)
NO_KEYS: Keys = np.zeros(0, dtype=np.uint64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What a first reading of a source found; the second reading obeys it."""

    keys: Keys
    """Of the kept documents, rising."""
    sides: NDArray[np.uint8]
    """Of every document in the order of reading: dropped, train or validation."""
    num_bytes: int
    """UTF-8 bytes of the kept text."""
    num_duplicates: int
    """Documents dropped because an equal one came before, in this source or an earlier one."""
    texts_hash: str
    """Over all texts in order."""
    corpus_hash: str
    """Over all texts in order and the split."""


def document_key(text: str, seed: int) -> int:
    """64-bit hash of a text, seeded; equal for texts that differ only in white space and case."""
    normalised = " ".join(text.split()).casefold()
    digest = hashlib.blake2b(normalised.encode(), digest_size=8, salt=seed.to_bytes(16, "little"))
    return int.from_bytes(digest.digest(), "little")


def survey(documents: Iterable[Document], *, name: str, seed: int, share: float, seen: Keys) -> Survey:
    """Read a source once: drop duplicates, hold out a share of the text.

    Args:      documents: of the source. name: of the source, for messages. seed: of the split. share: of the text,
               in (0, 1). seen: keys of earlier sources.
    Raises:    DataError if there are not two different documents.
    """
    all_keys, all_sizes = array("Q"), array("Q")
    digest = hashlib.sha256()
    for document in documents:
        content = document.text.encode()
        all_keys.append(document_key(document.text, seed))
        all_sizes.append(len(content))
        digest.update(hashlib.sha256(content).digest())
    keys, first = np.unique(np.frombuffer(all_keys, dtype=np.uint64), return_index=True)
    is_new = np.isin(keys, seen, assume_unique=True, invert=True)
    keys, first = keys[is_new], first[is_new]
    num_duplicates = len(all_keys) - len(keys)
    if len(keys) < 2:
        raise DataError(
            f"corpus must have at least 2 different documents, one to train on and one to hold out; got {len(keys)} "
            f"({num_duplicates} duplicates dropped) in source {name!r}.",
            hint="give each document its own .txt file or .jsonl line",
        )
    sizes = np.frombuffer(all_sizes, dtype=np.uint64)[first].astype(np.int64)
    sides = np.zeros(len(all_keys), dtype=np.uint8)
    sides[first] = np.where(choose_validation(keys, sizes, share), _VALIDATION, _TRAIN)
    texts_hash = digest.hexdigest()
    digest.update(sides.tobytes())
    return Survey(
        keys=keys,
        sides=sides,
        num_bytes=int(sizes.sum()),
        num_duplicates=num_duplicates,
        texts_hash=texts_hash,
        corpus_hash=digest.hexdigest(),
    )


def choose_validation(keys: Keys, sizes: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Documents held out: the first in hash order until their text is at least the share of all; one at least.

    A document longer than the share itself stays in training, so the held-out text is less than twice the share.

    Args:      keys: of the documents, rising, shape (n,), n >= 2. sizes: bytes, shape (n,). share: of the bytes, in
               (0, 1).
    Returns:   whether a document is held out, shape (n,).
    """
    wanted = share * int(sizes.sum())
    small = np.flatnonzero(sizes <= wanted)
    before = np.cumsum(sizes[small]) - sizes[small]
    chosen = np.zeros(len(keys), dtype=np.bool_)
    chosen[small[before < wanted][: len(keys) - 1]] = True
    if not chosen.any():
        chosen[np.argmin(sizes)] = True  # the first of equal ones, as the keys rise
    return chosen


def select(documents: Iterable[Document], found: Survey, *, name: str) -> Iterator[tuple[Document, Split]]:
    """Read the source again: its kept documents, the first of equal ones, each with its side.

    Raises:    DataError after the last one if the texts are not those that were surveyed.
    """
    digest = hashlib.sha256()
    for number, document in enumerate(documents):
        digest.update(hashlib.sha256(document.text.encode()).digest())
        side = found.sides[number] if number < len(found.sides) else _DROPPED
        if side != _DROPPED:
            yield document, "validation" if side == _VALIDATION else "train"
    if digest.hexdigest() != found.texts_hash:
        raise DataError(
            f"corpus must stay as it is while it is packed; got other texts at the second reading of source {name!r}.",
            hint="run the same command again when nothing writes to it",
        )
