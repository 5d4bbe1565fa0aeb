"""Reading a person's own files, and what they are told when something is wrong with them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from cptplan.errors import DataError
from executor.corpus.documents import Document, list_corpus_files, read_documents

TEXTS = ["first text", "second\ntext é 漢", "third"]


def lines(texts: list[str | None], first: int = 0) -> bytes:
    return b"".join(json.dumps({"text": text, "key": f"k{i}"}).encode() + b"\n" for i, text in enumerate(texts, first))


def write_jsonl(path: Path) -> None:
    path.write_bytes(lines(TEXTS))


def write_gz(path: Path) -> None:
    path.write_bytes(gzip.compress(lines(TEXTS[:1])) + gzip.compress(lines(TEXTS[1:], 1)))


def write_zst(path: Path) -> None:
    long_window = zstandard.ZstdCompressionParameters(window_log=27)
    compressors = [zstandard.ZstdCompressor(), zstandard.ZstdCompressor(compression_params=long_window)]
    parts = [lines(TEXTS[:1]), lines(TEXTS[1:], 1)]  # two frames, as concatenated files have
    path.write_bytes(b"".join(c.compress(part) for c, part in zip(compressors, parts, strict=True)))


def write_parquet(path: Path) -> None:
    pq.write_table(pa.table({"text": TEXTS, "key": [f"k{i}" for i in range(3)], "number": [1, 2, 3]}), path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "a.jsonl": write_jsonl,
    "a.jsonl.gz": write_gz,
    "a.jsonl.zst": write_zst,
    "a.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_read_documents_gives_every_text_in_order(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    documents = list(read_documents(tmp_path / name))
    assert [document.text for document in documents] == TEXTS
    assert [document.id for document in documents] == [f"{name}:{number}" for number in (1, 2, 3)]


@pytest.mark.parametrize("name", WRITERS)
def test_read_documents_takes_ids_from_a_column(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    assert [document.id for document in read_documents(tmp_path / name, id_column="key")] == ["k0", "k1", "k2"]


def test_read_documents_of_a_directory_reads_all_kinds_sorted(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.txt").write_text("a whole\nfile")
    (tmp_path / "README.md").write_text("not read")
    (tmp_path / ".hidden.txt").write_text("not read")
    write_jsonl(tmp_path / "a.jsonl")
    ids = [document.id for document in read_documents(tmp_path)]
    assert ids == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "b/one.txt:1"]


def test_read_documents_leaves_out_empty_ones_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(["", None, " \n", "text"]) + b"\n  \n")
    assert list(read_documents(tmp_path / "a.jsonl")) == [Document(id="a.jsonl:4", text="text")]


def test_read_documents_replaces_half_of_a_surrogate_pair(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}\n')
    assert [document.text for document in read_documents(tmp_path)] == ["a?b"]


@pytest.mark.parametrize(("max_bytes", "num"), [(1, 1), (9, 1), (10, 1), (30, 2), (1000, 3)])
def test_read_documents_stops_before_max_bytes(max_bytes: int, num: int, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl")
    assert len(list(read_documents(tmp_path, max_bytes=max_bytes))) == num


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"line must be JSON; got .* in .*a\.jsonl:2\. hint"),
        ("a.jsonl", b'{"text": "a"}\n["text"]\n', r"must be a JSON object; got list in .*a\.jsonl:2"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 3}\n', r"must be a text; got int in .*a\.jsonl:2"),
        (
            "a.jsonl",
            b'{"texts": "a", "url": "b"}\n',
            r"no 'text' among texts, url in .*:1\. hint: did you mean 'texts'",
        ),
        ("a.jsonl", b'{"text": "\xff"}\n', r"must be JSON; got .* in .*a\.jsonl:1"),
        ("a.jsonl", b"", r"only empty documents in"),
        ("a.txt", b"\xff\xfe", r"must be readable; got .*utf-8.* in .*a\.txt"),
        ("a.txt", b" \n", r"only empty documents in"),
        ("a.jsonl.gz", gzip.compress(lines(["a" * 999]), mtime=0)[:-20], r"must be readable; got .* in .*a\.jsonl\.gz"),
        ("a.jsonl.gz", b"not gzip", r"must be readable; got .* in .*a\.jsonl\.gz"),
        ("a.jsonl.zst", b"not zstandard", r"must be zstandard; got .* in .*a\.jsonl\.zst"),
        ("a.parquet", b"not parquet", r"must be parquet; got .* in .*a\.parquet"),
        ("a.csv", b"text\na\n", r"must be one of \.jsonl, .*; got a\.csv"),
    ],
)
def test_read_documents_of_a_broken_file_names_the_place(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_documents(tmp_path / name))


def test_read_documents_of_a_truncated_zst_is_refused(tmp_path: Path) -> None:
    content = zstandard.ZstdCompressor(write_content_size=True).compress(lines([f"text {i}" * 50 for i in range(999)]))
    (tmp_path / "a.jsonl.zst").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"a\.jsonl\.zst"):
        list(read_documents(tmp_path))


def test_read_documents_of_a_parquet_without_the_column_lists_those_there(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no 'content' among key, number, text in .*hint: set text_column"):
        list(read_documents(tmp_path, text_column="content"))
    with pytest.raises(DataError, match=r"number must be a text column; got int64"):
        list(read_documents(tmp_path, text_column="number"))


def test_list_corpus_files_of_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must be a file or a directory; got no .*missing"):
        list_corpus_files(tmp_path / "missing")
    with pytest.raises(DataError, match=r"must hold files of \.jsonl.*; got none in"):
        list_corpus_files(tmp_path)
