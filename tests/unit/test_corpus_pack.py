"""Token shards: what is written comes back, and what does not fit is refused."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from cptplan.errors import DataError, RunFailedError, StorageError
from executor.corpus import pack
from executor.corpus.documents import Document
from executor.corpus.pack import ShardIndex, open_shard, pack_source, read_packed, require_tokens, require_vocabulary
from executor.corpus.split import SPLITS, Split
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


def stopping_after(num: int, text: str = "") -> Iterator[tuple[Document, Split]]:
    for number, (document, split) in enumerate(sided()):
        if number == num:
            raise KeyboardInterrupt
        yield Document(id=document.id, text=document.text + text), split


def snapshot(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def stop_packing(directory: Path, tokenizer: TextTokenizer, num: int, corpus_hash: str = "c") -> None:
    with pytest.raises(KeyboardInterrupt):
        pack_source(stopping_after(num), directory=directory, source="s", tokenizer=tokenizer, corpus_hash=corpus_hash)


def test_pack_source_stopped_midway_leaves_no_shard(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    stop_packing(tmp_path, tokenizer, 40)
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".json")]


def test_pack_source_stopped_midway_leaves_the_old_files(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    write(tmp_path, tokenizer)
    before = snapshot(tmp_path)
    stop_packing(tmp_path, tokenizer, 1, corpus_hash="d")
    assert {name: content for name, content in snapshot(tmp_path).items() if name in before} == before


@pytest.fixture
def saving_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "_BATCH_CHARACTERS", 100)
    monkeypatch.setattr(pack, "_SAVE_EVERY_BYTES", 300)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts that are tokenized from now on."""
    encoded: list[str] = []
    original = pack.Encoder.encode

    def encode(self: pack.Encoder, texts: list[str]) -> object:
        encoded.extend(texts)
        return original(self, texts)

    monkeypatch.setattr(pack.Encoder, "encode", encode)
    return encoded


@pytest.mark.usefixtures("saving_often")
@pytest.mark.parametrize("num", [0, 3, 12, 30, 49])
def test_pack_source_goes_on_where_it_was_saved_with_the_same_bytes(
    num: int, tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    indices = write(tmp_path / "straight", tokenizer)
    stop_packing(tmp_path / "stopped", tokenizer, num)
    encoded = counted(monkeypatch)
    assert write(tmp_path / "stopped", tokenizer) == indices
    assert snapshot(tmp_path / "stopped") == snapshot(tmp_path / "straight")
    lost = 300 + 2 * 100 + 2 * max(map(len, TEXTS))  # what is packed between two saves, and the batch at hand
    assert sum(len(text) for text in encoded) <= sum(map(len, TEXTS[num:])) + lost


@pytest.mark.usefixtures("saving_often")
@pytest.mark.parametrize("damage", ["bytes", "state", "missing", "other corpus", "other tokenizer"])
def test_pack_source_starts_anew_when_what_was_saved_is_not_its_own(
    damage: str, tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "straight", tokenizer)
    directory = tmp_path / "stopped"
    other = train_tokenizer(TEXTS, vocab_size=290)
    stop_packing(directory, other if damage == "other tokenizer" else tokenizer, 40, "d" if "corpus" in damage else "c")
    partial = directory / "train.bin.partial"
    if damage == "bytes":
        partial.write_bytes(b"\x07" + partial.read_bytes()[1:])
    elif damage == "state":
        (directory / "packing.json").write_text("{}")
    elif damage == "missing":
        partial.unlink()
    encoded = counted(monkeypatch)
    write(directory, tokenizer)
    assert snapshot(directory) == snapshot(tmp_path / "straight")
    assert sorted(encoded) == sorted(TEXTS)


@pytest.mark.parametrize(("renamed", "indices"), [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2)])
def test_pack_source_killed_while_it_names_its_files_only_names_the_rest(
    renamed: int, indices: int, tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = write(tmp_path / "straight", tokenizer)
    calls = 0
    originals = {"replace": Path.replace, "write_json": pack.write_json}

    def limited(name: str, allowed: int) -> Callable[..., object]:
        def call(path: Path, *rest: object) -> object:
            nonlocal calls
            if name == "replace" or path.name != "packing.json":
                calls += 1
                if calls > allowed:
                    raise KeyboardInterrupt
            return originals[name](path, *rest)

        return call

    with monkeypatch.context() as patch:
        if renamed < 2:
            # the state's own file is renamed once before
            patch.setattr(Path, "replace", limited("replace", 1 + renamed))
        else:
            patch.setattr(pack, "write_json", limited("write_json", indices))
        if indices < 2:
            with pytest.raises(KeyboardInterrupt):
                write(tmp_path / "killed", tokenizer)
        else:
            write(tmp_path / "killed", tokenizer)
    encoded = counted(monkeypatch)
    assert write(tmp_path / "killed", tokenizer) == made
    assert snapshot(tmp_path / "killed") == snapshot(tmp_path / "straight")
    assert encoded == [] or indices == 2


@pytest.mark.parametrize("provenance", ["proxy", "synthetic"])
def test_pack_source_marks_where_a_text_comes_from(
    provenance: Literal["proxy", "synthetic"], tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    pack_source(sided(), directory=tmp_path, source="s", tokenizer=tokenizer, corpus_hash="c", provenance=provenance)
    assert {open_shard(tmp_path, split).index.provenance for split in SPLITS} == {provenance}
    assert read_packed(tmp_path, tokenizer=tokenizer, corpus_hash="c") is None
    assert read_packed(tmp_path, tokenizer=tokenizer, corpus_hash="c", provenance=provenance) is not None


def test_open_shard_of_an_index_without_provenance_takes_it_for_original(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    write(tmp_path, tokenizer)
    index = json.loads((tmp_path / "train.json").read_text())
    del index["provenance"]
    (tmp_path / "train.json").write_text(json.dumps(index))
    assert open_shard(tmp_path, "train").index.provenance == "original"


def test_pack_source_into_a_place_that_cannot_be_written_is_refused(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="must be writable"):
        write(tmp_path / "file" / "below", tokenizer)


def test_pack_source_on_a_full_disk_fails_the_run_and_leaves_no_shard(
    tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, text: str, token_ids: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pack._Writer, "add", full)
    with pytest.raises(RunFailedError, match="disk must have room"):
        write(tmp_path, tokenizer)
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".json")]


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
