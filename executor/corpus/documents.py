"""Reading a person's own corpus: documents out of .jsonl (plain, .gz, .zst), .txt and .parquet files, as a stream."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cptplan.errors import DataError, suggest

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt", ".parquet")
# Published corpora are often compressed with --long=27, which the decompressor must be allowed to follow.
_ZSTD_MAX_WINDOW_BYTES = 2**27
_INSTALL_HINT = "install cptplan[data]"


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One text, the unit that is split and deduplicated; the id says where it came from."""

    id: str
    text: str


def list_corpus_files(path: Path) -> list[Path]:
    """Files of a corpus in the order in which they are read: the file itself, or those below a directory, sorted.

    Raises:    DataError if the path is missing, or nothing in it has a known suffix.
    """
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise DataError(
                f"corpus must be one of {', '.join(SUFFIXES)}; got {path.name} in {path}.", hint="convert or rename it"
            )
        return [path]
    if not path.is_dir():
        raise DataError(f"corpus must be a file or a directory; got no {path}.", hint="check the path")
    files = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES) and not file.name.startswith("."))
    if not files:
        raise DataError(
            f"corpus must hold files of {', '.join(SUFFIXES)}; got none in {path}.", hint="check the directory"
        )
    return files


def read_documents(
    path: Path, *, text_column: str = "text", id_column: str | None = None, max_bytes: int | None = None
) -> Iterator[Document]:
    """Documents of a corpus one by one; empty ones are left out. A .txt file is one document.

    Args:      path: file or directory. text_column, id_column: of .jsonl and .parquet; without the latter the id is
               file:line. max_bytes: stop before the document that would exceed it, bytes of UTF-8 text.
    Raises:    DataError for a missing path or column, a broken line (with file:line), an empty corpus.
    """
    num_bytes = 0
    for file in list_corpus_files(path):
        prefix = file.name if path.is_file() else file.relative_to(path).as_posix()
        for place, text, identity in _records(file, text_column, id_column):
            if not text or text.isspace():
                continue
            try:
                size = len(text) if text.isascii() else len(text.encode())
            except UnicodeEncodeError:  # JSON can carry halves of surrogate pairs
                text = text.encode("utf-8", "replace").decode()
                size = len(text.encode())
            if max_bytes is not None and num_bytes and num_bytes + size > max_bytes:
                return
            num_bytes += size
            yield Document(id=f"{prefix}:{place}" if identity is None else str(identity), text=text)
    if not num_bytes:
        raise DataError(f"corpus must have text; got only empty documents in {path}.", hint="check the files")


Record = tuple[int, str | None, Any]
"""Line or row (from 1), text, id (None when there is none)."""


def _records(file: Path, text_column: str, id_column: str | None) -> Iterator[Record]:
    try:
        if file.name.endswith(".parquet"):
            yield from _parquet_records(file, text_column, id_column)
        elif file.name.endswith(".txt"):
            yield 1, file.read_text(encoding="utf-8"), None
        else:
            with _open(file) as stream:
                yield from _json_records(stream, file, text_column, id_column)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(
            f"corpus file must be readable; got {error} in {file}.", hint="mend or remove the file"
        ) from error


def _json_records(stream: BinaryIO, file: Path, text_column: str, id_column: str | None) -> Iterator[Record]:
    for number, line in enumerate(stream, start=1):
        if line.isspace():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:  # not JSON, or not UTF-8
            raise DataError(
                f"line must be JSON; got {error} in {file}:{number}.", hint="mend or remove the line"
            ) from error
        if not isinstance(record, dict):
            raise DataError(
                f"line must be a JSON object; got {type(record).__name__} in {file}:{number}.",
                hint=f'write {{"{text_column}": "..."}}',
            )
        for column in (text_column, id_column):
            if column is not None and column not in record:
                raise _missing_column(column, list(record), f"{file}:{number}")
        text = record[text_column]
        if text is not None and not isinstance(text, str):
            raise DataError(
                f"{text_column} must be a text; got {type(text).__name__} in {file}:{number}.", hint="mend the line"
            )
        yield number, text, None if id_column is None else record[id_column]


def _parquet_records(file: Path, text_column: str, id_column: str | None) -> Iterator[Record]:
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]
    except ImportError as error:
        raise DataError(f"pyarrow must be installed to read parquet; needed for {file}.", hint=_INSTALL_HINT) from error
    try:
        table = pq.ParquetFile(file)
        for column in (text_column, id_column):
            if column is not None and column not in table.schema_arrow.names:
                raise _missing_column(column, table.schema_arrow.names, str(file))
        kind = table.schema_arrow.field(text_column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise DataError(f"{text_column} must be a text column; got {kind} in {file}.", hint="choose another column")
        columns = [text_column] if id_column is None else [text_column, id_column]
        number = 0
        for batch in table.iter_batches(batch_size=1024, columns=columns):
            texts = batch.column(text_column).to_pylist()
            ids = [None] * len(texts) if id_column is None else batch.column(id_column).to_pylist()
            for text, identity in zip(texts, ids, strict=True):
                number += 1
                yield number, text, identity
    except pa.ArrowException as error:
        raise DataError(
            f"corpus file must be parquet; got {error} in {file}.", hint="mend or remove the file"
        ) from error


def _missing_column(column: str, columns: list[str], place: str) -> DataError:
    return DataError(
        f"column must be there; got no {column!r} among {', '.join(sorted(columns)) or 'none'} in {place}.",
        hint=suggest(column, columns) or "set text_column to one of them",
    )


@contextmanager
def _open(file: Path) -> Iterator[BinaryIO]:
    """The lines of a .jsonl file, decompressed."""
    if file.name.endswith(".gz"):
        with gzip.open(file, "rb") as stream:
            yield stream  # type: ignore[misc]
    elif file.name.endswith(".zst"):
        try:
            import zstandard
        except ImportError as error:
            raise DataError(
                f"zstandard must be installed to read .zst; needed for {file}.", hint=_INSTALL_HINT
            ) from error
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_MAX_WINDOW_BYTES)
        try:
            with file.open("rb") as raw, decompressor.stream_reader(raw, read_across_frames=True) as stream:
                yield io.BufferedReader(stream, 1 << 20)
        except zstandard.ZstdError as error:
            raise DataError(
                f"corpus file must be zstandard; got {error} in {file}.", hint="mend or remove the file"
            ) from error
    else:
        with file.open("rb") as stream:
            yield stream
