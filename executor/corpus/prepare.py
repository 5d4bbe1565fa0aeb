"""From sources to shards: survey every source, make or load the tokenizer, pack. The completion marker comes last.

Everything is decided by the texts and the seed, so a process that was killed and started again writes the same bytes;
what it had saved of the tokens is not tokenized again. It reads the texts twice, and once more up to a limit to train a
tokenizer, and never holds more than a few million characters of them.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from cptplan.errors import StorageError
from cptplan.files import read_json, remove_leftovers, storage_error, write_json, write_progress
from executor.corpus.documents import Document, list_corpus_files, read_documents
from executor.corpus.embedded import Kind, read_embedded
from executor.corpus.pack import ShardIndex, pack_source, read_packed
from executor.corpus.spec import CorpusSpec, SourceSpec
from executor.corpus.split import NO_KEYS, Split, Survey, select, survey
from executor.corpus.tokenizer import TextTokenizer, load_tokenizer, save_tokenizer, train_tokenizer

SCHEMA_VERSION = 1
MARKER = "corpora.json"
# Enough for merges that no longer change; more only takes longer (assumed).
TOKENIZER_SAMPLE_BYTES = 50_000_000
# Shares of the whole time, measured on the embedded corpora at full size with 2 cores (2026-11).
_READ_UNTIL, _TRAINED_BY, _DONE = 70, 85, 100

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A source after its first reading."""

    spec: SourceSpec
    read: Callable[[], Iterator[Document]]
    survey: Survey
    origin: dict[str, Any]
    """What an embedded source was taken from; empty for files."""


@dataclass(slots=True)
class Progress:
    """Per cent done, kept in <out>/progress.json, written about twice a second."""

    path: Path
    _last: float = field(default=float("-inf"))

    def __call__(self, percent: float, message: str) -> None:
        """Say how far the work is, in [0, 100]."""
        now = time.monotonic()
        if now - self._last >= 0.5 or percent >= _DONE:
            self._last = now
            with contextlib.suppress(OSError):  # if the disk is full, what is worth keeping will say so
                write_progress(self.path, done=int(percent), total=_DONE, unit="%", message=message)

    def between(self, begin: float, end: float) -> Callable[[int, int, str], None]:
        """A callback that spreads done / total over a part of the whole."""
        return lambda done, total, message: self(begin + (end - begin) * min(1.0, done / max(1, total)), message)


def prepare(spec: CorpusSpec) -> dict[str, Any]:
    """Make the shards of a project, or find them made. Returns the contents of corpora.json.

    Raises:    DataError for a corpus or tokenizer that cannot be used; StorageError if the directory holds the shards
               of another spec or cannot be written; RunFailedError if the disk is full.
    """
    out = Path(spec.out)
    made = _read_marker(out, spec)
    if made is not None:
        return made
    try:
        out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out, *(path for path in out.iterdir() if path.is_dir()))
        progress = Progress(out / "progress.json")
        progress(0, "starting")
    except OSError as error:
        raise storage_error(error, out) from error
    sources = _survey_sources(spec, progress)
    tokenizer = _tokenizer(spec, sources, progress)
    save_tokenizer(tokenizer, out / "tokenizer")
    indices = _pack_sources(out, sources, tokenizer, progress)
    record = _record(spec, sources, tokenizer, indices)
    write_json(out / MARKER, record)
    progress(_DONE, "corpora are packed")
    return record


def _read_marker(out: Path, spec: CorpusSpec) -> dict[str, Any] | None:
    """The record of finished work, None if there is none; another campaign's is refused."""
    if not (out / MARKER).exists():
        return None
    record = cast(dict[str, Any], read_json(out / MARKER))
    if record.get("spec_hash") != spec.content_hash:
        raise StorageError(
            f"directory must be empty or hold the corpora of this spec ({spec.content_hash}); "
            f"got those of {record.get('spec_hash')} in {out}.",
            hint="choose another --out, or remove that directory",
        )
    log.info("%s is complete", out)
    return record


