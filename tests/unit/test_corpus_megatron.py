"""The Megatron export, read back by a reader written from the format alone."""

from __future__ import annotations

import errno
import json
import struct
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from cptplan.errors import RunFailedError
from executor.corpus import megatron
from executor.corpus.documents import Document
from executor.corpus.megatron import main
from executor.corpus.pack import TokenShard, open_shard, pack_source
from executor.corpus.tokenizer import TextTokenizer, train_tokenizer

TEXTS = [f"document {i} of some words\n" * (i % 5 + 1) for i in range(40)]
TYPES = {4: "<i4", 8: "<u2"}


def read_documents(prefix: Path) -> tuple[str, list[list[int]]]:
    """Type of the tokens, and the tokens of every document."""
    content = Path(f"{prefix}.idx").read_bytes()
    assert content[:9] == b"MMIDIDX\x00\x00"
    version, code, num_sequences, num_indices = struct.unpack_from("<QBQQ", content, 9)
    assert version == 1
    places = np.cumsum([34, 4 * num_sequences, 8 * num_sequences, 8 * num_indices])
    assert len(content) == places[-1]
    lengths = np.frombuffer(content, "<i4", num_sequences, places[0])
    pointers = np.frombuffer(content, "<i8", num_sequences, places[1])
    documents = np.frombuffer(content, "<i8", num_indices, places[2])
    tokens = Path(f"{prefix}.bin").read_bytes()
    assert documents[0] == 0
    assert documents[-1] == num_sequences
    read = [np.frombuffer(tokens, TYPES[code], n, at).tolist() for n, at in zip(lengths, pointers, strict=True)]
    joined = [
        list(chain.from_iterable(read[begin:end])) for begin, end in zip(documents[:-1], documents[1:], strict=True)
    ]
    assert sum(map(len, joined)) * np.dtype(TYPES[code]).itemsize == len(tokens)
    return TYPES[code], joined


def pack(directory: Path, *, vocab_size: int | None = None) -> tuple[TextTokenizer, TokenShard]:
    tokenizer = train_tokenizer(TEXTS, vocab_size=290)
    if vocab_size is not None:
        tokenizer = TextTokenizer(
            backend=tokenizer.backend, config={}, eos_token_id=vocab_size - 1, vocab_size=vocab_size, hash="h"
        )
    sided = ((Document(id=text, text=text), "validation" if i % 8 == 0 else "train") for i, text in enumerate(TEXTS))
    pack_source(sided, directory=directory, source="s", tokenizer=tokenizer, corpus_hash="c")  # type: ignore[arg-type]
    return tokenizer, open_shard(directory, "train")


@pytest.mark.parametrize(("vocab_size", "kind"), [(None, "<u2"), (100_000, "<i4")])
@pytest.mark.parametrize("block", [1, 37, 1 << 20])
def test_export_gives_every_document_with_its_end(
    vocab_size: int | None, kind: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(megatron, "_BLOCK_TOKENS", block)
    tokenizer, _ = pack(tmp_path / "s", vocab_size=vocab_size)
    for split, keep in (("train", False), ("validation", True)):
        prefix = tmp_path / "out" / split
        assert main([str(tmp_path / "s"), "--split", split, "--out", str(prefix)]) == 0
        texts = [text for i, text in enumerate(TEXTS) if (i % 8 == 0) == keep]
        wanted = [[*ids.tolist(), tokenizer.eos_token_id] for ids in tokenizer.encode(texts)]
        assert read_documents(prefix) == (kind, wanted)
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0" * 64}, "must have the SHA-256 000000000000"),
        ({"num_documents": 36}, "every one of 36 documents must end with the end of text"),
        ({"vocab_size": 2}, "below the vocabulary's size of 2"),
        ({"num_tokens": 1}, "token file must have 2 bytes"),
    ],
)
def test_export_of_a_shard_that_is_not_what_it_says_ends_with_one_error(
    change: dict[str, object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(tmp_path / "s")
    path = tmp_path / "s" / "train.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert main([str(tmp_path / "s"), "--out", str(tmp_path / "out")]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert hint.startswith("hint: ")
    assert not list(tmp_path.glob("out*"))


def test_export_on_a_full_disk_leaves_neither_new_files_nor_an_old_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, shard = pack(tmp_path / "s")
    megatron.export_megatron(shard, tmp_path / "out")

    def full(file: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(megatron, "_finish", full)
    with pytest.raises(RunFailedError, match="disk must have room"):
        megatron.export_megatron(shard, tmp_path / "out")
    assert [path.name for path in sorted(tmp_path.glob("*out*"))] == ["out.bin"]
