"""Which documents are kept, and which of them are held out: decided by what a document says, never by where it stands.

Equal texts (up to white space and case) count once, within a source and across the sources. Kept documents are ordered
by a seeded hash of their text, and the first ones, up to the wanted share of the text, are the validation set. So the
split does not depend on the order of the files, and no text is ever on both sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from cptplan.errors import DataError
from executor.corpus.documents import Document

Split = Literal["train", "validation"]
SPLITS: tuple[Split, Split] = ("train", "validation")


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What a first reading of a source found; the second reading obeys it."""

    sizes: dict[int, int]
    """Bytes of UTF-8 text of every kept document, by its key."""
    validation: frozenset[int]
    """Keys of the documents held out."""
    num_duplicates: int
    """Documents dropped because an equal one came before, in this source or an earlier one."""
    corpus_hash: str
    """Over the kept texts in order and the split."""


def document_key(text: str, seed: int) -> int:
    """64-bit hash of a text, seeded; equal for texts that differ only in white space and case."""
    normalised = " ".join(text.split()).casefold()
    digest = hashlib.blake2b(normalised.encode(), digest_size=8, salt=seed.to_bytes(16, "little"))
    return int.from_bytes(digest.digest(), "little")


def survey(documents: Iterable[Document], *, name: str, seed: int, share: float, seen: set[int]) -> Survey:
    """Read a source once: drop duplicates, hold out a share of the text.

    Args:      documents: of the source. name: of the source, for messages. seed: of the split. share: of the text,
               in (0, 1). seen: keys of earlier sources; those of this one are added.
    Raises:    DataError if there are not two different documents.
    """
    sizes: dict[int, int] = {}
    num_duplicates = 0
    digest = hashlib.sha256()
    for document in documents:
        key = document_key(document.text, seed)
        if key in seen:
            num_duplicates += 1
            continue
        seen.add(key)
        content = document.text.encode()
        sizes[key] = len(content)
        digest.update(hashlib.sha256(content).digest())
    if len(sizes) < 2:
        raise DataError(
            f"corpus must have at least 2 different documents, one to train on and one to hold out; got {len(sizes)} "
            f"({num_duplicates} duplicates dropped) in source {name!r}.",
            hint="give each document its own .txt file or .jsonl line",
        )
    validation = choose_validation(sizes, share)
    for key in sorted(validation):
        digest.update(key.to_bytes(8, "little"))
    return Survey(sizes=sizes, validation=validation, num_duplicates=num_duplicates, corpus_hash=digest.hexdigest())


def choose_validation(sizes: dict[int, int], share: float) -> frozenset[int]:
    """Documents held out: the first in hash order until their text is at least the share of all; one at least.

    A document longer than the share itself stays in training, so the held-out text is less than twice the share.

    Args:      sizes: bytes by key, at least two. share: of the bytes, in (0, 1).
    """
    wanted = share * sum(sizes.values())
    chosen: list[int] = []
    held_out = 0
    for key in sorted(sizes):
        if held_out >= wanted or len(chosen) == len(sizes) - 1:
            break
        if sizes[key] <= wanted:
            chosen.append(key)
            held_out += sizes[key]
    return frozenset(chosen or [min(sizes, key=lambda key: (sizes[key], key))])


def select(documents: Iterable[Document], found: Survey, *, seed: int) -> Iterator[tuple[Document, Split]]:
    """Read the source again: its kept documents, the first of equal ones, each with its side."""
    left = set(found.sizes)
    for document in documents:
        key = document_key(document.text, seed)
        if key in left:
            left.remove(key)
            yield document, "validation" if key in found.validation else "train"