def _survey_sources(spec: CorpusSpec, progress: Progress) -> list[Prepared]:
    prepared: list[Prepared] = []
    seen = NO_KEYS
    width = _READ_UNTIL / len(spec.sources)
    for number, source in enumerate(spec.sources):
        report = progress.between(number * width, (number + 1) * width)
        read: Callable[[], Iterator[Document]]
        origin: dict[str, Any] = {}
        if source.kind == "files":
            read = partial(
                read_documents,
                Path(str(source.path)),
                text_column=source.text_column,
                id_column=source.id_column,
                max_bytes=source.max_bytes,
            )
            documents = _reported(read(), source, report)
        else:
            kind = cast(Kind, source.kind.removeprefix("embedded:"))
            corpus = read_embedded(kind, max_bytes=source.max_bytes or 1 << 62, progress=report)
            origin = {"num_skipped_files": corpus.num_skipped_files, "versions": corpus.versions}
            read = corpus.documents.__iter__
            documents = read()
        found = survey(documents, name=source.name, seed=spec.seed, share=spec.validation_share, seen=seen)
        log.info("%s: %d documents, %d duplicates", source.name, len(found.keys), found.num_duplicates)
        seen = np.concatenate([seen, found.keys])
        prepared.append(Prepared(spec=source, read=read, survey=found, origin=origin))
    return prepared


def _reported(
    documents: Iterable[Document], source: SourceSpec, report: Callable[[int, int, str], None]
) -> Iterator[Document]:
    """The documents, with progress by the bytes of text against those of the files (compressed ones end early)."""
    size = sum(file.stat().st_size for file in list_corpus_files(Path(str(source.path))))
    total = min(size, source.max_bytes or size)
    num_bytes = 0
    for document in documents:
        num_bytes += len(document.text)
        report(num_bytes, total, f"reading {source.name}")
        yield document


def _tokenizer(spec: CorpusSpec, sources: list[Prepared], progress: Progress) -> TextTokenizer:
    if spec.tokenizer.path is not None:
        progress(_READ_UNTIL, "loading the tokenizer")
        return load_tokenizer(spec.tokenizer.path)
    assert spec.tokenizer.train is not None
    progress(_READ_UNTIL, "training the tokenizer")
    return train_tokenizer(_sample(sources), vocab_size=spec.tokenizer.train.vocab_size)


def _sample(sources: Iterable[Prepared]) -> Iterator[str]:
    """Training texts to learn a tokenizer from: the first of every source."""
    for source in sources:
        num_bytes = 0
        for document, split in select(source.read(), source.survey, name=source.spec.name):
            if num_bytes >= TOKENIZER_SAMPLE_BYTES:
                break
            if split == "train":
                num_bytes += len(document.text)
                yield document.text


def _pack_sources(
    out: Path, sources: list[Prepared], tokenizer: TextTokenizer, progress: Progress
) -> list[dict[Split, ShardIndex]]:
    total = sum(source.survey.num_bytes for source in sources)
    report = progress.between(_TRAINED_BY, _DONE - 1)
    done = 0
    indices = []
    for source in sources:
        name, corpus_hash = source.spec.name, source.survey.corpus_hash
        provenance = source.spec.provenance or "original"
        made = read_packed(out / name, tokenizer=tokenizer, corpus_hash=corpus_hash, provenance=provenance)
        if made is None:
            made = pack_source(
                select(source.read(), source.survey, name=name),
                directory=out / name,
                source=name,
                tokenizer=tokenizer,
                corpus_hash=corpus_hash,
                provenance=provenance,
                progress=partial(_report_packed, report, name, done, total),
            )
        done += source.survey.num_bytes
        indices.append(made)
    return indices


def _report_packed(report: Callable[[int, int, str], None], name: str, done: int, total: int, num_bytes: int) -> None:
    report(done + num_bytes, total, f"packing {name}")


def _record(
    spec: CorpusSpec, sources: list[Prepared], tokenizer: TextTokenizer, indices: list[dict[Split, ShardIndex]]
) -> dict[str, Any]:
    """What the planner needs to know of the corpora; nothing in it depends on the time or the place."""
    return {
        "schema_version": SCHEMA_VERSION,
        "spec_hash": spec.content_hash,
        "spec": spec.content,
        "tokenizer": {
            "path": "tokenizer",
            "hash": tokenizer.hash,
            "vocab_size": tokenizer.vocab_size,
            "eos_token_id": tokenizer.eos_token_id,
        },
        "sources": [
            {
                "name": source.spec.name,
                "role": source.spec.role,
                "provenance": source.spec.provenance or "original",
                "path": source.spec.name,
                "num_duplicates": source.survey.num_duplicates,
                "corpus_hash": source.survey.corpus_hash,
                **source.origin,
                **{
                    split: {key: value for key, value in index.to_json().items() if key.startswith(("num_", "sha"))}
                    for split, index in shards.items()
                },
            }
            for source, shards in zip(sources, indices, strict=True)
        ],
    }
