"""Shards that are not what their index says, or not of one tokenizer."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from cptplan.errors import DataError
from cptplan.files import write_json
from executor.corpus import verify
from executor.corpus.pack import ShardIndex, TokenShard, open_shard, require_tokens
from executor.corpus.verify import require_one_tokenizer, verify_shard


def index(tokens: np.ndarray, **changes: object) -> ShardIndex:
    values = {
        "source": "s",
        "split": "train",
        "dtype": tokens.dtype.name,
        "num_tokens": len(tokens),
        "num_documents": 1,
        "num_bytes": 1,
        "eos_token_id": 0,
        "vocab_size": 100,
        "tokenizer_hash": "t",
        "corpus_hash": "c",
        "sha256": hashlib.sha256(tokens.tobytes()).hexdigest(),
        **changes,
    }
    return ShardIndex(**values)  # type: ignore[arg-type]


def write(directory: Path, tokens: np.ndarray, **changes: object) -> TokenShard:
    tokens.tofile(directory / "train.bin")
    write_json(directory / "train.json", index(tokens, **changes).to_json())
    return open_shard(directory, "train")


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("size", [0, 1, 5000])
def test_verify_shard_lets_a_good_one_pass(
    dtype: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "_BLOCK_BYTES", 512)
    tokens = np.random.default_rng(0).integers(0, 100, size).astype(dtype)
    verify_shard(write(tmp_path, tokens))


@pytest.mark.parametrize("place", [0, 700, 4999])
def test_verify_shard_finds_any_changed_byte(place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_BLOCK_BYTES", 512)
    tokens = np.random.default_rng(0).integers(0, 99, 5000).astype(np.uint16)
    shard = write(tmp_path, tokens)
    tokens[place] += 1
    tokens.tofile(shard.path)
    with pytest.raises(DataError, match=r"must have the SHA-256 \w{12} of its index; got \w{12} in .*train\.bin.*hint"):
        verify_shard(shard)


@pytest.mark.parametrize("place", [0, 700, 4999])
@pytest.mark.parametrize("sha256", ["", None])
def test_verify_shard_finds_any_id_outside_the_vocabulary(
    place: int, sha256: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "_BLOCK_BYTES", 512)
    tokens = np.zeros(5000, dtype=np.uint32)
    tokens[place] = 100
    shard = write(tmp_path, tokens, **({} if sha256 is None else {"sha256": sha256}))
    with pytest.raises(DataError, match=r"below the vocabulary's size of 100; got 100 in .*train\.bin.*hint"):
        verify_shard(shard)


def test_verify_shard_of_a_file_that_went_away_is_refused(tmp_path: Path) -> None:
    shard = write(tmp_path, np.zeros(5, dtype=np.uint16))
    shard.path.unlink()
    with pytest.raises(DataError, match=r"must be readable; got No such file"):
        verify_shard(shard)


def test_require_one_tokenizer_names_the_two_that_differ() -> None:
    tokens = np.zeros(1, dtype=np.uint16)
    same = {name: index(tokens) for name in ("general", "law")}
    unknown = {"toy": index(tokens, tokenizer_hash="")}
    require_one_tokenizer({})
    require_one_tokenizer({**unknown, **same})
    with pytest.raises(DataError, match=r"of one tokenizer; got t for general and u for medicine\..*hint"):
        require_one_tokenizer({**unknown, **same, "medicine": index(tokens, tokenizer_hash="u")})


def test_empty_validation_set_is_refused(tmp_path: Path) -> None:
    shard = write(tmp_path, np.zeros(0, dtype=np.uint16), split="train")
    verify_shard(shard)
    with pytest.raises(DataError, match=r"at least 17 train tokens for the validation set; got 0 of source 's'"):
        require_tokens(shard, 17, "the validation set")
