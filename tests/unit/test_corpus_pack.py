"""Token shards: what is written comes back, and what does not fit is refused."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cptplan.errors import DataError, RunFailedError, StorageError
from executor.corpus import pack
from executor.corpus.documents import Document
from executor.corpus.pack import ShardIndex, open_shard, pack_source, read_packed, require_tokens, require_vocabulary
from executor.corpus.split import Split
from executor.corpus.tokenizer import TextTokenizer, train_tokenizer

TEXTS = [f"document {i} with é and some words\n" for i in range(50)]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_tokenizer(TEXTS, vocab_size=280)


def sided() -> Iterator[tuple[Document, Split]]:
    for number, text in enumerate(TEXTS):
        yield Document(id=str(number), text=text), "validation" if number % 10 == 3 else "train"


def write(directory: Path, tokenizer: TextTokenizer) -> dict[Split, ShardIndex]:
    return pack_source(sided(), directory=directory, source="s", tokenizer=tokenizer, corpus_hash="c")


@pytest.mark.parametrize("batch_characters", [1, 100, 10**6])
def test_pack_source_and_open_shard_give_the_documents_back(
    batch_characters: int, tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "_BATCH_CHARACTERS", batch_characters)
    indices = write(tmp_path, tokenizer)
    for split in ("train", "validation"):
        shard = open_shard(tmp_path, split)
        assert shard.index == indices[split]
        ends = np.flatnonzero(shard.tokens == tokenizer.eos_token_id)
        parts = np.split(shard.tokens, ends + 1)
        assert len(parts.pop()) == 0  # every document ends with the end of text
        texts = [document.text for document, side in sided() if side == split]
        assert [tokenizer.decode(part[:-1]) for part in parts] == texts
        assert shard.index.num_documents == len(texts)
        assert shard.index.num_bytes == sum(len(text.encode()) for text in texts)
        assert shard.index.sha256 == hashlib.sha256((tmp_path / f"{split}.bin").read_bytes()).hexdigest()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(280, "uint16"), (1 << 16, "uint16"), ((1 << 16) + 1, "uint32")])
def test_pack_source_uses_the_smallest_type_that_holds_the_vocabulary(
    vocab_size: int, dtype: str, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    larger = TextTokenizer(
        backend=tokenizer.backend, config={}, eos_token_id=vocab_size - 1, vocab_size=vocab_size, hash="h"
    )
    write(tmp_path, larger)
    shard = open_shard(tmp_path, "train")
    assert shard.index.dtype == dtype == shard.tokens.dtype.name
    assert shard.tokens[-1] == vocab_size - 1


def test_pack_source_killed_midway_leaves_nothing_half_written(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    def failing() -> Iterator[tuple[Document, Split]]:
        yield from sided()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_source(failing(), directory=tmp_path, source="s", tokenizer=tokenizer, corpus_hash="c")
    assert list(tmp_path.iterdir()) == []


def test_pack_source_killed_midway_leaves_the_old_files(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    write(tmp_path, tokenizer)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def failing() -> Iterator[tuple[Document, Split]]:
        yield Document(id="0", text="another"), "train"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_source(failing(), directory=tmp_path, source="s", tokenizer=tokenizer, corpus_hash="d")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_pack_source_into_a_place_that_cannot_be_written_is_refused(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="must be writable"):
        write(tmp_path / "file" / "below", tokenizer)


def test_pack_source_on_a_full_disk_fails_the_run_and_leaves_nothing(
    tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, text: str, token_ids: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pack._Writer, "add", full)
    with pytest.raises(RunFailedError, match="disk must have room"):
        write(tmp_path, tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_read_packed_knows_its_own_and_no_other(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    assert read_packed(tmp_path, tokenizer=tokenizer, corpus_hash="c") is None
    indices = write(tmp_path, tokenizer)
    assert read_packed(tmp_path, tokenizer=tokenizer, corpus_hash="c") == indices
    assert read_packed(tmp_path, tokenizer=tokenizer, corpus_hash="d") is None
    other = train_tokenizer(TEXTS, vocab_size=290)
    assert read_packed(tmp_path, tokenizer=other, corpus_hash="c") is None


def test_open_shard_of_a_broken_directory_says_what_is_wrong(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must exist; got no .*train\.json.*hint: pack"):
        open_shard(tmp_path, "train")
    write(tmp_path, tokenizer)
    path = tmp_path / "train.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"must have \d+ bytes.*got \d+ in .*train\.bin"):
        open_shard(tmp_path, "train")
    path.unlink()
    with pytest.raises(DataError, match=r"got no file in"):
        open_shard(tmp_path, "train")
    index = json.loads((tmp_path / "train.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps({**index, "num_token": 1}))
    with pytest.raises(DataError, match="num_token"):
        open_shard(tmp_path, "train")


def test_require_tokens_says_how_many_are_there_and_needed(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    write(tmp_path, tokenizer)
    shard = open_shard(tmp_path, "validation")
    there = shard.index.num_tokens
    require_tokens(shard, there, "the validation set")
    with pytest.raises(DataError, match=rf"at least {there + 1:,} validation tokens for the plan; got {there:,} of"):
        require_tokens(shard, there + 1, "the plan")


def test_require_vocabulary_refuses_a_model_with_fewer_rows(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    write(tmp_path, tokenizer)
    shard = open_shard(tmp_path, "train")
    require_vocabulary(shard, 280, "config.json")
    with pytest.raises(DataError, match=r"280 ids of the tokenizer; got 279 in config\.json"):
        require_vocabulary(shard, 279, "config.json")
